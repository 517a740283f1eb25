"""A residual network for points."""

import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Inexact, Real

from .._core.checks import check_count
from .._core.conditions import AbstractConditionalNetwork, ConditionKind
from .._core.noise_levels import NoiseLevels
from .._core.types import PRNGKey
from ._conditions import Condition, ConditionEmbedding
from ._initialiser import Initialiser
from ._layers import Linear, TimeEmbedding, check_arguments, check_noise_levels


@final
class _ResidualLayer(eqx.Module):
    linear1: Linear
    linear_time: Linear
    linear2: Linear

    def __init__(self, width: int, *, init: Initialiser):
        self.linear1 = Linear(width, width, init=init)
        self.linear_time = Linear(4 * width, width, init=init)
        self.linear2 = Linear(width, width, init=init)

    def __call__(
        self, x: Inexact[Array, " width"], time: Inexact[Array, " features"]
    ) -> Inexact[Array, " width"]:
        hidden = self.linear1(jax.nn.silu(x)) + self.linear_time(time)
        return x + self.linear2(jax.nn.silu(hidden))


@final
class MLP(AbstractConditionalNetwork):
    """A residual multilayer perceptron for points, with sinusoidal time embedding.

    It takes one example; batch it with `jax.vmap`. Variables and coordinates are
    flattened. The last layer is initialised to zero, so an untrained network returns
    zero.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    n_vars: int = eqx.field(static=True)
    time_embedding: TimeEmbedding
    linear_in: Linear
    layers: tuple[_ResidualLayer, ...]
    linear_out: Linear
    condition: ConditionKind | None
    condition_embedding: ConditionEmbedding | None
    linear_levels: Linear | None

    def __init__(
        self,
        shape: tuple[int, ...],
        n_vars: int,
        *,
        width: int = 128,
        depth: int = 3,
        condition: Condition | None = None,
        noise_levels: NoiseLevels | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKey,
    ):
        """**Arguments:**

        - `shape`: the shape of one data point, `(dim,)` or with more axes, which are
            flattened.
        - `n_vars`: the number of variables per coordinate, including the data.
        - `width`: the number of hidden units; even, and at least 4.
        - `depth`: the number of residual layers, of two dense layers each.
        - `condition`: the kind of condition, such as
            [`eqmdm.nn.condition_for`][]`(values)`; `None` for none.
        - `noise_levels`: `basis.noise_levels` of the basis in which the network is told
            the noise level of every coefficient; `None` if it is not told. The levels
            are additional inputs, however they are presented.
        - `dtype`: the dtype of the parameters.
        - `key`: the key for the initial weights.

        **Raises:**

        `ValueError` if an argument is outside these limits.
        """
        if len(shape) < 1 or min(shape) < 1:
            raise ValueError(
                "`shape` must be that of one data point, such as `(dim,)`, each side "
                f"at least 1; got {shape}."
            )
        check_count("n_vars", n_vars)
        check_count("depth", depth)
        dim = math.prod(shape)
        init = Initialiser(key, dtype)
        self.shape = shape
        self.n_vars = n_vars
        self.time_embedding = TimeEmbedding(width, init=init)
        # A few coordinates feed many units. Scaled by the average of both fans, the
        # weights would make the units so small that the rest of the network is nearly
        # linear in them, and a denoiser would start training from the solution for
        # normal data.
        self.linear_in = Linear(n_vars * dim, width, fan_in_only=True, init=init)
        self.layers = tuple(_ResidualLayer(width, init=init) for _ in range(depth))
        self.linear_out = Linear(width, n_vars * dim, zero=True, init=init)
        self.condition = condition
        self.condition_embedding = None
        if condition is not None:
            self.condition_embedding = ConditionEmbedding(
                condition, 4 * width, init=init
            )
        self.linear_levels = None
        if noise_levels is not None:
            # Zero, so that training starts from a network that is not told the levels.
            self.linear_levels = Linear(2 * dim, width, zero=True, init=init)

    def __call__(
        self,
        t: Real[Array, ""],
        y: Float[Array, "vars *shape"],
        *,
        condition: Any = None,
        noise_levels: Float[Array, "*shape"] | None = None,
        filtered: Float[Array, "*shape"] | None = None,
    ) -> Float[Array, "vars *shape"]:
        """**Arguments:**

        - `t`: the time, roughly in $[0, 1]$.
        - `y`: the state.
        - `condition`: the condition of one example.
        - `noise_levels`, `filtered`: for a network with `noise_levels`, those of every
            coefficient in $[0, 1]$, and the example without the noise of the noisier
            coefficients; see [`eqmdm.PreconditionedDenoiser`][].

        **Returns:**

        The network's output, in the dtype of `y`.

        **Raises:**

        `ValueError`, at trace time, if `t` is not a scalar or `y` does not have the
        shape that the network was built for, or as for `check_condition`.
        """
        check_arguments(t, y, (self.n_vars, *self.shape), "n_vars, *shape")
        condition = self.check_condition(condition)
        features = self.time_embedding(t, y.dtype)
        if self.condition_embedding is not None:
            features = features + self.condition_embedding(condition, y.dtype)
        time = jax.nn.silu(features)
        x = self.linear_in(y.reshape(-1))
        if check_noise_levels(
            self.linear_levels is not None, noise_levels, filtered, self.shape
        ):
            assert self.linear_levels is not None
            assert noise_levels is not None and filtered is not None
            told = jnp.concatenate(
                [(2 * noise_levels - 1).reshape(-1), filtered.reshape(-1)]
            )
            x = x + self.linear_levels(told.astype(y.dtype))
        for layer in self.layers:
            x = layer(x, time)
        return self.linear_out(jax.nn.silu(x)).reshape(y.shape)
