"""The presentation of a noise level for every coefficient to a network."""

from typing import TypeAlias, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .checks import check_count
from .types import Data


@final
class NoiseLevelMaps(eqx.Module):
    r"""Noise levels as images, for a basis whose coefficients belong to places.

    Without scales, a coefficient is a pixel. With $n$ scales, coefficients are laid out
    as in an [`eqmdm.HaarBasis`][]: there is a map for the averages, and for each scale
    one for each orientation, in which every coefficient covers its own block.

    **Arguments:**

    - `n_scales`: the number of scales.

    **Raises:** `ValueError` unless it is a count of at least 0.
    """

    n_scales: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_count("n_scales", self.n_scales, least=0)

    def n_maps(self, n_sides: int) -> int:
        """The number of maps for each channel of data with so many sides."""
        return 1 + self.n_scales * (2**n_sides - 1)

    def maps(self, levels: Float[Array, "*sides channels"]) -> Data:
        """The maps, along the last axis."""
        n_sides = levels.ndim - 1
        coarse = 2**self.n_scales
        found = [_cover(levels, (0,) * n_sides, coarse)]
        for scale in range(self.n_scales):
            # The details between blocks of two sizes lie at odd multiples of the
            # smaller one, along at least one side.
            small = 2**scale
            for which in range(1, 2**n_sides):
                start = tuple(small * (which >> axis & 1) for axis in range(n_sides))
                found.append(_cover(levels, start, 2 * small))
        return jnp.concatenate(found, axis=-1)


@final
class NoiseLevelFeatures(eqx.Module):
    """Noise levels as a vector of features, for a basis whose coefficients have no
    place in the image."""


NoiseLevels: TypeAlias = NoiseLevelMaps | NoiseLevelFeatures


def _cover(
    levels: Float[Array, "*sides channels"], start: tuple[int, ...], size: int
) -> Float[Array, "*sides channels"]:
    """The levels at every `size`-th place from `start`, each over its block."""
    taken = levels[tuple(slice(first, None, size) for first in start)]
    for axis in range(len(start)):
        taken = jnp.repeat(taken, size, axis=axis)
    return taken
