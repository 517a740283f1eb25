"""Initial parameters of networks."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, Inexact, Int

from .._core.types import PRNGKey


_BLOCK = 2**14


@jax.jit
def _draw_block(
    key: PRNGKey, number: Int[Array, ""], block: Int[Array, ""]
) -> Float[Array, " block"]:
    key = jr.fold_in(jr.fold_in(key, number), block)
    return jr.uniform(key, (_BLOCK,), jnp.float32, -1, 1)


class Initialiser:
    """A source of the parameter arrays of a network, all of one dtype.

    JAX compiles a random generator for every size, which for a U-Net takes longer than
    the first training steps. Weights are therefore drawn in blocks of one size, keyed
    by array and block, and cut to shape on the host, so that one program serves every
    network. A traced call stays within its trace, and gives the same values.
    """

    def __init__(self, key: PRNGKey, dtype: DTypeLike):
        self._key = key
        self._dtype = jax.dtypes.canonicalize_dtype(dtype)
        self._n_drawn = 0
        # The key may be concrete even inside a trace: a function under
        # `jax.eval_shape` may close over it, and operations on it are still traced.
        zero = np.int32(0)
        self._traced = isinstance(_draw_block(key, zero, zero), Tracer)

    def weight(
        self, shape: tuple[int, ...], *, fan_in: int, fan_out: int
    ) -> Inexact[Array, "..."]:
        """Uniform weights of variance `2 / (fan_in + fan_out)`."""
        # The variance of a uniform variable on [-1, 1] is 1/3.
        limit = np.float32(math.sqrt(6 / (fan_in + fan_out)))
        weights = limit * self._uniform(math.prod(shape)).reshape(shape)
        return self._array(weights.astype(self._dtype))

    def zeros(self, *shape: int) -> Inexact[Array, "..."]:
        return self._constant(shape, 0)

    def ones(self, *shape: int) -> Inexact[Array, "..."]:
        return self._constant(shape, 1)

    def _constant(self, shape: tuple[int, ...], value: int) -> Inexact[Array, "..."]:
        # Outside of a trace `jnp.full` would be compiled for every shape; inside one, a
        # NumPy array would become a constant of the program.
        library = jnp if self._traced else np
        return self._array(library.full(shape, value, self._dtype))

    def _array(self, x: Inexact[Array | np.ndarray, "..."]) -> Inexact[Array, "..."]:
        # `jnp.asarray` would also be compiled for every shape.
        return x if isinstance(x, jax.Array) else jax.device_put(x)

    def _uniform(self, size: int) -> Float[Array | np.ndarray, " size"]:
        number = np.int32(self._n_drawn)
        self._n_drawn += 1
        blocks = np.arange(-(-size // _BLOCK), dtype=np.int32)
        if self._traced:
            draw = lambda block: _draw_block(self._key, number, block)
            return jax.lax.map(draw, jnp.asarray(blocks)).reshape(-1)[:size]
        drawn = [_draw_block(self._key, number, block) for block in blocks]
        return np.concatenate([np.asarray(block) for block in drawn])[:size]
