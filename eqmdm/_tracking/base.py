"""The protocol of trackers, and the callback that sends training to one."""

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, final, runtime_checkable

import jax
import numpy as np

from .._core.estimate import Estimate
from .._training.loop import FitEvent


@runtime_checkable
class Tracker(Protocol):
    """A place that the progress of training is sent to.

    Any object with these three methods is a tracker. They are called in the first
    process only, in increasing steps.
    """

    def config(self, values: Mapping[str, Any], /) -> None:
        """Records the options of the run, as JSON data, before anything else. A resumed
        run records them again."""

    def scalars(self, step: int, values: Mapping[str, float], /) -> None:
        """Records finite numbers by name, such as `"train/loss"`."""

    def pictures(self, step: int, values: Mapping[str, np.ndarray], /) -> None:
        """Records pictures by name: uint8 arrays of shape (height, width, 3)."""


@final
class Tracking:
    """A callback of [`eqmdm.fit`][] and [`eqmdm.train`][] that sends training to a
    tracker.

    At each log interval it sends the mean of every metric as `train/NAME`, and at each
    validation the means and standard errors over examples as `validation/NAME` and
    `validation/NAME_standard_error`. Numbers that are not finite are left out, such as
    the standard error of one example. An error in the tracker does not stop the
    training: the first one is shown as a warning.

    It has the methods of a tracker too, with the same protection, for what your own
    callbacks record. Leaving its `with` statement closes a tracker that can be closed.

    !!! Example

        ```python
        tracker = eqmdm.TensorBoardTracker("runs/own/tensorboard")
        with eqmdm.Tracking(tracker) as tracking:
            eqmdm.fit(model, x, key=key, run_dir="runs/own", callbacks=[tracking])
        ```
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        config: Mapping[str, Any] | None = None,
        loss_name: str = "loss",
    ):
        """**Arguments:**

        - `tracker`: any object with the methods of [`eqmdm.Tracker`][].
        - `config`: the options of the run, as JSON data.
        - `loss_name`: the name for the metric `loss`, such as `"bits_per_dim"`.

        **Raises:** `TypeError` unless `tracker` has the three methods.
        """
        if not isinstance(tracker, Tracker) or isinstance(tracker, type):
            raise TypeError(
                "`tracker` must be an object with the methods `config`, `scalars` and "
                f"`pictures`; got {tracker!r}."
            )
        self._tracker, self._config = tracker, dict(config or {})
        self._loss_name = loss_name
        self._configured, self._has_failed = False, False

    def __call__(self, event: FitEvent) -> None:
        if event.kind == "log":
            assert event.metrics is not None and event.steps_per_second is not None
            means = {name: float(v.mean()) for name, v in event.metrics.items()}
            means = {self._name(name): value for name, value in means.items()}
            means["steps_per_second"] = event.steps_per_second
            self.scalars(event.step, _prefixed("train", means))
        elif event.kind == "validation":
            assert event.evaluation is not None
            summary = dict(event.evaluation.summary())
            summary[self._loss_name] = Estimate.from_mean(event.evaluation.loss)
            self.estimates(event.step, "validation", summary)

    def config(self, values: Mapping[str, Any]) -> None:
        self._config = dict(values)
        self._configured = True
        self._attempt(self._tracker.config, self._config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        # Trackers differ in what they make of numbers that are not finite.
        finite = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._configure()
        self._attempt(self._tracker.scalars, step, finite)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self._configure()
        self._attempt(self._tracker.pictures, step, values)

    def estimates(
        self, step: int, kind: str, summary: Mapping[str, tuple[float, float]]
    ) -> None:
        """Records means and standard errors, with names that start with `kind`."""
        values = {}
        for name, (mean, error) in summary.items():
            values |= {name: mean, f"{name}_standard_error": error}
        self.scalars(step, _prefixed(kind, values))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *error: Any) -> None:
        if isinstance(self._tracker, contextlib.AbstractContextManager):
            self._attempt(self._tracker.__exit__, *error)

    def _name(self, metric: str) -> str:
        return self._loss_name if metric == "loss" else metric

    def _configure(self) -> None:
        if not self._configured:
            self.config(self._config)

    def _attempt(self, method: Callable[..., Any], *arguments: Any) -> None:
        if jax.process_index() != 0:
            return
        try:
            method(*arguments)
        # Any exception: a tracker may fail in as many ways as there are packages, and
        # hours of training must not end because one cannot be reached.
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                warnings.warn(
                    f"{type(self._tracker).__name__} failed ({type(error).__name__}: "
                    f"{error}). Training goes on; further errors of this tracker are "
                    "not shown.",
                    stacklevel=3,
                )


def _prefixed(kind: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in values.items()}
