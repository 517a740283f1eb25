"""Starts conditioned on the data."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
from bounds import FORMS, expected_bounds
from conditioned_starts import (
    LOG_DENSITY,
    SPREAD,
    D,
    Q,
    end_divergence,
    exact_model,
    langevin,
    model_of,
)
from references import VARIANCE, normal_denoiser
from scipy import stats
from small_networks import perturbed

import eqmdm
from eqmdm import nn
from eqmdm._model.point import Point
from helpers import optimised_jit, slow, tree_allclose, within_standard_errors


DATA = [name for name in FORMS if name.endswith("data")]


# --- Bounds --------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [slow(0.0), 0.5, slow(-1.0), slow(2.0)])
def test_bounds_of_an_exact_score_are_the_log_density_for_every_slope(
    slope, monkeypatch
):
    model = exact_model(slope, langevin())
    bounds = expected_bounds(monkeypatch, model, DATA)
    for name, bound in bounds.items():
        print(f"{slope}, {name}: {bound.total:.7f}")
        # Rounding of the oracle, and of the decoder's variance, that of a slope of 0.
        assert abs(bound.total + end_divergence(slope) - LOG_DENSITY) < 2e-6
        assert bound.auxiliary == 0


@pytest.mark.parametrize("slope", [slow(0.0), slow(0.5), -1.0, slow(2.0)])
def test_linear_start_leaves_the_bound_of_an_exact_denoiser(slope, monkeypatch):
    diffusion = eqmdm.LinearStart(langevin(), [slope])
    model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    bounds = expected_bounds(monkeypatch, model, ["low variance, data"])
    total = bounds["low variance, data"].total + end_divergence(slope)
    assert abs(total - LOG_DENSITY) < 1e-6


def test_all_forms_have_one_expectation_for_a_wrong_score(monkeypatch):
    diffusion = langevin(interval=eqmdm.TimeInterval(0.05, 0.8))
    wrong = lambda t, y: 0.4 * t * y[::-1] - 0.5 * y
    model = model_of(diffusion, wrong, lambda x: (0.7 * x + 0.3)[None])
    bounds = expected_bounds(monkeypatch, model, list(FORMS))
    for group in (DATA, [name for name in FORMS if name not in DATA]):
        totals = [bounds[name].total for name in group]
        # Quadrature and rounding, of terms up to 1e2.
        np.testing.assert_allclose(totals, totals[0], rtol=1e-8)


def test_bound_of_a_wrong_score_is_the_analytic_one(monkeypatch):
    # Dense matrices, by matrix exponentials; all laws are normal.
    t0, t1, slope = 0.05, 0.8, 0.7
    A = np.array([[0.6, -0.2], [0.3, 0.9]])
    diffusion = langevin(interval=eqmdm.TimeInterval(t0, t1))
    model = model_of(
        diffusion,
        lambda t, y: -jnp.asarray(A, y.dtype) @ y,
        lambda x: slope * x[None],
    )
    rate = lambda t: 0.1 + 9.9 * t
    integral = lambda t: 0.1 * t + 0.5 * 9.9 * t**2

    def laws(t):
        Psi = scipy.linalg.expm(-(Q + D) * integral(t))
        Sigma = np.eye(2) - Psi @ np.diag([1.0, 1.0 - SPREAD]) @ Psi.T
        return Psi, Psi @ [1, slope], Sigma

    def integrand(t):
        _, a, Sigma = laws(t)
        # G^T (s - grad log q) = G^T (-A a x + (Sigma^-1 - A) deviation).
        G = np.sqrt(2 * rate(t)) * np.array([[0.0], [2.0**0.5]])
        bias, spread = G.T @ A @ a, G.T @ (np.linalg.inv(Sigma) - A)
        return VARIANCE * bias @ bias + np.trace(spread @ Sigma @ spread.T)

    nodes, weights = np.polynomial.legendre.leggauss(60)
    times = 0.5 * (t1 + t0) + 0.5 * (t1 - t0) * nodes
    path = 0.5 * (t1 - t0) * weights @ [integrand(t) for t in times]
    Psi, a, Sigma = laws(t0)
    # The estimate is the first variable of Psi^-1 (y - Sigma A y).
    row = np.linalg.solve(Psi, np.eye(2) - Sigma @ A)[0]
    noise = 1 / (Psi[:, 0] @ np.linalg.solve(Sigma, Psi[:, 0]))
    error = VARIANCE * (row @ a - 1) ** 2 + row @ Sigma @ row
    reconstruction = -0.5 * (error / noise + np.log(2 * np.pi * noise))
    _, a, Sigma = laws(t1)
    prior = np.trace(Sigma) + VARIANCE * a @ a - 2 - np.linalg.slogdet(Sigma)[1]
    expected = reconstruction - 0.5 * prior - 0.5 * path
    bounds = expected_bounds(monkeypatch, model, ["low variance, data"])
    np.testing.assert_allclose(bounds["low variance, data"].total, expected, rtol=1e-8)


@pytest.mark.slow
def test_nonlinear_mean_costs_the_information_of_the_first_state(key):
    # With the exact score, the terms but the reconstruction are minus the information
    # of y(t0) about the data, up to the divergence of the law at t1 from the prior.
    diffusion = langevin(interval=eqmdm.TimeInterval(0.15, 1.6))
    mean = lambda x: 1.5 * jnp.tanh(2 * x)[None]
    nodes = jnp.linspace(-6.5, 6.5, 801) * VARIANCE**0.5
    log_weights = -0.5 * nodes**2 / VARIANCE
    log_weights = log_weights - jax.nn.logsumexp(log_weights)

    def given(t, y):
        kernel = diffusion.compute_kernel(t)
        means = kernel.step.mean(jnp.stack([nodes, mean(nodes)[0]]))
        whitened = kernel.whiten(y - means)
        return -0.5 * jnp.sum(whitened**2, axis=0)

    log_density = lambda t, y: jax.nn.logsumexp(given(t, y) + log_weights)
    model = model_of(diffusion, jax.grad(log_density, argnums=1), mean)
    x = VARIANCE**0.5 * jr.normal(key, (4000, 1))
    kernel = diffusion.compute_kernel(diffusion.t0)

    @jax.vmap
    def difference(x, key):
        key_bound, key_state = jr.split(key)
        bound = eqmdm.elbo(model, x, key=key_bound, n_draws=8)
        start = jnp.concatenate([x[None], mean(x)])
        noise = jr.normal(key_state, (2, 1))
        point = Point.at(kernel, start, noise, given_start=False, mean_start=start)
        own = -0.5 * jnp.sum(noise**2)
        information = own - log_density(diffusion.t0, point.y)
        return bound.prior + bound.diffusion + information

    costs = jax.jit(difference)(x, jr.split(key, len(x)))
    # The divergence at t1 is below 1e-3, with a log-SNR of -10.
    assert costs.std() / len(x) ** 0.5 < 0.03
    assert within_standard_errors(costs, 0.0)


# --- The decoder ---------------------------------------------------------------------


def test_decoder_sees_the_state_alone(key):
    network = perturbed(nn.MLP((3,), 2, width=8, depth=1, key=key), key)
    diffusion = langevin()
    score = eqmdm.NoiseModel(network, diffusion)
    model = eqmdm.ConditionedStartModel(score, lambda x: jnp.sin(3 * x)[None])

    @jax.jit
    def compute(t, x, noise):
        kernel = diffusion.compute_kernel(t)
        mean = model.mean_start(x)
        point = Point.at(kernel, mean, noise, given_start=False, mean_start=mean)
        residual = point.data_residual(point.error(model))
        # Tweedie's formula for the start, solved densely.
        Sigma = kernel.root @ kernel.root.T
        state = point.y + Sigma @ model.score(kernel.t, point.y)
        estimate = jnp.linalg.solve(kernel.step.mean_map, state)[0]
        own = x + kernel.sigma * residual, model.data_estimate(kernel, point.y)
        return own, estimate

    x, *noise = np.random.default_rng(0).standard_normal((3, 3))
    own, estimate = compute(0.2, x, np.stack(noise))
    for actual in own:
        assert tree_allclose(actual, estimate, rtol=1e-9, atol=1e-9)


def test_residual_keeps_its_digits_in_float32_near_the_data():
    diffusion = langevin()
    x, noise = 0.7, np.random.default_rng(0).standard_normal((2, 1))

    @optimised_jit
    def residual(t, mean, noise):
        kernel = diffusion.compute_kernel(t)
        point = Point.at(kernel, mean, noise, given_start=False, mean_start=mean)
        return point.data_residual(0.3 * point.noise)

    args = np.asarray(diffusion.t0), np.asarray([[x], [np.tanh(x)]]), noise
    exact = np.asarray(residual(*args))
    # The first row of Psi^-1 L is a difference of numbers 400 times as large.
    rounded = residual(*(arg.astype(np.float32) for arg in args))
    rounded = np.asarray(rounded, np.float64)
    assert abs(rounded - exact) < 400 * 4 * 6e-8 * np.abs(noise).max()
    assert abs(exact) > 0.01


# --- Linear starts -------------------------------------------------------------------


def test_linear_start_is_the_recipe_in_its_coordinates():
    slope = 0.8
    base = eqmdm.CLD()
    C = np.array([[1.0, 0.0], [slope, 1.0]])
    inverse = np.linalg.inv(C)
    turned = lambda M: inverse @ M @ inverse.T
    expected = eqmdm.LinearDiffusion(
        turned(Q),
        turned(D),
        stationary_covariance=turned(np.eye(2)),
        start_covariance=np.diag([0.0, 0.01]),
    )
    actual = eqmdm.LinearStart(base, [slope])
    laws = lambda d, t: (
        d.compute_kernel(t),
        d.drift_matrix(t),
        d.diffusion_matrix(t) @ d.diffusion_matrix(t).T,
        d.prior,
        d.transition(0.5 * t, t),
    )

    @jax.jit
    def compute(t):
        kernel = base.compute_kernel(t)
        b = kernel.whitening @ kernel.step.mean_map @ jnp.asarray([1.0, slope])
        return laws(actual, t), laws(expected, t), actual.log_snr(t), b

    own, of_recipe, log_snr, b = compute(0.3)
    assert tree_allclose(own, of_recipe, rtol=1e-11, atol=1e-12)
    # The SNR of the data in the state, with the start at (1, c).
    np.testing.assert_allclose(log_snr, np.log(np.sum(np.square(b))), rtol=1e-10)


def test_linear_start_reaches_the_log_snrs_of_its_interval():
    interval = eqmdm.LogSNRInterval(-5.0, 9.0)
    diffusion = eqmdm.LinearStart(eqmdm.CLD(interval=interval), [2.0])
    ends = np.asarray([diffusion.t0, diffusion.t1])
    log_snrs = jax.jit(jax.vmap(diffusion.log_snr))(ends)
    np.testing.assert_allclose(log_snrs, [9.0, -5.0], rtol=1e-6)


def test_learned_slopes_have_derivatives():
    diffusion = eqmdm.LinearStart(eqmdm.CLD(), [0.3], learn=True)
    log_snr = lambda diffusion: diffusion.log_snr(jnp.asarray(0.4))
    gradient = eqx.filter_jit(eqx.filter_grad(log_snr))(diffusion)._slopes
    steps = [eqmdm.LinearStart(eqmdm.CLD(), [0.3 + h]) for h in (-1e-4, 1e-4)]
    low, high = jax.jit(lambda: [log_snr(step) for step in steps])()
    difference = (float(high) - float(low)) / 2e-4
    # The slope is stored in float32.
    np.testing.assert_allclose(np.asarray(gradient)[0], difference, rtol=1e-5)
    assert "slopes=learned" in repr(diffusion) and "slopes=(0.3" in repr(steps[1])


# --- Samples and likelihoods ---------------------------------------------------------


def test_likelihood_of_normal_data_is_their_log_density(key):
    model = exact_model(0.5, langevin())
    x = np.asarray([[0.3], [-2.0]])
    one = lambda x, key: eqmdm.log_likelihood(
        model, x, key=key, route=eqmdm.AugmentedRoute(n_draws=8)
    )
    found = jax.jit(jax.vmap(one))(x, jr.split(key, 2))
    expected = stats.norm(scale=VARIANCE**0.5).logpdf(x[:, 0])
    # The prior is off by what the data have left at t1, 1e-3 of their square.
    assert tree_allclose(found.log_likelihood, expected, rtol=0.0, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [eqmdm.SSCS(), dfx.SEA()], ids=["sscs", "sea"])
def test_samples_need_no_start_law(sampler, key):
    model = exact_model(-1.0, langevin())
    x = eqmdm.sample(model, (1,), key=key, n_samples=4000, sampler=sampler, n_steps=200)
    assert within_standard_errors(x**2, VARIANCE)
    # The score alone is used.
    score = model.model
    again = eqmdm.sample(
        score, (1,), key=key, n_samples=4, sampler=sampler, n_steps=200
    )
    assert tree_allclose(again, x[:4], rtol=1e-2, atol=1e-2)


# --- Training ------------------------------------------------------------------------


def test_mean_is_trained_together_with_the_score(key):
    x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    network = nn.MLP((2,), 2, width=8, depth=1, key=jr.key(0))
    mean = nn.StartMean(nn.MLP((2,), 1, width=8, depth=1, key=jr.key(1)))
    model = eqmdm.ConditionedStartModel(eqmdm.NoiseModel(network, eqmdm.CLD()), mean)
    mean_of = eqx.filter_jit(lambda model, x: model.mean(x))
    before = mean_of(model, jnp.asarray(x[0]))
    trained = eqmdm.fit(model, x, key=key, steps=5, batch_size=32)
    assert not np.any(before)
    assert np.abs(mean_of(trained, jnp.asarray(x[0]))).min() > 0


# --- Errors --------------------------------------------------------------------------


def free(diffusion=None):
    diffusion = langevin() if diffusion is None else diffusion
    return eqmdm.NoiseModel(lambda t, y: y, diffusion)


def conditioned(mean=lambda x: x[None], **options):
    return eqmdm.ConditionedStartModel(free(**options), mean)


X, SETTINGS = jnp.ones(2), {"key": jr.key(0)}


@pytest.mark.parametrize(
    "use, error, match",
    [
        (
            lambda: eqmdm.ConditionedStartModel(
                eqmdm.DenoiserModel(normal_denoiser, langevin()), lambda x: x[None]
            ),
            TypeError,
            "`model` must have a free score, .* got DenoiserModel.*LinearStart",
        ),
        (
            lambda: conditioned(diffusion=eqmdm.VPSDE()),
            ValueError,
            "`model` must have a diffusion with auxiliary variables.*VPSDE has none",
        ),
        (lambda: conditioned(3.0), TypeError, "`mean` must be a callable"),
        (
            lambda: eqmdm.ConditionedStartModel(conditioned(), lambda x: x[None]),
            TypeError,
            "`model` must not have a conditioned start already",
        ),
        (
            lambda: eqmdm.elbo(conditioned(lambda x: x), X, **SETTINGS),
            ValueError,
            r"`mean` must return .* \(1, 2\) for data of shape \(2,\); got \(2,\)",
        ),
        (
            lambda: eqmdm.sample(conditioned(), (2,), **SETTINGS),
            TypeError,
            "independent of the data for `DPMSolver`.*SSCS",
        ),
        (
            lambda: eqmdm.sample(
                eqmdm.GuidedModel(conditioned(), 1.0, condition=0),
                (2,),
                sampler=eqmdm.AncestralSampler(),
                **SETTINGS,
            ),
            TypeError,
            "independent of the data for `AncestralSampler`",
        ),
        (
            lambda: eqmdm.sample(
                conditioned(),
                (2,),
                sampler=eqmdm.LangevinCorrector(eqmdm.SSCS()),
                **SETTINGS,
            ),
            TypeError,
            "independent of the data for `LangevinCorrector`",
        ),
        (
            lambda: eqmdm.discrete_elbo(
                conditioned(), X, times=jnp.asarray([1.0, 0.5]), **SETTINGS
            ),
            TypeError,
            "independent of the data for `discrete_elbo`",
        ),
        (
            lambda: eqmdm.log_likelihood(
                conditioned(), X, route=eqmdm.CollapsedRoute(), **SETTINGS
            ),
            TypeError,
            "`route` must be an `AugmentedRoute`.*ConditionedStartModel",
        ),
        (
            lambda: eqmdm.LinearStart(eqmdm.VPSDE(), [1.0]),
            ValueError,
            "`diffusion` must have auxiliary variables",
        ),
        (lambda: eqmdm.LinearStart(3.0, [1.0]), TypeError, "`diffusion` must be a l"),
        (
            lambda: eqmdm.LinearStart(eqmdm.MALDA(), [1.0]),
            ValueError,
            r"`slopes` must be a number for each of the 2 auxiliary variables; got",
        ),
        (
            lambda: eqmdm.LinearStart(eqmdm.CLD(), [np.nan]),
            ValueError,
            "`slopes` must be finite",
        ),
        (lambda: nn.StartMean(lambda t, y: y, 0), ValueError, "`n_aux` must be at lea"),
    ],
)
def test_conditioned_starts_refuse_by_name(use, error, match, unchecked):
    with pytest.raises(error, match=match):
        use()
