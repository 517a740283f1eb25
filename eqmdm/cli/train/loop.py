"""The training loop."""

import abc
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

import eqmdm

from ..errors import runtime_message


class StepError(Exception):
    """A step whose values are not finite, or that a check inside it has stopped."""


class AbstractEvents(abc.ABC):
    """What happens between steps."""

    @abc.abstractmethod
    def stop_requested(self, due: bool) -> str:
        """The reason to stop, if there is one; `due`: whether a log interval ends."""

    @abc.abstractmethod
    def after_interval(
        self,
        step: int,
        state: eqmdm.TrainState,
        values: dict[str, np.ndarray],
        stopped_by: str,
    ) -> eqmdm.TrainState:
        """The state to go on with, given the metrics of the steps since the last call.

        Called where a log interval ends, and where training stops.
        """


def train_steps(
    state: eqmdm.TrainState,
    batches: Iterator[Any],
    objective: eqmdm.Objective,
    optimiser: optax.GradientTransformation,
    events: AbstractEvents,
    *,
    n_steps: int,
    n_inner: int,
    log_every: int,
    batch_size: int,
    ema_decay: float,
) -> eqmdm.TrainState:
    """The state after `n_steps` steps in all, or where `events` has stopped it.

    `n_inner` steps are taken in a call; it must divide what is left and `log_every`.

    **Raises:** `StepError` where a metric is not finite or a check inside a step fails.
    """
    step, window = int(state.step), []
    while step < n_steps:
        try:
            state, metrics = eqmdm.train_step(
                state,
                next(batches),
                objective,
                optimiser,
                batch_size=batch_size,
                n_inner=n_inner,
                ema_decay=ema_decay,
            )
        except eqx.EquinoxRuntimeError as error:
            # Parameters that are not finite set such a check off too: what made them
            # so is the better message.
            if window:
                check_finite(_concatenated(window), step)
            raise StepError(f"at step {step + 1}: {runtime_message(error)}") from error
        window.append(metrics)
        step += n_inner
        due = step == n_steps or step % log_every == 0
        stopped_by = events.stop_requested(due)
        if not due and not stopped_by:
            continue
        # The only place where the host waits for the device.
        values = _concatenated(window)
        check_finite(values, step)
        state = events.after_interval(step, state, values, stopped_by)
        window = []
        if stopped_by:
            break
    return state


def check_finite(values: dict[str, np.ndarray], step: int) -> None:
    """**Raises:** `StepError` that names the first metric, of those up to `step`, that
    is not finite."""
    first = step - len(values["loss"]) + 1
    # The terms before their sum.
    names = sorted(values, key=lambda name: name in ("loss", "grad_norm"))
    wrong = [(int(np.argmin(np.isfinite(values[n]))), n) for n in names]
    wrong = [(i, n) for i, n in wrong if not np.isfinite(values[n][i])]
    if wrong:
        index, name = min(wrong, key=lambda found: found[0])
        raise StepError(
            f"at step {first + index} the {name.replace('_', ' ')} became "
            f"{values[name][index]}"
        )


def _concatenated(window: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """The metrics of several calls of `train_step`, on the host."""
    values = jax.device_get(window)
    return {name: np.concatenate([m[name] for m in values]) for name in values[0]}
