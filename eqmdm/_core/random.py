"""Random arrays, drawn as vectors and then reshaped.

On a CPU, XLA's loops over several short axes, as in an image with few channels, take
three to six times as long to compile as one loop over a vector, and up to three times
as long to run. The values are those of `jax.random`.
"""

import math

import jax.random as jr
from jaxtyping import Array, DTypeLike, Float

from .types import PRNGKey


def draw_normal(
    key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "..."]:
    """Independent standard normal draws."""
    return jr.normal(key, (math.prod(shape),), dtype).reshape(shape)


def draw_uniform(
    key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "..."]:
    """Independent draws, uniform on $[0, 1)$."""
    return jr.uniform(key, (math.prod(shape),), dtype).reshape(shape)
