"""Simulation of nonlinear diffusions forward from the data, by Diffrax's solvers."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._core.types import Data, PRNGKey, Scalar, State
from .nonlinear import AbstractNonlinearDiffusion


def simulate(
    process: AbstractNonlinearDiffusion, y: State, t: Scalar, *, key: PRNGKey
) -> State:
    """The state at `t`, from the state `y` at t0, by equal steps."""
    return _run(process, y, t, key, save=False)[0]


def simulate_path(
    process: AbstractNonlinearDiffusion, x: Data, *, key: PRNGKey
) -> tuple[Float[Array, " times"], Float[Array, "times vars *data"]]:
    """The times and the states of one path from the data to t1, on the grid on which
    bounds simulate states.

    **Arguments:**

    - `process`: a diffusion whose drift is not linear.
    - `x`: one example.
    - `key`: for the start and the path.

    **Raises:**

    `FloatingPointError` if the path diverges, with the time and the coordinate of the
    first state that is not finite; under a JAX transform it is returned as it is.
    """
    times, states = _path(process, x, key)
    if isinstance(states, Tracer):
        return times, states
    finite = np.isfinite(np.asarray(states))
    if not finite.all():
        row, *place = np.argwhere(~finite)[0].tolist()
        at = tuple(place[1:])
        raise FloatingPointError(
            f"The simulation of {type(process).__name__} diverged at t = "
            f"{float(times[row]):.6g}, in coordinate {at} of variable {place[0]}, "
            f"whose data are {np.asarray(x)[at]}. Take more steps, by "
            "`simulation=eqmdm.Simulation(n_steps)`, or scale data that are far out in "
            "the tails of the prior."
        )
    return times, states


# Jitted here, so that a call outside of `jax.jit` runs one program.
@eqx.filter_jit
def _path(process: AbstractNonlinearDiffusion, x: Data, key: PRNGKey):
    key_start, key_path = jr.split(key)
    y = process.draw_start(x, key=key_start)
    _, times, path = _run(process, y, process.t1.astype(x.dtype), key_path, save=True)
    return times, jnp.concatenate([y[None], path])


def _run(
    process: AbstractNonlinearDiffusion,
    y: State,
    t: Scalar,
    key: PRNGKey,
    *,
    save: bool,
) -> tuple[State, Float[Array, " times"], Any]:
    solver, terms = process.simulation.solver, _terms(process, y, key)
    t0 = process.t0.astype(t.dtype)
    times = jnp.linspace(t0, t, process.simulation.n_steps + 1, dtype=t.dtype)

    def step(carry, interval):
        y, state = carry
        y, _, _, state, _ = solver.step(
            terms, interval[0], interval[1], y, None, state, made_jump=False
        )
        return (y, state), y if save else None

    state = solver.init(terms, times[0], times[1], y, None)
    intervals = jnp.stack([times[:-1], times[1:]], axis=1)
    (y, _), path = jax.lax.scan(step, (y, state), intervals)
    return y, times, path


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
