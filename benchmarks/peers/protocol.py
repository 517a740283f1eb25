"""The protocol of driver and workers: JSON lines on standard input and output.

It uses the standard library alone, which every environment has. The worker first sends
its facts and cases; then it answers each request with one line.

| request | answer |
| --- | --- |
| `prepare` a case | the times of its first call, the calls per repeat, facts |
| `repeat` a case | the times of one call, averaged over a repeat |
| `check` a case | the errors of its results |
| `forget` a case | nothing |

Times are `wall_seconds` and `cpu_seconds`; the latter cover all threads of the process,
and other programs on the machine hardly change them. A case is named by its `task`,
which workers share, and its `variant`. A failure is answered with `error`, a traceback,
and the worker continues.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass
class Case:
    """A case to time.

    - `call`: runs it once, and returns when all work is done.
    - `facts`: other facts about it, such as its number of parameters.
    - `check`: measures the errors of its results; not timed.
    """

    call: Callable[[], Any]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    check: Callable[[], dict[str, Any]] | None = None


Build = Callable[[dict[str, Any]], Case]


def serve(cases: Mapping[tuple[str, str], Build], facts: dict[str, Any]) -> None:
    """Answer requests until the input ends.

    **Arguments:**

    - `cases`: for each task and variant, a function that builds the case from the
        driver's settings.
    - `facts`: facts about the worker, such as versions.
    """
    # Output that libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    answer(facts | {"cases": [list(name) for name in cases]})
    ready: dict[tuple[str, str], tuple[Case, int]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["task"], request["variant"]
        try:
            answer(_respond(request, name, cases, ready))
        except Exception:
            # Any exception of a peer is a result, for its row of the table.
            answer({"error": traceback.format_exc()})


def _respond(request, name, cases, ready) -> dict[str, Any]:
    do = request["do"]
    if do == "prepare":
        case = cases[name](request["settings"])
        first = _times(case.call, 1)
        aim = request["settings"]["repeat_seconds"]
        once = _times(case.call, 1)["cpu_seconds"]
        if once < aim:
            # Some compile again when they receive their own results.
            once = _times(case.call, 1)["cpu_seconds"]
        n_calls = max(1, round(aim / once))
        ready[name] = case, n_calls
        return {"first_call": first, "n_calls": n_calls, "facts": case.facts}
    if do == "forget":
        ready.pop(name, None)
        return {}
    case, n_calls = ready[name]
    if do == "check":
        return case.check() if case.check else {}
    assert do == "repeat"
    return _times(case.call, n_calls)


def _times(call: Callable[[], Any], n_calls: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(n_calls):
        call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_seconds": wall / n_calls, "cpu_seconds": cpu / n_calls}


class Worker:
    """The driver's handle of a worker process."""

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            text=True,
        )
        self.facts = self._read()
        self.cases = [tuple(name) for name in self.facts.pop("cases", [])]

    def ask(self, do: str, task: str, variant: str, **more: Any) -> dict[str, Any]:
        """The worker's answer, with an `error` if the request failed."""
        request = {"do": do, "task": task, "variant": variant} | more
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._gone()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._gone()

    def _gone(self) -> dict[str, Any]:
        return {"error": f"the worker exited with status {self._process.wait()}"}
