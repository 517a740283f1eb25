"""Tests of models given a condition, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conditional_models import DIFFUSIONS, MODELS, STD, denoiser
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm

import eqmdm
from helpers import estimate_within_standard_errors, slow_but


def models(*quick):
    """All models, of which only those named are not slow."""
    return pytest.mark.parametrize("name", slow_but(quick, MODELS))


def _log_density(x, condition):
    return np.sum(norm.logpdf(x, condition, STD))


@models("denoiser", "noise", "score")
def test_bound_given_a_condition_is_the_conditional_log_density(name, key):
    model = MODELS[name]
    x = jnp.asarray([0.3, -0.7, 1.1], jnp.float64)
    for condition in (-1.0, 2.0):
        bound = eqmdm.elbo(
            model, x, condition=jnp.float64(condition), key=key, n_draws=1000
        )
        # Truncation at the ends of the interval costs less than 1e-4 nats.
        allowed = 5 * float(bound.standard_error) + 1e-3
        assert abs(float(bound.total) - _log_density(x, condition)) < allowed


@models("denoiser", "score")
def test_likelihood_given_a_condition_is_the_conditional_log_density(name, key):
    model = MODELS[name]
    x = jnp.asarray([0.3, -0.2], jnp.float64)
    found = eqmdm.log_likelihood(model, x, condition=jnp.float64(1.0), key=key)
    # The prior has mean 0, not 1, which at log-SNR -18 is 1.2e-4 standard deviations:
    # at a point 3.8 standard deviations from the mean in all, 5e-4 nats. The tolerance
    # of the solver adds less than 1e-3.
    assert float(found.log_likelihood) == pytest.approx(_log_density(x, 1.0), abs=2e-3)


@models("denoiser", "noise")
def test_samples_given_a_condition_have_its_mean(name, key):
    model = MODELS[name]
    x = np.asarray(eqmdm.sample(model, (2,), condition=1.5, key=key, n_samples=4000))
    n = x.size
    assert abs(x.mean() - 1.5) < 5 * STD / np.sqrt(n) + 5e-3
    # DPMSolver's error of the standard deviation is about 1e-3 at 50 steps.
    assert abs(x.std() - STD) < 5 * STD / np.sqrt(2 * n) + 5e-3


@models("denoiser")
def test_a_model_given_a_condition_is_a_model(name, key):
    model = MODELS[name]
    given = model.with_condition(0.5)
    assert_array_equal(
        eqmdm.sample(given, (2,), key=key, n_samples=8),
        eqmdm.sample(model, (2,), condition=0.5, key=key, n_samples=8),
    )
    # A later condition replaces an earlier one.
    assert_array_equal(
        eqmdm.sample(given, (2,), condition=-2.0, key=key, n_samples=8),
        eqmdm.sample(model, (2,), condition=-2.0, key=key, n_samples=8),
    )


@pytest.mark.parametrize("terms_of", [eqmdm.probability_flow, eqmdm.reverse_sde])
def test_terms_take_a_condition(terms_of, key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["cld"])
    more = {} if terms_of is eqmdm.probability_flow else {"key": key}

    def drift(model, **options):
        problem = terms_of(model, (3,), **options, **more)
        terms = getattr(problem.terms, "terms", (problem.terms,))
        return terms[0].vf(problem.t0 + 0.1, jnp.ones((2, 3)), None)

    @jax.jit
    def drifts():
        given = drift(model.with_condition(2.0))
        return drift(model, condition=2.0), given, drift(model, condition=0.0)

    found, given, other = drifts()
    assert_array_equal(found, given)
    assert not np.array_equal(found, other)


def test_the_discrete_bound_takes_a_condition(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["cld"])
    times = jnp.asarray(np.geomspace(model.diffusion.t1, model.diffusion.t0, 50))
    x = jnp.asarray([2.1, 1.7])
    near, far = (
        eqmdm.discrete_elbo(model, x, times=times, key=key, condition=c).total
        for c in (2.0, -2.0)
    )
    assert float(near) > float(far) + 10


def test_conditions_are_batched_with_vmap(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
    conditions, keys = np.asarray([-1.0, 2.0]), jr.split(key, 2)
    draw = lambda c, key: eqmdm.sample(model, (2,), condition=c, key=key, n_samples=16)
    batched = np.asarray(jax.jit(jax.vmap(draw))(conditions, keys))
    for i in range(2):
        # Batched products may be summed in another order.
        assert_allclose(batched[i], draw(conditions[i], keys[i]), atol=1e-5)


def test_evaluation_takes_a_condition_for_each_example(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
    conditions = np.asarray([-1.0, 2.0, 0.5] * 40)
    noise = np.random.default_rng(0).standard_normal((120, 2))
    x = conditions[:, None] + STD * noise
    found = eqmdm.evaluate(
        model, x, eqmdm.Objective(), condition=conditions, key=key, n_draws=8
    )
    exact = np.asarray([_log_density(a, c) for a, c in zip(x, conditions, strict=True)])
    gap = found.terms["total"] - exact
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert estimate_within_standard_errors(gap.mean(), 0.0, error)
