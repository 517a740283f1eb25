"""Solutions of a flow and its divergence, by any Diffrax ODE solver."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.blocks import transpose
from .._core.gaussian import apply_to_vars, n_coordinates, over_coordinates
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
from .._model.divergence import AbstractDivergence, ExactDivergence


# A drift that acts on every coordinate by itself: its value and its divergence.
Drift: TypeAlias = Callable[[State], tuple[State, Scalar]]
# A(s), G(s) and f(s, .) of dy/ds = A y + G G^T f(y). A drift that is not linear takes
# the place of A y.
Flow: TypeAlias = Callable[
    [Scalar], tuple[VarsMatrix | Drift, RankMatrix, Callable[[State], State]]
]


@final
class FlowSolution(eqx.Module):
    r"""The solution of a flow at the final time.

    - `y`: the state.
    - `divergences`: $\int \nabla \cdot v \,\mathrm{d}s$ along the flow with velocity
        $v$, one value for each independent estimate of the divergence.
    - `n_evaluations`: the number of evaluations of the velocity; -1 if the solver does
        not report it.
    - `result`: success, or the reason of a failure.
    """

    y: State
    divergences: Float[Array, " estimates"]
    n_evaluations: IntScalar
    result: dfx.RESULTS


@final
class FlowSolver(eqx.Module):
    """A solver of a flow together with its divergence, which
    [`eqmdm.log_likelihood`][] passes to a route."""

    divergence: AbstractDivergence
    solver: dfx.AbstractSolver
    stepsize_controller: dfx.AbstractStepSizeController
    max_steps: int = eqx.field(static=True)

    def __call__(
        self,
        flow: Flow,
        start: Scalar,
        end: Scalar,
        y: State,
        *,
        scale: Callable[[Scalar], Array] | None = None,
        key: PRNGKey,
    ) -> FlowSolution:
        r"""The solution at `end` of $\mathrm{d}y/\mathrm{d}s = A y + G G^\top f(c y)$.

        **Arguments:**

        - `flow`: a function of $s$ that returns $A$ of shape `(vars, vars)`, $G$ of
            shape `(vars, rank)`, and the function $f$ of a state. $A$ and $G$ act on
            the variables only, not on the data axes. In place of $A$ it may return a
            function of a state with the value and the divergence of a drift.
        - `start`, `end`: the interval of $s$, with `start < end`.
        - `y`: the state at `start`.
        - `scale`: a function of $s$ that returns $c$, a number or an array that
            broadcasts against the state; 1 by default. Derivatives are then taken along
            probes that are the same for all examples of a batch, so that the first
            product of $f$ is taken once for all of them.
        - `key`: for the probes of the divergence, which are fixed during the solve.
        """
        # A mean over coordinates, so that the tolerance does not depend on their
        # number.
        size = n_coordinates(y)

        # Diffrax traces a vector field three times; with `jax.jit` the network is only
        # traced the first time.
        @jax.jit
        def velocity(s: Scalar, y: State) -> tuple[State, Array]:
            # A NaN state makes the next time NaN, and a kernel at a NaN time would
            # raise an error for the whole batch.
            s = jnp.where(s <= end, s, end)
            A, G, function = flow(s)
            unit = 1 if scale is None else scale(s)
            # Forward mode, although one reverse pass would serve as well for a probe:
            # in a compiled loop on a CPU XLA runs the reverse mode of convolutions 17
            # to 29 times slower. `linearize` evaluates the network once for the
            # velocity and all probes.
            value, derivative = jax.linearize(function, unit * y)
            # The same probes at every evaluation. With new ones the right-hand side
            # would be noise, which a step size controller takes for an error of its
            # steps.
            scaled = lambda v: unit * derivative(v)
            traces = self.divergence(scaled, G, y, key=key)
            push = apply_to_vars(G, apply_to_vars(transpose(G), value))
            if callable(A):
                pull, trace = A(y)
                return pull + push, (traces + trace) / size
            trace = over_coordinates(jnp.trace(A), y) / size
            return apply_to_vars(A, y) + push, traces / size + trace

        def field(s: Time, state: tuple[State, Array], args: Any):
            del args
            y, _ = state
            return velocity(jnp.asarray(s, start.dtype), y)

        controller = self.stepsize_controller
        if isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
            controller = _WithFirstStep(controller)
        elif isinstance(controller, dfx.StepTo):
            controller = _from_to(controller, start, end)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            self.solver,
            start,
            end,
            None,
            (y, jnp.zeros(self.divergence.n_estimates, y.dtype)),
            stepsize_controller=controller,
            # An unbounded loop is the cheapest, and supports forward derivatives.
            adjoint=dfx.ForwardMode(),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        y, means = jax.tree.map(lambda saved: saved[-1], solution.ys)
        n_steps = solution.stats["num_steps"]
        count = n_evaluations(self.solver, n_steps)
        return FlowSolution(
            y,
            size * means,
            jnp.full_like(n_steps, -1) if count is None else jnp.asarray(count),
            solution.result,
        )

    def standard_error(self, estimates: Float[Array, " estimates"]) -> Scalar:
        """The standard error of the mean of estimates made from `divergences`; 0 for an
        exact divergence, NaN for a single estimate."""
        if isinstance(self.divergence, ExactDivergence):
            return jnp.zeros((), estimates.dtype)
        return standard_error(estimates)


def _from_to(steps: dfx.StepTo, start: Scalar, end: Scalar) -> dfx.StepTo:
    """Steps that begin and end exactly where the solve does, as Diffrax demands, if
    they do up to rounding."""

    def exact(given: Scalar, wanted: Scalar) -> Scalar:
        size = jnp.maximum(1, jnp.abs(wanted))
        is_close = jnp.abs(given - wanted) <= 64 * jnp.finfo(wanted.dtype).eps * size
        return jnp.where(is_close, wanted.astype(given.dtype), given)

    ts = jnp.asarray(steps.ts)
    ends = exact(ts[0], start)[None], exact(ts[-1], end)[None]
    ts = jnp.concatenate([ends[0], ts[1:-1], ends[1]])
    return eqx.tree_at(lambda steps: steps.ts, steps, ts)


@final
class _WithFirstStep(dfx.AbstractAdaptiveStepSizeController):
    """A controller whose first step is a hundredth of the interval.

    Diffrax's own choice costs evaluations. Passed to `diffeqsolve` as `dt0`, the step
    would be checked on a traced interval by a callback to the host, and JAX's
    persistent cache does not store programs with callbacks.
    """

    controller: dfx.AbstractAdaptiveStepSizeController
    # Implicit solvers read these.
    rtol: Any
    atol: Any
    norm: Any

    def __init__(self, controller: dfx.AbstractAdaptiveStepSizeController):
        self.controller = controller
        self.rtol, self.atol = controller.rtol, controller.atol
        self.norm = controller.norm

    def wrap(self, direction: Any) -> "_WithFirstStep":
        controller: Any = self.controller.wrap(direction)
        return _WithFirstStep(controller)

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> Any:
        del dt0
        first = 0.01 * (t1 - t0)
        return self.controller.init(terms, t0, t1, y0, first, args, func, error_order)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        step = t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        return self.controller.adapt_step_size(*step)


def standard_error(values: Float[Array, " draws"]) -> Scalar:
    """The standard error of the mean; NaN for one value."""
    if len(values) == 1:
        return jnp.full((), jnp.nan, values.dtype)
    return jnp.std(values, ddof=1) / math.sqrt(len(values))
