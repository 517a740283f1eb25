"""Training in several processes, on JAX's own runtime."""

import os
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from .train.options import TrainOptions


def join(options: TrainOptions) -> None:
    """Connect to the other processes, after which each sees the devices of all.

    Only the first process prints, except for errors.

    **Raises:**

    `ValueError` if the addresses of the others are not known.
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
    # No arguments were given, and the environment does not supply them.
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
    """Run an action in the first process while the others wait.

    If it fails, the others exit too.
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
        sys.exit("error: the first process failed")


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
