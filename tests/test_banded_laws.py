"""Diffusions whose matrices differ by coordinate, against closed forms."""

import functools
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from correlated import COVARIANCE, mmse, model_of, two_speeds

import eqmdm
from helpers import slow_but, tree_allclose, within_standard_errors


# --- Path independence ---------------------------------------------------------------


# Outside of `jit` every schedule would be made by programs of its own.
@functools.cache
@eqx.filter_jit
def path(name):
    """A way from the same log-SNRs to the same log-SNRs for each coordinate."""
    interval = eqmdm.TimeInterval(1e-3, 1.0)
    start = eqmdm.LinearSchedule(0.1, 12.0)
    schedules = [start] * 3
    if name != "joint":
        schedules = []
        for i in range(3):
            schedule = eqmdm.LearnedSchedule(7, start=start, interval=interval)
            # Rates that differ by up to e^6 between knots, or early against late.
            steep = np.linspace(-6, 6, 7) * (1 - i)
            wild = 3 * np.random.default_rng(i).standard_normal(7)
            rates = steep if name == "staggered" else wild
            rates = jnp.asarray(rates, jnp.float32)
            schedules.append(eqx.tree_at(lambda s: s.raw_rates, schedule, rates))
    each = [eqmdm.VPSDE(schedule=s, interval=interval) for s in schedules]
    return eqmdm.BandedDiffusion(each, [0, 1, 2])


@eqx.filter_jit
def laws(diffusion, times):
    """The kernels, the log-SNRs and their rates."""

    def law(t):
        kernel = diffusion.compute_kernel(t)
        rate = diffusion.log_snr_rate(t, kernel)
        return kernel.mean_map, kernel.root, kernel.log_snr, rate

    return jax.vmap(law)(times)


@functools.cache
def ends_and_information(name):
    """The mean maps, roots and log-SNRs at both ends of a path, and the integral of
    half the posterior variances over its SNRs."""
    diffusion = path(name)
    # The rate is smooth between knots, but near the first one the SNR falls steeply:
    # Gauss-Legendre quadrature on parts of each cell, which are finer at its left.
    knots = np.geomspace(1e-3, 1.0, 7)
    shares = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, 24)])
    edges = knots[:-1, None] + np.diff(knots)[:, None] * shares
    nodes, weights = np.polynomial.legendre.leggauss(20)
    width = np.diff(edges, axis=1).reshape(-1, 1)
    times = (edges[:, :-1].reshape(-1, 1) + 0.5 * width * (nodes + 1)).ravel()
    times = np.concatenate([[diffusion.t0, diffusion.t1], times])
    *kernels, log_snrs, slopes = map(np.asarray, laws(diffusion, jnp.asarray(times)))
    ends = [part[:2] for part in (*kernels, log_snrs)]
    log_snrs, slopes = log_snrs[2:], slopes[2:]
    falls = -slopes * np.exp(log_snrs)
    costs = [
        0.5 * fall @ mmse(level) for fall, level in zip(falls, log_snrs, strict=True)
    ]
    return ends, float(np.sum((0.5 * width * weights).ravel() * costs))


PATHS = "joint", "staggered", "random"


@pytest.mark.parametrize("name", PATHS)
def test_the_information_along_every_path_is_the_same(name):
    (*_, (first, last)), information = ends_and_information(name)
    volume = lambda level: np.linalg.slogdet(
        np.eye(3) + COVARIANCE * np.exp(level)[None]
    )[1]
    # The mutual information of normal data and their observation at given SNRs.
    expected = 0.5 * (volume(first) - volume(last))
    assert abs(information - expected) < 1e-6


@eqx.filter_jit
def bounds(model, x, keys):
    bound = lambda x, key: eqmdm.elbo(model, x, key=key).total
    return jax.vmap(bound)(x, keys)


@pytest.mark.parametrize("name", PATHS)
def test_the_bound_along_every_path_is_the_same(name, key):
    n = 4000
    x = np.random.default_rng(0).multivariate_normal(np.zeros(3), COVARIANCE, n)
    (mean_maps, roots, log_snrs), information = ends_and_information(name)
    top = log_snrs[0]
    reconstruction = 0.5 * np.sum(top - math.log(2 * math.pi) - np.exp(top) * mmse(top))
    # E KL(N(a x, s^2) | N(0, 1)) for each coordinate.
    square = mean_maps[-1, 0] ** 2 * np.diag(COVARIANCE)
    variance = roots[-1, 0, 0] ** 2
    prior = -0.5 * np.sum(square + variance - 1 - np.log(variance))
    expected = reconstruction + prior - information
    values = bounds(model_of(path(name)), jnp.asarray(x), jr.split(key, n))
    assert within_standard_errors(values, expected, n=4.0)


# --- Closed forms --------------------------------------------------------------------

TIGHT = diffrax.PIDController(rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "route",
    [eqmdm.CollapsedRoute(), eqmdm.AugmentedRoute()],
    ids=["collapsed", "augmented"],
)
def test_likelihood_of_two_variables_is_the_closed_form(route, key):
    diffusion = eqmdm.BandedDiffusion(two_speeds(eqmdm.CLD), [0, 1, 1])
    x = jnp.asarray([0.7, -0.4, 0.5])
    result = eqmdm.log_likelihood(
        model_of(diffusion),
        x,
        key=key,
        route=route,
        stepsize_controller=TIGHT,
    )
    ends = jnp.asarray([diffusion.t0, diffusion.t1])
    high, low = np.asarray(laws(diffusion, ends)[2])
    total = COVARIANCE + np.diag(np.exp(-high))
    expected = -0.5 * (
        x @ np.linalg.solve(total, x)
        + np.linalg.slogdet(total)[1]
        + 3 * math.log(2 * math.pi)
    )
    # Of the order of the lowest SNR, below 1e-4, at which the prior stands in for the
    # law of the state.
    assert low.max() < math.log(1e-4)
    assert abs(float(result.log_likelihood) - float(expected)) < 1e-3


SAMPLERS = {
    "dpm": (eqmdm.DPMSolver(), 60),
    "heun": (eqmdm.EDMHeun(), 100),
    "ancestral": (eqmdm.AncestralSampler(), 300),
    "sscs": (eqmdm.SSCS(), 300),
    "sea": (eqmdm.DiffraxSampler(diffrax.SEA()), 150),
}


@pytest.mark.parametrize("name", slow_but(["dpm"], SAMPLERS))
def test_samples_of_two_variables_have_the_covariance_of_the_data(name, key):
    diffusion = eqmdm.BandedDiffusion(two_speeds(eqmdm.CLD), [0, 1, 1])
    # The discretisation error at these steps is below one standard error.
    sampler, n_steps = SAMPLERS[name]
    x = eqmdm.sample(
        model_of(diffusion),
        (3,),
        key=key,
        n_samples=1000,
        n_steps=n_steps,
        sampler=sampler,
    )
    x = np.asarray(x)
    products = x[:, :, None] * x[:, None]
    assert within_standard_errors(products, COVARIANCE)


def test_a_noise_model_and_a_function_are_trained_and_sampled_by_band(key):
    diffusion = eqmdm.BandedDiffusion(two_speeds(eqmdm.VPSDE), [0, 1, 1])
    exact = model_of(diffusion)
    score = lambda t, y: exact.score_at(diffusion.compute_kernel(t), y)
    function = eqmdm.FunctionModel(score, diffusion)

    def noise(t, y):
        kernel = diffusion.compute_kernel(t)
        return -kernel.root[0, 0][None] * exact.score_at(kernel, y)

    x = jnp.asarray([0.7, -0.4, 0.5])

    def values(model):
        bound = eqmdm.elbo(model, x, key=key, time_sampler=eqmdm.UniformTimeSampler())
        samples = eqmdm.sample(model, (3,), key=key, n_samples=2, n_steps=9)
        return bound.total, samples

    expected = values(exact)
    for model in (function, eqmdm.NoiseModel(noise, diffusion)):
        # The score loses digits at the highest SNR, 1e5.
        assert tree_allclose(values(model), expected, rtol=1e-6, atol=1e-6)


# --- Known processes, each in a few lines --------------------------------------------


def blurring(frequencies):
    """Blurring diffusion (Hoogeboom & Salimans, 2023) in a cosine basis: the mean of a
    frequency k is cos(pi t / 2) exp(-k^2 t), its variance sin(pi t / 2)^2."""

    def of_frequency(k):
        log_mean = lambda t: jnp.log(jnp.cos(0.5 * jnp.pi * t)) - k**2 * t
        drift = jax.grad(log_mean)
        variance = lambda t: jnp.sin(0.5 * jnp.pi * t) ** 2
        noise = lambda t: jax.grad(variance)(t) - 2 * drift(t) * variance(t)
        return eqmdm.TimeVaryingDiffusion(
            lambda t: drift(t)[None, None],
            lambda t: jnp.sqrt(noise(t))[None, None],
            prior_covariance=[[1.0]],
            interval=eqmdm.TimeInterval(1e-2, 0.99),
        )

    return eqmdm.BandedDiffusion(
        [of_frequency(k) for k in frequencies], np.arange(len(frequencies))
    )


def test_blurring_diffusion_has_its_mean_and_variance():
    frequencies = np.array([0.0, 0.5, 1.5])
    kernel = jax.jit(blurring(frequencies).compute_kernel)(jnp.asarray(0.4))
    mean = np.cos(0.2 * np.pi) * np.exp(-(frequencies**2) * 0.4)
    # The steps of the composed transition, of fourth order.
    assert tree_allclose(np.asarray(kernel.mean_map)[0], mean, rtol=1e-6, atol=0.0)
    std = np.full(3, np.sin(0.2 * np.pi))
    assert tree_allclose(np.asarray(kernel.root)[0, 0], std, rtol=1e-6, atol=0.0)


def equal_snr(variances):
    """A path on which all coordinates have the same ratio of their own variance to the
    noise: an exact denoiser of independent coordinates scales all of them alike."""

    def of_variance(variance):
        # B = log(1 + variance * 100 t^2), so that the SNR is 1 / (100 t^2 variance).
        half_rate = lambda t: 100 * variance * t / (1 + 100 * variance * t**2)
        return eqmdm.TimeVaryingDiffusion(
            lambda t: -half_rate(t)[None, None],
            lambda t: jnp.sqrt(2 * half_rate(t))[None, None],
            prior_covariance=[[1.0]],
        )

    return eqmdm.BandedDiffusion(
        [of_variance(variance) for variance in variances], np.arange(len(variances))
    )


@pytest.mark.filterwarnings("ignore:.*prior")
def test_equal_snr_spectra_are_equal():
    variances = np.array([4.0, 1.0, 0.5])
    diffusion = equal_snr(variances)
    times = np.asarray([0.05, 0.4, 0.9])
    log_snrs = np.asarray(jax.jit(jax.vmap(diffusion.log_snr))(times))
    for t, log_snr in zip(times, log_snrs, strict=True):
        levels = log_snr + np.log(variances)
        # The steps of the composed transition, of fourth order.
        assert np.ptp(levels) < 1e-4
        assert abs(levels[0] + np.log(100 * t**2)) < 1e-4


@eqx.filter_jit
def cascade():
    """The second coordinate, a fine detail, is noise before the first one, the coarse
    average, has lost anything that matters: sampled in reverse, coarse comes first."""
    interval = eqmdm.TimeInterval(1e-3, 1.0)
    rates = [[1.0, 1.0, 1.0, 60.0], [60.0, 1.0, 1.0, 1.0]]
    parts = []
    for of_knots in rates:
        schedule = eqmdm.LearnedSchedule(
            4, start=eqmdm.ConstantSchedule(12.0), interval=interval
        )
        raw = jnp.asarray(of_knots, jnp.float32)
        schedule = eqx.tree_at(lambda s: s.raw_rates, schedule, raw)
        parts.append(eqmdm.VPSDE(schedule=schedule, interval=interval))
    return eqmdm.BandedDiffusion(parts, [0, 1])


def test_a_cascade_keeps_the_coarse_part_until_the_fine_part_is_noise():
    diffusion = cascade()
    times = np.geomspace(1e-3, 1.0, 200)
    levels = np.asarray(jax.jit(jax.vmap(diffusion.log_snr))(times))
    # Same ends to rounding of float32 parameters.
    for end in (0, -1):
        assert abs(levels[end, 0] - levels[end, 1]) < 1e-4
    assert np.max(levels[:, 0] - levels[:, 1]) > 1.5


# --- Parts of an example -------------------------------------------------------------


def test_the_likelihood_of_observed_coordinates_is_that_of_their_marginal(key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-13.0, 11.0))
    x = jnp.asarray([0.7, math.nan, 0.5])
    observed = np.array([True, False, True])
    result = eqmdm.log_likelihood(
        model_of(diffusion), x, key=key, observed=observed, stepsize_controller=TIGHT
    )
    covariance = COVARIANCE[np.ix_(observed, observed)] + math.exp(-11.0) * np.eye(2)
    known = np.array([0.7, 0.5])
    expected = -0.5 * (
        known @ np.linalg.solve(covariance, known)
        + np.linalg.slogdet(covariance)[1]
        + 2 * math.log(2 * math.pi)
    )
    # The information of the draw of the other coordinate, and the prior in place of
    # the law at the final time: each of the order of the lowest SNR, 2e-6, times
    # numbers of order 10, or its root times the draw.
    assert abs(float(result.log_likelihood) - expected) < 10 * math.exp(-6.5)


def test_the_density_at_other_log_snrs_is_that_of_noisy_data(key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-13.0, 11.0))
    log_snr = jnp.asarray([1.5, 4.0, -0.5])
    x = jnp.asarray([0.7, -0.4, 0.9])
    result = eqmdm.log_likelihood(
        model_of(diffusion),
        x,
        key=key,
        route=eqmdm.CollapsedRoute(log_snr=log_snr),
        stepsize_controller=TIGHT,
    )
    total = COVARIANCE + np.diag(np.exp(-np.asarray(log_snr)))
    expected = -0.5 * (
        x @ np.linalg.solve(total, x)
        + np.linalg.slogdet(total)[1]
        + 3 * math.log(2 * math.pi)
    )
    # The prior in place of the law at the final time, of the order of the lowest SNR.
    assert abs(float(result.log_likelihood) - float(expected)) < 1e-4


def test_all_coordinates_observed_is_the_likelihood(key):
    diffusion = eqmdm.BandedDiffusion(two_speeds(eqmdm.CLD), [0, 1, 1])
    x = jnp.asarray([0.7, -0.4, 0.5])
    likelihood = functools.partial(
        eqmdm.log_likelihood,
        model_of(diffusion),
        x,
        key=key,
        stepsize_controller=TIGHT,
    )
    whole, masked = likelihood(), likelihood(observed=np.ones(3, bool))
    # The same solve; sums in another order.
    assert masked.n_evaluations == whole.n_evaluations
    actual, expected = masked.log_likelihood, whole.log_likelihood
    assert tree_allclose(actual, expected, rtol=1e-9, atol=0.0)


@pytest.mark.usefixtures("unchecked")
def test_bad_masks_are_refused_by_name(key):
    x = jnp.zeros(3)
    model = model_of(eqmdm.VPSDE())
    with pytest.raises(
        ValueError, match=r"`observed` must be a mask.*\(2,\) and .*bool"
    ):
        eqmdm.log_likelihood(model, x, key=key, observed=np.ones(2, bool))
    with pytest.raises(
        ValueError, match=r"`observed` must be a mask.*\(3,\) and .*int"
    ):
        eqmdm.log_likelihood(model, x, key=key, observed=np.ones(3, np.int32))
    with pytest.raises(TypeError, match="`route` must be a `CollapsedRoute`"):
        eqmdm.log_likelihood(
            model,
            x,
            key=key,
            observed=np.ones(3, bool),
            route=eqmdm.AugmentedRoute(),
        )
    scalar = eqmdm.DenoiserModel(lambda log_snr, z: z, eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`model` must have a denoiser that is told"):
        eqmdm.log_likelihood(scalar, x, key=key, observed=np.ones(3, bool))
