"""Random vectors of log-SNRs, for training a denoiser that is told one."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from .._basis import AbstractBasis
from .._core.random import draw_normal, draw_uniform
from .._core.types import Data, PRNGKey


@final
class SNRVectors(eqx.Module):
    r"""Random vectors of log-SNRs, for training a denoiser that is told one.

    A share of the examples has one log-SNR, as in ordinary training, which the bound on
    the data depends on. The other vectors have two levels on complementary sets of
    coefficients, or vary smoothly between two. The sets are random coefficients,
    rectangles and half planes of images, and low frequencies or scales. With equal
    probability,

    - both levels are uniform in the range of the denoiser;
    - one set is known exactly ($\lambda = \infty$), and the rest has a uniform level,
        as in conditioning on exact observations;
    - one set is missing ($\lambda = -\infty$), and the rest has a uniform level.

    Levels drawn independently would mostly train states that no sampler visits, at the
    cost of those with one level.

    **Arguments:**

    - `scalar_share`: the share of the examples with one log-SNR; in $(0, 1)$.

    **Raises:** `ValueError` for another share.
    """

    scalar_share: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        if not 0 < self.scalar_share < 1:
            raise ValueError(
                "`scalar_share` must be strictly between 0 and 1; got "
                f"{self.scalar_share}. At least 0.5 keeps the bound of training with "
                "one log-SNR."
            )

    def n_vectors(self, n: int) -> int:
        """The number of vectors among the log-SNRs of `n` examples.

        **Raises:** `ValueError` unless there are examples of both kinds.
        """
        n_vectors = int(n * (1 - self.scalar_share))
        if n_vectors < 1:
            raise ValueError(
                "`batch_size` must give examples both one log-SNR and a vector; of "
                f"{n} for the diffusion term a share of {self.scalar_share} leaves no "
                "vector. Use larger batches."
            )
        return n_vectors

    def draw(
        self,
        basis: AbstractBasis,
        log_snr_range: tuple[float, float],
        *,
        key: PRNGKey,
        dtype: DTypeLike = float,
    ) -> Data:
        """A log-SNR for every coefficient of one example, none of them from the share
        with one log-SNR.

        **Arguments:**

        - `basis`: the basis of the coefficients.
        - `log_snr_range`: the range `(low, high)` that the denoiser is trained on.
        """
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        low, high = log_snr_range
        key_kind, key_pattern, key_levels = jr.split(key, 3)
        key_which, key_case, key_swap = jr.split(key_kind, 3)
        patterns = _patterns(basis, dtype, key_pattern)
        which = jr.randint(key_which, (), 0, len(patterns))
        # Equal to 0 or 1 for sets, and between them for smooth vectors.
        weight = jnp.stack(patterns)[which]
        weight = jnp.where(jr.bernoulli(key_swap), weight, 1 - weight)
        one, other = low + (high - low) * draw_uniform(key_levels, (2,), dtype)
        case = jr.randint(key_case, (), 0, 3)
        extreme = jnp.where(case == 1, math.inf, -math.inf).astype(dtype)
        is_set = jnp.all((weight == 0) | (weight == 1))
        at_set = jnp.where((case > 0) & is_set, extreme, other)
        between = one + weight * (other - one)
        return jnp.where(weight == 1, at_set, between)


def _patterns(
    basis: AbstractBasis, dtype: jnp.dtype, key: PRNGKey
) -> list[Float[Array, "..."]]:
    """One random pattern of each kind that suits the basis, with entries in [0, 1]."""
    keys = iter(jr.split(key, 6))
    patterns = [_scattered(basis.shape, dtype, next(keys))]
    if basis.is_local:
        for pattern in (_block, _half_plane, _smooth):
            *sides, n_channels = basis.shape
            sites = pattern(tuple(sides), dtype, next(keys))
            shape = (*sides, n_channels)
            patterns.append(jnp.broadcast_to(sites[..., None], shape))
    bands = basis.bands
    if bands.max() > 0:
        patterns += [_cut(bands, dtype, next(keys)), _ramp(bands, dtype, next(keys))]
    return patterns


def _scattered(shape: tuple[int, ...], dtype: jnp.dtype, key: PRNGKey) -> Data:
    """A random set of a random share of all coefficients."""
    key_share, key_set = jr.split(key)
    share = jr.uniform(key_share, (), dtype)
    return (draw_uniform(key_set, shape, dtype) < share).astype(dtype)


def _block(sides: tuple[int, ...], dtype: jnp.dtype, key: PRNGKey) -> Data:
    """A rectangle, with corners uniform in the image."""
    corners = jnp.sort(draw_uniform(key, (2, len(sides)), dtype), axis=0)
    inside = jnp.ones(sides, bool)
    for place, first, last in zip(_places(sides, dtype), *corners, strict=True):
        inside = inside & (first <= place) & (place <= last)
    return inside.astype(dtype)


def _half_plane(sides: tuple[int, ...], dtype: jnp.dtype, key: PRNGKey) -> Data:
    """One side of a line in a random direction through a random point."""
    key_direction, key_point = jr.split(key)
    direction = draw_normal(key_direction, (len(sides),), dtype)
    point = draw_uniform(key_point, (len(sides),), dtype)
    along = jnp.zeros(sides, dtype)
    for place, slope, through in zip(
        _places(sides, dtype), direction, point, strict=True
    ):
        along = along + slope * (place - through)
    return (along > 0).astype(dtype)


def _smooth(sides: tuple[int, ...], dtype: jnp.dtype, key: PRNGKey) -> Data:
    """A wave of up to one period a side, in a random direction."""
    key_direction, key_phase = jr.split(key)
    direction = draw_uniform(key_direction, (len(sides),), dtype)
    phase = jr.uniform(key_phase, (), dtype)
    angle = jnp.full(sides, phase)
    for place, slope in zip(_places(sides, dtype), direction, strict=True):
        angle = angle + (2 * slope - 1) * place
    return 0.5 - 0.5 * jnp.cos(2 * math.pi * angle)


def _cut(bands: np.ndarray, dtype: jnp.dtype, key: PRNGKey) -> Data:
    """All bands below a random one."""
    first = jr.randint(key, (), 1, int(bands.max()) + 1, bands.dtype)
    return (jnp.asarray(bands) < first).astype(dtype)


def _ramp(bands: np.ndarray, dtype: jnp.dtype, key: PRNGKey) -> Data:
    """A monotone function of the band, of random place and slope."""
    key_place, key_slope = jr.split(key)
    last = int(bands.max())
    place = last * jr.uniform(key_place, (), dtype)
    slope = 2 ** (4 * jr.uniform(key_slope, (), dtype) - 2)
    return jax.nn.sigmoid(slope * (place - jnp.asarray(bands, dtype)))


def _places(sides: tuple[int, ...], dtype: jnp.dtype) -> list[Float[Array, "..."]]:
    """The position of every site along each side, in [0, 1], to broadcast."""
    axes = range(len(sides))
    found = []
    for axis, side in enumerate(sides):
        place = (np.arange(side) + 0.5) / side
        place = np.expand_dims(place, tuple(a for a in axes if a != axis))
        found.append(jnp.broadcast_to(jnp.asarray(place, dtype), sides))
    return found
