"""Flows of a state together with their divergence, by any Diffrax ODE solver."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._bound.forms import AbstractDivergence, ExactDivergence
from .._core.gaussian import apply_to_vars, n_coordinates
from .._core.types import (
    IntScalar,
    PRNGKey,
    RankMatrix,
    Scalar,
    State,
    Time,
    VarsMatrix,
)
from .._model.diffrax_solvers import n_evaluations


# A(s), G(s) and f(s, .) of dy/ds = A y + G G^T f(y).
Flow: TypeAlias = Callable[
    [Scalar], tuple[VarsMatrix, RankMatrix, Callable[[State], State]]
]


@final
class FlowEnd(eqx.Module):
    r"""Where a flow ends, and $\int \nabla \cdot f$ along it by each estimate."""

    y: State
    divergences: Float[Array, " estimates"]
    n_evaluations: IntScalar
    converged: Bool[Array, ""]


@final
class FlowSolver(eqx.Module):
    """How a flow is solved together with its divergence."""

    divergence: AbstractDivergence
    solver: dfx.AbstractSolver
    stepsize_controller: dfx.AbstractStepSizeController
    max_steps: int = eqx.field(static=True)

    def __call__(
        self, flow: Flow, start: Scalar, end: Scalar, y: State, *, key: PRNGKey
    ) -> FlowEnd:
        """The end of `flow` from `y`, on a clock that increases from `start` to `end`.

        The key fixes the probes for the whole of the solve.
        """
        # A mean over coordinates, so that one tolerance serves any number of them.
        size = n_coordinates(y)

        def field(s: Time, state: tuple[State, Array], args: Any):
            del args
            y, _ = state
            # After a state that is not a number the next time is none either, and a
            # kernel there would raise an error for the whole of a batch.
            s = jnp.asarray(s, start.dtype)
            A, G, function = flow(jnp.where(s <= end, s, end))
            value, linear = jax.linearize(function, y)
            traces = self.divergence(linear, G, y, key=key)
            velocity = apply_to_vars(A, y)
            velocity = velocity + apply_to_vars(G, apply_to_vars(G.T, value))
            return velocity, traces / size + jnp.trace(A).astype(y.dtype)

        adaptive = dfx.AbstractAdaptiveStepSizeController
        is_adaptive = isinstance(self.stepsize_controller, adaptive)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            self.solver,
            start,
            end,
            # Given, so that finding one costs no evaluations.
            0.01 * (end - start) if is_adaptive else None,
            (y, jnp.zeros(self.divergence.n_estimates, y.dtype)),
            stepsize_controller=self.stepsize_controller,
            # A loop without a bound: the cheapest, and it has forward derivatives.
            adjoint=dfx.ForwardMode(),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        y, means = jax.tree.map(lambda saved: saved[-1], solution.ys)
        n_steps = solution.stats["num_steps"]
        count = n_evaluations(self.solver, n_steps)
        return FlowEnd(
            y,
            size * means,
            jnp.full_like(n_steps, -1) if count is None else jnp.asarray(count),
            solution.result == dfx.RESULTS.successful,
        )

    def standard_error(self, estimates: Float[Array, " estimates"]) -> Scalar:
        """That of the mean; 0 where the divergence is exact."""
        if isinstance(self.divergence, ExactDivergence):
            return jnp.zeros((), estimates.dtype)
        return standard_error(estimates)


def standard_error(values: Float[Array, " draws"]) -> Scalar:
    """That of the mean; NaN for one value."""
    if len(values) == 1:
        return jnp.full((), jnp.nan, values.dtype)
    return jnp.std(values, ddof=1) / math.sqrt(len(values))
