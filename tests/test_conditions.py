"""Tests of models given a condition, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conditional_models import DIFFUSIONS, MODELS, STD, denoiser
from numpy.testing import assert_allclose, assert_array_equal

import eqmdm
from helpers import estimate_within_standard_errors


every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def _log_density(x, condition):
    return float(jnp.sum(jax.scipy.stats.norm.logpdf(x, condition, STD)))


@every_model
def test_bound_given_a_condition_is_the_conditional_log_density(model, key):
    x = jnp.asarray([0.3, -0.7, 1.1], jnp.float64)
    for condition in (-1.0, 2.0):
        bound = eqmdm.elbo(
            model, x, condition=jnp.float64(condition), key=key, n_draws=1000
        )
        # Truncation at the ends of the interval costs less than 1e-4 nats.
        allowed = 5 * float(bound.standard_error) + 1e-3
        assert abs(float(bound.total) - _log_density(x, condition)) < allowed


@every_model
def test_likelihood_given_a_condition_is_the_conditional_log_density(model, key):
    x = jnp.asarray([0.3, -0.2], jnp.float64)
    found = eqmdm.log_likelihood(model, x, condition=jnp.float64(1.0), key=key)
    # The prior has mean 0, not 1, which at log-SNR -18 is 1.2e-4 standard deviations:
    # at a point 3.8 standard deviations from the mean in all, 5e-4 nats. The tolerance
    # of the solver adds less than 1e-3.
    assert float(found.log_likelihood) == pytest.approx(_log_density(x, 1.0), abs=2e-3)


@every_model
def test_samples_given_a_condition_have_its_mean(model, key):
    x = eqmdm.sample(model, (2,), condition=1.5, key=key, n_samples=4000)
    n = x.size
    assert abs(float(x.mean()) - 1.5) < 5 * STD / np.sqrt(n) + 5e-3
    # DPMSolver's error of the standard deviation is about 1e-3 at 50 steps.
    assert abs(float(x.std()) - STD) < 5 * STD / np.sqrt(2 * n) + 5e-3


@every_model
def test_a_model_given_a_condition_is_a_model(model, key):
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


def test_terms_and_the_discrete_bound_take_a_condition(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["cld"])
    y = jnp.ones((2, 3))
    for terms_of in (eqmdm.probability_flow, eqmdm.reverse_sde):
        more = {} if terms_of is eqmdm.probability_flow else {"key": key}
        problem = terms_of(model, (3,), condition=2.0, **more)
        bound = terms_of(model.with_condition(2.0), (3,), **more)

        def drift(problem):
            terms = getattr(problem.terms, "terms", (problem.terms,))
            return terms[0].vf(problem.t0 + 0.1, y, None)

        assert_array_equal(drift(problem), drift(bound))
        assert not np.array_equal(
            drift(problem), drift(terms_of(model, (3,), condition=0.0, **more))
        )
    times = jnp.geomspace(model.diffusion.t1, model.diffusion.t0, 50)
    x = jnp.asarray([2.1, 1.7])
    near, far = (
        float(eqmdm.discrete_elbo(model, x, times=times, key=key, condition=c).total)
        for c in (2.0, -2.0)
    )
    assert near > far + 10


def test_conditions_are_batched_with_vmap(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
    conditions, keys = jnp.asarray([-1.0, 2.0]), jr.split(key, 2)
    draw = lambda c, key: eqmdm.sample(model, (2,), condition=c, key=key, n_samples=16)
    batched = jax.vmap(draw)(conditions, keys)
    for i in range(2):
        # Batched products may be summed in another order.
        assert_allclose(batched[i], draw(conditions[i], keys[i]), atol=1e-5)


def test_evaluation_takes_a_condition_for_each_example(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
    conditions = np.asarray([-1.0, 2.0, 0.5] * 40)
    x = conditions[:, None] + STD * np.asarray(jr.normal(key, (120, 2), jnp.float64))
    found = eqmdm.evaluate(
        model, x, eqmdm.Objective(), condition=conditions, key=key, n_draws=8
    )
    exact = np.asarray([_log_density(a, c) for a, c in zip(x, conditions, strict=True)])
    gap = found.terms["total"] - exact
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert estimate_within_standard_errors(gap.mean(), 0.0, error)
