"""The averaged parameters of a run, of a length chosen after training."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._core.checks import check_count
from .._model.base import AbstractModel
from .checkpoint import fill, named_arrays
from .load import structure
from .profiles import LENGTHS, profile_exponent, reconstruction_weights
from .run import Run
from .snapshots import read_snapshot, snapshot_steps


# The relative error of a profile above which a warning tells of it.
_LARGE_ERROR = 0.1


def posthoc_ema(
    run_dir: str | os.PathLike,
    length: float,
    *,
    step: int | None = None,
    like: AbstractModel | Callable[[dict[str, Any]], AbstractModel] | None = None,
) -> AbstractModel:
    r"""The model of a run with averaged parameters, of a length chosen after training.

    The run must have been trained with `ema_profiles`, which keeps two running averages
    and stores them with each checkpoint. The parameters are the combination of all that
    are stored whose weighting of the training is closest to $\tau^\gamma$ up to `step`.

    **Arguments:**

    - `run_dir`: the directory of the run.
    - `length`: the standard deviation of the weighting as a fraction of `step`, such as
        0.05; above 0 and below 0.288, that of a uniform average. Lengths below the
        distance of two snapshots are not resolved.
    - `step`: the last step that has weight; by default that of the last snapshot.
    - `like`: as for [`eqmdm.load_run`][].

    **Raises:**

    `ValueError` if there is no run or no snapshot up to `step`, for a length outside of
    the range, or as [`eqmdm.load_run`][] does. Warns if the closest weighting differs
    from the one asked for by more than a tenth of its norm.

    **Source:** Karras et al. (2024), section 3, arXiv 2312.02696.
    """
    exponent = profile_exponent(length)
    run = Run(run_dir)
    record = run.read_options()
    steps = snapshot_steps(run.run_dir)
    if step is not None:
        check_count("step", step)
        steps = [s for s in steps if s <= step]
    if not steps:
        raise ValueError(
            f"`run_dir` must hold snapshots of averages; {run.run_dir} has none"
            f"{'' if step is None else f' up to step {step}'}. Train with "
            "`ema_profiles` (`--ema-profiles`)."
        )
    step = steps[-1] if step is None else step
    weights, error = _weights(steps, step, exponent)
    if error > _LARGE_ERROR:
        warnings.warn(
            f"The {len(steps)} snapshots in {run.run_dir} approximate an average of "
            f"length {length:g} with an error of {error:.0%} of its norm. Choose a "
            "length closer to 0.05 to 0.10, or checkpoint more often.",
            stacklevel=2,
        )
    restored = run.restore()
    model = structure(run, record, like)
    arrays = named_arrays(restored.model(model, ema=False))
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, value in _combined(run.run_dir, steps, weights).items():
        if name not in arrays:
            raise ValueError(
                f"`run_dir` must hold snapshots of its model; {run.run_dir} has one "
                f"of {name}, which the model lacks."
            )
        arrays[name] = value.astype(arrays[name].dtype)
    return fill(model, arrays)


def profile_error(steps: list[int], length: float) -> float:
    """The relative error of the weighting that snapshots at these steps allow."""
    return _weights(steps, steps[-1], profile_exponent(length))[1]


def _weights(steps: list[int], step: int, exponent: float) -> tuple[np.ndarray, float]:
    """A row of weights for each snapshot, and the error of the profile."""
    exponents = [profile_exponent(length) for length in LENGTHS]
    weights, error = reconstruction_weights(
        np.repeat(steps, len(exponents)), exponents * len(steps), step, exponent
    )
    return weights.reshape(len(steps), len(exponents)), error


def _combined(
    run_dir: Path, steps: list[int], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The sum of all snapshots with their weights, in float64, by key path."""
    total: dict[str, Any] = {}
    for step, row in zip(steps, weights, strict=True):
        # One at a time: together they are many times as large as the model.
        for name, array in read_snapshot(run_dir, step).items():
            part = np.tensordot(row, array.astype(np.float64), 1)
            total[name] = total.get(name, 0.0) + part
    return total
