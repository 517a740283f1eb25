"""Tests of bounds against closed forms and likelihoods."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from bounds import FORMS, expected_bounds, gauss_legendre
from references import VARIANCE, normal_denoiser, random_diffusion

import eqmdm
from eqmdm._model.point import Point
from helpers import slow, within_standard_errors


MODES, WIDTH = (-1.5, -0.4, 0.5, 1.6), 0.15
DATA = [name for name in FORMS if name.endswith("data")]
START = [name for name in FORMS if name not in DATA]


def mixture_denoiser(log_snr, z):
    modes, noise = jnp.asarray(MODES, z.dtype), jnp.exp(-log_snr)
    total = WIDTH**2 + noise
    weights = jax.nn.softmax(-0.5 * (z - modes) ** 2 / total)
    return jnp.sum(weights * (WIDTH**2 * z + noise * modes)) / total


ORACLES = {
    # Theorem 3, without its decoder, data decoder, end KL per dimension.
    "VPSDE": (-1.621674, -1.621656, -1.621674, 0.004817),
    "CLD": (-1.622088, -1.642027, -1.621671, 0.001918),
    "MALDA": (-1.622505, -1.662382, -1.621671, 0.0000594),
}


@pytest.mark.parametrize("name", ORACLES)
def test_bounds_of_normal_data_are_the_closed_forms(name, monkeypatch):
    diffusion = getattr(eqmdm, name)()
    model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    few = ["low variance, data", "low variance, start", "denoising"]
    names = few if name == "MALDA" else list(FORMS)
    bounds = expected_bounds(monkeypatch, model, names)
    theorem3, without, with_data, end = ORACLES[name]
    # The oracles are rounded at 1e-6.
    for form, bound in bounds.items():
        expected = with_data if form in DATA else theorem3
        print(f"{name}, {form}: {bound.total:.7f}, oracle {expected}")
        assert abs(bound.total - expected) < 1e-6
    denoising = bounds["denoising"]
    undecoded = denoising.total - denoising.reconstruction
    divergence = -bounds["low variance, data"].prior
    print(f"{name}, without its decoder: {undecoded:.7f}, oracle {without}")
    print(f"{name}, end KL per dimension: {divergence:.8f}, oracle {end}")
    assert abs(undecoded - without) < 1e-6
    assert abs(divergence - end) < (1e-6 if end > 1e-3 else 1e-7)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("VPSDE", 9.162, -5.044), ("CLD", 27.229, -5.967), ("MALDA", 26.536, -9.444)],
)
def test_log_snr_at_the_ends_is_that_of_the_paper_settings(name, first, last):
    diffusion = getattr(eqmdm, name)()
    log_snr = jax.jit(lambda t: diffusion.compute_kernel(t).log_snr)
    # Stated to three decimals.
    assert abs(log_snr(diffusion.t0) - first) < 5e-4 + 1e-9
    assert abs(log_snr(diffusion.t1) - last) < 5e-4 + 1e-9


MODELS = {
    "denoiser": lambda d: eqmdm.DenoiserModel(lambda l, z: 0.7 * z + 0.1, d),
    # The couplings make it the gradient of nothing.
    "noise": lambda d: eqmdm.NoiseModel(lambda t, y: 0.4 * t * y[::-1] + 0.5 * y, d),
}


@pytest.mark.parametrize("kind", MODELS)
def test_all_forms_have_one_expectation_for_a_wrong_score(kind, monkeypatch):
    diffusion = random_diffusion(2, interval=eqmdm.TimeInterval(0.05, 0.8))
    model = MODELS[kind](diffusion)
    bounds = expected_bounds(monkeypatch, model, list(FORMS))
    for group in (DATA, START):
        totals = [bounds[name].total for name in group]
        # Quadrature and rounding, of terms up to 1e2.
        np.testing.assert_allclose(totals, totals[0], rtol=1e-8)


@pytest.mark.slow
def test_elbo_averages_to_its_expectation_over_its_own_draws(key):
    n = 4096
    diffusion = eqmdm.CLD()
    model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    key_data, key_time, key_bound = jr.split(key, 3)
    x = jnp.sqrt(VARIANCE) * jr.normal(key_data, (n,))
    u = eqmdm.low_discrepancy(n, key=key_time)
    keys = jr.split(key_bound, n)

    def total(name, x, u, key):
        form, decoder = FORMS[name]
        bound = eqmdm.elbo(model, x, key=key, form=form, decoder=decoder, u=u)
        return bound.total

    @jax.vmap
    def totals(x, u, key):
        return jnp.stack([total(name, x, u, key) for name in FORMS])

    samples = jax.jit(totals)(x, u, keys)
    theorem3, _, with_data, _ = ORACLES["CLD"]
    expected = [with_data if name in DATA else theorem3 for name in FORMS]
    assert within_standard_errors(samples, expected)


def mixture_log_density(x):
    scaled = (x - jnp.asarray(MODES, x.dtype)) / WIDTH
    return jnp.mean(jnp.exp(-0.5 * scaled**2)) / (WIDTH * jnp.sqrt(2 * jnp.pi))


DIFFUSIONS = {
    "VPSDE": eqmdm.VPSDE,
    "CLD": eqmdm.CLD,
    "random": lambda: random_diffusion(3),
}


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_bound_of_mixture_data_is_below_their_log_density(name, key):
    n = 4096
    diffusion = DIFFUSIONS[name]()
    key_mode, key_data, key_time, key_bound = jr.split(key, 4)
    mode = jr.choice(key_mode, jnp.asarray(MODES), (n,))
    x = mode + WIDTH * jr.normal(key_data, (n,))
    u = eqmdm.low_discrepancy(n, key=key_time)

    def gap(x, u, key, shift):
        denoiser = lambda l, z: mixture_denoiser(l, z) + shift / (1 + jnp.exp(l))
        model = eqmdm.DenoiserModel(denoiser, diffusion)
        bound = eqmdm.elbo(model, x, key=key, u=u)
        return bound.total - jnp.log(mixture_log_density(x)), bound.prior

    gaps, priors = jax.jit(
        jax.vmap(jax.vmap(gap, in_axes=(0, 0, 0, None)), in_axes=(None, None, None, 0)),
    )(x, u, jr.split(key_bound, n), jnp.array([0.0, 1.0]))
    exact, wrong = np.asarray(gaps)
    assert exact.mean() < 5 * exact.std() / np.sqrt(n)
    # All that it loses are the divergences at the end, at most those given the data,
    # and of the decoder, whose posterior is all but normal at these log-SNRs.
    gap = exact - np.asarray(priors)[0]
    assert gap.mean() > -1e-3 - 5 * gap.std() / np.sqrt(n)
    # The same draws, so the difference is known better than either.
    loss = wrong - exact
    assert loss.mean() < -5 * loss.std() / np.sqrt(n)


@pytest.mark.parametrize("n_vars", [1, slow(2), 3, slow(4)])
def test_bound_between_equal_log_snr_ends_is_that_of_every_diffusion(n_vars, key):
    low, high = -8.0, 10.0
    diffusion = random_diffusion(n_vars, interval=eqmdm.LogSNRInterval(low, high))
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    u, _ = gauss_legendre(16)
    # The terms are equal at each log-SNR, each datum and each noise of z, and so are
    # their integrals.
    nodes = np.linspace(-3, 3, 7)
    x = (np.asarray(MODES)[:, None] + WIDTH * nodes).ravel()

    def terms(u, x, z_noise):
        t = diffusion.time_at_log_snr(high + u * (low - high))
        both = jax.vmap(diffusion.compute_kernel)(jnp.stack([diffusion.t0, t]))
        at_cut, at_time = (jax.tree.map(lambda a, i=i: a[i], both) for i in (0, 1))
        start = jnp.zeros(n_vars).at[0].set(x)

        def draw(kernel):
            # Any noise of the state with this part along the data does.
            along = kernel.direction
            other = jnp.arange(1.0, n_vars + 1)
            noise = z_noise * along + other - along * jnp.sum(along * other)
            return noise, kernel.perturb(x, noise)

        cut = Point(at_cut, start, *draw(at_cut), False)
        path = Point(at_time, start, *draw(at_time), False)
        form = eqmdm.LowVariance()
        integrand = form.integrand(path, path.error(model), model, key=key)
        density = diffusion.log_snr_rate(t, at_time) / (low - high)
        log_density = eqmdm.DataDecoder().log_density(cut, cut.error(model), model)
        return log_density, integrand / density

    over_noise = jax.vmap(terms, in_axes=(None, None, 0))
    over_data = jax.vmap(over_noise, in_axes=(None, 0, None))
    over_time = jax.vmap(over_data, in_axes=(0, None, None))
    reconstruction, diffusion_term = jax.jit(over_time)(
        u, jnp.asarray(x), jnp.asarray(nodes)
    )

    modes = np.asarray(MODES)
    log_snr = high + np.asarray(u) * (low - high)

    def square_error(log_snr):
        noise = np.exp(-log_snr)[..., None, None]
        z = x[:, None] + np.sqrt(noise) * nodes
        total = WIDTH**2 + noise
        exponent = -0.5 * (z[..., None] - modes) ** 2 / total[..., None]
        share = np.exp(exponent - exponent.max(-1, keepdims=True))
        share = share / share.sum(-1, keepdims=True)
        mean = (WIDTH**2 * z + noise * (share @ modes)) / total
        return (mean - x[:, None]) ** 2

    # The known part of the squared noise of z is subtracted, less its mean.
    control = lambda log_snr: (
        0.5 / (1 + np.exp(-log_snr[..., None, None])) ** 2 * (nodes**2 - 1)
    )
    expected = -0.5 * np.exp(log_snr)[:, None, None] * square_error(log_snr)
    expected = (high - low) * (expected + control(log_snr))
    # Ends and times are found to rounding in the logarithm of time.
    np.testing.assert_allclose(diffusion_term, expected, rtol=1e-8, atol=1e-12)
    error = square_error(np.asarray(high))
    at_cut = 0.5 * (high - np.log(2 * np.pi)) - 0.5 * np.exp(high) * error
    at_cut = at_cut + control(np.asarray(high))[0]
    np.testing.assert_allclose(reconstruction[0], at_cut, rtol=1e-8, atol=1e-8)
