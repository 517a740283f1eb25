"""A program that test_distributed.py runs in each of two processes.

One of them is asked to stop in the first of two stages.
"""

import os
import signal
import sys

import jax

from eqmdm.cli.preemption import Preemption


def first():
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    print("first done")


def main(address, index):
    jax.distributed.initialize(address, 2, int(index))
    Preemption().finish({"first": first, "second": lambda: print("second done")})


main(*sys.argv[1:])
