"""Orthonormal bases of the data."""

import abc
import math
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._core.checks import as_examples, check_count, check_points, check_shape, constant
from ._core.noise_levels import NoiseLevelFeatures, NoiseLevelMaps, NoiseLevels
from ._core.types import Data


# The eigenvectors of a larger covariance take minutes, and the product with them takes
# longer than a network.
_MOST_FITTED = 4096


class AbstractBasis(eqx.Module):
    r"""An orthonormal basis of the data: coefficients $c = U x$, with $U U^\top = I$.

    A basis is linear, keeps the shape of the data, and does not change densities: its
    log-Jacobian is 0. A model whose data are coefficients may have another
    signal-to-noise ratio for each of them, and be given noisy observations of single
    ones. An [`eqmdm.Objective`][] rotates the data, and an
    [`eqmdm.PreconditionedDenoiser`][] shows its network pixels.

    It is no [`eqmdm.AbstractTransform`][], which maps each coordinate by itself. That
    is what gives grey levels their edges, and a rotation has none.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def forward(self, x: Data) -> Data:
        """The coefficients of one example."""

    @abc.abstractmethod
    def inverse(self, coefficients: Data) -> Data:
        """The example with these coefficients."""

    @property
    @abc.abstractmethod
    def bands(self) -> Int[np.ndarray, "..."]:
        """The number of the band of every coefficient, from 0, which has the most
        global ones; of the shape of the data."""

    @property
    @abc.abstractmethod
    def is_local(self) -> bool:
        """Whether neighbouring coefficients belong to neighbouring pixels."""

    @property
    @abc.abstractmethod
    def noise_levels(self) -> NoiseLevels:
        """How a network is told the noise level of every coefficient: the argument
        `noise_levels` of [`eqmdm.nn.UNet`][] and [`eqmdm.nn.MLP`][]."""

    def check(self, x: Data) -> Data:
        """Returns `x` if it has the shape of the basis.

        **Raises:** `ValueError` if it does not.
        """
        if x.shape != self.shape:
            raise ValueError(
                f"`x` must have the shape of the {type(self).__name__}, {self.shape}; "
                f"got {x.shape}. Batch with `jax.vmap`."
            )
        return x


@final
class PixelBasis(AbstractBasis):
    """The data themselves.

    **Arguments:**

    - `shape`: the shape of one example, of any number of axes.
    """

    shape: tuple[int, ...] = eqx.field(static=True, converter=check_shape)

    def forward(self, x: Data) -> Data:
        return self.check(x)

    def inverse(self, coefficients: Data) -> Data:
        return self.check(coefficients)

    @property
    def bands(self) -> Int[np.ndarray, "..."]:
        return np.zeros(self.shape, np.int32)

    @property
    def is_local(self) -> bool:
        return len(self.shape) > 1

    @property
    def noise_levels(self) -> NoiseLevels:
        return NoiseLevelMaps() if self.is_local else NoiseLevelFeatures()


@final
class HaarBasis(AbstractBasis):
    r"""Haar wavelets of images or series, channel by channel.

    At every scale, blocks of two pixels a side are replaced by their sum over
    $\sqrt{2}$ a side, which the next scale continues with, and by their differences.
    All coefficients stay at their places in the block: after $n$ scales, the one at a
    multiple of $2^n$ is the mean of its block of side $2^n$, times that side for images
    and times its square root for series.

    The bands are the scales, from the means (0) to the finest differences ($n$).

    **Arguments:**

    - `shape`: `(height, width, channels)` or `(length, channels)`.
    - `n_scales`: the number of scales, at least 1; by default as many as all sides can
        be halved.

    **Raises:** `ValueError` for another shape, or for too many scales.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    n_scales: int = eqx.field(static=True)

    def __init__(self, shape: Sequence[int], n_scales: int | None = None):
        self.shape = _with_sides("HaarBasis", shape)
        sides = self.shape[:-1]
        most = min((side & -side).bit_length() - 1 for side in sides)
        if n_scales is not None:
            check_count("n_scales", n_scales)
        if most < (n_scales or 1):
            raise ValueError(
                f"`n_scales` must be at most {most} for sides {sides}, since Haar "
                f"wavelets halve every side at each scale; got {n_scales or 1}. "
                + ("Use fewer scales" if most else "Use another basis")
                + ", or pad the data."
            )
        self.n_scales = most if n_scales is None else n_scales

    def forward(self, x: Data) -> Data:
        return self._apply(self.check(x), self.n_scales, inverse=False)

    def inverse(self, coefficients: Data) -> Data:
        return self._apply(self.check(coefficients), self.n_scales, inverse=True)

    def _apply(self, x: Data, n_scales: int, *, inverse: bool) -> Data:
        if n_scales == 0:
            return x
        sides, parts = range(x.ndim - 1), [x]
        for axis in sides:
            halves = (_split(part, axis, mix=not inverse) for part in parts)
            parts = [half for pair in halves for half in pair]
        parts[0] = self._apply(parts[0], n_scales - 1, inverse=inverse)
        for axis in reversed(sides):
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [_join(*pair, axis, mix=inverse) for pair in pairs]
        return parts[0]

    @property
    def bands(self) -> Int[np.ndarray, "..."]:
        # The number of times that all indices of a coefficient can be halved.
        halvings = np.full(self.shape, self.n_scales)
        for axis, side in enumerate(self.shape[:-1]):
            index = np.arange(side) + 2**self.n_scales
            times = np.log2(index & -index).astype(int)
            times = np.minimum(times, self.n_scales)
            axes = tuple(i for i in range(len(self.shape)) if i != axis)
            halvings = np.minimum(halvings, np.expand_dims(times, axes))
        return (self.n_scales - halvings).astype(np.int32)

    @property
    def is_local(self) -> bool:
        return True

    @property
    def noise_levels(self) -> NoiseLevels:
        return NoiseLevelMaps(self.n_scales)


@final
class CosineBasis(AbstractBasis):
    r"""The orthonormal cosine transform (DCT-II) of images or series, by channel.

    $$c_k = \sqrt{\frac{2 - [k = 0]}{n}} \sum_j x_j \cos \frac{\pi (2 j + 1) k}{2 n}$$

    along every side. The bands are octaves of radial frequency: 0 is the mean, and band
    $b$ has frequencies from $2^{b - 1}$ to $2^b$ half periods along the longest side.

    **Arguments:**

    - `shape`: `(height, width, channels)` or `(length, channels)`.

    **Raises:** `ValueError` for another shape.
    """

    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, shape: Sequence[int]):
        self.shape = _with_sides("CosineBasis", shape)

    def forward(self, x: Data) -> Data:
        return self._apply(self.check(x), lambda matrix: matrix)

    def inverse(self, coefficients: Data) -> Data:
        return self._apply(self.check(coefficients), np.transpose)

    def _apply(self, x: Data, turned: Any) -> Data:
        for axis, side in enumerate(self.shape[:-1]):
            matrix = jnp.asarray(turned(_cosines(side)), x.dtype)
            moved = jnp.tensordot(matrix, x, axes=(1, axis), precision="highest")
            x = jnp.moveaxis(moved, 0, axis)
        return x

    @property
    def bands(self) -> Int[np.ndarray, "..."]:
        *sides, n_channels = self.shape
        relative = [np.arange(side) / side for side in sides]
        radius = np.sqrt(sum(r**2 for r in np.meshgrid(*relative, indexing="ij")))
        octaves = _octaves(radius * max(sides))
        return np.repeat(octaves[..., None], n_channels, axis=-1)

    @property
    def is_local(self) -> bool:
        return False

    @property
    def noise_levels(self) -> NoiseLevels:
        return NoiseLevelFeatures()


@final
class PrincipalComponents(AbstractBasis):
    """An orthonormal matrix, such as the principal components of training data.

    The bands are octaves of rank: the first component, the next two, the next four and
    so on.

    !!! Example

        ```python
        basis = eqmdm.PrincipalComponents.fit(x)
        ```

    **Arguments:**

    - `matrix`: $U$, with a component in each row. It is not trained.
    - `shape`: the shape of one example; by default a vector.

    **Raises:** `ValueError` unless the matrix is orthonormal, to the rounding of
    float32, and of the size of the data.
    """

    # The bits of the matrix. Models train, average and cast every inexact array in
    # them, and this one must be stored with the model and stay as it is.
    bits: Int[Array, "dim dim *words"]
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    def __init__(self, matrix: Any, shape: Sequence[int] | None = None):
        matrix = np.asarray(matrix)
        self.shape = matrix.shape[:1] if shape is None else check_shape(shape)
        _check_orthonormal(matrix, math.prod(self.shape))
        dtype = jax.dtypes.canonicalize_dtype(np.result_type(matrix, np.float32))
        stored = np.ascontiguousarray(matrix, dtype)
        self.dtype = stored.dtype.name
        self.bits = constant(stored.view(np.uint32).reshape(*stored.shape, -1))

    @classmethod
    def fit(cls, data: Any) -> "PrincipalComponents":
        """The principal components of training data, in the order of their variance.

        **Arguments:**

        - `data`: examples along the first axis, in the units that the model sees.

        **Raises:** `TypeError` for integers; `ValueError` for more than 4096 numbers an
        example.
        """
        points = np.asarray(as_examples("data", data))
        check_points("data", points, "levels")
        n_dims = math.prod(points.shape[1:])
        if n_dims > _MOST_FITTED:
            raise ValueError(
                f"`data` must have at most {_MOST_FITTED:,} numbers an example, since "
                f"the matrix has the square of that; got {n_dims:,}. Use a HaarBasis "
                "or a CosineBasis."
            )
        flat = points.reshape(len(points), -1).astype(np.float64)
        covariance = np.cov(flat, rowvar=False, bias=True).reshape(n_dims, n_dims)
        _, vectors = np.linalg.eigh(covariance)
        matrix = vectors[:, ::-1].T
        # The sign of an eigenvector is arbitrary: make its largest entry positive.
        largest = np.abs(matrix).argmax(axis=1)
        matrix = matrix * np.sign(matrix[np.arange(n_dims), largest])[:, None]
        return cls(matrix.astype(points.dtype), points.shape[1:])

    @property
    def matrix(self) -> Float[Array, "dim dim"]:
        """$U$."""
        dtype = jnp.dtype(self.dtype)
        bits = self.bits if dtype.itemsize > 4 else self.bits[..., 0]
        return jax.lax.bitcast_convert_type(bits, dtype)

    def forward(self, x: Data) -> Data:
        return self._apply(self.matrix, self.check(x))

    def inverse(self, coefficients: Data) -> Data:
        return self._apply(self.matrix.T, self.check(coefficients))

    def _apply(self, matrix: Float[Array, "dim dim"], x: Data) -> Data:
        flat = x.reshape(-1)
        return jnp.dot(matrix.astype(x.dtype), flat, precision="highest").reshape(
            self.shape
        )

    @property
    def bands(self) -> Int[np.ndarray, "..."]:
        ranks = np.arange(1, math.prod(self.shape) + 1)
        return (_octaves(ranks) - 1).reshape(self.shape)

    @property
    def is_local(self) -> bool:
        return False

    @property
    def noise_levels(self) -> NoiseLevels:
        return NoiseLevelFeatures()


def _with_sides(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    shape = check_shape(shape)
    if len(shape) not in (2, 3):
        raise ValueError(
            f"`shape` must be (height, width, channels) or (length, channels) for a "
            f"{name}; got {shape}. Points have a PixelBasis or PrincipalComponents."
        )
    return shape


def _check_orthonormal(matrix: np.ndarray, n_dims: int) -> None:
    if matrix.shape != (n_dims, n_dims):
        raise ValueError(
            f"`matrix` must have a row and a column for each of the {n_dims} numbers "
            f"of an example; got shape {matrix.shape}."
        )
    wide = matrix.astype(np.float64)
    error = np.abs(wide @ wide.T - np.eye(n_dims)).max()
    # Entries of float32 are rounded by 6e-8, and so is each of the products that add up
    # to one. Negated, so that NaN fails.
    if not error <= 1e-5:
        raise ValueError(
            "`matrix` must be orthonormal: the product with its transpose must be the "
            f"identity; got a largest difference of {error:.3g}. Orthonormalise its "
            "rows with `numpy.linalg.qr`."
        )


def _octaves(numbers: np.ndarray) -> Int[np.ndarray, "..."]:
    """0 for numbers below 1, and $b$ for those from $2^{b - 1}$ to $2^b$."""
    # The margin keeps a power of two, as rounded, in its own octave.
    octaves = 1 + np.floor(np.log2(np.maximum(numbers, 0.5)) + 1e-9)
    return np.maximum(octaves, 0).astype(np.int32)


def _cosines(n: int) -> np.ndarray:
    k, j = np.arange(n)[:, None], np.arange(n)
    scale = np.where(k == 0, 1, 2) / n
    return np.sqrt(scale) * np.cos(np.pi * (2 * j + 1) * k / (2 * n))


def _split(x: Array, axis: int, *, mix: bool) -> tuple[Array, Array]:
    """The entries at even and at odd places, or their sums and differences."""
    before = (slice(None),) * axis
    even, odd = (x[(*before, slice(first, None, 2))] for first in (0, 1))
    return _mixed(even, odd) if mix else (even, odd)


def _join(even: Array, odd: Array, axis: int, *, mix: bool) -> Array:
    """The inverse of `_split`."""
    even, odd = _mixed(even, odd) if mix else (even, odd)
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _mixed(even: Array, odd: Array) -> tuple[Array, Array]:
    half = math.sqrt(0.5)
    return half * (even + odd), half * (even - odd)
