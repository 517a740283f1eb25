import sys
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from references import VARIANCE, normal_denoiser, random_diffusion

import eqmdm
from eqmdm._bound.elbo import compute_elbo, compute_shared_elbo, default_decoder
from eqmdm._model.point import Point
from helpers import slow, tree_allclose, within_standard_errors


MODES, WIDTH = (-1.5, -0.4, 0.5, 1.6), 0.15
FORMS = {
    "low variance, data": (eqmdm.LowVariance(), eqmdm.DataDecoder()),
    "hybrid, data": (eqmdm.HybridScoreMatching(), eqmdm.DataDecoder()),
    "low variance, start": (eqmdm.LowVariance(), eqmdm.StartDecoder()),
    "low variance given start": (eqmdm.LowVariance(given_start=True), None),
    "denoising": (eqmdm.DenoisingScoreMatching(), None),
    "hybrid, start": (eqmdm.HybridScoreMatching(), eqmdm.StartDecoder()),
    "implicit": (eqmdm.ImplicitScoreMatching(), eqmdm.StartDecoder()),
}
DATA = [name for name in FORMS if name.endswith("data")]
START = [name for name in FORMS if name not in DATA]


@final
class GeometricTime(eqmdm.AbstractTimeSampler):
    """For quadrature in the logarithm of time, in which integrands are smooth."""

    def __call__(self, diffusion, u):
        span = jnp.log(diffusion.t1 / diffusion.t0)
        t = diffusion.t0 * jnp.exp(u * span)
        return t, 1 / (t * span)


@final
class FixedTime(eqmdm.AbstractTimeSampler):
    """The same time for every quantile."""

    t: jax.Array
    density: jax.Array

    def __call__(self, diffusion, u):
        return self.t, self.density


def gauss_legendre(n):
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return jnp.asarray((nodes + 1) / 2), weights / 2


def mixture_denoiser(log_snr, z):
    modes, noise = jnp.asarray(MODES, z.dtype), jnp.exp(-log_snr)
    total = WIDTH**2 + noise
    weights = jax.nn.softmax(-0.5 * (z - modes) ** 2 / total)
    return jnp.sum(weights * (WIDTH**2 * z + noise * modes)) / total


def elbo_at_noise(monkeypatch, start_noise, noise, model, x, u, time_sampler, name):
    """The bound with given noise instead of draws: one for the auxiliary variables at
    the start, one for the states at t0, at the random time and at t1."""
    given = {len(noise): noise, len(start_noise): start_noise}

    def draw_noise(draws, data_shape, dtype):
        return [
            jnp.broadcast_to(given[n_rows], (len(keys), n_rows))
            .reshape(len(keys), n_rows, *data_shape)
            .astype(dtype)
            for keys, n_rows in draws
        ]

    # Its function hides the module in its package.
    module = sys.modules[compute_elbo.__module__]
    with monkeypatch.context() as context:
        context.setattr(module, "_draw_noise", draw_noise)
        # Of the direct forms, at t1.
        at_end = lambda key, shape, dtype: noise.reshape(shape).astype(dtype)
        context.setattr(module, "draw_normal", at_end)
        form, decoder = FORMS[name]
        decoder = default_decoder(form) if decoder is None else decoder
        args = model, x, u, form, decoder, time_sampler
        return compute_elbo(*args, key=jr.key(0))


def expected_bounds(monkeypatch, model, names):
    """Expectations, over normal data too, of every term of several bounds.

    Each term is quadratic in standard normal variables if the model is affine, and
    the mean over symmetric sigma points is exact for quadratics. Every term has noise
    of its own, but the terms are summed, so they may share it here.
    """
    n_vars = model.diffusion.n_vars
    points = np.sqrt(2 * n_vars) * np.eye(2 * n_vars)
    points = jnp.asarray(np.concatenate([points, -points]))
    # The error of 48 nodes is below 1e-9, as 24 and 96 nodes show.
    u, weights = gauss_legendre(48)

    def at(u, point):
        x, start_noise, noise = jnp.split(point, [1, n_vars])
        x = jnp.sqrt(VARIANCE) * x[0]
        args = monkeypatch, start_noise, noise, model, x, u, GeometricTime()
        return {name: elbo_at_noise(*args, name) for name in names}

    over_points = jax.vmap(at, in_axes=(None, 0))
    run = jax.vmap(lambda u: jax.tree.map(jnp.mean, over_points(u, points)))
    bounds = jax.jit(run)(u)
    return jax.tree.map(lambda term: jnp.sum(term * jnp.asarray(weights)), bounds)


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


@pytest.mark.parametrize("n_vars", [1, 2, 3, slow(4)])
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


def images(key):
    return jr.normal(key, (3, 4, 4, 1))


def test_elbo_of_a_batch_of_images_is_that_of_each(key):
    diffusion = eqmdm.CLD()
    model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1 * t, diffusion)
    key_data, key_bound, key_time = jr.split(key, 3)
    x = images(key_data).astype(jnp.float32)
    keys, u = jr.split(key_bound, 3), eqmdm.low_discrepancy(3, key=key_time)
    single = lambda x, key, u: eqmdm.elbo(model, x, key=key, u=u)
    batch = jax.jit(jax.vmap(single))(x, keys, u)
    each = [jax.jit(single)(*args) for args in zip(x, keys, u, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    for bound in (batch, stacked):
        assert all(leaf.shape == (3,) for leaf in jax.tree.leaves(bound))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(bound))
    # Sums of 32 numbers in another order, in float32.
    assert tree_allclose(batch, stacked, rtol=2e-5, atol=1e-4)
    terms = batch.reconstruction + batch.prior + batch.diffusion + batch.auxiliary
    assert tree_allclose(batch.total, terms, rtol=1e-6, atol=0.0)


def test_elbo_is_by_default_that_of_its_named_defaults(key):
    diffusion = eqmdm.VPSDE()
    model = eqmdm.NoiseModel(lambda t, y: 0.5 * y, diffusion)
    x = images(key)
    named = {
        "form": eqmdm.LowVariance(),
        "decoder": eqmdm.DataDecoder(),
        "time_sampler": eqmdm.ImportanceTimeSampler(),
    }
    run = lambda **options: eqmdm.elbo(model, x, key=key, **options)
    default, same, moved = jax.jit(
        lambda: (run(), run(**named), run(u=jnp.asarray(0.3)))
    )()
    # One computation.
    assert tree_allclose(default, same, rtol=1e-14, atol=0.0)
    # The quantile of the time moves the one term that depends on it.
    assert default.diffusion != moved.diffusion
    assert default.reconstruction == moved.reconstruction
    assert default.prior == moved.prior


# The sampler's search for its times is the larger part of a program.
@pytest.mark.parametrize(
    "form, decoder, sampler",
    [
        (
            eqmdm.LowVariance(),
            eqmdm.DataDecoder(),
            eqmdm.ImportanceTimeSampler(),
        ),
        (eqmdm.LowVariance(), eqmdm.StartDecoder(), eqmdm.UniformTimeSampler()),
        (
            eqmdm.DenoisingScoreMatching(),
            eqmdm.StartDecoder(),
            eqmdm.UniformTimeSampler(),
        ),
        (
            eqmdm.ImplicitScoreMatching(),
            eqmdm.DataDecoder(),
            eqmdm.UniformTimeSampler(),
        ),
    ],
    ids=["low_variance", "theorem_3", "denoising", "implicit"],
)
def test_shared_elbo_has_the_terms_of_each_share(form, decoder, sampler, key):
    diffusion = eqmdm.CLD()
    model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1 * t, diffusion)
    n = 5
    # The numbers of examples at t0 and at random times: disjoint, or all at both.
    shares = [(2, 3), (5, 5)]
    key_data, key_bound, key_time = jr.split(key, 3)
    x = jr.normal(key_data, (n, 3))
    keys = jr.split(key_bound, n)
    u = jr.uniform(key_time, (n,))

    @jax.jit
    def compute(x, keys, u):
        shared = [
            compute_shared_elbo(
                model, x, u[-n_path:], n_cut, form, decoder, sampler, keys=keys
            )
            for n_cut, n_path in shares
        ]
        one = lambda x, key, u: compute_elbo(
            model, x, u, form, decoder, sampler, key=key
        )
        return shared, jax.vmap(one)(x, keys, u)

    shared, each = compute(x, keys, u)
    for actual, (n_cut, n_path) in zip(shared, shares, strict=True):
        expected = eqmdm.Elbo(
            reconstruction=jnp.mean(each.reconstruction[:n_cut]),
            prior=jnp.mean(each.prior),
            diffusion=jnp.mean(each.diffusion[-n_path:]),
            auxiliary=jnp.mean(each.auxiliary),
        )
        # Sums in another order; a cut at 1e-3 has a condition number of 1e5.
        assert tree_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_elbo_refuses_integers(dtype, key):
    diffusion = eqmdm.VPSDE()
    model = eqmdm.NoiseModel(lambda t, y: y, diffusion)
    with pytest.raises(TypeError, match="`x` must be floating-point data"):
        eqmdm.elbo(model, jnp.zeros((2, 2), dtype), key=key)


@pytest.mark.parametrize(
    "form", [eqmdm.DenoisingScoreMatching(), eqmdm.LowVariance(given_start=True)]
)
def test_forms_given_the_start_refuse_a_decoder_of_the_data(form, key):
    diffusion = eqmdm.CLD()
    model = eqmdm.NoiseModel(lambda t, y: y, diffusion)
    with pytest.raises(ValueError, match="`decoder` must be a `StartDecoder`"):
        options = {"form": form, "decoder": eqmdm.DataDecoder()}
        eqmdm.elbo(model, jnp.zeros(2), key=key, **options)


@pytest.mark.parametrize(
    "ends",
    [{}, slow({"interval": eqmdm.LogSNRInterval(-4.0, 6.0)})],
    ids=["t", "log_snr"],
)
def test_gradient_of_elbo_in_the_diffusion_is_that_of_differences(ends, key):
    key_diffusion, key_bound = jr.split(key)
    diffusion = eqmdm.LearnedDiffusion(2, key=key_diffusion, **ends)
    trainable, fixed = eqx.partition(diffusion, eqx.is_inexact_array)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trainable)
    values, unravel = ravel_pytree(trainable)

    def total(values):
        diffusion = eqx.combine(unravel(values), fixed)
        model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1 * t, diffusion)
        options = {"time_sampler": eqmdm.UniformTimeSampler(), "u": jnp.asarray(0.1)}
        x = jnp.asarray(0.7)
        return eqmdm.elbo(model, x, key=key_bound, **options).total

    total_and_gradient = jax.jit(jax.value_and_grad(total))
    _, gradient = total_and_gradient(values)
    step = 1e-5
    for i in range(len(values)):
        move = jnp.zeros_like(values).at[i].set(step)
        up, down = (total_and_gradient(values + s * move)[0] for s in (1, -1))
        difference = (up - down) / (2 * step)
        # The square of the step, and roundings over the step.
        assert abs(gradient[i] - difference) < 1e-6 * max(1, abs(difference))


@pytest.mark.slow
def test_diffusion_between_fixed_log_snr_ends_has_nothing_to_learn(monkeypatch):
    # With a denoiser the bound without its prior term depends on the interval alone:
    # its expected gradient is 0 if it includes the moving limits of the integral.
    diffusion = eqmdm.LearnedDiffusion(
        2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-4.0, 6.0)
    )
    trainable, fixed = eqx.partition(diffusion, eqx.is_inexact_array)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trainable)
    u, weights = gauss_legendre(32)
    points = 2 * jnp.concatenate([jnp.eye(4), -jnp.eye(4)])

    def expected(trainable):
        diffusion = eqx.combine(trainable, fixed)
        model = eqmdm.DenoiserModel(normal_denoiser, diffusion)

        def at(u, point):
            x, start_noise, noise = jnp.split(point, [1, 2])
            x = jnp.sqrt(VARIANCE) * x[0]
            # A fixed grid has no derivative in the limits of the interval.
            frozen = jax.lax.stop_gradient
            t, density = GeometricTime()(diffusion, u)
            sampler = FixedTime(frozen(t), frozen(density))
            args = monkeypatch, start_noise, noise, model, x, u, sampler
            return elbo_at_noise(*args, "low variance, data")

        bounds = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(u, points)
        terms = jnp.mean(bounds.reconstruction + bounds.diffusion, axis=1)
        return jnp.sum(terms * jnp.asarray(weights))

    value, gradient = jax.jit(jax.value_and_grad(expected))(trainable)
    # Mean square errors at these ends, integrated over log-SNR, are logarithms.
    log_snr = np.array([-4.0, 6.0])
    loss = np.diff(np.log1p(VARIANCE * np.exp(log_snr)))[0]
    at_cut = 1 / (1 + 1 / (VARIANCE * np.exp(6.0)))
    exact = 0.5 * (6.0 - np.log(2 * np.pi) - at_cut - loss)
    # Quadrature.
    assert abs(value - exact) < 1e-7
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


def chain(n_vars, t0):
    """A diffusion with noise on the last variable and a chain of couplings."""
    coupling = np.tril(np.ones((n_vars, n_vars)), -1)
    coupling = coupling - np.tril(coupling, -2)
    noise = np.diag([0.0] * (n_vars - 1) + [1.0])
    interval = eqmdm.TimeInterval(t0, 1.0)
    return eqmdm.LinearDiffusion(coupling - coupling.T, noise, interval=interval)


# Log-SNRs of 90 to 94 at t0, where the ratio itself is no number in float32.
CHAINS = [(3, 1e-7), (4, 3e-5), (5, 1e-3)]


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@pytest.mark.parametrize(("n_vars", "t0"), CHAINS)
def test_bound_is_one_where_the_signal_leaves_float32(n_vars, t0, key):
    diffusion = chain(n_vars, t0)
    model = eqmdm.DenoiserModel(lambda l, z: z / (1 + jnp.exp(-l)), diffusion)
    x = jnp.ones(8, jnp.float32)
    bound = lambda key: eqmdm.elbo(model, x, key=key)
    bounds = jax.jit(jax.vmap(bound))(jr.split(key, 4000))
    low = float(jax.jit(lambda: diffusion.log_snr(diffusion.t1))())
    # Of x - x_hat the mean square is 1 / (1 + SNR) for this x, whose
    # integral over SNR is a logarithm; that of the top cancels with the decoder's.
    expected = 8 * (0.5 * np.logaddexp(0, low) - 0.5 * np.log(2 * np.pi) - 0.5)
    assert within_standard_errors(bounds.reconstruction + bounds.diffusion, expected)
    log_density = -4 * (np.log(2 * np.pi) + 1)
    total = np.asarray(bounds.total, float)
    assert total.mean() < log_density + 5 * total.std() / np.sqrt(len(total))


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@pytest.mark.parametrize(("n_vars", "t0"), CHAINS)
def test_discrete_bound_is_right_where_the_signal_leaves_float32(n_vars, t0, key):
    diffusion = chain(n_vars, t0)
    model = eqmdm.DenoiserModel(lambda l, z: z / (1 + jnp.exp(-l)), diffusion)
    x = jnp.ones(8, jnp.float32)
    times = eqmdm.LogSNRGrid()(diffusion, 20, jnp.float32)
    bound = lambda key: eqmdm.discrete_elbo(model, x, times=times, key=key)
    bounds = jax.jit(jax.vmap(bound))(jr.split(key, 400))
    log_snr = np.asarray(jax.vmap(diffusion.log_snr)(times.astype(float)))
    # A step costs half the gain of SNR times the mean square of x - x_hat, 1 / (1 +
    # SNR) at its start.
    gain, before = np.diff(log_snr), log_snr[:-1]
    costs = 4 * np.expm1(gain) * np.exp(-np.logaddexp(0, -before))
    assert within_standard_errors(bounds.diffusion, -np.sum(costs))
    reconstruction = 4 * (log_snr[-1] - np.log(2 * np.pi) - 1)
    # The noise is known but for a part 1 / SNR of it. Sums of 8 float32 numbers.
    np.testing.assert_allclose(bounds.reconstruction, reconstruction, rtol=1e-5)
