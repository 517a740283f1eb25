"""Tests of denoisers of grey levels, some of which are frequent."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from pixels import noisy_pixel
from scipy.stats import norm

import eqmdm
from helpers import generator_of, normal, optimised_jit, slow, tree_allclose


RANGE = (-9.0, 14.0)
PIXEL = eqmdm.SpikeAndSlab(
    centres=[-0.9, 0.8], widths=[0.2, 0.0], shares=[0.5, 0.2], mean=0.1, std=0.6
)
no_network = lambda level, y: jnp.zeros_like(y)


def wavy(level, y):
    """A network that depends on all its inputs."""
    return jnp.sin(y + level) + 0.3 * jnp.cos(2 * jnp.roll(y, 1, axis=-1))


def quadrature_posterior_mean(log_snr, z, pixel, logits, move):
    """E[x | z] of one pixel with the odds of spikes and the slab's mean corrected, by
    quadrature over x."""
    sigma = np.exp(-0.5 * log_snr)
    # 100 panels of 20 nodes resolve noise of a hundredth of a spike.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    starts = np.linspace(-1, 1, 101)[:-1, None]
    nodes, weights = (starts + (nodes + 1) / 100).ravel(), np.tile(weights / 100, 100)
    normal = lambda e: np.exp(-0.5 * e**2) / np.sqrt(2 * np.pi)
    mass, first = 0.0, 0.0
    spikes = zip(pixel.centres, pixel.widths, pixel.shares, logits, strict=True)
    for centre, width, share, logit in spikes:
        x = centre + 0.5 * width * nodes
        density = 0.5 * weights * normal((z - x) / sigma) / sigma
        odds = share * np.exp(logit)
        mass += odds * density.sum()
        first += odds * (density * x).sum()
    total = np.hypot(sigma, pixel.std)
    slab = pixel.slab_share * normal((z - pixel.mean) / total) / total
    mean = pixel.mean + (pixel.std / total) ** 2 * (z - pixel.mean)
    mean += sigma * pixel.std / total * move
    return (first + slab * mean) / (mass + slab)


def test_denoiser_is_the_posterior_mean_of_its_components():
    logits, move = [0.7, -1.1], 0.4
    network = lambda level, y: jnp.broadcast_to(
        jnp.array([move, *logits])[:, None], y.shape
    )
    denoiser = eqmdm.SpikeAndSlabDenoiser(network, PIXEL, RANGE)
    log_snrs = np.asarray([-9.0, -2.0, 0.0, 3.0, 6.0, 13.0])
    sigmas = np.exp(-0.5 * log_snrs)[:, None]
    z = np.concatenate(
        [centre + sigmas * np.linspace(-3, 3, 5) for centre in (-0.9, -0.8, 0.1, 0.8)],
        axis=1,
    )
    expected = [
        [quadrature_posterior_mean(log_snr, x, PIXEL, logits, move) for x in row]
        for log_snr, row in zip(log_snrs, z, strict=True)
    ]
    found = jax.jit(jax.vmap(denoiser.__call__))(log_snrs, z)
    # The quadrature is exact to rounding. Below a tenth of the noise, the series in the
    # width of a spike is truncated at the sixth power: a few 1e-9.
    assert tree_allclose(found, np.asarray(expected), rtol=1e-8, atol=1e-8)


def at_log_snrs(functions, dtype, key):
    """Log-SNRs, data with noise, and what functions of both give."""
    log_snrs = np.asarray([-9.0, 0.0, 13.3, 20.0], dtype)
    x = np.asarray([-0.9, 0.8, 0.1, 1.5], dtype)
    z = x + np.exp(-0.5 * log_snrs)[:, None] * normal(key, (4, 4)).astype(dtype)

    @jax.jit
    @jax.vmap
    def compute(log_snr, z):
        return [function(log_snr, z) for function in functions]

    return log_snrs, z, *map(np.asarray, compute(log_snrs, z))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forms_of_the_denoiser_agree(dtype, key):
    denoiser = eqmdm.SpikeAndSlabDenoiser(wavy, PIXEL, RANGE)
    forms = denoiser, denoiser.correction, denoiser.residual
    log_snrs, z, x_hat, change, residual = at_log_snrs(forms, dtype, key)
    noise = np.exp(-log_snrs)[:, None]
    share = PIXEL.root_mean_square**2 / (PIXEL.root_mean_square**2 + noise)
    rounding = 200 * np.finfo(dtype).eps * (1 + np.abs(z))
    assert np.all(np.abs(z + change - x_hat) <= rounding)
    assert np.all(np.abs(share * z + residual - x_hat) <= rounding)


@pytest.mark.parametrize("dtype", [np.float32, slow(np.float64)])
def test_derivatives_of_the_denoiser_agree_and_are_finite(dtype, key):
    denoiser = eqmdm.SpikeAndSlabDenoiser(wavy, PIXEL, RANGE)
    slopes = jax.jacfwd(denoiser, argnums=1), jax.jacrev(denoiser, argnums=1)
    _, _, slope, backward = at_log_snrs(slopes, dtype, key)
    assert np.all(np.isfinite(slope)) and np.all(np.isfinite(backward))
    assert tree_allclose(slope, backward, rtol=1e-3, atol=1e-3)


def test_correction_keeps_its_digits_at_high_log_snr():
    # The noise is 1e-3 of the data, and float32 has 1e-7: as a difference, the
    # correction would be right to 1e-4 of itself at best, times the noise in z.
    log_snr, x = 13.3, np.float32(0.3)
    noise = np.float32(np.exp(-0.5 * log_snr))
    single = eqmdm.SpikeAndSlabDenoiser(no_network, PIXEL, RANGE)
    z = np.asarray([x + noise], np.float32)
    correction = optimised_jit(single.correction)
    found = correction(np.float32(log_snr), z)
    exact = correction(np.float64(log_snr), z.astype(np.float64))
    assert tree_allclose(np.asarray(found, float), exact, rtol=1e-5, atol=1e-12)


@pytest.mark.slow
def test_bound_without_a_network_is_the_log_density_of_independent_pixels(key):
    denoiser = eqmdm.SpikeAndSlabDenoiser(no_network, PIXEL_OF_BOXES, (-12.01, 17.01))
    interval = eqmdm.LogSNRInterval(-12.0, 17.0)
    model = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE(interval=interval))
    key_x, key = jr.split(key)
    x = draw_pixels(key_x, PIXEL_OF_BOXES, 400)
    bound = eqmdm.elbo(model, x, key=key, n_draws=4000)
    # With an exact denoiser it lacks what the decoder does not know, by the trapezoidal
    # rule over the noise at the start, and the divergence to the prior, which is less
    # than half the signal's variance.
    noise, sigma = np.linspace(-8, 8, 2001), np.exp(-8.5)
    weights = norm.pdf(noise) * (noise[1] - noise[0])
    pixels = np.asarray(x)[:, None]
    log_law, mean = noisy_pixel(PIXEL_OF_BOXES, sigma, pixels + sigma * noise)
    decoder = norm.logpdf(pixels, mean, sigma) - norm.logpdf(sigma * noise, 0, sigma)
    expected = np.sum((log_law + decoder) @ weights)
    prior = 400 * 0.5 * np.exp(-12.0)
    assert abs(bound.total - expected) < 5 * bound.standard_error + prior
    # The decoder's part, which is that of a few pixels close to an edge.
    lost = log_density(PIXEL_OF_BOXES, x) - expected
    assert lost > 5 * bound.standard_error + prior


@pytest.mark.parametrize("high", [slow(11.0), 13.3, 20.0])
def test_bound_of_a_known_level_lacks_what_the_decoder_does_not_know(high, key):
    # One of 256 levels. The normal decoder does not know its edges, which the denoiser
    # does: 0.22 bits of each pixel at a log-SNR of 13.3, and 0.008 at 20.
    width, n_pixels = 2 / 256, 2000
    centre, model = model_of_known_level(width, high)
    # Evenly spread over the level, because what is lost depends on the distance from
    # its edges.
    x = centre + width * ((np.arange(n_pixels) + 0.5) / n_pixels - 0.5)
    # Compiled as users do, for its many draws.
    estimate = optimised_jit(lambda x: eqmdm.elbo(model, x, key=key, n_draws=1000))
    bound = estimate(np.float32(x))
    lost = n_pixels * decoder_gap(np.exp(-0.5 * high) / width)
    expected = -n_pixels * np.log(width) - lost
    # The prior's divergence is half the signal's variance at the end.
    prior = 0.5 * n_pixels * np.exp(-9.0)
    error = 5 * float(bound.standard_error) + prior
    assert abs(float(bound.total) - expected) < error
    assert error < 0.004 * n_pixels


def model_of_known_level(width, high):
    """The centre of the lowest level, and the exact model of pixels that have it."""
    centre = 0.5 * width - 1
    pixel = eqmdm.SpikeAndSlab([centre], [width], [1 - 1e-9], 0.0, 0.6)
    denoiser = eqmdm.SpikeAndSlabDenoiser(no_network, pixel, (-9.01, 14.0))
    interval = eqmdm.LogSNRInterval(-9.0, high)
    return centre, eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE(interval=interval))


def decoder_gap(noise):
    """E KL(p(x | y) | N(E[x | y], noise^2)) for x uniform on [0, 1] and y = x + noise
    e, by quadrature over y."""
    y = np.linspace(-9 * noise, 1 + 9 * noise, 100_001)
    low, high = -y / noise, (1 - y) / noise
    # Reflected, so that the mass is the difference of two lower tails.
    low, high = np.where(y < 0.5, -high, low), np.where(y < 0.5, -low, high)
    mass = norm.cdf(high) - norm.cdf(low)
    mean = (norm.pdf(low) - norm.pdf(high)) / mass
    return np.trapezoid(mass * (-np.log(mass) - 0.5 * mean**2), y)


PIXEL_OF_BOXES = eqmdm.SpikeAndSlab([-0.9, 0.8], [0.2, 0.4], [0.5, 0.2], 0.1, 0.6)


def draw_pixels(key, pixel, n):
    rng = generator_of(key)
    shares = [*pixel.shares, pixel.slab_share]
    which = rng.choice(len(shares), n, p=shares)
    slab = pixel.mean + pixel.std * rng.standard_normal(n)
    centres, widths = (np.append(v, 0) for v in (pixel.centres, pixel.widths))
    box = centres[which] + widths[which] * (rng.random(n) - 0.5)
    return jnp.asarray(np.where(which == len(shares) - 1, slab, box))


def log_density(pixel, x):
    spikes = zip(pixel.centres, pixel.widths, pixel.shares, strict=True)
    density = pixel.slab_share * norm.pdf(x, pixel.mean, pixel.std)
    for centre, width, share in spikes:
        inside = np.abs(x - centre) < width / 2
        density = density + np.where(inside, share / width, 0)
    return np.sum(np.log(density))


def test_exact_likelihood_without_a_network_is_that_of_independent_pixels(key):
    # A wide box, and a mean of zero, which is that of the prior.
    pixel = eqmdm.SpikeAndSlab([-0.9], [0.6], [0.5], 0.9, 0.6)
    denoiser = eqmdm.SpikeAndSlabDenoiser(no_network, pixel, (-12.01, 9.01))
    interval = eqmdm.LogSNRInterval(-12.0, 9.0)
    model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD(interval=interval))
    x = np.asarray([-0.9, -0.8, 0.5, 1.3])
    controller = dfx.PIDController(rtol=1e-8, atol=1e-8)
    found = eqmdm.log_likelihood(
        model, jnp.asarray(x), key=key, stepsize_controller=controller
    )
    # The density at the start, with its noise, which is 9 standard deviations or more
    # from the edges of the box.
    slab = norm.pdf(x, 0.9, np.sqrt(0.6**2 + np.exp(-9.0)))
    box = np.where(x < -0.6, 0.5 / 0.6, 0)
    expected = np.sum(np.log(0.5 * slab + box))
    # The normal prior is wrong by less than E x^2 / sigma^2, 4e-6 a pixel.
    assert abs(found.log_likelihood - expected) < 4 * 4e-6 + 4e-4


@pytest.mark.slow
@pytest.mark.parametrize("clock, biased", [(eqmdm.AngleClock(), True), (None, False)])
def test_exact_likelihood_of_a_known_level_needs_steps_in_log_snr(clock, biased, key):
    # One of 256 levels, as above, at the log-SNR at which `eqmdm train` ends.
    width, high = 2 / 256, 20.0
    centre, model = model_of_known_level(width, high)
    places = (np.arange(256) + 0.5) / 256 - 0.5
    x = centre + width * generator_of(key).permutation(places)
    route = None if clock is None else eqmdm.CollapsedRoute(clock)
    found = optimised_jit(
        lambda x: eqmdm.log_likelihood(model, x, key=key, route=route).log_likelihood
    )(x)
    # The density at the start, whose noise blurs the edges, of pixels that are evenly
    # spread over the level.
    noise = np.exp(-0.5 * high)
    upper, lower = (places + end for end in (0.5, -0.5))
    mass = norm.cdf(upper * width / noise) - norm.cdf(lower * width / noise)
    error = found / 256 - np.mean(np.log(mass / width))
    # Steps in the angle pass over the edges. By default, two dozen steps are each right
    # to 1e-5 of a log-density of up to 10, and the normal prior is wrong by half the
    # signal's variance.
    assert error > 5e-3 if biased else abs(error) < 2.4e-3 + 0.5 * np.exp(-9.0)


def told(level, y, *, noise_levels, filtered):
    """A network that depends on all that it is told."""
    return wavy(level, y) + 0.3 * jnp.sin(noise_levels - filtered)[None]


def test_equal_log_snrs_are_those_of_a_scalar_denoiser(key):
    network = lambda level, y, **told: wavy(level, y)
    vector = eqmdm.SpikeAndSlabDenoiser(network, PIXEL, RANGE, eqmdm.PixelBasis((4,)))
    scalar = eqmdm.SpikeAndSlabDenoiser(network, PIXEL, RANGE)
    x, log_snrs = np.asarray([-0.9, 0.8, 0.1, 1.5]), [-9.0, 0.0, 4.0, 13.3, 16.0]
    log_snrs = np.asarray(log_snrs)
    z = x + np.exp(-0.5 * log_snrs)[:, None] * normal(key, (5, 4))

    @jax.jit
    @jax.vmap
    def compute(log_snr, z):
        return vector(jnp.full(4, log_snr), z), scalar(log_snr, z)

    # The same operations on an array of equal numbers and on the number.
    found, expected = compute(log_snrs, z)
    assert tree_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, slow(np.float64)])
def test_infinite_log_snrs_are_the_limits_of_large_ones(dtype):
    denoiser = eqmdm.SpikeAndSlabDenoiser(told, PIXEL, RANGE, eqmdm.PixelBasis((4,)))
    z = np.asarray([-0.85, 0.3, 0.8, 0.2], dtype)

    @jax.jit
    def compute(log_snr, z):
        jacobians = jax.jacfwd, jax.jacrev
        slopes = [of(denoiser, argnums=1)(log_snr, z) for of in jacobians]
        return denoiser(log_snr, z), slopes

    log_snr = np.asarray([np.inf, -np.inf, np.inf, 1.0], dtype)
    found, slopes = jax.device_get(compute(log_snr, z))
    assert np.all(found[[0, 2]] == z[[0, 2]])
    far, _ = compute(np.asarray([36.0, -36.0, 36.0, 1.0], dtype), z)
    # The noise is e^-18 of the data, or the data are of the noise.
    assert tree_allclose(found, far, rtol=0, atol=1e-6)
    for slope in slopes:
        assert np.all(np.isfinite(slope))
        # What is missing has no effect, and what is known is not changed.
        assert np.all(slope[:, 1] == 0)
        assert tree_allclose(slope[0], np.eye(4, dtype=dtype)[0], rtol=0, atol=1e-6)


def test_only_pixels_have_levels():
    with pytest.raises(ValueError, match="`basis` must be an .*got CosineBasis"):
        basis = eqmdm.CosineBasis((4, 1))
        eqmdm.SpikeAndSlabDenoiser(no_network, PIXEL, RANGE, basis)


def test_denoiser_takes_conditions_and_trains(key):
    def network(level, y, *, condition):
        return y * condition

    denoiser = eqmdm.SpikeAndSlabDenoiser(network, PIXEL, RANGE)
    z = jnp.array([0.2, -0.9])
    run = eqx.filter_jit(lambda denoiser: denoiser(jnp.asarray(1.0), z))
    told = run(denoiser.with_condition(2.0))
    untold = run(eqmdm.SpikeAndSlabDenoiser(lambda level, y: 2.0 * y, PIXEL, RANGE))
    assert tree_allclose(told, untold, rtol=1e-14, atol=0)
    scale = eqx.nn.Linear(2, 2, key=key)
    trained = eqmdm.SpikeAndSlabDenoiser(
        lambda level, y: jax.vmap(scale)(y), PIXEL, RANGE
    )
    # The distribution of a pixel is not trained.
    assert not jax.tree.leaves(eqx.filter(trained.pixel, eqx.is_array))
