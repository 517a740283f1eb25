import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import VARIANCE, normal_denoiser, random_diffusion

import eqmdm
from eqmdm._model.point import Point
from helpers import (
    normal,
    optimised_jit,
    slow,
    slow_but,
    tree_allclose,
    within_standard_errors,
)


MODES, WIDTH = (-1.5, -0.4, 0.5, 1.6), 0.15
# Late enough for dense covariances to be well conditioned.
TIME = 0.4


@functools.cache
def kernel_parts(n_vars):
    """A diffusion, and the mean map and root of its kernel on the host."""
    diffusion = random_diffusion(n_vars)
    kernel = jax.jit(diffusion.compute_kernel)(TIME)
    return diffusion, np.asarray(kernel.mean_map), np.asarray(kernel.root)


def wavy_network(c, y):
    return jnp.sin(3 * y) + 0.2 * c * y


def preconditioned(low=-12.0, high=50.0, network=wavy_network):
    return eqmdm.PreconditionedDenoiser(
        network, data_std=0.5, log_snr_range=(low, high)
    )


def wavy_models(diffusion):
    return {
        "noise": eqmdm.NoiseModel(wavy_network, diffusion),
        "denoiser": eqmdm.DenoiserModel(lambda l, z: jnp.tanh(z) + 0.1, diffusion),
        "preconditioned": eqmdm.DenoiserModel(preconditioned(), diffusion),
        "function": eqmdm.FunctionModel(lambda t, y: jnp.sin(t + y), diffusion),
    }


KINDS = ["noise", "denoiser", "preconditioned", "function"]


@pytest.mark.parametrize("n_vars", [1, slow(2), 3])
def test_scores_of_normal_data_are_the_derivative_of_the_log_density(n_vars, key):
    diffusion, a, root = kernel_parts(n_vars)
    y = normal(key, (n_vars,))
    total = root @ root.T + VARIANCE * np.outer(a, a)
    expected = -np.linalg.solve(total, y)
    # A noise prediction is minus the whitened model: L^T Sigma^-1 y here.
    root = np.linalg.cholesky(root @ root.T)
    network = lambda t, y: root.T @ jnp.linalg.solve(total, y)
    noise = eqmdm.NoiseModel(network, diffusion)
    denoiser = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    scores = jax.jit(lambda t, y: (noise.score(t, y), denoiser.score(t, y)))
    # Condition numbers of up to 1e4.
    for actual in scores(TIME, y):
        assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_vars", [1, slow(2), 3])
def test_score_of_a_mixture_needs_the_sufficient_statistic_alone(n_vars, key):
    diffusion, a, root = kernel_parts(n_vars)
    y = 0.7 * a + root @ normal(key, (n_vars,))
    total = root @ root.T + WIDTH**2 * np.outer(a, a)
    # The derivative of the log-density, a mean over the components.
    gaps = y - np.outer(MODES, a)
    slopes = -np.linalg.solve(total, gaps.T).T
    logs = 0.5 * np.sum(gaps * slopes, axis=1)
    shares = np.exp(logs - np.logaddexp.reduce(logs))
    expected = shares @ slopes

    def denoiser(log_snr, z):
        modes, noise = jnp.asarray(MODES), jnp.exp(-log_snr)
        spread = WIDTH**2 + noise
        weights = jax.nn.softmax(-0.5 * (z - modes) ** 2 / spread)
        return jnp.sum(weights * (WIDTH**2 * z + noise * modes)) / spread

    model = eqmdm.DenoiserModel(denoiser, diffusion)
    actual = jax.jit(model.score)(TIME, y)
    # Condition numbers of up to 1e4.
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_vars", [1, slow(2), 3])
def test_data_estimate_of_an_exact_score_is_the_posterior_mean(n_vars, key):
    diffusion, a, root = kernel_parts(n_vars)
    y = normal(key, (n_vars, 2))
    total = root @ root.T + VARIANCE * np.outer(a, a)
    model = eqmdm.FunctionModel(lambda t, y: -jnp.linalg.solve(total, y), diffusion)
    estimate = lambda t, y: model.data_estimate(diffusion.compute_kernel(t), y)
    actual = jax.jit(estimate)(TIME, y)
    # Regression of x on y.
    expected = VARIANCE * a @ np.linalg.solve(total, y)
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_error_is_the_error_of_the_score_in_units_of_noise(kind, key):
    diffusion = random_diffusion(3)
    model = wavy_models(diffusion)[kind]
    start, noise = map(jnp.asarray, normal(key, (2, 3, 2)))

    @jax.jit
    def evaluate(t, start, noise):
        x = start[0]
        kernel = diffusion.compute_kernel(t)
        ys = kernel.perturb(x, noise), kernel.step.perturb(start, noise)
        points = [Point(kernel, start, noise, y, i == 1) for i, y in enumerate(ys)]
        errors = [point.error(model) for point in points]
        given_data, given_start = zip(
            errors, [model.score(t, y) for y in ys], ys, strict=True
        )
        return kernel, given_data, given_start

    kernel, given_data, given_start = jax.device_get(evaluate(TIME, start, noise))
    start = np.asarray(start)
    means = kernel.mean_map[:, None] * start[0], kernel.step.mean_map @ start
    roots = kernel.root, kernel.step.root
    for (error, s, y), mean, root in zip(
        (given_data, given_start), means, roots, strict=True
    ):
        of_density = -np.linalg.solve(root @ root.T, y - mean)
        # Condition numbers of up to 1e4.
        assert tree_allclose(error, root.T @ (s - of_density), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "log_snr"),
    [
        ("VPSDE", 9.16),
        slow("CLD", 27.2),
        ("ALDA", 48),
    ],
)
def test_whitened_error_of_a_denoiser_keeps_its_digits_in_float32(name, log_snr, key):
    diffusion = getattr(eqmdm, name)()
    model = eqmdm.DenoiserModel(preconditioned(), diffusion)

    @optimised_jit
    def error(t, x, noise):
        kernel = diffusion.compute_kernel(t)
        y = kernel.perturb(x, noise)
        return model.whitened_error(kernel, x, noise, y), kernel.log_snr

    args = (
        np.float32(1e-3),
        np.linspace(-1, 1, 5, dtype=np.float32),
        normal(key, (diffusion.n_vars, 5)).astype(np.float32),
    )
    actual, _ = error(*args)
    expected, reached = error(*(arg.astype(np.float64) for arg in args))
    # The level that the name stands for is what makes this hard.
    assert abs(reached - log_snr) < 0.5
    assert actual.dtype == jnp.float32
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected)
    # Kernels are good to 5e-6; sines of numbers of up to 12 lose another digit.
    largest = np.max(np.abs(expected))
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-4 * largest)


def test_preconditioned_denoiser_has_the_coefficients_of_edm(key):
    low, high, std = -8.0, 10.0, 0.7
    network = lambda c, z: jnp.cos(z) + c
    denoiser = eqmdm.PreconditionedDenoiser(network, std, (low, high))
    log_snrs, z = np.asarray([-6.0, 1.0, 9.0]), normal(key, (2, 3))
    sigma = np.exp(-log_snrs / 2)[:, None, None]
    c_skip = std**2 / (sigma**2 + std**2)
    c_out = sigma * std / np.sqrt(sigma**2 + std**2)
    c_in = 1 / np.sqrt(sigma**2 + std**2)
    c = ((high - log_snrs) / (high - low))[:, None, None]
    expected = c_skip * z + c_out * (np.cos(c_in * z) + c)
    both = lambda log_snr, z: (denoiser(log_snr, z), denoiser.correction(log_snr, z))
    actual, correction = jax.jit(jax.vmap(both, (0, None)))(log_snrs, z)
    # Differences of up to five numbers of order 1.
    assert tree_allclose(actual, expected, rtol=1e-13, atol=1e-13)
    assert tree_allclose(correction, expected - z, rtol=1e-12, atol=1e-13)


def test_network_of_a_denoiser_is_told_its_place_in_the_range():
    places = []

    def network(c, z):
        places.append(float(c))
        return z

    denoiser = preconditioned(-3.0, 7.0, network)
    for log_snr in (7.0, 2.0, -3.0):
        denoiser(jnp.asarray(log_snr), jnp.zeros(2))
    assert places == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan, 1e30])
def test_denoiser_above_its_range_is_the_posterior_mean_of_normal_data(value, key):
    # Whatever the network says there.
    denoiser = preconditioned(-3.0, 8.0, lambda c, z: jnp.full_like(z, value))
    z = normal(key, (4,))
    expected = z * 0.25 / (0.25 + np.exp(-8.5))
    # A few roundings.
    actual = jax.jit(denoiser.__call__)(8.5, z)
    assert tree_allclose(actual, expected, rtol=1e-14, atol=0.0)


def test_diffusion_that_ends_below_the_range_of_its_denoiser_is_refused(key):
    diffusion = eqmdm.VPSDE()
    low = float(jax.jit(diffusion.log_snr)(diffusion.t1)) + 0.1
    model = eqmdm.DenoiserModel(preconditioned(low, 20.0), diffusion)
    bound = lambda x: eqmdm.elbo(model, x, key=key).total
    message = "`model` must have a diffusion that ends within the log-SNR range"
    for function in (bound, eqx.filter_jit(bound)):
        with pytest.raises(ValueError, match=message):
            function(jnp.zeros(2))

    def bound_of(rate):
        diffusion = eqmdm.VPSDE(schedule=eqmdm.ConstantSchedule(rate))
        model = eqmdm.DenoiserModel(preconditioned(low, 20.0), diffusion)
        return eqmdm.elbo(model, jnp.zeros(2), key=key).total

    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        # The integral of its rate is twice that of the default schedule.
        eqx.filter_jit(bound_of)(jnp.asarray(10.1))


@pytest.mark.parametrize("data_std", [0.0, -1.0, float("nan")])
def test_denoiser_refuses_a_standard_deviation_that_is_not_positive(data_std):
    with pytest.raises(ValueError, match="`data_std` must be positive"):
        eqmdm.PreconditionedDenoiser(wavy_network, data_std, (-8.0, 10.0))


@pytest.mark.parametrize("log_snr_range", [(1.0, 1.0), (10.0, -8.0)])
def test_denoiser_refuses_a_range_that_is_out_of_order(log_snr_range):
    with pytest.raises(ValueError, match="`log_snr_range` must be"):
        eqmdm.PreconditionedDenoiser(wavy_network, 0.5, log_snr_range)


@pytest.mark.parametrize("cls", [eqmdm.NoiseModel, eqmdm.DenoiserModel])
@pytest.mark.parametrize("t", [0.0, -1.0, math.nan])
def test_score_at_no_positive_time_is_refused(cls, t):
    model = cls(lambda level, y: y, eqmdm.CLD())
    with pytest.raises(ValueError, match="`t` must be positive and finite: .* Got"):
        model.score(jnp.asarray(t), jnp.ones((2, 3)))


@pytest.mark.parametrize(
    "name, make",
    [
        ("score", lambda d: eqmdm.FunctionModel(lambda t, y: y[:1], d)),
        ("score", lambda d: eqmdm.FunctionModel(lambda t, y: y[0], d)),
        ("network", lambda d: eqmdm.NoiseModel(lambda t, y: y[:1], d)),
        ("network", lambda d: eqmdm.DenoiserModel(lambda l, z: z[:1], d)),
        ("network", lambda d: eqmdm.DenoiserModel(preconditioned(network=_sum), d)),
    ],
)
def test_outputs_that_would_broadcast_are_refused(name, make, key):
    diffusion, x = eqmdm.CLD(), jnp.ones(2)
    model = make(diffusion)
    message = f"`{name}` must return an array of the shape of its input"
    with pytest.raises(ValueError, match=message):
        eqmdm.elbo(model, x, key=key)
    with pytest.raises(ValueError, match=message):
        eqmdm.sample(model, (2,), key=key, n_samples=2)


def _sum(c, y):
    return jnp.sum(y)[None]


def test_a_denoiser_serves_another_diffusion(key):
    # Exact for normal data of standard deviation 0.1, whatever the diffusion.
    denoiser = lambda log_snr, z: z * 0.01 / (0.01 + jnp.exp(-log_snr))
    other = eqmdm.VPSDE(schedule=eqmdm.ConstantSchedule(5.0))
    diffusion = eqmdm.CLD()
    own = eqmdm.DenoiserModel(denoiser, diffusion)
    moved = eqmdm.DenoiserModel(denoiser, other).under(diffusion)
    scores = jax.jit(lambda t, y: (moved.score(t, y), own.score(t, y)))
    actual, expected = scores(0.4, normal(key, (2, 3)))
    assert tree_allclose(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [eqmdm.NoiseModel, eqmdm.FunctionModel])
def test_models_of_one_process_name_it_when_asked_for_another(cls):
    model = cls(lambda t, y: y, eqmdm.CLD())
    with pytest.raises(ValueError, match="`diffusion` must be the one .* CLD.* VPSDE"):
        model.under(eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`model` must be a `DenoiserModel`"):
        model.denoise(jnp.asarray(1.0), jnp.ones(2))


STANDARD = {
    # Of standard normal data: y is standard normal at all times, for unit S and S0.
    "denoiser": lambda d: eqmdm.DenoiserModel(lambda l, z: z / (1 + jnp.exp(-l)), d),
    "noise": lambda d: eqmdm.NoiseModel(lambda t, y: _vp_noise(d, t, y), d),
    "score": lambda d: eqmdm.FunctionModel(lambda t, y: -y, d),
}


def _vp_noise(diffusion, t, y):
    # Minus the score, times the noise's standard deviation 1 - e^-B.
    zero = jnp.zeros_like(t)
    integral = diffusion.schedule.integrated_rate(zero, t)
    return jnp.sqrt(-jnp.expm1(-integral)) * y


@pytest.mark.parametrize("kind", slow_but(["denoiser"], STANDARD))
def test_own_network_of_each_kind_gives_the_closed_form(kind, key):
    model = STANDARD[kind](eqmdm.VPSDE())
    x, n = jnp.asarray([0.3, -1.2]), 4096
    exact = -0.5 * float(x @ x) - np.log(2 * np.pi)
    bound = lambda key: eqmdm.elbo(model, x, key=key).total
    totals = jax.jit(jax.vmap(bound))(jr.split(key, n))
    # Standard normal data stay so, and so is the prior: nothing is lost but 1e-4 nats
    # by the decoder, whose variance is that of the noise alone.
    assert within_standard_errors(totals, exact)
    likelihood = eqmdm.log_likelihood(model, x, key=key)
    # The noise at the start time adds 1e-4 to the variance of the data.
    assert abs(likelihood.log_likelihood - exact) < 1e-3
    samples = np.asarray(eqmdm.sample(model, (2,), key=key, n_samples=n))
    assert within_standard_errors(samples, 0.0)
    assert within_standard_errors(samples**2, 1.0)


@pytest.mark.parametrize("function", ["elbo", "log_likelihood", "sample"])
@pytest.mark.parametrize(
    "wrong", [lambda t, y: y, (lambda t, y: y, eqmdm.VPSDE()), None, eqmdm.VPSDE()]
)
@pytest.mark.usefixtures("unchecked")
def test_anything_that_is_no_model_is_answered_with_the_constructors(
    function, wrong, key
):
    argument = (2,) if function == "sample" else jnp.ones(2)
    with pytest.raises(TypeError, match="`model` must be .*DenoiserModel.*NoiseModel"):
        getattr(eqmdm, function)(wrong, argument, key=key)


@pytest.mark.parametrize("cls", [eqmdm.NoiseModel, eqmdm.DenoiserModel])
@pytest.mark.usefixtures("unchecked")
def test_a_model_is_built_of_a_diffusion(cls):
    with pytest.raises(TypeError, match="`diffusion` must be a linear diffusion"):
        cls(lambda t, y: y, lambda t: t)


def test_network_that_cannot_take_the_example_is_named(key):
    W = jnp.ones((6, 6))
    model = eqmdm.NoiseModel(lambda t, y: W @ y.ravel(), eqmdm.CLD())
    with pytest.raises(
        TypeError, match=r"`network` must accept one example of .*\(2, 5"
    ):
        eqmdm.elbo(model, jnp.ones(5), key=key)


def test_state_of_another_number_of_variables_is_named():
    model = eqmdm.NoiseModel(lambda t, y: y, eqmdm.CLD())
    with pytest.raises(ValueError, match="`y` must have a row for each of the 2 var"):
        model.score(jnp.asarray(0.5), jnp.ones((3, 4)))


def test_numpy_numbers_of_a_denoiser_are_no_parameters():
    std = np.std(np.arange(3.0))
    denoiser = eqmdm.PreconditionedDenoiser(wavy_network, std, (np.float64(-6.0), 14.0))
    assert not jax.tree.leaves(eqx.filter(denoiser, eqx.is_array))


def test_a_constant_final_time_is_checked_without_calling_back():
    diffusion = eqmdm.VPSDE()
    model = eqmdm.DenoiserModel(preconditioned(), diffusion)
    bound = lambda x: eqmdm.elbo(model, x, key=jr.key(0)).total
    assert "callback" not in jax.jit(bound).lower(jnp.ones(2)).as_text()
