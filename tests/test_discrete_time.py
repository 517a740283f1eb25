import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import VARIANCE, normal_denoiser

import eqmdm
from helpers import within_standard_errors


@eqx.filter_jit
def bounds(diffusion, x, times, keys):
    model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    one = lambda key: eqmdm.discrete_elbo(model, x, times=times, key=key)
    return jax.vmap(one)(keys)


@pytest.mark.parametrize("cls", [eqmdm.VPSDE, eqmdm.CLD], ids=["VPSDE", "CLD"])
def test_bound_of_normal_data_is_the_closed_form(cls, key):
    diffusion, x = cls(), jnp.asarray([0.7, -2.0])
    times = eqmdm.LogSNRGrid()(diffusion, 6, jnp.float64)
    bound = bounds(diffusion, x, times, jr.split(key, 3000))
    snr = np.exp(jax.jit(jax.vmap(diffusion.log_snr))(times))
    # Of x - x_hat, with the noise of variance 1 / SNR in z.
    squares = np.sum(x**2) / snr**2 + len(x) * VARIANCE**2 / snr
    squares = squares / (VARIANCE + 1 / snr) ** 2
    steps = -0.5 * np.sum(np.diff(snr) * squares[:-1])
    assert within_standard_errors(bound.diffusion, steps)
    reconstruction = 0.5 * len(x) * math.log(snr[-1] / (2 * math.pi))
    reconstruction -= 0.5 * snr[-1] * squares[-1]
    assert within_standard_errors(bound.reconstruction, reconstruction)
    assert jnp.all(bound.auxiliary == 0)


def test_cost_of_a_step_is_the_divergence_between_posteriors(key):
    # Dense, for three variables: the laws of y_s given y_t and the data.
    diffusion = eqmdm.CriticalThirdOrder()
    t, s = jnp.asarray(0.6), jnp.asarray(0.5)

    @jax.jit
    def read():
        early, late = (diffusion.compute_kernel(time) for time in (s, t))
        step = diffusion.compute_transition(s, t)
        laws = [(law.mean_map, law.root @ law.root.T) for law in (early, late, step)]
        return laws, early.log_snr, late.log_snr

    ((a_s, cov_s), (a_t, cov_t), (psi, _)), high, low = read()
    gain = cov_s @ psi.T @ np.linalg.inv(cov_t)
    covariance = cov_s - gain @ psi @ cov_s
    # Both have this covariance, and means apart by (a_s - gain a_t) (x - x_hat).
    apart = a_s - gain @ a_t
    twice_divergence = apart @ np.linalg.solve(covariance, apart)
    expected = np.exp(high) - np.exp(low)
    # The covariance of three variables is ill-conditioned, which costs digits here.
    np.testing.assert_allclose(twice_divergence, expected, rtol=1e-6)


def test_a_step_less_is_refused(key):
    model = eqmdm.FunctionModel(lambda t, y: -y, eqmdm.VPSDE())
    with pytest.raises(ValueError, match="`times` must be a vector of two or more"):
        eqmdm.discrete_elbo(model, jnp.zeros(2), times=jnp.ones(1), key=key)


def test_a_decoder_of_the_start_is_refused(key):
    model = eqmdm.FunctionModel(lambda t, y: -y, eqmdm.VPSDE())
    options = {"times": jnp.asarray([1.0, 1e-3]), "decoder": eqmdm.StartDecoder()}
    with pytest.raises(ValueError, match="`decoder` must decode the data alone"):
        eqmdm.discrete_elbo(model, jnp.zeros(2), key=key, **options)


def test_integers_are_refused(key, unchecked):
    model = eqmdm.FunctionModel(lambda t, y: -y, eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`x` must be floating-point data; got int64"):
        eqmdm.discrete_elbo(model, jnp.zeros(2, int), times=jnp.ones(2), key=key)
