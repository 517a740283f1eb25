"""Tests of exact likelihoods against closed forms and quadrature."""

import math

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special
from likelihoods import TIGHT, WIDE, compute, ends, mixture_case, rms
from references import (
    MODE_STD as STD,
    STATIONARY,
    VARIANCE,
    mixture_denoiser,
    normal_denoiser,
)
from scipy.stats import norm

import eqmdm
from eqmdm import AugmentedRoute, CollapsedRoute, LogSNRClock
from helpers import slow, slow_but, tree_allclose


def check_mixture(name, route, dtype, key):
    """The checked results by one diffusion in one precision."""
    x, closed, tight = mixture_case()
    batch = jnp.asarray(np.asarray(x, dtype))
    diffusion = STATIONARY[name](interval=eqmdm.LogSNRInterval(*WIDE))
    result = compute(mixture_denoiser, diffusion, batch, key, route=route)
    assert result.log_likelihood.dtype == dtype
    result = jax.tree.map(np.asarray, result)
    error = result.log_likelihood.astype(np.float64) - tight
    largest, from_closed = np.max(np.abs(error)), rms(error + tight - closed)
    print(
        f"{name} in {dtype.__name__}: against a tight solve rms "
        f"{rms(error):.2e}, max {largest:.2e}; against the closed form "
        f"{from_closed:.2e}; {np.mean(result.n_evaluations):.1f} evaluations"
    )
    assert np.all(result.converged)
    # A tolerance of 1e-5 over some twenty steps; truncation beside it.
    assert rms(error) < 2e-4 and largest < 2e-3
    assert from_closed < 5e-4
    return result


@pytest.mark.parametrize("dtype", [np.float32, slow(np.float64)])
@pytest.mark.parametrize("name", slow_but(["CLD"], STATIONARY))
def test_collapsed_likelihood_of_a_mixture_is_exact(name, dtype, key):
    result = check_mixture(name, CollapsedRoute(), dtype, key)
    assert np.all(result.standard_error == 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["VPSDE", "CLD"])
def test_augmented_likelihood_of_a_mixture_is_exact_for_every_draw(name, dtype, key):
    result = check_mixture(name, AugmentedRoute(2), dtype, key)
    # Draws agree where score and prior are exact, but for the error of the solves.
    largest = 0.0 if name == "VPSDE" else 2e-3
    assert np.max(result.standard_error) <= largest


@pytest.mark.slow
def test_evaluations_are_as_few_as_stated(key):
    x, _, _ = mixture_case()
    # With one variable nothing is drawn, so any count of draws is one solve.
    routes = CollapsedRoute(LogSNRClock()), AugmentedRoute(2), CollapsedRoute()
    results = [
        compute(mixture_denoiser, eqmdm.VPSDE(), x, key, route=route)
        for route in routes
    ]
    means = [np.mean(result.n_evaluations) for result in results]
    print("evaluations in log-SNR, t and angle:", [f"{mean:.1f}" for mean in means])
    assert means[0] <= 160 and means[1] <= 90
    # The default takes the fewest.
    assert means[2] < means[1] < means[0]
    # With one variable all are the flow of the same density.
    for result in results[1:]:
        assert rms(result.log_likelihood - results[0].log_likelihood) < 2e-4


@pytest.mark.parametrize("solver", [dfx.Tsit5(), dfx.Heun()], ids=["Tsit5", "Heun"])
def test_evaluations_are_counted(solver):
    calls = []

    def denoiser(log_snr, z):
        jax.debug.callback(lambda: calls.append(0))
        return normal_denoiser(log_snr, z)

    diffusion = eqmdm.VPSDE()
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
    log_snr0, log_snr1, _ = ends(diffusion)
    grid = jnp.asarray(np.linspace(-log_snr0, -log_snr1, 8))
    for control in (controller, dfx.StepTo(grid)):
        calls.clear()
        result = eqmdm.log_likelihood(
            model,
            jnp.asarray(0.7),
            key=jr.key(0),
            route=CollapsedRoute(LogSNRClock()),
            solver=solver,
            stepsize_controller=control,
        )
        jax.effects_barrier()
        assert result.n_evaluations == len(calls)


@pytest.mark.parametrize(
    ("name", "route"),
    [
        slow("VPSDE", CollapsedRoute()),
        ("CLD", CollapsedRoute()),
        slow("MALDA", CollapsedRoute()),
        # With one variable its flow too is a known multiple of x.
        ("VPSDE", AugmentedRoute()),
    ],
    ids=["VPSDE", "CLD", "MALDA", "augmented"],
)
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_likelihood_of_normal_data_includes_the_mismatch_of_the_prior(name, route, key):
    diffusion = getattr(eqmdm, name)(interval=eqmdm.TimeInterval(2e-3, 0.4))
    x = np.linspace(-3, 3, 12).reshape(2, 3, 1, 2)
    options = {"route": route, "tolerance": TIGHT, "in_turn": True}
    found = compute(normal_denoiser, diffusion, jnp.asarray(x), key, **options)
    *log_snrs, prior_variance = map(np.asarray, ends(diffusion))
    start, end = (VARIANCE + np.exp(-log_snr) for log_snr in log_snrs)
    stretch = np.sqrt(end / start)
    log_density = norm.logpdf(stretch * x, 0.0, np.sqrt(prior_variance))
    expected = np.sum(log_density + np.log(stretch), axis=(1, 2, 3))
    # The mismatch that this is about.
    exact = np.sum(norm.logpdf(x, 0.0, np.sqrt(start)), axis=(1, 2, 3))
    assert np.max(np.abs(expected - exact)) > 0.05
    # The tolerance over some hundred steps.
    assert tree_allclose(found.log_likelihood, expected, rtol=0.0, atol=1e-6)


@pytest.mark.slow
def test_augmented_likelihood_of_normal_data_is_the_closed_form_for_any_score(key):
    diffusion = eqmdm.MALDA(interval=eqmdm.LogSNRInterval(*WIDE))
    model = eqmdm.FunctionModel(
        eqmdm.DenoiserModel(normal_denoiser, diffusion).score, diffusion
    )
    controller = dfx.PIDController(rtol=TIGHT, atol=TIGHT)
    x = jnp.linspace(-3, 3, 6).reshape(3, 1, 2)

    @jax.jit
    def run(x, keys):
        one = lambda x, key: eqmdm.log_likelihood(
            model, x, key=key, stepsize_controller=controller
        )
        return jax.vmap(one)(x, keys).log_likelihood

    std = math.sqrt(VARIANCE + math.exp(-WIDE[1]))
    expected = np.sum(norm.logpdf(x, 0.0, std), axis=(1, 2))
    # A share of e^-13.3 of the prior's variance is missing.
    actual = run(x, jr.split(key, 3))
    assert tree_allclose(actual, expected, rtol=0.0, atol=2e-5)


@pytest.mark.slow
def test_clock_of_the_augmented_route_changes_its_steps_alone(key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-8.0, 6.0))
    x = jnp.linspace(-2, 2, 4)
    # Draws of one key: the same auxiliaries.
    in_time, in_log_snr = (
        compute(normal_denoiser, diffusion, x, key, route=AugmentedRoute(clock=clock))
        for clock in (None, LogSNRClock())
    )
    assert np.any(in_time.n_evaluations != in_log_snr.n_evaluations)
    error = in_time.log_likelihood - in_log_snr.log_likelihood
    # Two solves at a tolerance of 1e-5, each of some twenty steps.
    assert np.max(np.abs(error)) < 2e-4


def test_clock_of_the_noise_raises_where_log_snr_is_not_monotone(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.ALDA())
    route = AugmentedRoute(clock=LogSNRClock())
    with pytest.raises(ValueError, match="`clock` must be"):
        eqmdm.log_likelihood(model, jnp.zeros(()), key=key, route=route)


def test_solver_for_sdes_raises(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`solver` must be one for ODEs.*got `SEA`"):
        eqmdm.log_likelihood(model, jnp.zeros(2), key=key, solver=dfx.SEA())


def test_default_route_follows_the_model(key):
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    function = eqmdm.FunctionModel(denoiser.score, diffusion)
    x = jnp.asarray(0.3)
    for model, route in ((denoiser, CollapsedRoute()), (function, AugmentedRoute())):
        chosen = eqmdm.log_likelihood(model, x, key=key)
        given = eqmdm.log_likelihood(model, x, key=key, route=route)
        assert tree_allclose(chosen, given, rtol=0.0, atol=0.0)


def test_preconditioned_denoiser_keeps_its_digits_at_high_log_snr(key):
    # Data of another width than the one that the preconditioning is told.
    std, data_std, low, high = 0.2, 0.5, -14.0, 27.0

    def network(c, z):
        noise = jnp.exp(c * (high - low) - high)
        # (x_hat - c_skip z) / c_out for x_hat = z std^2 / (std^2 + noise).
        gap = data_std**2 - std**2
        return -z * jnp.sqrt(noise) * gap / (data_std * (std**2 + noise))

    denoiser = eqmdm.PreconditionedDenoiser(network, data_std, (low, high))
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-13.3, high - 0.01))
    x = np.linspace(-0.6, 0.6, 7, dtype=np.float32)
    result = compute(denoiser, diffusion, jnp.asarray(x), key, in_turn=True)
    assert np.all(result.converged)
    expected = norm.logpdf(x.astype(np.float64), 0.0, std)
    # Three standard deviations out a tolerance of 1e-5 leaves that much.
    actual = np.asarray(result.log_likelihood, np.float64)
    assert tree_allclose(actual, expected, rtol=0.0, atol=5e-4)


@pytest.mark.parametrize("route", [CollapsedRoute(), AugmentedRoute()])
def test_mixture_in_two_dimensions_is_exact(route, key):
    means = np.asarray([[-1.5, 0.3], [-0.4, -1.0], [0.5, 1.2], [1.6, 0.0]])

    def denoiser(log_snr, z):
        noise = jnp.exp(-log_snr)
        spread = STD**2 + noise
        gaps = jnp.sum((z[None] - means) ** 2, axis=1)
        weights = jax.nn.softmax(-0.5 * gaps / spread)
        return (STD**2 * z + noise * (weights @ means)) / spread

    generator = np.random.default_rng(0)
    x = generator.choice(means, 128) + STD * generator.standard_normal((128, 2))
    components = np.sum(norm.logpdf(x[:, None], means[None], STD), axis=2)
    expected = scipy.special.logsumexp(components, axis=1) - math.log(4)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    options = {"route": route, "in_turn": True}
    result = compute(denoiser, diffusion, jnp.asarray(x), key, **options)
    # The limit for one dimension, per dimension.
    assert rms(result.log_likelihood - expected) < 1e-3
