"""The exact log-density of linear observations, against normal data."""

import math

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest
from correlated import COVARIANCE, model_of

import eqmdm


DIFFUSION = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-13.0, 13.0))
CONTROLLER = diffrax.PIDController(rtol=1e-8, atol=1e-8)


def expected(matrix, value, variances):
    covariance = matrix @ COVARIANCE @ matrix.T + np.diag(variances)
    quadratic = value @ np.linalg.solve(covariance, value)
    volume = np.linalg.slogdet(covariance)[1] + len(value) * math.log(2 * math.pi)
    return -0.5 * (quadratic + volume)


# Rows that each see one coordinate, in any order and at any scale.
SEEN = np.array([[0.0, 0.0, 0.5], [-3.0, 0.0, 0.0]])
VALUE = np.array([0.4, -2.0])


@pytest.mark.parametrize(
    "noise_std", [0.3, [0.3, 2.0], [0.0, 2.0], 0.0], ids=["one", "two", "mixed", "none"]
)
def test_log_evidence_is_that_of_normal_data(noise_std, key):
    observation = eqmdm.LinearObservation(
        eqmdm.observe.dense(SEEN, (3,)), jnp.asarray(VALUE), noise_std=noise_std
    )
    result = eqmdm.log_evidence(
        model_of(DIFFUSION), observation, key=key, stepsize_controller=CONTROLLER
    )
    variances = np.broadcast_to(np.square(noise_std), (2,))
    # Numbers without noise have that of t0, in the units of the data.
    floor = np.array([0.5, 3.0]) ** 2 * math.exp(-13.0) * (variances == 0)
    value = expected(SEEN, VALUE, variances + floor)
    # The prior in place of the law at the final time, and the draws of the coordinate
    # that is not observed there: of the order of the root of the lowest SNR.
    assert abs(float(result.log_likelihood) - value) < 5 * math.exp(-6.5)


def test_a_mask_without_noise_is_the_density_of_its_coordinates(key):
    seen = np.array([True, False, True])
    x = jnp.asarray([0.7, 0.0, 0.5])
    observation = eqmdm.LinearObservation(
        eqmdm.observe.mask(seen), x[jnp.asarray(seen)], noise_std=0.0
    )
    model = model_of(DIFFUSION)
    actual = eqmdm.log_evidence(model, observation, key=key).log_likelihood
    masked = eqmdm.log_likelihood(model, x, key=key, observed=seen).log_likelihood
    # The same solve.
    assert float(actual) == pytest.approx(float(masked), rel=1e-12)


def test_agrees_with_particles(key):
    observation = eqmdm.LinearObservation(
        eqmdm.observe.dense(SEEN, (3,)), jnp.asarray(VALUE), noise_std=0.5
    )
    model = model_of(DIFFUSION)
    exact = eqmdm.log_evidence(model, observation, key=key).log_likelihood
    found = eqmdm.TwistedSMC(512, 50)(model, observation, (3,), key=key)
    error = abs(float(found.log_evidence) - float(exact))
    assert error < 5 * float(found.standard_error) + 0.01


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_exact_evidence_is_refused_by_name(key):
    model, value = model_of(DIFFUSION), jnp.asarray(VALUE)
    make = lambda matrix, **noise: eqmdm.LinearObservation(
        eqmdm.observe.dense(np.asarray(matrix), (3,)), value, **noise
    )
    mixing = make([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]], noise_std=0.1)
    with pytest.raises(ValueError, match="`observation` must be of single coordinates"):
        eqmdm.log_evidence(model, mixing, key=key)
    twice = make([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], noise_std=0.1)
    with pytest.raises(ValueError, match="at most once.*has 2 numbers"):
        eqmdm.log_evidence(model, twice, key=key)
    correlated = make(SEEN, covariance=np.array([[1.0, 0.5], [0.5, 1.0]]))
    with pytest.raises(TypeError, match="`observation` must have independent noise"):
        eqmdm.log_evidence(model, correlated, key=key)
    scalar = eqmdm.DenoiserModel(lambda log_snr, z: z, DIFFUSION)
    with pytest.raises(TypeError, match="`model` must have a denoiser that is told"):
        eqmdm.log_evidence(scalar, make(SEEN, noise_std=0.1), key=key)
    with pytest.raises(TypeError, match="`observation` must be an `eqmdm.LinearObs"):
        eqmdm.log_evidence(model, value, key=key)
