import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import random_diffusion

import eqmdm
from eqmdm._model.point import Point
from helpers import tree_allclose, within_standard_errors


# Late enough for dense covariances to be well conditioned.
TIME = 0.4
FORMS = {
    "low_variance": eqmdm.LowVariance(),
    "low_variance_given_start": eqmdm.LowVariance(given_start=True),
    "denoising": eqmdm.DenoisingScoreMatching(),
    "hybrid": eqmdm.HybridScoreMatching(),
    "implicit": eqmdm.ImplicitScoreMatching(),
}


def wavy(t, y):
    """A score that is no gradient, and mixes the data's coordinates."""
    return jnp.sin(t + 2 * y) + 0.3 * jnp.cumsum(y, axis=1) - 0.2 * y[::-1]


def state_at(diffusion, t, key, *, given_start):
    key_start, key_noise = jr.split(key)
    shape = (diffusion.n_vars, 2)
    start, noise = jr.normal(key_start, shape), jr.normal(key_noise, shape)
    kernel = diffusion.compute_kernel(t)
    if given_start:
        mean, root = kernel.step.mean_map @ start, kernel.step.root
    else:
        mean, root = kernel.mean_map[:, None] * start[0][None], kernel.root
    y = mean + root @ noise
    target = -jnp.linalg.solve(root @ root.T, y - mean)
    return kernel, start, noise, y, target


def integrand_at(form, model, point, key):
    return form.integrand(point, point.error(model), model, key=key)


def control_variate(kernel, noise, G):
    """Half the square of the data's part of the noise, less its mean, in the integrand
    of an exact model of data of variance 1 whose signal is strong."""
    covariance = kernel.root @ kernel.root.T
    pull = jnp.linalg.solve(covariance, kernel.mean_map)
    snr = kernel.mean_map @ pull
    along = jnp.linalg.solve(kernel.root, kernel.mean_map) @ noise / jnp.sqrt(snr)
    rate = jnp.sum((G.T @ pull) ** 2) / snr
    return 0.5 * rate * (snr / (1 + snr)) ** 2 * (jnp.sum(along**2) - along.size)


def dense_divergence(function, y):
    jacobian = jax.jacfwd(function)(y).reshape(y.size, y.size)
    return jnp.trace(jacobian)


@pytest.mark.parametrize("n_vars", [1, 3])
@pytest.mark.parametrize("name", FORMS)
def test_integrand_is_the_equation_of_its_form(name, n_vars, key):
    form, diffusion = FORMS[name], random_diffusion(n_vars)

    @jax.jit
    def compute(t, key):
        state = state_at(diffusion, t, key, given_start=form.conditions_on_start)
        kernel, start, noise, y, target = state
        G, F = diffusion.diffusion_matrix(t), diffusion.drift_matrix(t)
        size = lambda s: jnp.sum((G.T @ s) ** 2)
        drift = dense_divergence(lambda y: F @ y, y)
        if name.startswith("low_variance"):
            expected = -0.5 * size(wavy(t, y) - target)
            if not form.given_start:
                expected = expected + control_variate(kernel, noise, G)
        elif name == "implicit":
            flow = lambda y: G @ G.T @ wavy(t, y) - F @ y
            expected = -0.5 * size(wavy(t, y)) - dense_divergence(flow, y)
        else:
            expected = 0.5 * (size(target) - size(wavy(t, y) - target)) + drift
        model = eqmdm.FunctionModel(wavy, diffusion)
        point = Point(kernel, start, noise, y, form.conditions_on_start)
        return integrand_at(form, model, point, key), expected

    # Condition numbers of up to 1e4.
    actual, expected = compute(jnp.asarray(TIME), key)
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("draw", [jr.rademacher, jr.normal])
def test_hutchinson_divergence_averages_to_the_exact_one(draw, key):
    key_state, key_probe = jr.split(key)
    y = jr.normal(key_state, (3, 2))
    G = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)))
    score = lambda y: wavy(jnp.asarray(TIME), y)
    dense = dense_divergence(lambda y: G @ G.T @ score(y), y)
    _, derivative = jax.linearize(score, y)
    (exact,) = eqmdm.ExactDivergence()(derivative, G, y, key=key)
    # A sum of four numbers against one of six.
    assert tree_allclose(exact, dense, rtol=1e-13, atol=1e-13)
    hutchinson = eqmdm.HutchinsonDivergence(2, draw)
    estimate = jax.jit(jax.vmap(lambda key: hutchinson(derivative, G, y, key=key)))
    samples = estimate(jr.split(key_probe, 20_000))
    assert samples.shape[1] == hutchinson.n_estimates == 2
    assert jnp.all(jnp.std(samples, axis=0) > 0)
    assert within_standard_errors(samples.reshape(-1), dense)


def test_hutchinson_divergence_of_one_probe_is_one_quadratic_form(key):
    y = jr.normal(key, (1, 2))
    _, derivative = jax.linearize(lambda y: y**3, y)
    # Signs square to 1, so a diagonal Jacobian leaves nothing to chance.
    (estimate,) = eqmdm.HutchinsonDivergence()(
        derivative, jnp.array([[2.0]]), y, key=key
    )
    assert tree_allclose(estimate, 12 * jnp.sum(y**2), rtol=1e-14, atol=0.0)


def test_hutchinson_divergence_refuses_zero_probes():
    with pytest.raises(ValueError, match="`n_probes` must be at least 1"):
        eqmdm.HutchinsonDivergence(n_probes=0)


@pytest.mark.parametrize("name", FORMS)
def test_integrand_keeps_its_digits_in_float32(name, key):
    form, diffusion = FORMS[name], eqmdm.CLD()
    key_start, key_noise = jr.split(key)
    start = jr.normal(key_start, (2, 4), jnp.float32)
    noise = jr.normal(key_noise, (2, 4), jnp.float32)

    @jax.jit
    def integrand(t, start, noise):
        model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1, diffusion)
        kernel = diffusion.compute_kernel(t)
        if form.conditions_on_start:
            y = kernel.step.perturb(start, noise)
        else:
            y = kernel.perturb(start[0], noise)
        point = Point(kernel, start, noise, y, form.conditions_on_start)
        return integrand_at(form, model, point, key)

    actual = integrand(jnp.asarray(1e-3, jnp.float32), start, noise)
    assert actual.dtype == jnp.float32
    # The float32 number nearest to 1e-3, in float64.
    t = jnp.asarray(1e-3, jnp.float32).astype(jnp.float64)
    expected = integrand(t, start.astype(jnp.float64), noise.astype(jnp.float64))
    # Kernels are good to 5e-6; a condition number of their ratios, and a difference
    # of two squares, cost one digit and a half.
    np.testing.assert_allclose(actual, expected, rtol=2e-4)
