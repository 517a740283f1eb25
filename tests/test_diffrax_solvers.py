"""Every solver of the installed Diffrax, on the library's terms."""

import functools
import inspect

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import references

import eqmdm
from eqmdm import _solver_kind


SOLVERS = {
    name: cls
    for name, cls in vars(dfx).items()
    if inspect.isclass(cls)
    and issubclass(cls, dfx.AbstractSolver)
    and not inspect.isabstract(cls)
    and not name.startswith("Abstract")
}
# Why the others serve for neither.
LANGEVIN = "takes the terms of an underdamped Langevin diffusion only, not any drift"
SPLIT = "takes an explicit and an implicit drift; the probability flow is one drift"
OTHER = {
    "ALIGN": LANGEVIN,
    "QUICSORT": LANGEVIN,
    "ShOULD": LANGEVIN,
    "KenCarp3": SPLIT,
    "KenCarp4": SPLIT,
    "KenCarp5": SPLIT,
    "Sil3": SPLIT,
    "SemiImplicitEuler": "takes a pair of states with a drift for each",
    "HalfSolver": "wraps another solver, and is of the kind of that",
}
# Strong order for noise that does not depend on the state.
SDE_SOLVERS = {
    "Euler": 1,
    "EulerHeun": 1,
    "ItoMilstein": 1,
    "StratonovichMilstein": 1,
    "Heun": 1,
    "Midpoint": 1,
    "Ralston": 1,
    "SEA": 1,
    "GeneralShARK": 1.5,
    "SRA1": 1.5,
    "ShARK": 1.5,
    "SPaRK": 1.5,
    "SlowRK": 1.5,
}
ODE_SOLVERS = {
    "Euler",
    "ImplicitEuler",
    "Heun",
    "Midpoint",
    "Ralston",
    "LeapfrogMidpoint",
    "ReversibleHeun",
    "Bosh3",
    "Kvaerno3",
    "Kvaerno4",
    "Tsit5",
    "Dopri5",
    "Kvaerno5",
    "Dopri8",
}


def test_every_solver_of_diffrax_is_accounted_for():
    assert set(SDE_SOLVERS) | set(ODE_SOLVERS) | set(OTHER) == set(SOLVERS)


@pytest.mark.parametrize("name", sorted(set(SDE_SOLVERS) | ODE_SOLVERS))
def test_kinds_of_solvers_are_told_apart(name):
    solver = SOLVERS[name]()
    # Stratonovich in Diffrax's own words, but unstable: its second state is not damped.
    marked = name in SDE_SOLVERS or name == "ReversibleHeun"
    assert _solver_kind.takes_noise(solver) == marked
    assert _solver_kind.takes_no_noise(solver) == (name in ODE_SOLVERS)


def mixture_score(diffusion):
    return eqmdm.DenoiserScore(references.mixture_denoiser, diffusion)


# Where the score is smooth on the scale of a step.
SMOOTH = (-8.0, 2.0)


@eqx.filter_jit
def end_on_path(solver, diffusion, keys, n_steps):
    """States at the cut on given Brownian paths, one a key."""

    def one(key):
        key_start, key_path = jr.split(key)
        problem = eqmdm.reverse_sde(
            mixture_score(diffusion), diffusion, (), key=key_path
        )
        return dfx.diffeqsolve(
            problem.terms,
            solver,
            problem.t0,
            problem.t1,
            (problem.t1 - problem.t0) / n_steps,
            problem.initial(key=key_start),
            adjoint=dfx.ForwardMode(),
            max_steps=None,
        ).ys[-1, 0]

    return jax.vmap(one)(keys)


@functools.cache
def paths_and_ends():
    diffusion = eqmdm.VPSDE(log_snr_range=SMOOTH)
    keys = jr.split(jr.key(1), 400)
    return diffusion, keys, end_on_path(dfx.ShARK(), diffusion, keys, jnp.asarray(1e3))


@pytest.mark.slow
@pytest.mark.parametrize("name", SDE_SOLVERS)
def test_sde_solvers_converge_to_the_path_at_their_strong_order(name):
    order = SDE_SOLVERS[name]
    diffusion, keys, reference = paths_and_ends()
    counts, errors = np.asarray([32.0, 128.0]), []
    for n_steps in counts:
        y = end_on_path(SOLVERS[name](), diffusion, keys, jnp.asarray(n_steps))
        errors.append(float(jnp.sqrt(jnp.mean((y - reference) ** 2))))
    seen = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(seen - order) < 0.3, errors
