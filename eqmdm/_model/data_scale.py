"""The scale of training data, which a denoiser is told."""

from typing import Any

import jax
import numpy as np

from .._core.checks import as_examples, check_points
from .._levels import AbstractTransform, ScaleTransform
from ..data._dataset import Dataset
from ..data._files import ImageFiles


# Decoding all images of files would take minutes; of these it is known to a thousandth.
_MOST_DECODED = 10_000


def data_scale(data: Any, transform: AbstractTransform | None = None) -> float:
    """The standard deviation about zero of training data as a network sees them.

    About zero rather than the mean, because the Gaussian of a preconditioned denoiser
    is centred there.

    **Arguments:**

    - `data`: a `Dataset`, of which the training split counts, or an array of points.
    - `transform`: of grey levels; by default [`eqmdm.ScaleTransform`][].

    **Raises:** `TypeError` for an array of integers.
    """
    if not isinstance(data, Dataset) or data.n_levels is None:
        points = as_examples("data", getattr(data, "train", data))
        check_points("data", points, "n_levels")
        return float(np.sqrt(np.mean(np.square(np.asarray(points, np.float64)))))
    train, n_levels = data.train, data.n_levels
    if isinstance(train, ImageFiles):
        order = np.random.RandomState(0).permutation(len(train))
        train = train[order[:_MOST_DECODED]]
    counts = np.bincount(np.ravel(train), minlength=n_levels)
    centres = (np.arange(n_levels, dtype=np.float32) + np.float32(0.5)) / n_levels
    transform = ScaleTransform() if transform is None else transform
    values = transform.forward(jax.device_put(centres.astype(np.float32)))
    return float(
        np.sqrt(np.average(np.asarray(values, np.float64) ** 2, weights=counts))
    )
