"""Tests of the dependence of the bound on the path of a vector of log-SNRs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from eqmdm._bound.path_dependence import legs
from helpers import estimate_within_standard_errors, within_standard_errors


LOW, HIGH = -3.0, 4.0
ENDS = jnp.asarray(LOW), jnp.asarray(HIGH)
DIFFUSION = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(LOW, HIGH))


def exact(covariance):
    """The exact denoiser of normal data."""

    def function(log_snr, z):
        # From the precision of the data, so that an SNR of 0 has its limit.
        snr = jnp.exp(log_snr)
        return jnp.linalg.solve(jnp.linalg.inv(covariance) + jnp.diag(snr), snr * z)

    return function


def model_of(function):
    return eqmdm.DenoiserModel(eqmdm.VectorDenoiser(function), DIFFUSION)


def correlated(n_dims):
    root = np.random.RandomState(n_dims).standard_normal((n_dims, n_dims))
    return root @ root.T / n_dims + 0.2 * np.eye(n_dims)


@pytest.mark.parametrize("n_dims", [2, 5])
def test_is_zero_for_the_exact_denoiser_of_correlated_data(n_dims, key):
    covariance = correlated(n_dims)
    root = np.linalg.cholesky(covariance)
    key_x, key = jr.split(key)
    x = np.asarray(jr.normal(key_x, (2000, n_dims))) @ root.T
    model = model_of(exact(covariance))
    found = eqmdm.path_dependence(model, x, key=key, n_masks=4, batch_size=2000)
    assert found.order.shape == found.staggering.shape == (4, 2000)
    assert within_standard_errors(found.order.T, 0.0, n=4)
    assert within_standard_errors(found.staggering.T, 0.0, n=4)


def quadrature(function, covariance, mask):
    """The integral along each path for a linear denoiser, in nats per dimension."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    levels = 0.5 * (LOW + HIGH) + 0.5 * (HIGH - LOW) * nodes
    weights = 0.5 * (HIGH - LOW) * weights
    n_dims = len(mask)

    @jax.vmap
    def integrands(level):
        found = {}
        for name, path in legs(jnp.asarray(mask), level, *ENDS).items():
            found[name] = jnp.zeros(())
            for leg in path:
                gain = jax.jacobian(lambda z, leg=leg: function(leg.log_snr, z))(
                    jnp.zeros(n_dims)
                )
                rest = jnp.eye(n_dims) - gain
                noise = jnp.diag(jnp.exp(-leg.log_snr))
                error = jnp.diag(rest @ covariance @ rest.T + gain @ noise @ gain.T)
                cost = jnp.sum(jnp.where(leg.moving, error, 0.0))
                found[name] += 0.5 * jnp.exp(level) * cost / n_dims
        return found

    values = integrands(jnp.asarray(levels))
    return {name: float(weights @ np.asarray(v)) for name, v in values.items()}


def test_every_path_has_the_mutual_information_of_its_ends():
    covariance = correlated(2)
    found = quadrature(exact(covariance), covariance, [True, False])
    information = lambda log_snr: (
        0.25 * np.linalg.slogdet(np.eye(2) + np.exp(log_snr) * covariance)[1]
    )
    expected = information(HIGH) - information(LOW)
    for integral in found.values():
        assert abs(integral - expected) < 1e-6


def wrong(log_snr, z):
    """A denoiser of standard normal data that is too large in its first coordinate, by
    a factor that depends on the level of the second."""
    share = jax.nn.sigmoid(log_snr)
    gain = jnp.asarray([1 + 0.5 * share[1], 1.0])
    return gain * share * z


def test_is_the_closed_form_for_a_wrong_denoiser(key):
    key_x, key = jr.split(key)
    x = np.asarray(jr.normal(key_x, (20_000, 2)))
    masks = [[True, False], [False, True]]
    found = eqmdm.path_dependence(
        model_of(wrong), x, key=key, masks=masks, batch_size=5000
    )
    # The squared error exceeds that of the exact denoiser by (p_2 / 2)^2 p_1, where p
    # is SNR / (1 + SNR), and the integral of p over the SNR is SNR - log(1 + SNR).
    snr = np.exp(np.array([LOW, HIGH]))
    low, high = snr / (1 + snr)
    integral = np.diff(snr - np.log1p(snr))[0]
    # For the mask of the first coordinate, the second is low while it is raised.
    order = 0.5 * 0.25 * (low**2 - high**2) * integral / 2
    estimates = found.orders()
    values, errors = np.array([(e.value, e.standard_error) for e in estimates]).T
    assert abs(order) > 10 * errors.max()
    assert estimate_within_standard_errors(values, [order, -order], errors, n=4)
    assert abs(found.rms_order - abs(order)) < 4 * errors.max()
    by_quadrature = quadrature(wrong, np.eye(2), masks[0])
    assert abs(by_quadrature["mask"] - by_quadrature["rest"] - order) < 1e-6
    staggering = 0.5 * (by_quadrature["mask"] + by_quadrature["rest"])
    staggering -= by_quadrature["together"]
    estimate = found.summary()["staggering"]
    assert abs(staggering) > 10 * estimate.standard_error
    assert estimate_within_standard_errors(
        estimate.value, staggering, estimate.standard_error, n=4
    )


def test_random_masks_have_coordinates_on_both_sides(key):
    x = np.asarray(jr.normal(key, (3, 2)))
    found = eqmdm.path_dependence(model_of(wrong), x, key=key, n_masks=12)
    # Of two coordinates every mask has one, and its order is that of one of the two.
    values = found.order[:, 0]
    assert (values != 0).all()
    assert len(np.unique(np.abs(values).round(10))) == 1
    assert set(np.sign(values)) == {-1.0, 1.0}


def test_does_not_depend_on_the_batch_size(key):
    x = np.asarray(jr.normal(key, (7, 2)))
    found = [
        eqmdm.path_dependence(model_of(wrong), x, key=key, n_masks=2, batch_size=n)
        for n in (3, 7)
    ]
    assert np.allclose(found[0].order, found[1].order, rtol=1e-10, atol=1e-12)


def test_wrong_arguments_are_refused(key):
    x = np.zeros((3, 2))
    model = model_of(wrong)
    scalar = eqmdm.DenoiserModel(lambda log_snr, z: z, DIFFUSION)
    with pytest.raises(TypeError, match="`model` must have a denoiser that is told"):
        eqmdm.path_dependence(scalar, x, key=key)
    with pytest.raises(TypeError, match="`x` must be"):
        eqmdm.path_dependence(model, np.zeros((3, 2), np.int32), key=key)
    with pytest.raises(ValueError, match="`log_snr_range` must be .*increasing"):
        eqmdm.path_dependence(model, x, key=key, log_snr_range=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"`masks` must have the shape .*\(2,\)"):
        eqmdm.path_dependence(model, x, key=key, masks=np.zeros((1, 3), bool))
    with pytest.raises(ValueError, match="`x` must have at least two coordinates"):
        eqmdm.path_dependence(model, np.zeros((3, 1)), key=key)
    with pytest.raises(ValueError, match="`n_draws` must be at least 1"):
        eqmdm.path_dependence(model, x, key=key, n_draws=0)
