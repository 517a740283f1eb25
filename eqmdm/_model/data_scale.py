"""The scale of training data, for a preconditioned denoiser."""

from typing import Any

import jax
import numpy as np

from .._core.checks import as_examples, check_points
from .._levels import AbstractTransform, ScaleTransform
from ..data._dataset import Dataset
from ..data._files import ImageFiles


# Decoding all image files would take minutes; this many give the scale to a thousandth.
_MOST_DECODED = 10_000


def data_scale(data: Any, transform: AbstractTransform | None = None) -> float:
    """The root mean square of training data, in the units that the network sees.

    It is taken about zero, not the mean, because the Gaussian of a preconditioned
    denoiser is centred at zero.

    **Arguments:**

    - `data`: a `Dataset`, whose training split is used, or an array of points.
    - `transform`: the transform of grey levels; by default [`eqmdm.ScaleTransform`][].

    **Raises:** `TypeError` for an array of integers.
    """
    if not isinstance(data, Dataset) or data.n_levels is None:
        points = as_examples("data", getattr(data, "train", data))
        check_points("data", points, "n_levels")
        return float(np.sqrt(np.mean(np.square(np.asarray(points, np.float64)))))
    n_levels = data.n_levels
    counts = np.bincount(np.ravel(known_levels(data)), minlength=n_levels)
    centres = (np.arange(n_levels, dtype=np.float32) + np.float32(0.5)) / n_levels
    transform = ScaleTransform() if transform is None else transform
    values = transform.forward(jax.device_put(centres.astype(np.float32)))
    return float(
        np.sqrt(np.average(np.asarray(values, np.float64) ** 2, weights=counts))
    )


def known_levels(data: Dataset) -> np.ndarray:
    """The grey levels of the training split, or of many of its files."""
    train = data.train
    if isinstance(train, ImageFiles):
        order = np.random.RandomState(0).permutation(len(train))
        train = train[order[:_MOST_DECODED]]
    return np.asarray(train)
