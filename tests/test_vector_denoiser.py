"""Denoisers that are told the log-SNR of every coordinate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import eqmdm
from helpers import normal, tree_allclose


VARIANCES = np.asarray([0.3, 1.5, 4.0])


def plain(log_snr, z):
    """The exact denoiser of independent normal coordinates."""
    return z * jax.nn.sigmoid(log_snr + np.log(VARIANCES))


@pytest.fixture
def models():
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-8.0, 12.0))
    told = eqmdm.VectorDenoiser(plain)
    return eqmdm.DenoiserModel(told, diffusion), eqmdm.DenoiserModel(plain, diffusion)


def test_equals_a_scalar_denoiser_where_all_log_snrs_agree(models, key):
    told, scalar = models
    x = jnp.asarray(np.sqrt(VARIANCES) * normal(key, (3,)))
    assert told.takes_snr_vector and not scalar.takes_snr_vector
    for function in (
        lambda model: eqmdm.elbo(model, x, key=key, n_draws=4).terms(),
        lambda model: eqmdm.log_likelihood(model, x, key=key).log_likelihood,
        lambda model: eqmdm.sample(model, (3,), key=key, n_samples=2, n_steps=5),
    ):
        # The same operations on an array of equal numbers and on the number.
        assert tree_allclose(function(told), function(scalar), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("data_std", [0.2, 1.0, 3.0])
def test_residual_is_the_difference_from_the_normal_posterior_mean(data_std, key):
    denoiser = eqmdm.VectorDenoiser(plain, data_std)
    log_snr, z = np.asarray([-9.0, 0.5, 11.0]), normal(key, (3,))
    share = data_std**2 / (data_std**2 + np.exp(-log_snr))
    expected = z * scipy.special.expit(log_snr + np.log(VARIANCES)) - share * z
    # Rounding of numbers of order 1.
    residual = jax.jit(denoiser.residual)(log_snr, z)
    assert tree_allclose(residual, expected, rtol=0.0, atol=1e-14)


def test_takes_infinite_log_snrs():
    denoiser = eqmdm.VectorDenoiser(plain)
    both = jax.jit(lambda *at: (denoiser(*at), denoiser.residual(*at)))
    estimate, residual = both(np.asarray([-math.inf, 0.0, math.inf]), np.full(3, 2.0))
    assert tree_allclose(estimate, np.asarray([0.0, 1.2, 2.0]), rtol=1e-15, atol=0.0)
    assert np.isfinite(residual).all()


def test_a_condition_reaches_the_function(key):
    shifted = lambda log_snr, z, condition: plain(log_snr, z) + condition
    model = eqmdm.DenoiserModel(eqmdm.VectorDenoiser(shifted), eqmdm.VPSDE())
    both = jax.jit(
        lambda *at: (model.with_condition(2.0).denoise(*at), plain(*at) + 2.0)
    )
    given, expected = both(np.zeros(3), normal(key, (3,)))
    assert tree_allclose(given, expected, rtol=1e-15, atol=0.0)


def test_a_scalar_denoiser_refuses_a_vector(models):
    _, scalar = models
    for method in (scalar.denoise, scalar.denoiser_residual):
        with pytest.raises(
            TypeError, match="`model` must have a denoiser that is told"
        ):
            method(jnp.zeros(3), jnp.zeros(3))


def test_a_log_snr_of_another_shape_is_refused(models):
    told, _ = models
    with pytest.raises(
        ValueError, match=r"`log_snr` must be a number or have .*\(2,\)"
    ):
        told.denoise(jnp.zeros(2), jnp.zeros(3))
