"""Layers that the networks share."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Inexact, Real

from ._initialiser import Initialiser


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The dtype for statistics and sinusoids: `dtype`, or float32 if that is wider."""
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


def check_noise_levels(
    is_told: bool,
    noise_levels: Float[Array, "..."] | None,
    filtered: Float[Array, "..."] | None,
    shape: tuple[int, ...],
) -> bool:
    """Returns `is_told`, whether the network takes noise levels.

    **Raises:** `ValueError` unless both inputs are then given, in the shape of the
    data, and otherwise neither.
    """
    given = {"noise_levels": noise_levels, "filtered": filtered}
    for name, value in given.items():
        if is_told and value is None:
            raise ValueError(
                f"`{name}` must be given to a network that is told the noise level of "
                "every coefficient. Wrap it in an `eqmdm.PreconditionedDenoiser` with "
                "a `basis`, which calls it with them."
            )
        if not is_told and value is not None:
            raise ValueError(
                f"`{name}` must be left out, because the network is not told them. "
                "Build it with `noise_levels=basis.noise_levels`."
            )
        if value is not None and value.shape != shape:
            raise ValueError(
                f"`{name}` must have the shape of the data, {shape}; got {value.shape}."
            )
    return is_told


@final
class Linear(eqx.Module):
    """An affine map of the last axis, for any other axes."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        zero: bool = False,
        fan_in_only: bool = False,
        init: Initialiser,
    ):
        if zero:
            self.weight = init.zeros(n_in, n_out)
        else:
            fan_out = n_in if fan_in_only else n_out
            self.weight = init.weight((n_in, n_out), fan_in=n_in, fan_out=fan_out)
        self.bias = init.zeros(n_out)

    def __call__(self, x: Inexact[Array, "*batch in"]) -> Inexact[Array, "*batch out"]:
        return add_bias(x @ self.weight.astype(x.dtype), self.bias)


@final
class TimeEmbedding(eqx.Module):
    """Sinusoids of the time, followed by two dense layers.

    The time, roughly in $[0, 1]$, is multiplied by 1000, because the frequencies, a
    geometric sequence from 1 to 1/10000, were chosen for step numbers up to 1000.

    **Source:** Ho, Jain & Abbeel (2020), appendix B; the sinusoids are those of Vaswani
    et al. (2017) in the arrangement of Ho et al.'s code, all sines before all cosines.
    """

    linear1: Linear
    linear2: Linear
    width: int = eqx.field(static=True)

    def __init__(self, width: int, *, init: Initialiser):
        if width < 4 or width % 2 != 0:
            raise ValueError(
                "`width` must be an even number of at least 4, because it is the "
                f"number of sines and cosines of the time; got {width}."
            )
        self.linear1 = Linear(width, 4 * width, init=init)
        self.linear2 = Linear(4 * width, 4 * width, init=init)
        self.width = width

    def __call__(
        self, t: Real[Array, ""], dtype: DTypeLike
    ) -> Inexact[Array, " features"]:
        # bfloat16 has 8 significant bits, in which `1000 * t` would lose the time.
        t = t.astype(at_least_float32(dtype))
        half = self.width // 2
        decay = -math.log(10_000) / (half - 1)
        frequencies = jnp.exp(decay * jnp.arange(half, dtype=t.dtype))
        angles = 1000 * t * frequencies
        sinusoids = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]).astype(dtype)
        return self.linear2(jax.nn.silu(self.linear1(sinusoids)))
