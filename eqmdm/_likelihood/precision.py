"""The likelihood of models with Student-t noise, over the precision of the noise."""

import math
from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._core.checks import check_count
from .._core.types import Data, PRNGKey, Scalar
from .._model.base import AbstractModel
from .._model.student_t import StudentTModel
from .flow import FlowSolver
from .result import Likelihood, joint_outcome
from .routes import AbstractRoute, CollapsedRoute
from .weights import log_mean_weight


@final
class PrecisionRoute(AbstractRoute):
    r"""The mixture over the precision $\kappa$ of an [`eqmdm.StudentTModel`][],

    $$\log p(x) = \log \mathrm{E}_\kappa \, p(x \mid \kappa).$$

    - A shown precision: $p(x \mid \kappa)$ is the density of a route given $\kappa$,
        and the mean is over `n_draws` of $\kappa$, which are solved together. The
        standard error is that of the mean weight. Its expectation is a lower bound of
        $\log p(x)$, which is tight for an exact denoiser, under which all $\kappa$ give
        the same density.
    - A hidden precision and the collapsed route: the flow does not depend on $\kappa$,
        and ends in a multivariate t law. The density is then exact after one solve, and
        nothing is drawn.
    - The augmented route with auxiliaries: the draws are of $\kappa$ and the
        auxiliaries together, which makes the value an importance-weighted estimate. See
        [`eqmdm.AugmentedRoute`][], also for the use of an exact divergence.

    The result is a density of the mixture, and not of the process whose precision is
    known.

    **Arguments:**

    - `route`: the route given the precision.
    - `n_draws`: the number of draws of the precision. A single one has no standard
        error.
    """

    route: AbstractRoute = CollapsedRoute()
    n_draws: int = 16

    def __check_init__(self):
        check_count("n_draws", self.n_draws)

    def check(self, model: AbstractModel, dtype: jnp.dtype) -> None:
        if not isinstance(model, StudentTModel):
            raise TypeError(
                "`model` must be a `StudentTModel` for a `PrecisionRoute`; got "
                f"{type(model).__name__}, whose noise has no random precision. Pass "
                "the route itself."
            )
        self.route.check(model.given_precision(1.0), dtype)

    def __call__(
        self,
        model: AbstractModel,
        x: Data,
        solver: FlowSolver,
        *,
        key: PRNGKey,
    ) -> Likelihood:
        assert isinstance(model, StudentTModel)
        route = self.route
        if model.hidden and isinstance(route, CollapsedRoute) and route.log_snr is None:
            of_noise = lambda noise: _log_density(noise, model.nu)
            given = model.given_precision(1.0)
            return route.under_prior(given, x, solver, of_noise, key=key)

        @jax.vmap
        def solve(key: PRNGKey) -> Likelihood:
            key_precision, key = jr.split(key)
            precision = model.draw_precision(key=key_precision, dtype=x.dtype)
            return route(model.given_precision(precision), x, solver, key=key)

        draws = solve(jr.split(key, self.n_draws))
        value, error, effective = log_mean_weight(draws.log_likelihood)
        outcome = joint_outcome(draws.n_evaluations, draws.result)
        return Likelihood(value, error, effective, *outcome)


def _log_density(noise: Data, nu: float) -> Scalar:
    r"""The log-density of the multivariate t law with $\nu$ degrees of freedom and unit
    scale, in nats."""
    half, n_dims = 0.5 * nu, noise.size
    tail = (half + 0.5 * n_dims) * jnp.log1p(jnp.sum(noise**2) / nu)
    volume = _log_gamma_ratio(half, n_dims) - 0.5 * n_dims * math.log(math.pi * nu)
    return volume - tail


def _log_gamma_ratio(half: float, n_dims: int) -> float:
    r"""$\log \Gamma(h + d / 2) - \log \Gamma(h)$, without the cancellation that a
    difference of the two has for large $h$."""
    n_whole, odd = divmod(n_dims, 2)
    first = 0.0
    if odd:
        large = half > 1e3
        # Stirling's series, whose next term is below 1e-18.
        series = 0.5 * math.log(half) - 1 / (8 * half) + 1 / (192 * half**3)
        first = series if large else math.lgamma(half + 0.5) - math.lgamma(half)
    return first + float(np.sum(np.log(half + 0.5 * odd + np.arange(n_whole))))
