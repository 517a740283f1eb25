"""Simulation of nonlinear diffusions forward from the data, by Diffrax's solvers."""

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.types import PRNGKey, Scalar, State
from .nonlinear import AbstractNonlinearDiffusion


def simulate(
    process: AbstractNonlinearDiffusion,
    y: State,
    times: Float[Array, " times"],
    *,
    save: Scalar,
    key: PRNGKey,
) -> tuple[State, State]:
    """The state at the time `save`, which is one of `times`, and that at the last.

    **Arguments:**

    - `y`: the state at `times[0]`.
    - `times`: the ends of the steps, which do not decrease.
    """
    solver, terms = process.simulation.solver, _terms(process, y, key)

    def step(carry, interval):
        y, saved, state = carry
        start, end = interval
        y, _, _, state, _ = solver.step(
            terms, start, end, y, None, state, made_jump=False
        )
        # One state is carried rather than all saved, which would take the memory of
        # `n_steps` batches.
        saved = jnp.where(end == save, y, saved)
        return (y, saved, state), None

    state = solver.init(terms, times[0], times[1], y, None)
    intervals = jnp.stack([times[:-1], times[1:]], axis=1)
    (last, saved, _), _ = jax.lax.scan(step, (y, y, state), intervals)
    return saved, last


def step_times(
    process: AbstractNonlinearDiffusion, through: Scalar
) -> Float[Array, " times"]:
    """The ends of the steps from t0 to t1, with a further time within the interval."""
    t0, t1 = (t.astype(through.dtype) for t in (process.t0, process.t1))
    grid = jnp.linspace(t0, t1, process.simulation.n_steps + 1, dtype=through.dtype)
    return jnp.sort(jnp.append(grid, through))


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
