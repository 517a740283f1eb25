"""Operators of common observations: what is measured of the data.

Each function returns a Lineax operator for an [`eqmdm.LinearObservation`][]. With a
`basis` the operator takes the coefficients of pixels in that orthonormal basis, for
models of such coefficients. A basis is any object with the methods `forward`, from
pixels to coefficients, and `inverse`.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._core.checks import as_array, check_finite, check_shape, constant, is_known
from .pixel_operator import (
    Basis,
    BlurMap,
    DenseMap,
    DownsampleMap,
    FourierMap,
    MaskMap,
    PixelOperator,
    spatial_axes,
)


def mask(seen: Any, *, basis: Basis | None = None) -> PixelOperator:
    """The pixels where `seen` is true, as a vector in the order of `seen.reshape(-1)`.

    Diagonal in pixels. Masks with the same number of pixels share compiled programs.

    **Arguments:**

    - `seen`: truth values of the shape of one example.
    - `basis`: as for this module.

    **Raises:** `TypeError` unless `seen` holds truth values, which must be known when
    programs are traced; `ValueError` if none is true.
    """
    places = _places("seen", seen)
    return PixelOperator(MaskMap(places=constant(places), shape=np.shape(seen)), basis)


def downsample(
    shape: Iterable[int], factor: int, *, basis: Basis | None = None
) -> PixelOperator:
    """The means of blocks of `factor` by `factor` pixels, or of `factor` numbers of a
    vector.

    Diagonal in the Haar basis if `factor` is a power of 2.

    **Arguments:**

    - `shape`: the shape of one example: height, width and channels, or a length.
    - `factor`: the side of a block, which must divide height and width.
    - `basis`: as for this module.

    **Raises:** `ValueError` for a factor that is not an integer of at least 2, or does
    not divide the sides.
    """
    shape = check_shape(shape)
    axes = spatial_axes(shape)
    sides = tuple(shape[axis] for axis in axes)
    is_factor = isinstance(factor, int | np.integer) and factor >= 2
    if not is_factor or any(side % factor for side in sides):
        raise ValueError(
            f"`factor` must be an integer of at least 2 that divides the sides {sides} "
            f"of one example; got {factor}. Crop or pad the data first."
        )
    rest = len(shape) - len(axes)
    factors = (int(factor),) * len(axes) + (1,) * rest
    return PixelOperator(DownsampleMap(shape=shape, factors=factors), basis)


def blur(
    shape: Iterable[int], std: float, *, basis: Basis | None = None
) -> PixelOperator:
    r"""The convolution of height and width with a normal density, around the edges.

    Diagonal in the Fourier basis, with entries $e^{-\omega^2 s^2 / 2}$ for frequencies
    $\omega$ per pixel.

    **Arguments:**

    - `shape`: the shape of one example: height, width and channels, or a length.
    - `std`: $s$, the standard deviation of the density in pixels.
    - `basis`: as for this module.

    **Raises:** `ValueError` unless `std` is positive and finite.
    """
    shape = check_shape(shape)
    if not 0 < std < np.inf:
        raise ValueError(
            "`std` must be positive and finite, a standard deviation in pixels; got "
            f"{std}."
        )
    matrices = tuple(
        constant(_circulant(shape[axis], float(std))) for axis in spatial_axes(shape)
    )
    return PixelOperator(BlurMap(matrices=matrices, shape=shape), basis)


def fourier(seen: Any, *, basis: Basis | None = None) -> PixelOperator:
    r"""Some Fourier coefficients over height and width, as real numbers.

    With $X = $ `numpy.fft.fft2(x, axes=(0, 1), norm="ortho")`, these are
    $\mathrm{Re} X - \mathrm{Im} X$ where `seen` is true: convert measured complex
    coefficients in the same way. The transform is orthonormal, and together the numbers
    at $k$ and $-k$ hold the same information as the complex coefficient at $k$.

    Diagonal in the Fourier basis.

    **Arguments:**

    - `seen`: truth values of the shape of one example, in the order of `fft2`.
    - `basis`: as for this module.

    **Raises:** `TypeError` unless `seen` holds truth values; `ValueError` if none is
    true, or if only one of the frequencies $k$ and $-k$ is seen.
    """
    places = _places("seen", seen)
    seen = np.asarray(seen)
    axes = spatial_axes(seen.shape)
    mirrored = np.roll(np.flip(seen, axes), 1, axes)
    if (mirrored != seen).any():
        raise ValueError(
            "`seen` must be the same at the frequencies k and -k, which hold one "
            "complex coefficient and its conjugate. Take `seen | np.roll(np.flip(seen, "
            "(0, 1)), 1, (0, 1))`."
        )
    return PixelOperator(FourierMap(places=constant(places), shape=seen.shape), basis)


def dense(
    matrix: Any, shape: Iterable[int], *, basis: Basis | None = None
) -> PixelOperator:
    """A matrix times one example as a vector.

    **Arguments:**

    - `matrix`: the matrix, with a row for each observed number and a column for each
        number of an example, in the order of `x.reshape(-1)`.
    - `shape`: the shape of one example.
    - `basis`: as for this module.

    **Raises:** `ValueError` for a matrix of another shape, or that is not finite.
    """
    shape = check_shape(shape)
    values = as_array("matrix", matrix)
    size = int(np.prod(shape))
    if values.ndim != 2 or values.shape[1] != size or len(values) == 0:
        raise ValueError(
            f"`matrix` must have rows of {size} numbers, one for each of an example of "
            f"shape {shape}; got shape {values.shape}."
        )
    check_finite("matrix", values)
    values = values.astype(jnp.result_type(float))
    values = constant(values) if isinstance(values, np.ndarray) else values
    return PixelOperator(DenseMap(matrix=values, shape=shape), basis)


def _places(name: str, seen: Any) -> np.ndarray:
    seen = np.asarray(seen) if is_known(seen) else seen
    if not isinstance(seen, np.ndarray) or seen.dtype != np.bool_:
        raise TypeError(
            f"`{name}` must be an array of truth values that are known when programs "
            f"are traced; got {type(seen).__name__} of dtype {seen.dtype}."
        )
    if not seen.any():
        raise ValueError(
            f"`{name}` must be true somewhere: nothing is observed otherwise, and the "
            "model itself serves."
        )
    return np.flatnonzero(seen).astype(np.int32)


def _circulant(n: int, std: float) -> np.ndarray:
    frequency = 2 * np.pi * np.fft.fftfreq(n)
    column = np.fft.ifft(np.exp(-0.5 * (std * frequency) ** 2)).real
    places = np.arange(n)
    return column[(places[:, None] - places[None]) % n]
