"""The diffusion that has a given stationary law."""

from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import eval_context
from jaxtyping import Float

from .._core.blocks import matmul
from .._core.checks import is_known
from .._core.gaussian import apply_to_vars
from .._core.types import MatrixLike, RankMatrix, Scalar, State, Time
from .base import AbstractLinearDiffusion
from .interval import Interval
from .matrices import as_array
from .nonlinear import AbstractNonlinearDiffusion, Simulation
from .recipe import Recipe
from .schedule import AbstractSchedule
from .stationary import LinearDiffusion
from .targets import AbstractTarget, check_target, target_at_draws


# Draws from a target at which its log-density is checked.
_N_CHECKED = 256


@final
class TargetDiffusion(AbstractNonlinearDiffusion):
    r"""The diffusion whose stationary law is a target $\pi$, which is its prior.

    $$f(t, y) = \beta(t) (Q + D) \nabla \log \pi(y), \qquad G G^\top = 2 \beta(t) D$$

    for skew-symmetric $Q$ and positive semidefinite $D$. For a normal target it is the
    [`eqmdm.LinearDiffusion`][] with the covariance of the target.

    The auxiliaries start, independent of the data, from a normal law and not from their
    law under the target: the law of the state at t0 given the data must have a known
    entropy, and a target need not factorise.

    **Source:** Ma, Chen & Fox (2015), equation 3.
    """

    target: AbstractTarget
    reference: AbstractLinearDiffusion
    simulation: Simulation

    def __init__(
        self,
        skew: MatrixLike,
        dissipation: MatrixLike,
        target: AbstractTarget,
        *,
        start_covariance: MatrixLike | None = None,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
        reference_covariance: MatrixLike | None = None,
        simulation: Simulation | None = None,
    ):
        r"""**Arguments:**

        - `skew`, `dissipation`: $Q$ and $D$, as for [`eqmdm.LinearDiffusion`][].
        - `target`: $\pi$, an [`eqmdm.AbstractTarget`][] with as many variables.
        - `start_covariance`, `schedule`: as for [`eqmdm.LinearDiffusion`][].
        - `interval`: the times, as an [`eqmdm.TimeInterval`][]. The law at t1 should be
            close to the target, which takes longer the higher its barriers are.
        - `reference_covariance`: the stationary covariance of the linear diffusion that
            scales networks (see [`eqmdm.AbstractNonlinearDiffusion`][]), by default
            that of the target, if it has one.
        - `simulation`: by default [`eqmdm.Simulation`][]`()`.

        **Raises:**

        `TypeError` unless `target` is a target; `ValueError` as for
        [`eqmdm.LinearDiffusion`][], for a target of another number of variables, whose
        log-density or its gradient is not finite at its own samples, or without finite
        second moments if there is no `reference_covariance`.
        """
        check_target(target)
        if reference_covariance is None:
            reference_covariance = _covariance(target)
        self.target = target
        self.reference = LinearDiffusion(
            skew,
            dissipation,
            stationary_covariance=reference_covariance,
            start_covariance=start_covariance,
            schedule=schedule,
            interval=interval,
        )
        self.simulation = Simulation() if simulation is None else simulation
        _check_variables(target, self.n_vars)
        _check_samples(target)

    @property
    def prior(self) -> AbstractTarget:
        return self.target

    def drift(self, t: Time, y: State, args: Any = None) -> State:
        del args
        recipe = self._recipe
        t = jnp.asarray(t, y.dtype)
        R = as_array(recipe.dissipation_root, y.dtype)
        QD = recipe.skew_matrix(y.dtype) + matmul(R, R.T)
        gradient = jax.grad(self.target.log_density)(y)
        return recipe.schedule.rate(t) * apply_to_vars(QD, gradient)

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return self.reference.diffusion_matrix(t)

    @property
    def _recipe(self) -> Recipe:
        assert isinstance(self.reference, LinearDiffusion)
        return self.reference.recipe


def _covariance(target: AbstractTarget) -> Float[np.ndarray, "vars vars"]:
    covariance = np.asarray(target.covariance, float)
    if not np.isfinite(covariance).all():
        raise ValueError(
            "`target` must have finite second moments, from which networks and times "
            f"are scaled; the covariance of {type(target).__name__} is "
            f"{covariance.tolist()}. Pass a `reference_covariance` of about the size "
            "of its draws."
        )
    return covariance


def _check_variables(target: AbstractTarget, n_vars: int) -> None:
    if target.n_vars != n_vars:
        raise ValueError(
            f"`target` must be a law of as many variables as `skew` has rows, {n_vars};"
            f" {type(target).__name__} has {target.n_vars}. Combine laws by "
            "`eqmdm.ProductTarget`."
        )


def _check_samples(target: AbstractTarget) -> None:
    """**Raises:** `ValueError` if the log-density or its gradient is not finite at
    draws from the target."""
    if not is_known(target):
        return
    with eval_context():
        found = target_at_draws(target, _N_CHECKED, jr.key(0))
    draws, values, gradients = (np.asarray(part) for part in found)
    finite = np.isfinite(values) & np.isfinite(gradients).all(axis=0)
    if not finite.all():
        wrong = int(np.argmin(finite))
        raise ValueError(
            "`target` must have a finite log-density, with a finite gradient, at its "
            f"own samples; at y = {draws[:, wrong].tolist()} those of "
            f"{type(target).__name__} are {values[wrong]} and "
            f"{gradients[:, wrong].tolist()}. Do `sample` and `log_density` belong to "
            "the same law?"
        )
