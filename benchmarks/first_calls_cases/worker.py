"""A worker that runs one first call and prints its cost as a line of JSON.

    python worker.py CASE API [N_EVALUATIONS]

Only the call of the case is measured; its arguments are made before.
"""

import importlib
import json
import sys
import time


_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


def import_references():
    import diffrax  # noqa: F401
    import equinox  # noqa: F401
    import jax  # noqa: F401
    import lineax  # noqa: F401
    import optax  # noqa: F401


def import_eqmdm():
    import eqmdm

    # Its names are loaded on first use.
    assert eqmdm.sample


_IMPORTS = {"import_references": import_references, "import_eqmdm": import_eqmdm}


def main(case: str, api: str, n_evaluations: int) -> dict:
    if case in _IMPORTS:
        start = time.process_time()
        _IMPORTS[case]()
        return {"seconds": time.process_time() - start, "programs": 0, "from_cache": 0}

    import jax
    import jax.monitoring

    counts = {_COMPILED: 0, _FROM_CACHE: 0}

    def count(event, *rest, **details):
        del rest, details
        if event in counts:
            counts[event] += 1

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(count)
    bare = importlib.import_module("bare")
    if hasattr(bare, case):
        arguments = (n_evaluations,) if n_evaluations else ()
        call = getattr(bare, case)(*arguments)
    else:
        call = getattr(importlib.import_module(api), case)()
    counts.update(dict.fromkeys(counts, 0))
    start = time.process_time()
    result = call()
    jax.block_until_ready(result)
    seconds = time.process_time() - start
    measured = {
        "seconds": seconds,
        "programs": counts[_COMPILED],
        "from_cache": counts[_FROM_CACHE],
    }
    if hasattr(result, "n_evaluations"):
        measured["n_evaluations"] = int(result.n_evaluations)
    return measured


if __name__ == "__main__":
    case, api, *rest = sys.argv[1:]
    print(json.dumps(main(case, api, int(rest[0]) if rest else 0)))
