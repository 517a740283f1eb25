"""The program `eqmdm train`: training, the final evaluation and an orderly exit."""

import contextlib
import sys

import equinox as eqx

import eqmdm

from .. import build
from ..errors import clean_errors, clean_file_errors, runtime_message
from ..fields import with_option_names
from ..preemption import PREEMPTED, Preemption
from ..processes import is_first
from .final_evaluation import stages
from .options import TrainOptions
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
        # Before signals have their default effect again, which could interrupt it.
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

    The program exits here if a signal stopped it or a step failed.
    """
    options = setup.options
    data = build.training_data(options, setup.objective, setup.dataset)
    conditions = setup.dataset.conditions
    # The bar is closed first, so that later output starts on a new line.
    with Progress(setup, records, preemption) as progress:
        try:
            state = eqmdm.train(
                setup.state,
                data,
                setup.objective,
                setup.optimiser,
                steps=options.steps,
                batch_size=options.batch_size,
                condition=None if conditions is None else conditions.train,
                ema_decay=options.ema_decay,
                log_every=options.log_every,
                validate=progress.validate,
                validate_every=options.validate_every,
                run=setup.run,
                checkpoint_every=options.checkpoint_every,
                callbacks=[progress, *setup.trackings],
            )
        except (FloatingPointError, eqx.EquinoxRuntimeError) as error:
            progress.close()
            sys.exit(f"error: {_step_error(error)}")
    if progress.stopped_by and int(state.step) < options.steps:
        print(
            f"{progress.stopped_by}: stopped with a checkpoint of step "
            f"{int(state.step)}"
        )
        sys.exit(PREEMPTED)
    return state


def _step_error(error: Exception) -> str:
    if isinstance(error, FloatingPointError):
        return with_option_names(str(error), TrainOptions)
    return " ".join([runtime_message(error), *error.__notes__])
