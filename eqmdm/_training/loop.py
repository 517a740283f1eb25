"""The training loop: steps, logging, validation and checkpoints."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, final

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import PyTree

from .._core.checks import check_count
from .._model.base import check_conditions
from .evaluate import Evaluation
from .examples import Batches, TrainingSet
from .objective import Objective
from .run import Run
from .state import TrainState
from .step import train_step
from .stream import BatchStream, ExampleSource


@final
@dataclasses.dataclass(frozen=True)
class FitEvent:
    """The argument of the callbacks of [`eqmdm.fit`][].

    !!! Example

        Stop training, with a checkpoint, once the last three validation losses were all
        above the best one; [`eqmdm.Every`][] has another example.

        ```python
        losses = []

        def stop_early(event):
            if event.kind == "validation":
                losses.append(event.evaluation.loss.mean())
                return len(losses) > 3 and min(losses[-3:]) > min(losses)

        model = eqmdm.fit(model, x, key=key, validation=y, callbacks=[stop_early])
        ```

        A resumed run calls the callback as a new one would: the losses before the
        interruption are not in its list.

    - `kind`: `"step"` between calls of `train_step`, while the device is busy; `"log"`
        after each log interval; `"validation"` after each validation; `"end"` once,
        after all of these and the last checkpoint.
    - `step`: the number of steps taken.
    - `steps`: the number of steps at the end of training.
    - `state`: the training state. The next step donates its buffers, so copy any arrays
        that must outlive the callback.
    - `metrics`: at `"log"`, the metrics of [`eqmdm.train_step`][], with one entry for
        each step since the last `"log"`.
    - `steps_per_second`: at `"log"`, the rate since the last `"log"`.
    - `evaluation`: at `"validation"`, the bound on the validation examples with
        averaged parameters.
    """

    kind: Literal["step", "log", "validation", "end"]
    step: int
    steps: int
    state: TrainState
    metrics: dict[str, np.ndarray] | None = None
    steps_per_second: float | None = None
    evaluation: Evaluation | None = None


Callback: TypeAlias = Callable[[FitEvent], Any]


@final
@dataclasses.dataclass(frozen=True)
class Every:
    """A callback that calls another after every `n`-th step, with a `"step"` event.

    !!! Example

        Draw samples every 500 steps, and stop training once they are close to `y`:

        ```python
        def measure(event):
            model = event.state.ema_model
            x = eqmdm.sample(model, (2,), key=key, n_samples=len(y))
            return eqmdm.sliced_wasserstein(x, y, key=key) < 0.05

        model = eqmdm.fit(model, x, key=key, callbacks=[eqmdm.Every(500, measure)])
        ```

    - `n`: the number of steps. Multiples of it count from the first step of the run, so
        a resumed run calls at the same steps.
    - `callback`: as for [`eqmdm.fit`][]; a true value stops training, after a
        checkpoint. Its time counts in `steps_per_second`.

    Raises `ValueError` if `n` is below 1.
    """

    n: int
    callback: Callback

    def __post_init__(self):
        check_count("n", self.n)

    def __call__(self, event: FitEvent) -> Any:
        if event.kind == "step" and event.step % self.n == 0:
            return self.callback(event)
        return False


def steps_per_call(backend: str | None = None) -> int:
    """The largest useful number of steps in one call of `train_step`.

    It is 1 on a CPU, where XLA runs the reverse-mode derivatives of convolutions about
    twenty times slower inside a compiled loop. Elsewhere the loop hides the cost of
    dispatch.
    """
    return 1 if (backend or jax.default_backend()) == "cpu" else 10


def train(
    state: TrainState,
    data: TrainingSet | ExampleSource,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    condition: PyTree = None,
    ema_decay: float = 0.999,
    log_every: int = 100,
    validate: Callable[[TrainState], Evaluation] | None = None,
    validate_every: int = 1000,
    run: Run | None = None,
    checkpoint_every: int = 1000,
    callbacks: Sequence[Callback] = (),
) -> TrainState:
    """The training state after `steps` steps in total, or when a callback stops it.

    This is the loop of [`eqmdm.fit`][], for your own state, objective and devices.
    Logging, validation and checkpoints happen between calls of [`eqmdm.train_step`][].
    There is also a log event before each validation and checkpoint, so that a resumed
    run has the same log intervals as an uninterrupted one.

    **Arguments:**

    - `state`: the training state, at any step. Its buffers are donated.
    - `data`: the training examples, on the device or streamed.
    - `objective`, `optimiser`, `batch_size`, `ema_decay`: as for
        [`eqmdm.train_step`][].
    - `condition`: the conditions of a conditional model if the examples are streamed,
        one for each; a `TrainingSet` has its own.
    - `validate`: evaluates a state, every `validate_every` steps and at the end.
    - `run`: the run that saves a checkpoint every `checkpoint_every` steps, at the end,
        and when a callback stops training.
    - `callbacks`: each is called with every `FitEvent`, and stops training by returning
        a true value. With several processes all must do so at the same `"log"` event.

    **Raises:**

    `FloatingPointError`, without another checkpoint, if a metric is not finite;
    `equinox.EquinoxRuntimeError`, with a note of the step, if a check in it fails.
    """
    if isinstance(data, TrainingSet):
        condition = data.condition
    check_conditions(state.model, condition)
    step = int(state.step)
    every = [log_every, checkpoint_every] + ([validate_every] if validate else [])
    # A call of `train_step` also ends where a callback is due.
    called = [callback.n for callback in callbacks if isinstance(callback, Every)]
    n_inner = _steps_per_call(steps, step, *every, *called)
    stop = False

    def tell(kind: Any, **values: Any) -> None:
        nonlocal stop
        event = FitEvent(kind, step, steps, state, **values)
        # Call all of them, even if one stops training.
        stop |= any([bool(callback(event)) for callback in callbacks])

    window = _Window(run)
    with _batches(state, data, condition, objective, batch_size, n_inner) as batches:
        while step < steps and not stop:
            with window.explaining(step):
                state, metrics = train_step(
                    state,
                    next(batches),
                    objective,
                    optimiser,
                    batch_size=batch_size,
                    n_inner=n_inner,
                    ema_decay=ema_decay,
                )
            window.add(metrics)
            step += n_inner
            tell("step")
            due = lambda n: step == steps or step % n == 0  # noqa: B023
            if stop or any(due(n) for n in every):
                tell("log", **window.close(step))
                loss = None
                if validate is not None and due(validate_every):
                    evaluation = validate(state)
                    loss = float(evaluation.loss.mean())
                    tell("validation", evaluation=evaluation)
                if run is not None and (stop or due(checkpoint_every)):
                    run.save(state, loss=loss)
                window.reopen()
    tell("end")
    return state


def _steps_per_call(steps: int, start: int, *every: int) -> int:
    # The largest number for which every event falls between two calls.
    common = math.gcd(steps, start, *every)
    return max(n for n in range(1, steps_per_call() + 1) if common % n == 0)


@contextlib.contextmanager
def _batches(
    state: TrainState,
    data: TrainingSet | ExampleSource,
    condition: PyTree,
    objective: Objective,
    batch_size: int,
    n_inner: int,
) -> Iterator[Iterator[TrainingSet | Batches]]:
    if isinstance(data, TrainingSet):
        yield itertools.repeat(data)
        return
    counts = {"batch_size": batch_size, "n_inner": n_inner}
    with BatchStream(state, data, objective, condition=condition, **counts) as stream:
        yield stream


class _Window:
    """The metrics since the last log event."""

    def __init__(self, run: Run | None):
        self._run = run
        self.reopen()

    def reopen(self) -> None:
        # Neither validation nor checkpoints count as training time.
        self._metrics, self._start = [], time.perf_counter()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        # They stay on the device, so that the host does not wait here.
        self._metrics.append(metrics)

    def close(self, step: int) -> dict[str, Any]:
        """The fields of a log event."""
        parts = jax.device_get(self._metrics)
        values = {name: np.concatenate([m[name] for m in parts]) for name in parts[0]}
        self._check_finite(values, step)
        seconds = time.perf_counter() - self._start
        return {"metrics": values, "steps_per_second": len(values["loss"]) / seconds}

    @contextlib.contextmanager
    def explaining(self, step: int) -> Iterator[None]:
        """Reports a non-finite metric rather than its consequence, the checks that
        non-finite parameters fail inside the next step."""
        try:
            yield
        except eqx.EquinoxRuntimeError as error:
            if self._metrics:
                self.close(step)
            error.add_note(f"This was in training step {step + 1}.")
            raise

    def _check_finite(self, values: dict[str, np.ndarray], step: int) -> None:
        first = step - len(values["loss"]) + 1
        # Check the terms before their sum, so that the error names the cause.
        names = sorted(values, key=lambda name: name in ("loss", "grad_norm"))
        wrong = [(int(np.argmin(np.isfinite(values[n]))), n) for n in names]
        wrong = [(i, n) for i, n in wrong if not np.isfinite(values[n][i])]
        if not wrong:
            return
        index, name = min(wrong, key=lambda entry: entry[0])
        kept = ""
        if self._run is not None:
            saved = self._run.steps
            kept = f" The checkpoint of step {saved[-1]} is kept." if saved else ""
        raise FloatingPointError(
            f"At step {first + index} the {name.replace('_', ' ')} became "
            f"{values[name][index]}; training has stopped.{kept} Try a lower "
            "`learning_rate` or a lower `clip`."
        )
