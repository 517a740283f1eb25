"""The code of several pages in one process: what the quick tests run of them.

PYTHONPATH=docs python -m toolchain.quick PAGE PAGE ...
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import jax

from .cache import ROOT
from .execution import execute


def run(pages: list[str]) -> None:
    """Runs pages of `docs`, each in a namespace of its own, and keeps no result.

    Prints the processor seconds of each.
    """
    # Most of the time goes into compilation, which is faster without optimisations.
    jax.config.update("jax_disable_most_optimizations", True)
    for name in pages:
        start = time.process_time()
        # A page may change the directory that it runs in.
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(ROOT):
            execute(ROOT / "docs" / name, Path(directory))
        print(f"{name:36} {time.process_time() - start:6.1f} s", flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
