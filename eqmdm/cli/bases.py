"""The bases in which models are told the SNR of every coefficient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import eqmdm
from eqmdm._model.denoiser import basis_of as basis_of

from .train.options import TrainOptions


# So many examples give the principal components of images; decoding all files of a data
# set would take minutes.
_MOST_FITTED = 20_000


def build_basis(
    options: TrainOptions, shape: tuple[int, ...]
) -> eqmdm.AbstractBasis | None:
    """The basis of a run, or `None` for a denoiser that is told one SNR.

    Principal components are those of no data yet, which a checkpoint replaces.

    **Raises:** `ValueError` for a shape that has no such basis.
    """
    if options.snr == "scalar":
        return None
    if options.basis == "principal-components":
        n_dims = int(np.prod(shape))
        return eqmdm.PrincipalComponents(np.eye(n_dims, dtype=np.float32), shape)
    cls = {
        "pixels": eqmdm.PixelBasis,
        "haar": eqmdm.HaarBasis,
        "cosine": eqmdm.CosineBasis,
    }[options.basis]
    return cls(shape)


def fit_basis(
    options: TrainOptions, dataset: eqmdm.data.Dataset
) -> eqmdm.AbstractBasis | None:
    """The basis of a new run, fitted to its training data if it depends on them."""
    shape = tuple(dataset.shape)
    if options.snr == "scalar" or options.basis != "principal-components":
        return build_basis(options, shape)
    n_fitted = min(len(dataset.train), _MOST_FITTED)
    rows = np.random.RandomState(0).permutation(len(dataset.train))[:n_fitted]
    points = np.asarray(dataset.train[rows])
    if dataset.n_levels is not None:
        p = (points.astype(np.float32) + np.float32(0.5)) / dataset.n_levels
        p = jnp.asarray(p.astype(np.float32))
        points = np.asarray(transform_of(options).forward(p))
    return eqmdm.PrincipalComponents.fit(points.astype(np.float32))


def to_pixels(basis: eqmdm.AbstractBasis | None, x: Any) -> np.ndarray:
    """Examples, along the first axis, from their coefficients."""
    if basis is None or isinstance(basis, eqmdm.PixelBasis):
        return np.asarray(x)
    return np.asarray(jax.vmap(basis.inverse)(jnp.asarray(x)))


def transform_of(options: TrainOptions) -> eqmdm.AbstractTransform:
    """The transform of grey levels."""
    scale = options.transform == "scale"
    return eqmdm.ScaleTransform() if scale else eqmdm.LogitTransform()
