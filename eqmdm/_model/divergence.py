"""Divergences of a score in the noise metric, exact or estimated."""

import abc
import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._core.blocks import transpose
from .._core.checks import check_count
from .._core.gaussian import apply_to_vars
from .._core.types import PRNGKey, RankMatrix, Scalar, State


class AbstractDivergence(eqx.Module):
    r"""A way to compute $\nabla \cdot (G G^\top s)$."""

    @property
    @abc.abstractmethod
    def n_estimates(self) -> int:
        """The number of independent estimates."""

    @abc.abstractmethod
    def __call__(
        self,
        derivative: Callable[[State], State],
        G: RankMatrix,
        y: State,
        *,
        key: PRNGKey,
    ) -> Float[Array, " estimates"]:
        r"""Estimates of $\mathrm{tr}(G^\top J G)$.

        **Arguments:**

        - `derivative`: $v \mapsto J v$, where $J$ is the Jacobian of $s$ at `y`, as
            returned by `jax.linearize`.
        """


@final
class ExactDivergence(AbstractDivergence):
    """The exact divergence, by one forward derivative for each noise of each data
    coordinate."""

    @property
    def n_estimates(self) -> int:
        return 1

    def __call__(
        self,
        derivative: Callable[[State], State],
        G: RankMatrix,
        y: State,
        *,
        key: PRNGKey,
    ) -> Float[Array, " estimates"]:
        del key
        shape = (G.shape[1], *y.shape[1:])
        size = math.prod(shape)
        probes = jnp.eye(size, dtype=y.dtype).reshape(size, *shape)
        diagonal = jax.lax.map(lambda p: _quadratic(derivative, G, p), probes)
        return jnp.sum(diagonal, keepdims=True)


@final
class HutchinsonDivergence(AbstractDivergence):
    """An unbiased estimate, by one forward derivative along each of `n_probes` random
    vectors.

    **Arguments:**

    - `n_probes`: the number of random vectors, each of which gives one estimate.
    - `draw`: a function `draw(key, shape, dtype)` that returns independent entries of
        mean 0 and variance 1. The default, `jax.random.rademacher`, is exact for
        diagonal matrices; `jax.random.normal` is the other common choice.

    **Source:** Hutchinson (1989).
    """

    n_probes: int = 1
    draw: Callable[..., Array] = eqx.field(default=jr.rademacher, static=True)

    def __check_init__(self):
        check_count("n_probes", self.n_probes)

    @property
    def n_estimates(self) -> int:
        return self.n_probes

    def __call__(
        self,
        derivative: Callable[[State], State],
        G: RankMatrix,
        y: State,
        *,
        key: PRNGKey,
    ) -> Float[Array, " estimates"]:
        shape = (self.n_probes, G.shape[1], *y.shape[1:])
        probes = self.draw(key, shape, y.dtype)
        return jax.vmap(lambda p: _quadratic(derivative, G, p))(probes)


def _quadratic(derivative, G, probe) -> Scalar:
    G = G.astype(probe.dtype)
    along = derivative(apply_to_vars(G, probe))
    return jnp.sum(probe * apply_to_vars(transpose(G), along))
