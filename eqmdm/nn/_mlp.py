"""A residual network for points, and the layers that every network here shares."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, Inexact, Int, Real

from .._core.checks import check_count
from .._core.types import PRNGKey


def variance_scaling(
    key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int, dtype: DTypeLike
) -> Inexact[Array, "..."]:
    """Uniform weights of variance `2 / (fan_in + fan_out)`."""
    limit = jnp.float32(math.sqrt(6 / (fan_in + fan_out)))
    return (limit * _uniform(key, shape)).astype(dtype)


# Weights are drawn in blocks of one size, and cut to shape on the host: JAX compiles a
# generator for every size, which for a U-Net took most of the time before training.
_BLOCK = 2**14


@jax.jit
def _draw_block(key: PRNGKey, index: Int[Array, ""]) -> Float[Array, " block"]:
    return jr.uniform(jr.fold_in(key, index), (_BLOCK,), jnp.float32, -1, 1)


def _uniform(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    size = math.prod(shape)
    indices = np.arange(-(-size // _BLOCK), dtype=np.int32)
    if isinstance(key, Tracer):
        blocks = jax.lax.map(
            lambda index: _draw_block(key, index), jnp.asarray(indices)
        )
        return blocks.reshape(-1)[:size].reshape(shape)
    blocks = [np.asarray(_draw_block(key, index)) for index in indices]
    return jnp.asarray(np.concatenate(blocks)[:size].reshape(shape))


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The dtype for statistics and sinusoids: `dtype`, or float32 if it is shorter."""
    return jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype


def add_bias(
    x: Inexact[Array, "..."], bias: Inexact[Array, " out"]
) -> Inexact[Array, "..."]:
    """`x + bias` along the last axis, in the dtype of `x`."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def check_arguments(
    t: Real[Array, "..."],
    y: Float[Array, "..."],
    expected: tuple[int, ...],
    layout: str,
) -> None:
    """Raises `ValueError` unless `t` is a scalar and `y` has the shape `expected`."""
    if t.shape != ():
        raise ValueError(
            f"`t` must be a scalar; got shape {t.shape}. The network takes one "
            "example: batch with `jax.vmap(network)(t, y)`."
        )
    if y.shape != expected:
        raise ValueError(
            f"`y` must have the shape ({layout}) = {expected}, as the network was "
            f"built for; got {y.shape}. The network takes one example: batch with "
            "`jax.vmap`."
        )


@final
class Linear(eqx.Module):
    """An affine map of the last axis, whatever the other axes."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        zero: bool = False,
        fan_in_only: bool = False,
        dtype: DTypeLike,
        key: PRNGKey,
    ):
        if zero:
            self.weight = jnp.zeros((n_in, n_out), dtype)
        else:
            fan_out = n_in if fan_in_only else n_out
            self.weight = variance_scaling(key, (n_in, n_out), n_in, fan_out, dtype)
        self.bias = jnp.zeros(n_out, dtype)

    def __call__(self, x: Inexact[Array, "*batch in"]) -> Inexact[Array, "*batch out"]:
        return add_bias(x @ self.weight.astype(x.dtype), self.bias)


@final
class TimeEmbedding(eqx.Module):
    """Sinusoids of the time, and two dense layers on them.

    The time, about in $[0, 1]$, is multiplied by 1000, because the frequencies, a
    geometric sequence from 1 to 1/10000, were chosen for step numbers up to 1000.

    **Source:** Ho, Jain & Abbeel (2020), appendix B; the sinusoids are those of Vaswani
    et al. (2017) in the arrangement of Ho et al.'s code, all sines before all cosines.
    """

    linear1: Linear
    linear2: Linear
    width: int = eqx.field(static=True)

    def __init__(self, width: int, *, dtype: DTypeLike, key: PRNGKey):
        if width < 4 or width % 2 != 0:
            raise ValueError(
                "`width` must be an even number of at least 4, for the sines and "
                f"cosines of the time are that many; got {width}."
            )
        key1, key2 = jr.split(key)
        self.linear1 = Linear(width, 4 * width, dtype=dtype, key=key1)
        self.linear2 = Linear(4 * width, 4 * width, dtype=dtype, key=key2)
        self.width = width

    def __call__(
        self, t: Real[Array, ""], dtype: DTypeLike
    ) -> Inexact[Array, " features"]:
        # bfloat16 has 8 bits: `1000 * t` and its sinusoids would lose the time.
        t = t.astype(at_least_float32(dtype))
        half = self.width // 2
        decay = -math.log(10_000) / (half - 1)
        frequencies = jnp.exp(decay * jnp.arange(half, dtype=t.dtype))
        angles = 1000 * t * frequencies
        sinusoids = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]).astype(dtype)
        return self.linear2(jax.nn.silu(self.linear1(sinusoids)))


@final
class _ResidualLayer(eqx.Module):
    linear1: Linear
    linear_time: Linear
    linear2: Linear

    def __init__(self, width: int, *, dtype: DTypeLike, key: PRNGKey):
        key1, key_time, key2 = jr.split(key, 3)
        self.linear1 = Linear(width, width, dtype=dtype, key=key1)
        self.linear_time = Linear(4 * width, width, dtype=dtype, key=key_time)
        self.linear2 = Linear(width, width, dtype=dtype, key=key2)

    def __call__(
        self, x: Inexact[Array, " width"], time: Inexact[Array, " features"]
    ) -> Inexact[Array, " width"]:
        hidden = self.linear1(jax.nn.silu(x)) + self.linear_time(time)
        return x + self.linear2(jax.nn.silu(hidden))


@final
class MLP(eqx.Module):
    """A residual multilayer perceptron for points, told the time by sinusoids.

    It takes one example and is batched with `jax.vmap`. The variables and the
    coordinates enter flattened. The last layer starts at zero, so that an untrained
    network returns zero.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    n_vars: int = eqx.field(static=True)
    time_embedding: TimeEmbedding
    linear_in: Linear
    layers: tuple[_ResidualLayer, ...]
    linear_out: Linear

    def __init__(
        self,
        shape: tuple[int, ...],
        n_vars: int,
        *,
        width: int = 128,
        depth: int = 3,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKey,
    ):
        """**Arguments:**

        - `shape`: the shape `(dim,)` of one data point.
        - `n_vars`: the number of variables per coordinate, the data's own included.
        - `width`: the number of hidden units; even, and at least 4.
        - `depth`: the number of residual layers, of two dense layers each.
        - `dtype`: the dtype of the parameters.
        - `key`: the key of the initial weights.

        **Raises:**

        `ValueError` if an argument is out of these limits.
        """
        if len(shape) != 1 or shape[0] < 1:
            raise ValueError(
                f"`shape` must be `(dim,)` with `dim` at least 1; got {shape}. For "
                "images use `eqmdm.nn.UNet`."
            )
        check_count("n_vars", n_vars)
        check_count("depth", depth)
        (dim,) = shape
        key_time, key_in, key_out, *keys = jr.split(key, 3 + depth)
        self.shape = shape
        self.n_vars = n_vars
        self.time_embedding = TimeEmbedding(width, dtype=dtype, key=key_time)
        # Few coordinates enter many units. Weights for the average of both fans would
        # shrink them until what follows is as good as linear in them, and so is the
        # solution for normal data, where a denoiser's training starts.
        self.linear_in = Linear(
            n_vars * dim, width, fan_in_only=True, dtype=dtype, key=key_in
        )
        self.layers = tuple(_ResidualLayer(width, dtype=dtype, key=k) for k in keys)
        self.linear_out = Linear(
            width, n_vars * dim, zero=True, dtype=dtype, key=key_out
        )

    def __call__(
        self, t: Real[Array, ""], y: Float[Array, "vars dim"]
    ) -> Float[Array, "vars dim"]:
        """**Arguments:**

        - `t`: the time, about in $[0, 1]$.
        - `y`: the state.

        **Returns:**

        The network's output, in the dtype of `y`.

        **Raises:**

        `ValueError`, at trace time, if `t` is not a scalar or `y` not of the shape that
        the network was built for.
        """
        check_arguments(t, y, (self.n_vars, *self.shape), "n_vars, dim")
        time = jax.nn.silu(self.time_embedding(t, y.dtype))
        x = self.linear_in(y.reshape(-1))
        for layer in self.layers:
            x = layer(x, time)
        return self.linear_out(jax.nn.silu(x)).reshape(y.shape)
