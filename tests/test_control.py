"""Tests of control variates: parts of a bound that are known without a network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from pixels import noisy_pixel
from scipy.stats import norm

import eqmdm
from eqmdm._bound.control import known_cost
from eqmdm._bound.estimate import default_time_sampler
from helpers import optimised_jit, slow_but, tree_allclose


LAW = eqmdm.SpikeAndSlab([-0.9, 0.8], [0.2, 0.4], [0.5, 0.2], 0.1, 0.6)
OF_POINTS = eqmdm.SpikeAndSlab([-0.9, 0.8], [0.0, 0.0], [0.5, 0.2], 0.1, 0.6)
RANGE = (-6.01, 8.0)
MODELS = "CLD", "student", "points", "banded"
X = np.asarray([-0.95, -0.81, 0.8, 1.5])


@pytest.mark.parametrize("law", [LAW, OF_POINTS], ids=["intervals", "points"])
@pytest.mark.parametrize("x", [-0.95, -0.81, -0.9, 1.5])
def test_known_cost_is_the_integral_of_the_posterior_mean_error(law, x):
    interval = eqmdm.LogSNRInterval(-6.0, 8.0)
    diffusion = eqmdm.VPSDE(interval=interval)
    kernels = [diffusion.compute_kernel(t) for t in (diffusion.t0, diffusion.t1)]
    # The trapezoidal rule over normal noise, and Gauss-Legendre panels in log-SNR.
    noise = np.linspace(-8, 8, 2001)
    weights = norm.pdf(noise) * (noise[1] - noise[0])
    cost = lambda e: known_cost(law, *kernels, jnp.asarray(x), e)
    found = weights @ np.asarray(jax.jit(jax.vmap(cost))(noise))
    nodes, gauss = np.polynomial.legendre.leggauss(10)
    starts = np.linspace(-6, 8, 57)[:-1, None]
    log_snrs, gauss = (starts + (nodes + 1) / 8).ravel(), np.tile(gauss / 8, 56)
    sigmas = np.exp(-0.5 * log_snrs)[:, None]
    _, means = noisy_pixel(law, sigmas, x + sigmas * noise)
    errors = (means - x) / sigmas
    expected = gauss @ (0.5 * errors**2 @ weights)
    # The interval is solved for to 1e-10; the edges of a spike are smooth on the scale
    # of the noise, which both rules resolve.
    assert abs(found - expected) < 1e-6 * expected


def wavy(level, y, **told):
    """A network whose bound is far from that of independent pixels."""
    return jnp.sin(y + level) + 0.3 * jnp.cos(2 * jnp.roll(y, 1, axis=-1))


def model_of(name):
    """A model whose bound has a control variate."""
    if name == "banded":
        ends = {"interval": eqmdm.TimeInterval(1e-2, 1.0)}
        slow = eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, 6.0), **ends)
        fast = eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, 9.0), **ends)
        diffusion = eqmdm.BandedDiffusion([slow, fast], bands=[0, 0, 1, 1])
    else:
        diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-4.0, 8.0))
    law = OF_POINTS if name == "points" else LAW
    basis = eqmdm.PixelBasis((4,)) if name == "banded" else None
    denoiser = eqmdm.SpikeAndSlabDenoiser(wavy, law, RANGE, basis)
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    if name == "student":
        return eqmdm.StudentTModel(model, nu=8.0).given_precision(jnp.asarray(0.7))
    return model


@pytest.mark.parametrize("name", slow_but(["banded"], MODELS))
def test_bound_has_the_mean_that_it_has_without_the_control(name, key):
    model = model_of(name)
    # The hybrid form has no control variate.
    forms = eqmdm.LowVariance(), eqmdm.HybridScoreMatching()
    own, other = (
        optimised_jit(
            lambda x, form=form: eqmdm.elbo(model, x, key=key, form=form, n_draws=20000)
        )(X)
        for form in forms
    )
    error = np.hypot(own.standard_error, other.standard_error)
    assert abs(own.total - other.total) < 5 * error
    # The control takes 11 to 17 nats from the integral.
    assert 5 * error < 2.0


@pytest.mark.slow
def test_gradient_in_a_learned_diffusion_has_the_mean_without_the_control(key):
    # The known part depends on the log-SNRs at the ends, which move with the diffusion.
    key_diffusion, key_draws = jr.split(key)
    interval = eqmdm.TimeInterval(0.05, 1.0)
    diffusion = eqmdm.LearnedDiffusion(2, key=key_diffusion, interval=interval)
    trainable, fixed = eqx.partition(diffusion, eqx.is_inexact_array)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trainable)
    values, unravel = ravel_pytree(trainable)
    denoiser = eqmdm.SpikeAndSlabDenoiser(wavy, LAW, (-9.0, 9.0))

    def gradients(form):
        def total(values, key):
            diffusion = eqx.combine(unravel(values), fixed)
            model = eqmdm.DenoiserModel(denoiser, diffusion)
            sampler = eqmdm.UniformTimeSampler()
            how = {"form": form, "time_sampler": sampler}
            return eqmdm.elbo(model, jnp.asarray(X), key=key, **how).total

        draws = jax.vmap(jax.grad(total), (None, 0))
        return np.asarray(optimised_jit(draws)(values, jr.split(key_draws, 4000)))

    own, other = map(gradients, (eqmdm.LowVariance(), eqmdm.HybridScoreMatching()))
    errors = [found.std(axis=0, ddof=1) / len(found) ** 0.5 for found in (own, other)]
    difference = own.mean(axis=0) - other.mean(axis=0)
    # The diagonal of a skew matrix has no gradient at all.
    assert np.all(np.abs(difference) <= 5 * np.hypot(*errors))
    # That of the dissipation is not nothing.
    assert np.any(np.abs(own.mean(axis=0)) > 10 * errors[0])


def test_default_times_are_where_the_network_matters():
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-6.0, 12.0))
    denoiser = eqmdm.SpikeAndSlabDenoiser(wavy, LAW, (-6.01, 8.0))
    sampler = default_time_sampler(
        eqmdm.DenoiserModel(denoiser, diffusion), eqmdm.LowVariance()
    )
    u = (np.arange(4000) + 0.5) / 4000
    t, _ = jax.jit(jax.vmap(lambda u: sampler(diffusion, u)))(u)
    log_snrs = np.asarray(jax.jit(jax.vmap(diffusion.log_snr))(t))
    # From a signal of e^-4 of the noise up to the range of the network, ten times as
    # dense as elsewhere, but for the cells of the table at the two ends.
    low = -4 - 2 * np.log(LAW.root_mean_square)
    inside = 8 - low
    share = np.mean((log_snrs > low) & (log_snrs < 8))
    assert abs(share - inside / (inside + 0.1 * (18 - inside))) < 2 * 0.2 / inside


def test_bound_without_a_network_does_not_depend_on_the_time(key):
    # The integrand is its control variate.
    denoiser = eqmdm.SpikeAndSlabDenoiser(
        lambda level, y: jnp.zeros_like(y), LAW, RANGE
    )
    interval = eqmdm.LogSNRInterval(-6.0, 12.0)
    model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD(interval=interval))
    bound = lambda u: eqmdm.elbo(model, jnp.asarray(X), key=key, u=u).total
    totals = jax.jit(jax.vmap(bound))(jnp.asarray([0.01, 0.3, 0.6, 0.99]))
    # Roundings of costs of some dozens, divided by a density of times.
    assert tree_allclose(totals, jnp.full(4, totals[0]), rtol=0, atol=1e-9)
