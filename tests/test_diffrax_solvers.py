"""Every solver of the installed Diffrax, on the library's terms.

`pytest tests/test_diffrax_solvers.py --solver-table FILE` also writes what it finds.
"""

import functools
import inspect
import platform

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
import pytest
import references
from references import VARIANCE

import eqmdm
from eqmdm._model import diffrax_solvers
from eqmdm._sampling.diffrax import _least_levy_area
from helpers import slow


SOLVERS = {
    name: cls
    for name, cls in vars(dfx).items()
    if inspect.isclass(cls)
    and issubclass(cls, dfx.AbstractSolver)
    and not inspect.isabstract(cls)
    and not name.startswith("Abstract")
}
# The reasons why the others suit neither.
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
# Strong order for noise that does not depend on the state, and steps after which the
# bias of a variance is far below its standard error.
SDE_SOLVERS = {
    "Euler": (1, 800),
    "EulerHeun": (1, 800),
    "ItoMilstein": (1, 800),
    "StratonovichMilstein": (1, 800),
    "Heun": (1, 100),
    "Midpoint": (1, 100),
    "Ralston": (1, 100),
    "SEA": (1, 100),
    "GeneralShARK": (1.5, 100),
    "SRA1": (1.5, 100),
    "ShARK": (1.5, 100),
    "SPaRK": (1.5, 100),
    "SlowRK": (1.5, 100),
}
# Order, and two numbers of steps between which the error follows its leading term and
# is above rounding.
ODE_SOLVERS = {
    "Euler": (1, 64, 128),
    "ImplicitEuler": (1, 64, 128),
    "Heun": (2, 64, 128),
    "Midpoint": (2, 64, 128),
    "Ralston": (2, 64, 128),
    "LeapfrogMidpoint": (2, 256, 512),
    "ReversibleHeun": (2, 256, 512),
    "Bosh3": (3, 64, 128),
    "Kvaerno3": (3, 64, 128),
    "Kvaerno4": (4, 64, 128),
    "Tsit5": (5, 128, 256),
    "Dopri5": (5, 32, 64),
    "Kvaerno5": (5, 32, 64),
    "Dopri8": (8, 32, 48),
}
WITHOUT_NOISE = "not marked by Diffrax as a solver of SDEs"
UNDAMPED = "unstable with noise: its second state is not damped"
# The solvers of each kind that are tested in every run, not only in slow ones.
QUICK = {"Tsit5", "Kvaerno3"}


def most_are_slow(names):
    return [name if name in QUICK else slow(name) for name in names]


@pytest.fixture(scope="module")
def seen(request):
    """The results of each solver, written as a table if the option is given."""
    found = {name: {} for name in SOLVERS}
    yield found
    path = request.config.getoption("--solver-table")
    if path is not None:
        path.write_text(_table(found))


def _table(found):
    versions = f"Diffrax {dfx.__version__}, JAX {jax.__version__}"
    lines = [
        "# Every solver of Diffrax, on the terms of this library",
        "",
        "Made by `pytest -n 0 tests/test_diffrax_solvers.py --solver-table "
        f"benchmarks/results/diffrax_solvers.md` with {versions}, in float64 on a "
        f"CPU ({platform.machine()}).",
        "",
        "- Strong order: of the reversed VPSDE with the exact score of the mixture of "
        f"four normals, over {N_PATHS} Brownian paths, between 32 and 128 steps.",
        f"- Variance: of the data after the reversed CLD on normal data, {N_DRAWS} "
        "draws, over its exact value, with its standard error and the steps taken.",
        "- Order: of the probability flow of that VPSDE and mixture, from 8 starts. "
        "Implicit solvers find their roots by Newton's method.",
        "",
        "| solver | reversed SDE | strong order | variance / exact "
        "| probability flow | order |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in sorted(found.items()):
        sde, ode = _verdicts(name)
        figures = [row.get(column, "") for column in ("strong", "variance", "order")]
        strong, variance, order = figures
        cells = (name, sde, strong, variance, ode, order)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _verdicts(name):
    if name in OTHER:
        return f"no: {OTHER[name]}", "no, for the same reason"
    reason = UNDAMPED if name == "ReversibleHeun" else WITHOUT_NOISE
    sde = "works" if name in SDE_SOLVERS else f"no: {reason}"
    return sde, "works" if name in ODE_SOLVERS else "no: takes a drift with a noise"


def test_every_solver_of_diffrax_is_accounted_for():
    assert set(SDE_SOLVERS) | set(ODE_SOLVERS) | set(OTHER) == set(SOLVERS)


@pytest.mark.parametrize("name", SDE_SOLVERS | ODE_SOLVERS)
def test_kinds_of_solvers_are_told_apart(name):
    solver = SOLVERS[name]()
    # Stratonovich in Diffrax's own words, but see `UNDAMPED`.
    marked = name in SDE_SOLVERS or name == "ReversibleHeun"
    assert diffrax_solvers.takes_noise(solver) == marked
    assert diffrax_solvers.takes_no_noise(solver) == (name in ODE_SOLVERS)


def mixture_model(diffusion):
    return eqmdm.DenoiserModel(references.mixture_denoiser, diffusion)


# Limits between which the score is smooth on the scale of a step.
SMOOTH = (-8.0, 2.0)


@eqx.filter_jit
def end_on_path(solver, diffusion, keys, n_steps):
    """States at t0 on given Brownian paths, one a key."""

    def one(key):
        key_start, key_path = jr.split(key)
        problem = eqmdm.reverse_sde(mixture_model(diffusion), (), key=key_path)
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


N_PATHS = 400


@functools.cache
def paths_and_ends():
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*SMOOTH))
    keys = jr.split(jr.key(1), N_PATHS)
    # Its error is (128 / 512)^1.5 = 0.13 of the least that is compared with it, which
    # moves an order by 0.13 / log(4) = 0.1 at most.
    return (
        diffusion,
        keys,
        end_on_path(dfx.ShARK(), diffusion, keys, jnp.asarray(512.0)),
    )


@pytest.mark.parametrize("name", most_are_slow(SDE_SOLVERS))
def test_sde_solvers_converge_to_the_path_at_their_strong_order(name, seen):
    order, _ = SDE_SOLVERS[name]
    diffusion, keys, reference = paths_and_ends()
    counts, errors = np.asarray([32.0, 128.0]), []
    for n_steps in counts:
        y = end_on_path(SOLVERS[name](), diffusion, keys, jnp.asarray(n_steps))
        errors.append(float(jnp.sqrt(jnp.mean((y - reference) ** 2))))
    found = -np.diff(np.log(errors))[0] / np.diff(np.log(counts))[0]
    seen[name]["strong"] = f"{found:.2f}"
    assert abs(found - order) < 0.3, errors


def data_covariance(diffusion, t):
    kernel = diffusion.perturbation_kernel(t)
    a = kernel.mean_map
    return VARIANCE * jnp.outer(a, a) + kernel.root @ kernel.root.T


@eqx.filter_jit
def ends_of_normal_data(solver, diffusion, keys, steps):
    """States at t0, from the exact law at t1."""

    def path(t0, t1, structure, key):
        del t0, t1
        levy_area = _least_levy_area(solver)
        return dfx.UnsafeBrownianPath(structure, key=key, levy_area=levy_area)

    def score(t, y):
        return -jnp.linalg.solve(data_covariance(diffusion, t), y)

    def one(key):
        key_start, key_path = jr.split(key)
        model = eqmdm.FunctionModel(score, diffusion)
        problem = eqmdm.reverse_sde(model, (), key=key_path, path=path)
        root = jnp.linalg.cholesky(data_covariance(diffusion, diffusion.t1))
        return dfx.diffeqsolve(
            problem.terms,
            solver,
            problem.t0,
            problem.t1,
            None,
            root @ jr.normal(key_start, (diffusion.n_vars,)),
            stepsize_controller=dfx.StepTo(problem.t1 * steps),
            adjoint=dfx.ForwardMode(),
            max_steps=None,
        ).ys[-1]

    return jax.vmap(one)(keys)


N_DRAWS = 6000


@pytest.mark.parametrize("name", most_are_slow(SDE_SOLVERS))
def test_sde_solvers_give_the_variances_of_normal_data(name, seen):
    _, n_steps = SDE_SOLVERS[name]
    diffusion = eqmdm.CLD()
    # Finer towards the data.
    steps = 1 - jnp.linspace(1, 0, n_steps + 1) ** 2
    keys = jr.split(jr.key(2), N_DRAWS)
    y = ends_of_normal_data(SOLVERS[name](), diffusion, keys, steps)
    exact = jnp.diag(data_covariance(diffusion, diffusion.t0))
    ratios = np.mean(np.asarray(y) ** 2, axis=0) / exact
    error = np.sqrt(2 / N_DRAWS)
    seen[name]["variance"] = f"{ratios[0]:.3f} ± {error:.3f}, {n_steps} steps"
    # The variances of data and velocity.
    assert np.all(np.abs(ratios - 1) < 5 * error), ratios


@eqx.filter_jit
def end_of_flow(solver, diffusion, starts, controller, n_steps):
    problem = eqmdm.probability_flow(mixture_model(diffusion), (8,))
    return dfx.diffeqsolve(
        problem.terms,
        solver,
        problem.t0,
        problem.t1,
        None if n_steps is None else (problem.t1 - problem.t0) / n_steps,
        starts,
        stepsize_controller=controller,
        adjoint=dfx.ForwardMode(),
        max_steps=None,
    ).ys[-1]


@functools.cache
def flow_starts_and_ends():
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*SMOOTH))
    starts = jr.normal(jr.key(3), (1, 8))
    tight = dfx.PIDController(rtol=1e-13, atol=1e-13)
    ends = end_of_flow(dfx.Dopri8(), diffusion, starts, tight, None)
    return diffusion, starts, ends


@pytest.mark.parametrize("name", most_are_slow(ODE_SOLVERS))
def test_ode_solvers_converge_at_their_order(name, seen):
    order, *counts = ODE_SOLVERS[name]
    diffusion, starts, reference = flow_starts_and_ends()
    cls, errors = SOLVERS[name], []
    if issubclass(cls, dfx.AbstractImplicitSolver):
        solver = cls(root_finder=optx.Newton(rtol=1e-10, atol=1e-10))
    else:
        solver = cls()
    for n_steps in counts:
        y = end_of_flow(
            solver, diffusion, starts, dfx.ConstantStepSize(), jnp.asarray(n_steps)
        )
        errors.append(float(jnp.sqrt(jnp.mean((y - reference) ** 2))))
    found = -np.diff(np.log(errors))[0] / np.diff(np.log(counts))[0]
    seen[name]["order"] = f"{found:.2f}"
    assert abs(found - order) < 0.3, errors


# Implicit solvers find roots, which takes a varying number of evaluations.
COUNTED = [
    name
    for name in SDE_SOLVERS | ODE_SOLVERS
    if not issubclass(SOLVERS[name], dfx.AbstractImplicitSolver)
]


@pytest.mark.parametrize("name", most_are_slow(COUNTED))
def test_evaluations_are_counted(name):
    solver, calls = SOLVERS[name](), []

    def score(t, y):
        jax.debug.callback(lambda _: calls.append(None), t)
        return -y

    process = eqmdm.reverse_sde if name in SDE_SOLVERS else eqmdm.probability_flow
    model = eqmdm.FunctionModel(score, eqmdm.VPSDE())
    sampler = eqmdm.DiffraxSampler(solver, process)
    options = {"key": jr.key(0), "n_samples": 1, "n_steps": 3}
    result = eqmdm.sample(model, (), sampler=sampler, full_output=True, **options)
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    # The last is for the posterior mean at t0.
    assert len(calls) == diffrax_solvers.n_evaluations(solver, 3) + 1
    assert result.n_evaluations == len(calls) == sampler.n_evaluations(3)
