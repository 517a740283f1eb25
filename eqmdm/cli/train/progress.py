"""The progress of a run: logging, validation and checkpoints between steps."""

import time
from typing import Any

from tqdm import tqdm

import eqmdm

from ..build import Purpose
from ..preemption import Preemption
from ..processes import is_first
from .profile import Profile
from .records import Records, learned
from .setup import Setup


class Progress:
    """A callback of the training loop that shows a progress bar, writes metrics.jsonl
    and a profile, and stops training after a signal."""

    def __init__(self, setup: Setup, records: Records, preemption: Preemption):
        self._setup, self._records, self._preemption = setup, records, preemption
        options, start = setup.options, int(setup.state.step)
        self._bar: Any = tqdm(
            total=options.steps,
            initial=start,
            unit="step",
            mininterval=1,
            disable=not is_first(),
            # Without the bar's own rate, which includes compilation.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}{postfix}]",
        )
        if start < options.steps:
            self._bar.set_description("compiling the first step")
        traced = options.profile and is_first()
        self._profile = Profile(setup.run.run_dir / "profile" if traced else None)
        self._earlier_seconds = records.processor_seconds()
        self._n_logs = 0
        self.stopped_by = ""
        """The signal that stopped training; empty if there was none."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._profile.stop()
        self._bar.close()

    def __call__(self, event: eqmdm.FitEvent) -> bool:
        """Whether training must stop."""
        if event.kind == "step":
            self._profile.at_step()
            self.stopped_by = self._preemption.agreed(on_time=False)
        elif event.kind == "log":
            self._profile.at_log()
            self._log(event)
            self.stopped_by = self._preemption.agreed(on_time=True)
        elif event.kind == "validation":
            self._record_validation(event)
        return bool(self.stopped_by)

    def validate(self, state: eqmdm.TrainState) -> eqmdm.Evaluation:
        setup, options = self._setup, self._setup.options
        dataset, first = setup.dataset, slice(options.validation_examples)
        given = dataset.conditions
        return eqmdm.evaluate(
            state.ema_model,
            dataset.validation[first],
            setup.objective,
            key=setup.key(Purpose.VALIDATION),
            condition=None if given is None else given.validation[first],
            n_draws=options.validation_draws,
            batch_size=options.batch_size,
        )

    def _log(self, event: eqmdm.FitEvent) -> None:
        assert event.metrics is not None and event.steps_per_second is not None
        record: dict[str, Any] = {"step": event.step}
        means = {name: float(v.mean()) for name, v in event.metrics.items()}
        record |= self._named(means)
        record["steps_averaged"] = len(event.metrics["loss"])
        if self._setup.options.diffusion == "learned":
            record |= learned(event.state.model.diffusion)
        rate = event.steps_per_second
        record |= {"steps_per_second": rate}
        # Of all sittings of the run, with their compilation and validations.
        seconds = self._earlier_seconds + time.process_time()
        self._records.add(record | {"processor_seconds": seconds})
        loss = f"{record[self._setup.loss_name]:.3f} {self._setup.loss_unit}"
        self._bar.set_description("training")
        self._bar.set_postfix_str(f"{loss}, {rate:.1f} steps/s")
        self._bar.update(event.step - self._bar.n)
        self._n_logs += 1
        # The first interval includes compilation.
        if self._n_logs == 2 and event.step < event.steps:
            left = event.steps - event.step
            self._bar.write(
                f"{left} more steps at {rate:.1f} steps/s take "
                f"{_duration(left / rate)}, besides validations"
            )

    def _record_validation(self, event: eqmdm.FitEvent) -> None:
        assert event.evaluation is not None
        setup = self._setup
        loss = eqmdm.Estimate.from_mean(event.evaluation.loss)
        summary = dict(event.evaluation.summary()) | {setup.loss_name: loss}
        self._records.add({"step": event.step, "validation": summary})
        mean, error = loss
        self._bar.write(
            f"step {event.step}: validation {mean:.4f} +- {error:.4f} {setup.loss_unit}"
        )

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        """Metrics under the names that they have in files."""
        names = {"loss": self._setup.loss_name}
        return {names.get(name, name): value for name, value in values.items()}


def _duration(seconds: float) -> str:
    """A duration to two digits, in the largest unit of which there is one or more."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
