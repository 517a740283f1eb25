import jax
import jax.numpy as jnp
import jax.random as jr
import mpmath as mp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from references import random_diffusion

import eqmdm
from eqmdm._bound.decoders import log_normal_mass
from eqmdm._model.point import Point
from helpers import optimised_jit, tree_allclose


# Late enough for dense covariances to be well conditioned.
TIME = 0.4


def models(diffusion):
    return {
        "denoiser": eqmdm.DenoiserModel(lambda l, z: jnp.tanh(z), diffusion),
        "function": eqmdm.FunctionModel(lambda t, y: jnp.sin(t + y), diffusion),
    }


def cut_at(diffusion, t, start, noise, *, of_whole_start):
    t = jnp.asarray(t, start.dtype)
    kernel = jax.jit(diffusion.compute_kernel)(t)
    if of_whole_start:
        return Point(kernel, start, noise, kernel.step.perturb(start, noise), True)
    return Point(kernel, start, noise, kernel.perturb(start[0], noise), False)


def log_density(decoder, model, cut):
    return decoder.log_density(cut, cut.error(model), model)


def exact_log_mass(low, high):
    with mp.workdps(60):
        # The difference is taken in the tail where nothing cancels.
        if low + high > 0:
            low, high = -high, -low
        return mp.log(mp.ncdf(high) - mp.ncdf(low))


@pytest.mark.parametrize("kind", ["denoiser", "function"])
@pytest.mark.parametrize("n_vars", [1, 3])
def test_data_decoder_is_the_normal_law_about_the_estimate(kind, n_vars, key):
    diffusion = random_diffusion(n_vars)
    model = models(diffusion)[kind]

    @jax.jit
    def compute(start, noise):
        cut = cut_at(diffusion, TIME, start, noise, of_whole_start=False)
        a, L = cut.kernel.mean_map, cut.kernel.root
        precision = jnp.linalg.inv(L @ L.T)
        snr = a @ precision @ a
        # Tweedie's formula for the sufficient statistic.
        score = model.score(jnp.asarray(TIME), cut.y)
        estimate = a @ (precision @ cut.y + score) / snr
        logpdf = jax.scipy.stats.norm.logpdf
        expected = jnp.sum(logpdf(start[0], estimate, 1 / jnp.sqrt(snr)))
        # Half the square of the noise of z, less its mean, for data of variance 1.
        along = jnp.linalg.solve(L, a) @ noise / jnp.sqrt(snr)
        control = 0.5 * (snr / (1 + snr)) ** 2 * (jnp.sum(along**2) - along.size)
        return log_density(eqmdm.DataDecoder(), model, cut) - control, expected

    actual, expected = compute(*jr.normal(key, (2, n_vars, 2)))
    # Condition numbers of up to 1e4.
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["denoiser", "function"])
@pytest.mark.parametrize("n_vars", [1, 3])
def test_start_decoder_is_the_dense_normal_law_of_theorem_3(kind, n_vars, key):
    diffusion = random_diffusion(n_vars)
    model = models(diffusion)[kind]

    @jax.jit
    def compute(start, noise):
        cut = cut_at(diffusion, TIME, start, noise, of_whole_start=True)
        psi, L = cut.kernel.step.mean_map, cut.kernel.step.root
        sigma, inverse = L @ L.T, jnp.linalg.inv(psi)
        means = inverse @ (cut.y + sigma @ model.score(jnp.asarray(TIME), cut.y))
        covariance = inverse @ sigma @ inverse.T
        expected = sum(
            multivariate_normal.logpdf(start[:, i], means[:, i], covariance)
            for i in range(2)
        )
        return log_density(eqmdm.StartDecoder(), model, cut), expected

    actual, expected = compute(*jr.normal(key, (2, n_vars, 2)))
    # Condition numbers of up to 1e4.
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("log_snr", [-2.0, 4.0, 8.0])
def test_discrete_decoder_gives_every_level_its_mass(log_snr, key):
    n_levels = 17
    diffusion = eqmdm.VPSDE()
    levels = eqmdm.GreyLevels(n_levels, dequantiser=eqmdm.CentreDequantiser())
    decoder = eqmdm.DiscreteDecoder(levels)
    x, _ = levels.encode(jnp.arange(n_levels), key=key)
    t = jax.jit(diffusion.time_at_log_snr)(jnp.asarray(log_snr))
    model = eqmdm.DenoiserModel(lambda l, z: 0.5 * z, diffusion)
    cut = cut_at(diffusion, t, x[3][None], jnp.array([0.4]), of_whole_start=False)

    @jax.jit
    @jax.vmap
    def log_mass(x):
        # The same state, from another datum by another noise.
        kernel = cut.kernel
        noise = (cut.y - kernel.mean_map[0] * x) / kernel.root[0, 0]
        other = Point(cut.kernel, x[None], noise, cut.y, False)
        return log_density(decoder, model, other)

    actual = log_mass(x)
    # All levels together have mass one; the tolerance is for a sum of 17 numbers.
    np.testing.assert_allclose(np.sum(np.exp(actual)), 1.0, rtol=1e-12)

    # At log-SNR 8 the last level is 80 standard deviations away.
    estimate = 0.5 * float(cut.y[0] / cut.kernel.mean_map[0])
    std = np.exp(-log_snr / 2)
    edges = (np.arange(1, n_levels) / n_levels * 2 - 1 - estimate) / std
    edges = np.concatenate([[-np.inf], edges, [np.inf]])
    expected = [exact_log_mass(*ends) for ends in zip(edges, edges[1:], strict=False)]
    # Ends of up to 1e2, squared, whose time is found to rounding.
    np.testing.assert_allclose(actual, np.array(expected, float), rtol=1e-10)


def test_discrete_decoder_has_derivatives_in_the_noise_for_every_level(key):
    # The log-SNR of a learned diffusion at t0 depends on its parameters.
    levels = eqmdm.GreyLevels(17, dequantiser=eqmdm.CentreDequantiser())
    decoder = eqmdm.DiscreteDecoder(levels)
    x, _ = levels.encode(jnp.arange(17), key=key)

    def log_masses(rate):
        clock = eqmdm.ConstantSchedule(rate)
        diffusion = eqmdm.LinearDiffusion([[0.0]], [[0.5]], schedule=clock)
        model = eqmdm.DenoiserModel(lambda l, z: jnp.tanh(z), diffusion)

        t, noise = jnp.asarray(0.01), jnp.array([0.4])
        kernel = diffusion.compute_kernel(t)

        def log_mass(x):
            y = kernel.perturb(x, noise)
            cut = Point(kernel, x[None], noise, y, False)
            return log_density(decoder, model, cut)

        return jax.vmap(log_mass)(x)

    rate, step = jnp.asarray(1.0), 1e-5
    actual = jax.jit(jax.jacobian(log_masses))(rate)
    up, down = (jax.jit(log_masses)(rate + change) for change in (step, -step))
    # The square of the step, and roundings over the step.
    np.testing.assert_allclose(actual, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)


INTERVALS = [
    (-1.0, 1.0),
    (-0.01, 0.02),
    (0.5, 2.0),
    (5.0, 6.0),
    (-6.0, -5.0),
    (30.0, 31.0),
    (-1000.0, -900.0),
    (1e-3, 50.0),
    (-np.inf, -40.0),
    (-np.inf, 0.3),
    (-np.inf, 40.0),
    (40.0, np.inf),
    (-0.3, np.inf),
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_log_normal_mass_is_that_of_60_digits(dtype):
    low, high = np.array(INTERVALS).T.astype(dtype)
    actual = optimised_jit(jax.vmap(log_normal_mass))(low, high)
    ends = zip(low, high, strict=True)
    expected = np.array([exact_log_mass(*map(float, pair)) for pair in ends], float)
    # The narrow interval loses two digits to the difference of its ends. Beyond -20
    # JAX has a series of three terms, with an error below 105 / 20^8.
    bar = 400 * float(jnp.finfo(dtype).eps) + 105 / 20**8
    np.testing.assert_allclose(actual, expected, rtol=bar, atol=bar)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_log_normal_mass_has_its_derivative_at_every_end(dtype):
    low, high = jnp.asarray(np.array(INTERVALS).T, dtype)
    gradient = jax.jit(jax.vmap(jax.grad(log_normal_mass, argnums=(0, 1))))
    by_low, by_high = gradient(low, high)
    pairs = list(zip(low, high, strict=True))
    for end, derivative, sign in ((low, by_low, -1), (high, by_high, 1)):
        assert jnp.all(jnp.isfinite(derivative))
        expected = []
        for x, ends in zip(np.asarray(end, float), pairs, strict=True):
            mass = mp.exp(exact_log_mass(*map(float, ends)))
            expected.append(sign * mp.npdf(x) / mass if np.isfinite(x) else 0)
        expected = np.array(expected, float)
        # A density is an exponential of the square of the end, and has its roundings;
        # the series as above.
        square = np.where(jnp.isfinite(end), np.asarray(end, float) ** 2, 0)
        bar = (100 + 10 * square) * float(jnp.finfo(dtype).eps) + 105 / 20**8
        gap = np.abs(np.asarray(derivative, float) - expected)
        assert np.all(gap <= bar * (1 + np.abs(expected)))
