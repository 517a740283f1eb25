"""Diffrax's solvers by kind, and the number of drift evaluations in a step."""

import diffrax as dfx
from jaxtyping import Array, Int


# Drift evaluations in a step, and before the first step. For explicit Runge-Kutta
# methods they are read from the solver's tableau instead.
_EVALUATIONS = {
    dfx.Euler: (1, 0),
    dfx.EulerHeun: (1, 0),
    dfx.ItoMilstein: (1, 0),
    dfx.StratonovichMilstein: (1, 0),
    dfx.LeapfrogMidpoint: (1, 0),
    dfx.ReversibleHeun: (1, 1),
    dfx.SEA: (1, 0),
    dfx.SRA1: (2, 0),
    dfx.ShARK: (2, 0),
    dfx.GeneralShARK: (2, 0),
    dfx.SlowRK: (2, 0),
    dfx.SPaRK: (3, 0),
}
# Solvers whose terms are a drift and a noise.
_OF_NOISE_ONLY = (
    dfx.AbstractSRK,
    dfx.EulerHeun,
    dfx.ItoMilstein,
    dfx.StratonovichMilstein,
)


def takes_noise(solver: dfx.AbstractSolver) -> bool:
    """Whether a solver converges for an SDE."""
    return isinstance(
        _inner(solver), dfx.AbstractItoSolver | dfx.AbstractStratonovichSolver
    )


def takes_no_noise(solver: dfx.AbstractSolver) -> bool:
    """Whether a solver can be used for an ODE."""
    return not isinstance(_inner(solver), _OF_NOISE_ONLY)


def check_kind(solver: dfx.AbstractSolver, *, noise: bool) -> None:
    """**Raises:** `TypeError` for an ODE solver with noise, or an SDE solver without.

    Diffrax itself accepts any Runge-Kutta method for an SDE with only a warning, and
    the samples then have the wrong distribution.
    """
    name = type(solver).__name__
    if noise and not takes_noise(solver):
        raise TypeError(
            "`solver` must be one for SDEs, such as `diffrax.SEA()`, for a process "
            f"with noise; got `{name}`. To solve the probability flow with it, write "
            f"`eqmdm.DiffraxSampler(diffrax.{name}(), eqmdm.probability_flow)`."
        )
    if not noise and not takes_no_noise(solver):
        raise TypeError(
            "`solver` must be one for ODEs, such as `diffrax.Tsit5()`, for the "
            f"probability flow; got `{name}`, which is only for SDEs."
        )


def n_evaluations(
    solver: dfx.AbstractSolver, n_steps: int | Int[Array, ""]
) -> int | Int[Array, ""] | None:
    """The number of drift evaluations in `n_steps` steps; `None` if it varies."""
    counts = _EVALUATIONS.get(type(solver))
    if counts is None and isinstance(solver, dfx.AbstractERK):
        tableau = solver.tableau
        if isinstance(tableau, dfx.ButcherTableau):
            # The last stage of a step may serve as the first of the next (FSAL).
            counts = tableau.num_stages - int(tableau.fsal), int(tableau.fsal)
    if counts is None:
        return None
    a_step, first = counts
    return a_step * n_steps + first


def _inner(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    while isinstance(solver, dfx.AbstractWrappedSolver):
        solver = solver.solver
    return solver
