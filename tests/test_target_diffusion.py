"""Tests of the diffusion of a normal target against the linear diffusion it equals."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

import eqmdm
from eqmdm._diffusion.local import linearise, local_step
from helpers import slow


# Q, D and S of one, two and three variables, with noise in some of them.
RECIPES = {
    1: ([[0.0]], [[0.5]], [[1.3]]),
    2: ([[0.0, -0.5], [0.5, 0.0]], np.diag([0.0, 0.7]), [[1.0, 0.2], [0.2, 0.25]]),
    3: (
        [[0.0, 1.0, 0.3], [-1.0, 0.0, 0.5], [-0.3, -0.5, 0.0]],
        np.diag([0.1, 0.0, 0.9]),
        np.diag([1.2, 0.8, 0.5]),
    ),
}
DATA_VARIANCE = 1.5
every_n_vars = pytest.mark.parametrize("n_vars", RECIPES)
# Two variables stand for all in the quick tests.
two_vars_quickly = pytest.mark.parametrize("n_vars", [slow(1), 2, slow(3)])


def linear(n_vars, **options):
    skew, dissipation, covariance = RECIPES[n_vars]
    covariance = np.asarray(covariance)
    return eqmdm.LinearDiffusion(
        skew, dissipation, stationary_covariance=covariance, **options
    )


def nonlinear(n_vars, **options):
    skew, dissipation, covariance = RECIPES[n_vars]
    target = eqmdm.GaussianMixtureTarget([1.0], np.zeros((1, n_vars)), [covariance])
    return eqmdm.TargetDiffusion(skew, dissipation, target, **options)


def exact_score(n_vars):
    """The score for normal data of one variance."""
    diffusion = linear(n_vars)

    def score(t, y):
        kernel = diffusion.compute_kernel(t)
        a, L = kernel.mean_map, kernel.root
        covariance = DATA_VARIANCE * jnp.outer(a, a) + L @ L.T
        return -jnp.linalg.solve(covariance, y.reshape(len(y), -1)).reshape(y.shape)

    return score


def models(n_vars, **options):
    """The model of the exact score with the target and with the linear diffusion."""
    score = exact_score(n_vars)
    processes = nonlinear(n_vars, **options), linear(n_vars, **options)
    return tuple(eqmdm.FunctionModel(score, process) for process in processes)


@two_vars_quickly
def test_drift_and_noise_are_those_of_the_linear_diffusion(n_vars, key):
    process, diffusion = nonlinear(n_vars), linear(n_vars)
    y, t = jr.normal(key, (n_vars, 3, 2)), jnp.asarray(0.3)
    # Identities in float64, here and below.
    assert_allclose(process.drift(t, y), diffusion.drift(t, y), rtol=1e-12, atol=1e-12)
    G = process.diffusion_matrix(t)
    assert_allclose(G, diffusion.diffusion_matrix(t), rtol=1e-14)
    drift, jacobian = linearise(process, t, y)
    F = diffusion.drift_matrix(t)
    assert_allclose(drift, diffusion.drift(t, y), rtol=1e-12, atol=1e-12)
    expected = jnp.broadcast_to(F[:, :, None, None], jacobian.shape)
    assert_allclose(jacobian, expected, rtol=1e-12, atol=1e-12)
    assert (process.t0, process.t1) == (diffusion.t0, diffusion.t1)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize(("s", "t"), [(0.0, 1e-3), (0.2, 0.22), (0.9, 1.0)])
@two_vars_quickly
def test_local_step_is_the_transition_of_a_linear_drift(n_vars, s, t, dtype, key):
    # The rate is linear in time, so that its value at the middle gives the integral.
    process, diffusion = nonlinear(n_vars), linear(n_vars)
    s, t = jnp.asarray(s, dtype), jnp.asarray(t, dtype)
    about = jr.normal(key, (n_vars, 2), dtype)
    step = jax.jit(lambda about: local_step(process, s, t, about))(about)
    exact = diffusion.compute_transition(s, t)
    # The bars of the kernels, of which a step has at most the rounding errors.
    bar = 2e-5 if dtype == jnp.float32 else 1e-12
    broadcast = lambda M: np.broadcast_to(M[:, :, None], (*M.shape, 2))
    rows = np.linalg.norm(exact.root, axis=1)[:, None, None]
    errors = np.abs(step.transition.root - broadcast(exact.root)) / rows
    assert errors.max() < bar
    mean_map = broadcast(exact.mean_map)
    assert_allclose(step.transition.mean_map, mean_map, rtol=0, atol=bar)
    change = exact.mean(about) - about
    # The reference subtracts, and loses the digits of 1.
    assert_allclose(step.shift, change, rtol=bar, atol=bar)


@two_vars_quickly
def test_terms_are_those_of_the_linear_diffusion(n_vars, key):
    y = jr.normal(key, (n_vars, 4))

    @eqx.filter_jit
    def values(model):
        forward = eqmdm.forward_sde(model.diffusion, y[0], key=key)
        reverse = eqmdm.reverse_sde(model, (4,), key=key)
        flow = eqmdm.probability_flow(model, (4,))
        problems = forward, reverse
        drifts = [p.terms.terms[0].vf(0.3, y, None) for p in problems]
        noises = [p.terms.terms[1].vf(0.3, y, None).matrix for p in problems]
        ends = [end for p in (*problems, flow) for end in (p.t0, p.t1)]
        start = forward.initial(key=key)
        return *drifts, *noises, flow.terms.vf(0.3, y, None), *ends, start

    for actual, expected in zip(*map(values, models(n_vars)), strict=True):
        assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("importance_weighted", [False, True])
@pytest.mark.slow
@every_n_vars
def test_likelihood_is_that_of_the_linear_diffusion(n_vars, importance_weighted, key):
    x = jnp.asarray([1.0, -0.3, 2.0])
    route = eqmdm.AugmentedRoute(2, importance_weighted)
    found, expected = (
        eqmdm.log_likelihood(model, x, key=key, route=route) for model in models(n_vars)
    )
    # The same steps, since the equations agree to rounding.
    assert found.n_evaluations == expected.n_evaluations
    actual = found.log_likelihood
    assert_allclose(actual, expected.log_likelihood, rtol=1e-9)


@pytest.mark.parametrize("process", [eqmdm.reverse_sde, eqmdm.probability_flow])
@pytest.mark.slow
@every_n_vars
def test_sample_is_that_of_the_linear_diffusion(n_vars, process, key):
    solver = diffrax.ShARK() if process is eqmdm.reverse_sde else diffrax.Heun()
    sampler = eqmdm.DiffraxSampler(solver, process)
    y = jr.normal(key, (n_vars, 3))
    samples = []
    for model in models(n_vars):
        times = sampler.times(model.diffusion, 8)
        samples.append(sampler(model, y, times, key=key))
    assert_allclose(*samples, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [eqmdm.LocalScoreMatching(), eqmdm.ImplicitScoreMatching()],
    ids=["local", "implicit"],
)
@every_n_vars
def test_bound_is_that_of_the_linear_diffusion(form, n_vars, key):
    x = jnp.asarray([1.0, -0.3])
    model, reference = models(n_vars, interval=eqmdm.TimeInterval(0.3, 1.0))
    # A local draw varies by 37 nats with three variables, one of them without noise.
    is_wide = n_vars == 3 and isinstance(form, eqmdm.LocalScoreMatching)
    bound = eqmdm.elbo(
        model, x, key=key, n_draws=20_000 if is_wide else 2000, form=form
    )
    expected = eqmdm.elbo(reference, x, key=key, n_draws=2000)
    assert bound.auxiliary == 0
    error = np.hypot(bound.standard_error, expected.standard_error)
    assert error < 0.3
    # The error of the 64 steps of the simulation is far below.
    assert abs(bound.total - expected.total) < 4 * error
