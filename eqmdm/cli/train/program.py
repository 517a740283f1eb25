"""Train a diffusion model, evaluate its likelihood bound and draw samples."""

import contextlib
import math
import sys

import eqmdm

from .. import build
from ..errors import clean_errors, clean_file_errors
from ..preemption import PREEMPTED, Preemption
from ..processes import is_first
from .final_evaluation import stages
from .loop import StepError, train_steps
from .options import ResolvedTrainOptions, TrainOptions
from .progress import Progress
from .records import Records
from .setup import Setup, closed_at_the_end, set_up


def run(options: TrainOptions) -> None:
    with clean_file_errors(), contextlib.ExitStack() as on_exit:
        with clean_errors(options):
            setup = set_up(options, on_exit)
        print(setup.title, flush=True)
        preemption = Preemption()
        on_exit.callback(preemption.close)
        # Before the signals have their own effect again, which would cut it off.
        on_exit.enter_context(closed_at_the_end(setup.run))
        records = Records(
            setup.run.run_dir / "metrics.jsonl",
            up_to=int(setup.state.step),
            writes=is_first(),
        )
        state = train(setup, records, preemption)
        preemption.finish(stages(setup, state, records))
        files = (path.name for path in setup.run.run_dir.iterdir())
        print(f"written: {', '.join(sorted(f for f in files if f[0] != '.'))}")


def train(setup: Setup, records: Records, preemption: Preemption) -> eqmdm.TrainState:
    """The state after the last step.

    The program ends here where a signal has stopped it or a step has failed.
    """
    options, start = setup.options, int(setup.state.step)
    # Logging and checkpoints happen between calls.
    n_inner = math.gcd(
        options.steps, options.log_every, options.steps - start, max_divisor(options)
    )
    # The bar is closed first: what is printed then begins on a line of its own.
    with (
        build.batches(
            options, setup.state, setup.objective, setup.dataset.train, n_inner
        ) as batches,
        Progress(setup, records, preemption) as progress,
    ):
        try:
            state = train_steps(
                setup.state,
                batches,
                setup.objective,
                setup.optimiser,
                progress,
                n_steps=options.steps,
                n_inner=n_inner,
                log_every=options.log_every,
                batch_size=options.batch_size,
                ema_decay=options.ema_decay,
            )
        except StepError as error:
            progress.close()
            sys.exit(_step_error(error, setup.run))
    if progress.stopped_at:
        print(progress.stopped_at)
        sys.exit(PREEMPTED)
    return state


def max_divisor(options: ResolvedTrainOptions) -> int:
    """A number whose divisors are the steps that a call may take."""
    return math.gcd(options.log_every, 1 if eqmdm.steps_per_call() == 1 else 2520)


def _step_error(error: StepError, run: eqmdm.Run) -> str:
    kept = f"that of step {run.steps[-1]} is kept" if run.steps else "there is none"
    return (
        f"error: {error}; stopped. No checkpoint was written since: {kept}. Try a "
        "lower --learning-rate, --diffusion-learning-rate or --clip."
    )
