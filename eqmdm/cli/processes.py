"""Training in several processes, on JAX's own runtime."""

import os
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from .train.options import TrainOptions


def join(options: TrainOptions) -> None:
    """Wait for the other processes; then all see the devices of all.

    The first of them alone prints, but for errors.

    **Raises:**

    `ValueError` if it is not known where the others are.
    """
    given = options.coordinator, options.n_processes, options.process_index
    names = "`coordinator`, `n_processes` and `process_index`"
    if not options.distributed:
        if given != (None, None, None):
            raise ValueError(
                f"{names} must come with `distributed`; got {given} without it."
            )
        return
    if None in given and given != (None, None, None):
        raise ValueError(f"{names} must be given together, or none; got {given}.")
    try:
        jax.distributed.initialize(*given)
    # Without arguments where nothing in the environment stands in for them.
    except ValueError as error:
        raise ValueError(
            f"{names} must be given where there is no cluster that JAX knows; got none "
            f"({error}). The first of two takes --coordinator HOST:PORT, its host and "
            "a free port, with --n-processes 2 --process-index 0; the other the same "
            "with --process-index 1."
        ) from error
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def is_first() -> bool:
    return jax.process_index() == 0


def first_does(action: Callable[[], None]) -> None:
    """Do what one process has to do for all, while the others wait for it.

    Where it fails, the others end too.
    """
    if jax.process_count() == 1:
        return action()
    failed = False
    try:
        if is_first():
            action()
    except BaseException:
        failed = True
        raise
    finally:
        failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(failed)))
    if failed:
        sys.exit("error: the first process could not go on")


def any_process(flag: bool) -> bool:
    """Whether it is so in any of the processes, which wait for one another."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
