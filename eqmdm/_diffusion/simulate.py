"""Simulation of nonlinear diffusions forward from the data, by Diffrax's solvers."""

import diffrax as dfx
import jax
import jax.numpy as jnp

from .._core.types import PRNGKey, Scalar, State
from .nonlinear import AbstractNonlinearDiffusion


def simulate(
    process: AbstractNonlinearDiffusion, y: State, t: Scalar, *, key: PRNGKey
) -> State:
    """The state at `t`, from the state `y` at t0, by equal steps."""
    solver, terms = process.simulation.solver, _terms(process, y, key)
    t0 = process.t0.astype(t.dtype)
    times = jnp.linspace(t0, t, process.simulation.n_steps + 1, dtype=t.dtype)

    def step(carry, interval):
        y, state = carry
        y, _, _, state, _ = solver.step(
            terms, interval[0], interval[1], y, None, state, made_jump=False
        )
        return (y, state), None

    state = solver.init(terms, times[0], times[1], y, None)
    intervals = jnp.stack([times[:-1], times[1:]], axis=1)
    (y, _), _ = jax.lax.scan(step, (y, state), intervals)
    return y


def _terms(
    process: AbstractNonlinearDiffusion, y: State, key: PRNGKey
) -> dfx.AbstractTerm:
    rank = process.diffusion_matrix(process.t1.astype(y.dtype)).shape[1]
    structure = jax.ShapeDtypeStruct((rank, *y.shape[1:]), y.dtype)
    kinds = dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea
    solver = process.simulation.solver
    needed = getattr(solver, "minimal_levy_area", dfx.AbstractBrownianIncrement)
    levy_area = next(kind for kind in kinds if issubclass(kind, needed))
    # Evaluated once on each interval, which is all that this path supports.
    path = dfx.UnsafeBrownianPath(structure, key=key, levy_area=levy_area)
    noise = dfx.ControlTerm(process.diffusion_coefficient, path)
    return dfx.MultiTerm(dfx.ODETerm(process.drift), noise)
