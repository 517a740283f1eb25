"""Tests of diffusions towards targets against the Fokker-Planck equation on a grid."""

import functools
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from fokker_planck import FokkerPlanck, mixture_density
from numpy.testing import assert_allclose

import eqmdm
from eqmdm._diffusion.simulate import simulate
from helpers import slow


# The data: a mixture of two normal laws.
WEIGHTS, MEANS, STDS = (0.4, 0.6), (-0.9, 0.8), (0.35, 0.45)
DISSIPATION = 1.0


class Problem(NamedTuple):
    """A target, with the range in which it and the data have their mass."""

    target: eqmdm.AbstractTarget
    reach: float

    @property
    def process(self):
        return eqmdm.TargetDiffusion(
            [[0.0]],
            [[DISSIPATION]],
            self.target,
            schedule=eqmdm.LinearSchedule(0.1, 6.0),
            interval=eqmdm.TimeInterval(2e-3, 1.0),
            simulation=eqmdm.Simulation(128),
        )


PROBLEMS = {
    "logistic": Problem(eqmdm.LogisticTarget(), 14.0),
    "double well": Problem(eqmdm.DoubleWellTarget(1.0, 1.0), 2.9),
}
every_problem = pytest.mark.parametrize("name", ["double well", slow("logistic")])
# Smooth functions, which both a grid and a sample resolve.
FUNCTIONS = [np.tanh, lambda y: y**2, lambda y: np.cos(3 * y)]


@functools.cache
def solution(name, n_cells=1200):
    problem = PROBLEMS[name]
    return FokkerPlanck(
        problem.target,
        mixture_density(WEIGHTS, MEANS, STDS),
        dissipation=DISSIPATION,
        reach=problem.reach,
        n_cells=n_cells,
    )


def clock(t):
    """The integral of the rate of the processes."""
    return 0.1 * t + 0.5 * 5.9 * t**2


@functools.cache
def model(name):
    process = PROBLEMS[name].process
    t0, t1 = float(process.t0), float(process.t1)
    # With an earlier time than the interval for the reverse process at its end.
    score = solution(name).score(clock, 0.9 * t0, t1)
    return eqmdm.FunctionModel(score, process)


def data(n, key):
    key_part, key_noise = jr.split(key)
    part = jr.bernoulli(key_part, WEIGHTS[1], (n,)).astype(int)
    means, stds = jnp.asarray(MEANS), jnp.asarray(STDS)
    return means[part] + stds[part] * jr.normal(key_noise, (n,), jnp.float64)


def log_density(x):
    return np.log(mixture_density(WEIGHTS, MEANS, STDS)(np.asarray(x)))


@pytest.mark.parametrize("name", PROBLEMS)
def test_error_of_the_grid_is_of_second_order_and_small(name):
    # Against a grid twice as fine, and that one against another.
    values = []
    for n_cells in (300, 600, 1200):
        grid = solution(name, n_cells)
        means = [grid.mean(f, tau) for f in FUNCTIONS for tau in (0.01, 0.3)]
        values.append([*means, grid.divergence_from_target(0.3)])
    coarse, fine = np.abs(np.diff(values, axis=0))
    # Differences of 1e-8 are rounding.
    assert np.all((fine < 0.3 * coarse) | (fine < 1e-8))
    # That of the finest grid is a third of the last difference.
    assert fine.max() < 3e-4


@pytest.mark.parametrize("name", PROBLEMS)
def test_law_on_the_grid_tends_to_the_target(name):
    grid = solution(name)
    assert_allclose(grid.mean(np.ones_like, 3.0), 1, atol=1e-9)
    target = grid.root**2
    assert_allclose(grid.density(60.0), target / target.sum() / grid.width, atol=1e-9)


@every_problem
def test_simulated_states_have_the_law_of_the_equation(name, key):
    process, n = PROBLEMS[name].process, 20_000
    key_data, key_path = jr.split(key)
    x, keys = data(n, key_data), jr.split(key_path, n)

    @jax.jit
    def states(t):
        one = lambda x, key: simulate(process, x[None, None], t, key=key)
        return jax.vmap(one)(x, keys)

    # The simulation starts at t0 from the data themselves.
    t0 = float(process.t0)
    for t in (0.2, 0.5):
        values_at = np.asarray(states(jnp.asarray(t)))[:, 0, 0]
        for function in FUNCTIONS:
            values = function(values_at)
            expected = solution(name).mean(function, clock(t) - clock(t0))
            error = values.std() / np.sqrt(n)
            assert abs(values.mean() - expected) < 4 * error


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("double well", eqmdm.LocalScoreMatching(0.02)),
        pytest.param(
            "double well", eqmdm.ImplicitScoreMatching(), marks=pytest.mark.slow
        ),
        pytest.param(
            "logistic", eqmdm.LocalScoreMatching(0.02), marks=pytest.mark.slow
        ),
        pytest.param("logistic", eqmdm.ImplicitScoreMatching(), marks=pytest.mark.slow),
    ],
)
def test_bound_of_the_exact_score_is_the_log_density_but_for_the_prior(name, form, key):
    # The mean of the gap over the data is KL(q(y_t1) || target), up to the decoder,
    # whose part is of second order in t0.
    n = 4000
    x, exact = data(n, key), model(name)
    one = lambda x, key: eqmdm.elbo(exact, x, key=key, form=form, n_draws=4)
    bound = eqx.filter_jit(jax.vmap(one))(x[:, None], jr.split(key, n))
    gaps = log_density(x) - np.asarray(bound.total)
    expected = solution(name).divergence_from_target(clock(1.0))
    error = gaps.std() / np.sqrt(n)
    assert error < 0.05
    assert abs(gaps.mean() - expected) < 4 * error


@every_problem
def test_likelihood_of_the_exact_score_is_that_of_the_equation(name):
    process, t0 = PROBLEMS[name].process, float(PROBLEMS[name].process.t0)
    grid = solution(name)
    x = np.array([-1.4, -0.9, 0.0, 0.4, 1.1])
    one = lambda x: eqmdm.log_likelihood(model(name), x[None], key=jr.key(0))
    found = jax.vmap(one)(jnp.asarray(x)).log_likelihood
    # The density of the data with noise: that of the state at t0, moved back along the
    # drift. Euler's step is exact to second order in t0.
    tau = clock(t0)
    drift = jax.vmap(jax.value_and_grad(_unit_drift(process)))(jnp.asarray(x))
    place, slope = (np.asarray(part) for part in drift)
    expected = grid.log_density(x + tau * place, tau) + np.log1p(tau * slope)
    # The law at t1 is not quite the target, which moves the density by as much as
    # their logarithms differ where the flow ends.
    assert_allclose(found, expected, atol=0.02)


def _unit_drift(process):
    def drift(x):
        gradient = jax.grad(process.target.log_density)(x[None, None])
        return DISSIPATION * gradient[0, 0]

    return drift


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    "sampler",
    [
        eqmdm.DiffraxSampler(diffrax.ShARK()),
        eqmdm.DiffraxSampler(diffrax.SEA(), grid=eqmdm.UniformGrid(n_steps=400)),
        eqmdm.DiffraxSampler(diffrax.Heun(), eqmdm.probability_flow),
    ],
    ids=["reverse", "many steps", "flow"],
)
def test_samples_with_the_exact_score_have_the_law_of_the_data(name, sampler, key):
    n = 20_000
    x = eqmdm.sample(model(name), (1,), key=key, n_samples=n, sampler=sampler)
    values = np.asarray(x)[:, 0]
    data_law = solution(name)
    # The prior is not quite the law at t1: by Pinsker's inequality no bounded function
    # has an expectation that differs by more than this.
    mismatch = np.sqrt(2 * data_law.divergence_from_target(clock(1.0)))
    for function in (np.tanh, lambda y: np.cos(3 * y)):
        actual, error = function(values).mean(), function(values).std() / np.sqrt(n)
        # Steps leave an error of about 1e-2, halved with twice as many.
        assert abs(actual - data_law.mean(function, 0.0)) < 4 * error + mismatch + 0.01
