"""Models with Student-t noise."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from heavy_tails import (
    hidden_denoiser,
    log_density,
    normal_denoiser,
    precisions,
    t_denoiser,
)
from scipy import special, stats

import eqmdm
from helpers import (
    estimate_within_standard_errors,
    slow,
    tree_allclose,
    within_standard_errors,
)


WIDE = eqmdm.LogSNRInterval(-13.3, 13.3)
DIFFUSIONS = {
    1: eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(0.1, 30.0), interval=WIDE),
    2: eqmdm.CLD(schedule=eqmdm.LinearSchedule(0.1, 20.0), interval=WIDE),
}
POINTS = {
    1: np.array([[0.5], [3.0], [20.0]]),
    2: np.array([[0.3, -0.2], [3.0, -4.0], [10.0, 20.0]]),
}
TIGHT = dfx.PIDController(rtol=1e-7, atol=1e-7)


def student_t(denoiser, n_dims, nu=5.0, **options):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS[n_dims])
    return eqmdm.StudentTModel(model, nu, **options)


def over(function, x, key):
    return jax.vmap(function)(jnp.asarray(x), jr.split(key, len(x)))


# --- Bounds and likelihoods ----------------------------------------------------------


@pytest.mark.parametrize("n_dims", [slow(1), 2])
def test_bound_of_student_t_data_is_their_log_density(n_dims, key):
    model, x = student_t(t_denoiser(3.0), n_dims), POINTS[n_dims]
    bound = over(lambda x, key: eqmdm.elbo(model, x, key=key, n_draws=4000), x, key)
    # The ends cost 1e-3 nats, for the largest point: KL of 1/2 SNR(t1) x^2.
    assert estimate_within_standard_errors(
        bound.total, log_density(x, 3.0), bound.standard_error
    )
    assert bound.standard_error.max() < 0.4


@pytest.mark.parametrize("n_dims", [1, slow(2)])
def test_likelihood_of_student_t_data_is_their_log_density(n_dims, key):
    model, x = student_t(t_denoiser(3.0), n_dims), POINTS[n_dims]
    found = over(
        lambda x, key: eqmdm.log_likelihood(
            model, x, key=key, stepsize_controller=TIGHT
        ),
        x,
        key,
    )
    # Truncation at log-SNR 13.3 smooths these data, no narrower than 0.15, by less than
    # 1e-4 nats; every precision gives the same density but for the ends.
    assert tree_allclose(found.log_likelihood, log_density(x, 3.0), rtol=0.0, atol=1e-4)
    assert found.standard_error.max() < 1e-4
    assert_array_all(found.effective_sample_size > 15.9)


def assert_array_all(condition):
    assert bool(jnp.all(condition)), condition


@pytest.mark.parametrize("n_dims", [slow(1), 2])
def test_hidden_likelihood_of_normal_data_is_their_log_density(n_dims, key):
    model = student_t(hidden_denoiser(5.0, 1.5), n_dims, hidden=True)
    x = POINTS[n_dims][:2]
    found = over(
        lambda x, key: eqmdm.log_likelihood(
            model, x, key=key, stepsize_controller=TIGHT
        ),
        x,
        key,
    )
    expected = stats.norm(scale=1.5**0.5).logpdf(x).sum(axis=1)
    # The second points are 2.4 and 4 standard deviations out, where truncation costs
    # |x|^2 / SNR(t0) / 1.5^2 = 2e-5 nats.
    assert tree_allclose(found.log_likelihood, expected, rtol=0.0, atol=5e-5)
    assert_array_all(found.standard_error == 0)


@pytest.mark.filterwarnings("ignore:The law of this diffusion at the final time")
def test_mixture_over_the_precision_is_that_of_its_densities(key):
    # The prior leaves each precision another density: for normal data of variance c
    # the flow is linear, and that of the model is a normal of this variance.
    interval = eqmdm.LogSNRInterval(-1.0, 13.0)
    diffusion = eqmdm.VPSDE(interval=interval)
    model = eqmdm.DenoiserModel(normal_denoiser(1.5), diffusion)
    x = jnp.asarray([2.0])
    nodes, log_weights = precisions(5.0)
    noise = np.exp(1.0) / nodes
    ends = (1.5 + np.exp(-13.0) / nodes) / (1.5 + noise)
    # The prior of z at t1 has the variance of the noise and of a standard normal state
    # relative to the data's weight in it: (1 + SNR) / SNR, divided by the precision.
    variance = ends * (1 + noise * nodes) / nodes
    logs = log_weights + stats.norm(scale=variance**0.5).logpdf(2.0)
    model = eqmdm.StudentTModel(model, 5.0)
    found = eqmdm.log_likelihood(
        model, x, key=key, route=eqmdm.PrecisionRoute(n_draws=400)
    )
    assert estimate_within_standard_errors(
        found.log_likelihood, special.logsumexp(logs), found.standard_error
    )
    assert 1e-3 < found.standard_error < 0.05


@pytest.mark.slow
def test_hidden_bound_is_below_the_exact_one_by_the_error_of_its_denoiser(key):
    nu, variance = 5.0, 1.5
    hidden = student_t(hidden_denoiser(nu, variance), 1, nu, hidden=True)
    shown = student_t(normal_denoiser(variance), 1, nu)
    x = jnp.sqrt(variance) * jr.normal(key, (3000, 1))

    @jax.vmap
    def gap(x, key):
        bound = lambda model: eqmdm.elbo(model, x, key=key, n_draws=8).total
        return bound(shown) - bound(hidden)

    # 1/2 int kappa SNR E (D_hidden - D_kappa)^2 dlog SNR, on a grid of log-SNRs of
    # precision 1, of precisions, and of z in its standard deviations.
    levels = jnp.linspace(-13.3, 13.3, 61)
    nodes, log_weights = (jnp.asarray(part[::6]) for part in precisions(nu))
    weights = 6 * jnp.exp(log_weights)
    u = jnp.linspace(-6.0, 6.0, 61)
    mass = jnp.exp(-0.5 * u**2) * (u[1] - u[0]) / np.sqrt(2 * np.pi)
    denoise, shift = hidden_denoiser(nu, variance), np.log((nu - 2) / nu)

    def integrand(level, kappa):
        snr = kappa * jnp.exp(level)
        z = u * jnp.sqrt(variance + 1 / snr)
        own = z * variance / (variance + 1 / snr)
        told = jax.vmap(lambda z: denoise(level + shift, z[None])[0])(z)
        return 0.5 * snr * jnp.sum(mass * (told - own) ** 2)

    of_level = lambda level: jax.vmap(lambda kappa: integrand(level, kappa))(nodes)
    errors = jax.lax.map(of_level, levels) @ weights
    expected = jnp.trapezoid(errors, levels)
    gaps = gap(x, jr.split(key, len(x)))
    assert expected > 0.02
    assert within_standard_errors(gaps, expected)


def test_hidden_noise_model_has_a_valid_bound(key):
    # With the prediction 0 only the reconstruction depends on the precision, by half
    # its expected logarithm.
    nu, x = 3.0, jnp.asarray([0.7, -0.2])
    zero = eqmdm.NoiseModel(lambda t, y: jnp.zeros_like(y), eqmdm.VPSDE())
    bound = lambda model: eqmdm.elbo(model, x, key=key, n_draws=20_000)
    hidden = bound(eqmdm.StudentTModel(zero, nu, hidden=True))
    shift = special.digamma(nu / 2) - np.log(nu / 2)
    log_std = special.polygamma(1, nu / 2) ** 0.5
    assert estimate_within_standard_errors(
        hidden.reconstruction - bound(zero).reconstruction,
        # Half for each of two coordinates.
        shift,
        log_std / 20_000**0.5,
    )
    # The control variate of the other terms depends on it too, with mean 0.
    errors = hidden.standard_error, bound(zero).standard_error
    assert estimate_within_standard_errors(
        hidden.diffusion, bound(zero).diffusion, np.hypot(*errors)
    )


# --- Limits --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True], ids=["shown", "hidden"])
def test_noise_of_many_degrees_of_freedom_is_normal(hidden, key):
    model = eqmdm.DenoiserModel(normal_denoiser(0.7), eqmdm.CLD())
    many = eqmdm.StudentTModel(model, 1e12, hidden=hidden)
    x = jnp.asarray([0.5, -1.0])

    def everything(model):
        samples = eqmdm.sample(model, (2,), key=key, n_samples=4)
        likelihood = eqmdm.log_likelihood(model, x, key=key)
        return (
            eqmdm.elbo(model, x, key=key, n_draws=8).terms(),
            samples,
            likelihood.log_likelihood,
        )

    # The standard deviation of the precision is sqrt(2 / nu) = 1.4e-6, and the terms
    # are some tens of nats.
    assert tree_allclose(everything(many), everything(model), rtol=2e-5, atol=2e-5)


def test_precisions_have_the_moments_of_their_law(key):
    model = student_t(normal_denoiser(1.0), 1, 4.0)
    draw = lambda key: model.draw_precision(key=key, dtype=jnp.float64)
    drawn = jax.vmap(draw)(jr.split(key, 20_000))
    assert within_standard_errors(drawn, 1.0)
    assert within_standard_errors((drawn - 1) ** 2, 0.5)


# --- Samples -------------------------------------------------------------------------


def test_samples_of_student_t_data_have_their_tails(key):
    model = student_t(t_denoiser(3.0), 1, 4.0)
    x = np.abs(eqmdm.sample(model, (1,), key=key, n_samples=8000, n_steps=60))
    for share in (0.5, 0.1, 0.01):
        beyond = x > stats.t(3.0).isf(share / 2)
        assert within_standard_errors(beyond, share)


def test_hidden_precisions_give_samples_of_the_data(key):
    model = student_t(hidden_denoiser(5.0, 1.5), 2, hidden=True)
    x = eqmdm.sample(model, (2,), key=key, n_samples=4000)
    assert within_standard_errors(x**2, 1.5)
    assert within_standard_errors(x[:, 0] ** 2 * x[:, 1] ** 2, 1.5**2)


@pytest.mark.slow
def test_stochastic_solver_takes_the_precision(key):
    model = student_t(normal_denoiser(1.5), 1, 5.0)
    settings = {"n_samples": 4000, "n_steps": 300, "key": key}
    x = eqmdm.sample(model, (1,), sampler=dfx.SEA(), **settings)
    assert within_standard_errors(x**2, 1.5)


def test_saved_log_snrs_are_those_of_a_precision_of_one(key):
    model = student_t(normal_denoiser(1.5), 1, 5.0)
    levels = jnp.asarray([-2.0, 1.0])
    result = eqmdm.sample(
        model,
        (1,),
        key=key,
        n_samples=3,
        save_at=eqmdm.SaveAt(log_snrs=levels),
        full_output=True,
    )
    assert result.trajectory is not None
    assert tree_allclose(result.trajectory.log_snrs, levels, rtol=1e-6, atol=1e-6)
    assert result.trajectory.states.shape == (3, 2, 1, 1)
