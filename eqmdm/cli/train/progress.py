"""The progress of a run: what is logged, validated and saved between steps."""

import time
from typing import Any

import numpy as np
from tqdm import tqdm

import eqmdm

from ..build import Purpose
from ..preemption import Preemption
from ..processes import is_first
from .loop import AbstractEvents
from .profile import Profile
from .records import Records, learned
from .setup import Setup


class Progress(AbstractEvents):
    """The events of the training loop: a bar, metrics.jsonl and checkpoints."""

    def __init__(
        self,
        setup: Setup,
        records: Records,
        preemption: Preemption,
    ):
        self._setup, self._records, self._preemption = setup, records, preemption
        options, start = setup.options, int(setup.state.step)
        self._bar: Any = tqdm(
            total=options.steps,
            initial=start,
            unit="step",
            mininterval=1,
            disable=not is_first(),
            # Without its own rate, which counts compilation.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}{postfix}]",
        )
        if start < options.steps:
            self._bar.set_description("compiling the first step")
        traced = options.profile and is_first()
        self._profile = Profile(setup.run.run_dir / "profile" if traced else None)
        self._clock = time.perf_counter()
        self.stopped_at = ""
        """The sentence to end with, if a signal has stopped the run."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._profile.stop()
        self._bar.close()

    def stop_requested(self, due: bool) -> str:
        return self._preemption.agreed(due)

    def after_interval(
        self,
        step: int,
        state: eqmdm.TrainState,
        values: dict[str, np.ndarray],
        stopped_by: str,
    ) -> eqmdm.TrainState:
        self._profile.stop()
        options = self._setup.options
        last = step == options.steps
        self._log(step, state, values)
        validated = None
        if step % options.validate_every == 0 or last:
            validated = self._validate(step, state)
        if step % options.checkpoint_every == 0 or last or stopped_by:
            self._setup.run.save(state, loss=validated)
        if stopped_by and not last:
            self.stopped_at = f"{stopped_by}: stopped with a checkpoint of step {step}"
        if not last:
            self._profile.start()
        self._clock = time.perf_counter()
        return state

    def _log(
        self, step: int, state: eqmdm.TrainState, values: dict[str, np.ndarray]
    ) -> None:
        n_averaged = len(values["loss"])
        rate = n_averaged / (time.perf_counter() - self._clock)
        record: dict[str, Any] = {"step": step}
        record |= self._named({k: float(v.mean()) for k, v in values.items()})
        record["steps_averaged"] = n_averaged
        if self._setup.options.diffusion == "learned":
            record |= learned(state.model.diffusion)
        self._records.add(record | {"steps_per_second": rate})
        loss = f"{record[self._setup.loss_name]:.3f} {self._setup.loss_unit}"
        self._bar.set_description("training")
        self._bar.set_postfix_str(f"{loss}, {rate:.1f} steps/s")
        self._bar.update(step - self._bar.n)

    def _validate(self, step: int, state: eqmdm.TrainState) -> float:
        setup, options = self._setup, self._setup.options
        evaluation = eqmdm.evaluate(
            state.ema_model,
            setup.dataset.validation[: options.validation_examples],
            setup.objective,
            key=setup.key(Purpose.VALIDATION),
            n_draws=options.validation_draws,
            batch_size=options.batch_size,
        )
        loss = eqmdm.Estimate.from_mean(evaluation.loss)
        summary = dict(evaluation.summary()) | {setup.loss_name: loss}
        self._records.add({"step": step, "validation": summary})
        mean, error = loss
        self._bar.write(
            f"step {step}: validation {mean:.4f} +- {error:.4f} {setup.loss_unit}"
        )
        return mean

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Metrics by the names that files have for them."""
        names = {"loss": self._setup.loss_name}
        return {names.get(name, name): value for name, value in values.items()}
