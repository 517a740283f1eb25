"""Forms of the bound: what is integrated over time, and given what."""

import abc
import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._core.checks import check_count
from .._core.gaussian import apply_to_vars, n_coordinates, solve_lower
from .._core.types import PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion
from .._model.score import AbstractScore, Point


class AbstractDivergence(eqx.Module):
    r"""A way to compute $\nabla \cdot (G G^\top s)$."""

    @property
    @abc.abstractmethod
    def n_estimates(self) -> int:
        """How many independent estimates it makes."""

    @abc.abstractmethod
    def __call__(
        self,
        function: Callable[[State], State],
        G: Float[Array, "vars rank"],
        y: State,
        *,
        key: PRNGKey,
    ) -> Float[Array, " estimates"]:
        r"""Estimates of $\mathrm{tr}(G^\top J G)$, $J$ the Jacobian of `function`."""


@final
class ExactDivergence(AbstractDivergence):
    """By one forward derivative for every noise of every data coordinate."""

    @property
    def n_estimates(self) -> int:
        return 1

    def __call__(
        self,
        function: Callable[[State], State],
        G: Float[Array, "vars rank"],
        y: State,
        *,
        key: PRNGKey,
    ) -> Float[Array, " estimates"]:
        del key
        shape = (G.shape[1], *y.shape[1:])
        size = math.prod(shape)
        probes = jnp.eye(size, dtype=y.dtype).reshape(size, *shape)
        diagonal = jax.lax.map(lambda p: _quadratic(function, G, y, p), probes)
        return jnp.sum(diagonal, keepdims=True)


@final
class HutchinsonDivergence(AbstractDivergence):
    """Unbiased, by one forward derivative along each of `n_probes` random vectors.

    **Arguments:**

    - `n_probes`: how many, each an estimate by itself.
    - `draw`: their entries, by `draw(key, shape, dtype)`; independent, of mean 0 and
        variance 1. `jax.random.rademacher`, of which every diagonal is exact, by
        default; `jax.random.normal` is the other usual choice.

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
        function: Callable[[State], State],
        G: Float[Array, "vars rank"],
        y: State,
        *,
        key: PRNGKey,
    ) -> Float[Array, " estimates"]:
        shape = (self.n_probes, G.shape[1], *y.shape[1:])
        probes = self.draw(key, shape, y.dtype)
        return jax.vmap(lambda p: _quadratic(function, G, y, p))(probes)


def _quadratic(function, G, y, probe) -> Scalar:
    G = G.astype(y.dtype)
    _, along = jax.jvp(function, (y,), (apply_to_vars(G, probe),))
    return jnp.sum(probe * apply_to_vars(G.T, along))


class AbstractForm(eqx.Module):
    r"""A way to write the bound of $\log p$ at the cut.

    Every form bounds the same quantity, and all agree in expectation. The diffusion
    term is an integral over time, estimated at one time.
    """

    @property
    @abc.abstractmethod
    def conditions_on_start(self) -> bool:
        """Whether its kernels are given the whole start, not the data alone."""

    @property
    @abc.abstractmethod
    def is_direct(self) -> bool:
        """Whether the prior term is a cross-entropy rather than a divergence: the
        entropy at the cut is then a part of the reconstruction."""

    @abc.abstractmethod
    def integrand(
        self,
        point: Point,
        error: State,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        *,
        key: PRNGKey,
    ) -> Scalar:
        """The integrand of the diffusion term at one time.

        **Arguments:**

        - `point`: a state, drawn given the whole start where the form conditions on it.
        - `error`: the error of the score there, `point.error(...)`.
        - `score`: for a form that the error does not suffice for.
        - `key`: for a form that draws more.
        """


@final
class LowVariance(AbstractForm):
    r"""The form whose terms are all divergences: closed-form prior KL and

    $$-\tfrac12 \int \mathrm{E} \| G^\top (s_\theta - \nabla \log q(y \mid x)) \|^2
    \mathrm{d}t.$$

    Nothing large cancels, so its variance is the least of all forms.

    **Arguments:**

    - `given_start`: condition on the data and the auxiliaries' start (denoising) rather
        than on the data alone (hybrid).
    """

    given_start: bool = False

    @property
    def conditions_on_start(self) -> bool:
        return self.given_start

    @property
    def is_direct(self) -> bool:
        return False

    def integrand(self, point, error, score, diffusion, *, key) -> Scalar:
        del score, key
        return -0.5 * _in_noise(diffusion, point, error)


@final
class DenoisingScoreMatching(AbstractForm):
    r"""The paper's form with kernels given the data and the auxiliaries' start.

    $$\int \mathrm{E} \big[ -\tfrac12 \| G^\top (s_\theta - \nabla \log q) \|^2 +
    \tfrac12 \| G^\top \nabla \log q \|^2 + \nabla \cdot f \big] \mathrm{d}t$$

    **Source:** Singhal et al. (2023), theorem 1.
    """

    @property
    def conditions_on_start(self) -> bool:
        return True

    @property
    def is_direct(self) -> bool:
        return True

    def integrand(self, point, error, score, diffusion, *, key) -> Scalar:
        del score, key
        return _direct_integrand(diffusion, point, error)


@final
class HybridScoreMatching(AbstractForm):
    """The paper's form with kernels given the data alone; otherwise as the denoising
    one.

    **Source:** Singhal et al. (2023), section 5, after Dockhorn et al. (2022).
    """

    @property
    def conditions_on_start(self) -> bool:
        return False

    @property
    def is_direct(self) -> bool:
        return True

    def integrand(self, point, error, score, diffusion, *, key) -> Scalar:
        del score, key
        return _direct_integrand(diffusion, point, error)


@final
class ImplicitScoreMatching(AbstractForm):
    r"""The paper's form without a conditional score.

    $$\int \mathrm{E} \big[ -\tfrac12 \| G^\top s_\theta \|^2 - \nabla \cdot (G G^\top
    s_\theta - f) \big] \mathrm{d}t$$

    **Arguments:**

    - `divergence`: exact or Hutchinson's.

    **Source:** Singhal et al. (2023), theorem 1.
    """

    divergence: AbstractDivergence = ExactDivergence()

    @property
    def conditions_on_start(self) -> bool:
        return False

    @property
    def is_direct(self) -> bool:
        return True

    def integrand(self, point, error, score, diffusion, *, key) -> Scalar:
        del error
        t, y = point.t, point.y
        G = diffusion.diffusion_matrix(t)
        square = jnp.sum(apply_to_vars(G.astype(y.dtype).T, score(t, y)) ** 2)
        estimates = self.divergence(lambda y: score(t, y), G, y, key=key)
        return -0.5 * square - jnp.mean(estimates) + _drift_divergence(diffusion, t, y)


def _in_noise(diffusion, point: Point, whitened: State) -> Scalar:
    r"""$\| G^\top L^{-\top} e \|^2$."""
    G = diffusion.diffusion_matrix(point.t)
    projected = apply_to_vars(solve_lower(point.root, G).T, whitened)
    return jnp.sum(projected**2)


def _drift_divergence(diffusion, t: Scalar, y: State) -> Scalar:
    return n_coordinates(y) * jnp.trace(diffusion.drift_matrix(t)).astype(y.dtype)


def _direct_integrand(diffusion, point: Point, error: State) -> Scalar:
    target = _in_noise(diffusion, point, point.noise)
    gain = 0.5 * (target - _in_noise(diffusion, point, error))
    return gain + _drift_divergence(diffusion, point.t, point.y)
