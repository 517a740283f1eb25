"""The directory of a training run: checked, locked, started or resumed."""

from collections.abc import Callable
from typing import Any

import eqmdm

from ..processes import first_does
from .options import ResolvedTrainOptions


def check(run: eqmdm.Run, options: ResolvedTrainOptions) -> None:
    if options.resume:
        run.read_options()
    elif run.exists:
        raise ValueError(
            f"`run_dir` must be new or empty; {run.run_dir} is neither. Continue its "
            "run with --resume, or choose another --run-dir."
        )


def claim(
    run: eqmdm.Run, options: ResolvedTrainOptions, start: Callable[[], None]
) -> None:
    """Lock the directory, and `start` a run in it unless one is resumed."""
    run.lock()
    # Another run may have started in the directory before the lock was held.
    check(run, options)
    if not options.resume:
        start()


def resume(run: eqmdm.Run, state: eqmdm.TrainState) -> Any:
    """The state in the newest readable checkpoint, for every process."""
    if not run.steps:
        print("no checkpoint yet: starting from the first step")
        return state
    restored = run.restore()
    for step, reason in restored.skipped.items():
        print(f"the checkpoint of step {step} cannot be read ({reason})")
    first_does(lambda: run.discard(restored.skipped))
    print(f"resuming from step {restored.step}")
    return restored.state(state)
