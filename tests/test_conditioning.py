"""Models of the data given an observation, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from mixtures import OPERATOR, PLANE, TURN, VALUE, VARIANCE, Turned
from normal_posterior import (
    ENDS,
    MATRIX,
    denoise,
    denoise_all,
    kalman,
    normal_denoiser,
    normal_model,
    observed,
)
from references import named_diffusions
from small_networks import perturbed_mlp

import eqmdm
from eqmdm import observe
from helpers import (
    counted,
    normal,
    slow,
    slow_but,
    slow_pairs_but,
    tree_allclose,
    within_standard_errors,
)


LOG_SNRS = -10.0, -3.0, 0.5, 4.0, 14.0
CORRELATED = np.asarray([[0.5, 0.2], [0.2, 0.3]])
NOISES = {
    "one-std": ({"noise_std": 0.3}, 0.09 * np.eye(2)),
    "two-stds": ({"noise_std": [0.3, 1.1]}, np.diag([0.09, 1.21])),
    "one-exact": ({"noise_std": [0.0, 1.1]}, np.diag([0.0, 1.21])),
    "exact": ({"noise_std": 0.0}, np.zeros((2, 2))),
    "correlated": ({"covariance": CORRELATED}, CORRELATED),
}
# GMRES is exact after as many products as there are numbers. It then asks that residual
# and change of the solution are within its tolerance, and both are a rounding times the
# condition of the system: up to 1e6 where one of two numbers has no noise.
SOLVERS = {
    "default": eqmdm.MomentMatching(),
    "GMRES": eqmdm.MomentMatching(lx.GMRES(rtol=1e-9, atol=1e-9)),
    "CG": eqmdm.MomentMatching(lx.CG(rtol=0.0, atol=1e-13)),
}


QUICK_SOLVES = [(noise, "default") for noise in NOISES] + [("correlated", "CG")]


@pytest.mark.parametrize(
    ("noise", "solver"), slow_pairs_but(QUICK_SOLVES, NOISES, SOLVERS)
)
def test_moment_matching_of_normal_data_is_the_kalman_formula(noise, solver, key):
    options, R = NOISES[noise]
    model = normal_model(eqmdm.VPSDE(interval=ENDS))
    given = model.given(observed(options), SOLVERS[solver])
    z = 2 * normal(key, (3,))
    actual = denoise_all(given, jnp.asarray(LOG_SNRS), jnp.asarray(z))
    expected = [
        kalman(log_snr, z, MATRIX, R, np.asarray([0.7, -0.2]))[0]
        for log_snr in LOG_SNRS
    ]
    # Rounding of numbers of order 1, times the condition of the system; the derivative
    # at a log-SNR of -10 is multiplied by a noise of variance e^10.
    assert tree_allclose(actual, np.asarray(expected), rtol=0.0, atol=1e-10)


def test_moment_matching_takes_a_log_snr_of_each_coordinate(key):
    model = normal_model(eqmdm.VPSDE(interval=ENDS), vector=True)
    given = model.given(observed({"noise_std": 0.3}), eqmdm.MomentMatching())
    z, log_snr = normal(key, (3,)), np.asarray([-2.0, 0.5, 6.0])
    expected, _ = kalman(log_snr, z, MATRIX, 0.09 * np.eye(2), [0.7, -0.2])
    actual = denoise(given, jnp.asarray(log_snr), jnp.asarray(z))
    assert given.takes_snr_vector
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize(
    "name", slow_but(["VPSDE", "CLD", "MALDA"], named_diffusions())
)
def test_every_diffusion_has_the_same_conditional_denoiser(name, key):
    diffusion = named_diffusions()[name]
    given = normal_model(eqmdm.VESDE()).given(observed({"noise_std": 0.3}))
    other = given.under(diffusion)

    @jax.jit
    def evaluate(t, y):
        kernel = diffusion.compute_kernel(t)
        estimate = given.denoise(kernel.log_snr, kernel.project(y))
        score = kernel.unwhiten_score(kernel.whiten(kernel.mean(estimate) - y))
        x, noise = 0.3 * jnp.ones(3), 0.5 * y
        at = kernel.perturb(x, noise)
        error = noise + kernel.root.T @ other.score(t, at)
        actual = (
            other.data_estimate(kernel, y),
            other.score(t, y),
            other.whitened_error(kernel, x, noise, at),
        )
        return actual, (estimate, score, error)

    y = jnp.asarray(normal(key, (diffusion.n_vars, 3)))
    actual, expected = evaluate(jnp.asarray(0.4), y)
    # Rounding: the same formulas.
    assert tree_allclose(actual[0], expected[0], rtol=0.0, atol=1e-13)
    assert tree_allclose(actual[1], expected[1], rtol=1e-9, atol=1e-9)
    assert tree_allclose(actual[2], expected[2], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [slow("VPSDE"), "CLD"])
def test_samples_of_normal_data_have_the_moments_of_kalman(name, key):
    diffusion = {"VPSDE": eqmdm.VPSDE, "CLD": eqmdm.CLD}[name](interval=ENDS)
    given = normal_model(diffusion).given(observed({"noise_std": 0.3}))
    x = eqmdm.sample(given, (3,), key=key, n_samples=2000, n_steps=100)
    # At a log-SNR of -40 the state says nothing.
    mean, covariance = kalman(-40.0, np.zeros(3), MATRIX, 0.09 * np.eye(2), [0.7, -0.2])
    assert within_standard_errors(x, mean)
    gaps = np.asarray(x) - mean
    assert within_standard_errors(gaps[:, :, None] * gaps[:, None], covariance)


def test_two_observations_one_after_the_other_are_both(key):
    diffusion = eqmdm.VPSDE(interval=ENDS)
    model = PLANE.model(diffusion)
    first = eqmdm.LinearObservation(observe.mask([True, False]), [1.2], 0.3)
    second = eqmdm.LinearObservation(observe.mask([False, True]), [0.1], 2.0)
    both = eqmdm.LinearObservation(observe.mask([True, True]), [1.2, 0.1], [0.3, 2.0])
    z, log_snr = jnp.asarray(normal(key, (2,))), jnp.asarray(-1.0)
    actual = denoise(model.given(first).given(second), log_snr, z)
    expected = denoise(model.given(both), log_snr, z)
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("method", [eqmdm.Exact(), eqmdm.MomentMatching()])
def test_an_observation_of_great_noise_changes_nothing(method, key):
    model = PLANE.model(eqmdm.CLD(interval=ENDS), vector=True)
    observation = eqmdm.LinearObservation(observe.mask([True, False]), [3.0], 1e9)
    given = model.given(observation, method)
    z, log_snrs = jnp.asarray(normal(key, (2,))), jnp.asarray([-8.0, 0.0, 8.0])
    actual = denoise_all(given, log_snrs, z)
    # The precision of the observation is 1e-18 and that of the data above 0.1.
    expected = denoise_all(model, log_snrs, z)
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noisy_data_are_one_more_noise_level_of_a_network(dtype, key):
    denoiser = eqmdm.PreconditionedDenoiser(perturbed_mlp(key), 0.5, (-10.1, 13.0))
    model = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE(interval=ENDS))
    shape = (8, 8, 1)
    z, value = map(jnp.asarray, normal(key, (2, *shape)).astype(dtype))
    structure = jax.ShapeDtypeStruct(shape, jnp.float64)
    observation = eqmdm.LinearObservation(
        lx.IdentityLinearOperator(structure), value, 0.4
    )
    given = model.given(observation)
    assert given.method_name == "exact" and not given.takes_snr_vector

    @jax.jit
    @jax.vmap
    def evaluate(log_snr):
        snr, precision = jnp.exp(log_snr), dtype(1 / 0.16)
        total = snr + precision
        mean = (snr * z + precision * value) / total
        return given.denoise(log_snr, z), model.denoise(jnp.log(total), mean)

    actual, expected = evaluate(jnp.asarray([-6.0, 1.0, 9.0], dtype))
    # Ten roundings of numbers of order 1 through the network.
    atol = 10 * float(np.finfo(dtype).eps) * 5
    assert tree_allclose(actual, expected, rtol=0.0, atol=atol)


def test_likelihood_given_an_observation_is_the_posterior_density(key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-13.5, 13.5))
    operator = observe.dense(OPERATOR, (2,), basis=Turned())
    observation = eqmdm.LinearObservation(operator, [VALUE], VARIANCE**0.5)
    given = PLANE.rotated(TURN).model(diffusion).given(observation)
    posterior, _ = PLANE.given(OPERATOR, VARIANCE, VALUE)
    x = posterior.draw(6, seed=0)
    one = lambda x: eqmdm.log_likelihood(given, x, key=key).log_likelihood
    actual = jax.jit(jax.vmap(one))(jnp.asarray(x @ TURN.T))
    expected = [posterior.given(np.eye(2), 1e-12 * np.eye(2), point)[1] for point in x]
    # The error of DESIGN's likelihood of mixtures at these ends, 5e-4 rms, twice.
    assert tree_allclose(actual, np.asarray(expected), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize(
    "route", [eqmdm.CollapsedRoute(), eqmdm.AugmentedRoute()], ids=["z", "y"]
)
def test_likelihood_ends_in_a_prior_about_the_estimate(route, key):
    # An end at which the prior is far from the law of the state, so that its mean
    # matters.
    low, high, std, value = -3.5, 12.0, 0.5, 3.0
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(low, high))
    model = eqmdm.DenoiserModel(lambda s, z: z * jax.nn.sigmoid(s), diffusion)
    operator = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((1,), jnp.float64))
    given = model.given(eqmdm.LinearObservation(operator, [value], std))
    # The posterior of N(0, 1), and the map of its flow, which is linear.
    variance = 1 / (1 + std**-2)
    mean = variance * value / std**2
    first, last = variance + np.exp(-high), variance + np.exp(-low)
    x = np.asarray([1.9])
    end = mean + (x - mean) * np.sqrt(last / first)
    centre = (value / std**2) / (1 + std**-2 + np.exp(low))
    assert given.prior_estimate((1,), jnp.float64) == pytest.approx(centre, abs=1e-6)
    total = 1 + np.exp(-low)
    expected = -0.5 * ((end - centre) ** 2 / total + np.log(2 * np.pi * total))
    expected = expected[0] + 0.5 * np.log(last / first)
    actual = eqmdm.log_likelihood(given, jnp.asarray(x), key=key, route=route)
    # Ten times the tolerance of the solve.
    assert abs(float(actual.log_likelihood) - expected) < 1e-4


@pytest.mark.slow
def test_bound_given_an_observation_has_a_prior_about_the_estimate(key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-3.0, 13.0))
    model = normal_model(diffusion)
    given = model.given(observed({"noise_std": 0.3}))
    x, centre = jr.normal(key, (3,)), given.prior_estimate((3,), jnp.float64)
    forms = eqmdm.LowVariance(), eqmdm.HybridScoreMatching()
    for form in forms:
        bound = lambda m, x, form=form: eqmdm.elbo(m, x, key=key, form=form)
        # The prior about 0 of data moved by the estimate, with the same draws.
        expected = bound(model, x - centre).prior
        # Rounding of sums of order 1.
        prior = bound(given, x).prior
        assert tree_allclose(prior, expected, rtol=1e-11, atol=1e-11)
        assert abs(float(prior - bound(model, x).prior)) > 1e-3


def test_a_guided_conditional_model_takes_an_observation(key):
    shifted = lambda log_snr, z, condition: (
        normal_denoiser(log_snr, z) + jnp.where(jnp.isnan(condition), 0.0, condition)
    )
    model = eqmdm.DenoiserModel(
        eqmdm.VectorDenoiser(shifted), eqmdm.VPSDE(interval=ENDS)
    )
    guided = eqmdm.GuidedModel(model, 2.0, eqmdm.LogSNRInterval(-20.0, 20.0))
    observation = eqmdm.LinearObservation(
        observe.mask([True, False, False]), [0.4], 0.5
    )
    z, log_snr = jnp.asarray(normal(key, (3,))), jnp.asarray(0.3)
    given = denoise(guided.given(observation).with_condition(0.7), log_snr, z)
    # Guidance between N(m, C) and N(m + 0.7, C) at a scale of 2.
    plain = denoise(model.with_condition(1.4).given(observation), log_snr, z)
    assert tree_allclose(given, plain, rtol=0.0, atol=1e-12)
    x = eqmdm.sample(
        guided.given(observation), (3,), condition=0.7, key=key, n_samples=2, n_steps=3
    )
    assert np.isfinite(x).all()
    outside = eqmdm.GuidedModel(model.given(observation), 2.0)
    both = denoise(outside.with_condition(0.7), log_snr, z)
    assert tree_allclose(both, plain, rtol=0.0, atol=1e-12)
    start = outside.with_condition(0.7).prior_estimate((3,), jnp.float64)
    assert start is not None


def test_another_value_compiles_nothing_and_a_batch_is_its_members(key):
    model = PLANE.model(eqmdm.CLD(interval=ENDS), vector=True)
    operator = observe.mask([True, False])

    def draw(value, std, key):
        observation = eqmdm.LinearObservation(operator, value, std)
        given = model.given(observation)
        return eqmdm.sample(given, (2,), key=key, n_samples=2, n_steps=4)

    first = draw([1.2], 0.3, key)
    with counted() as compiled:
        second = draw([-0.5], 0.7, key)
    assert not any(compiled.values())
    values, stds = jnp.asarray([[1.2], [-0.5]]), jnp.asarray([0.3, 0.7])
    batch = jax.jit(jax.vmap(draw, in_axes=(0, 0, None)))(values, stds, key)
    expected = np.stack([first, second])
    # Batched operations round differently, and 4 steps amplify that little.
    assert tree_allclose(batch, expected, rtol=0.0, atol=1e-10)
