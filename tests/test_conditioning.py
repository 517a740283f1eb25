"""Models of the data given an observation, against closed forms."""

import itertools

import equinox as eqx
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
SOLVERS = {
    "default": eqmdm.MomentMatching(),
    "GMRES": eqmdm.MomentMatching(lx.GMRES(rtol=0.0, atol=1e-13)),
    "CG": eqmdm.MomentMatching(lx.CG(rtol=0.0, atol=1e-13)),
}


def pairs(first, second, *, quick):
    """All pairs, of which only those in `quick` are not slow."""
    every = itertools.product(first, second)
    return [pair if pair in quick else slow(*pair) for pair in every]


@eqx.filter_jit
def denoise(model, log_snr, z):
    return model.denoise(log_snr, z)


@eqx.filter_jit
def denoise_all(model, log_snrs, z):
    return jax.vmap(model.denoise, (0, None))(log_snrs, z)


QUICK_SOLVES = [(noise, "default") for noise in NOISES] + [("correlated", "CG")]


@pytest.mark.parametrize(
    ("noise", "solver"), pairs(NOISES, SOLVERS, quick=QUICK_SOLVES)
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
    # Rounding of numbers of order 1: the condition of the system is below 1e3, and the
    # derivative at a log-SNR of -10 is multiplied by a noise of variance e^10.
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


def _mask_model(vector=True):
    return PLANE.model(eqmdm.CLD(interval=ENDS), vector=vector)


IDENTITY = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((2,), jnp.float64))
# Operators and noise in the plane, with what they are as a matrix and a covariance.
EXACT_CASES = {
    "first": (observe.mask([True, False]), [1.2], 0.3, [[1.0, 0.0]], [[0.09]]),
    "second-exact": (observe.mask([False, True]), [1.2], 0.0, [[0.0, 1.0]], [[0.0]]),
    "both": (
        observe.mask([True, True]),
        [1.2, 0.1],
        [0.3, 2.0],
        np.eye(2),
        np.diag([0.09, 4.0]),
    ),
    "one-exact": (
        observe.mask([True, True]),
        [1.2, 0.1],
        [0.3, 0.0],
        np.eye(2),
        np.diag([0.09, 0.0]),
    ),
    "scaled": (
        lx.DiagonalLinearOperator(jnp.asarray([2.0, -0.5])),
        [1.2, 0.1],
        0.4,
        np.diag([2.0, -0.5]),
        0.16 * np.eye(2),
    ),
    "identity": (IDENTITY, [1.2, 0.1], 0.5, np.eye(2), 0.25 * np.eye(2)),
}


@pytest.mark.parametrize("case", EXACT_CASES)
def test_exact_conditioning_is_the_closed_form(case, key):
    operator, value, std, A, R = EXACT_CASES[case]
    observation = eqmdm.LinearObservation(operator, value, std)
    # Only a multiple of the identity serves a denoiser that is told one log-SNR.
    given = _mask_model(vector=case != "identity").given(observation, eqmdm.Exact())
    assert given.method_name == "exact"
    z, log_snrs = 2 * normal(key, (2,)), np.asarray([-10.0, 0.5, 6.0])
    rows = np.concatenate([np.eye(2), np.asarray(A)])
    joint = np.zeros((len(rows), len(rows)))
    joint[2:, 2:] = R
    expected = []
    for log_snr in log_snrs:
        joint[:2, :2] = np.exp(-log_snr) * np.eye(2)
        posterior, _ = PLANE.given(rows, joint, np.concatenate([z, value]))
        expected.append(posterior.mean)
    actual = denoise_all(given, jnp.asarray(log_snrs), jnp.asarray(z))
    assert tree_allclose(actual, np.asarray(expected), rtol=0.0, atol=1e-12)


def test_exact_conditioning_in_a_basis_is_the_closed_form(key):
    operator = observe.dense(OPERATOR, (2,), basis=Turned())
    observation = eqmdm.LinearObservation(operator, [VALUE], VARIANCE**0.5)
    given = PLANE.rotated(TURN).model(eqmdm.CLD(interval=ENDS)).given(observation)
    assert given.method_name == "exact"
    z, noise = normal(key, (2,)), np.exp(-0.5)
    rows = np.concatenate([np.eye(2), OPERATOR])
    joint = np.diag([noise, noise, VARIANCE])
    posterior, _ = PLANE.given(rows, joint, np.concatenate([TURN.T @ z, [VALUE]]))
    actual = denoise(given, jnp.asarray(0.5), jnp.asarray(z))
    assert tree_allclose(actual, TURN @ posterior.mean, rtol=0.0, atol=1e-12)


class Orthonormal:
    """The basis of the rows of an orthogonal matrix."""

    def __init__(self, U):
        self.U = U

    def forward(self, pixels):
        flat = jnp.asarray(self.U, pixels.dtype) @ pixels.reshape(-1)
        return flat.reshape(pixels.shape)

    def inverse(self, coefficients):
        flat = jnp.asarray(self.U.T, coefficients.dtype) @ coefficients.reshape(-1)
        return flat.reshape(coefficients.shape)


def _fourier_basis(n):
    """Cosines plus sines of both axes."""
    angles = 2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    waves = np.exp(-1j * angles) / np.sqrt(n)
    both = np.kron(waves, waves)
    return both.real - both.imag


def _haar_basis(n):
    """Sums and differences of pairs, of both axes."""
    pair = np.asarray([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    once = np.kron(np.eye(n // 2), pair)
    return np.kron(once, once)


IN_BASES = {
    "blur": (lambda **kw: observe.blur((4, 4, 1), 0.5, **kw), _fourier_basis(4)),
    "fourier": (
        lambda **kw: observe.fourier(
            np.isin(np.arange(4), [0, 1, 3])[:, None, None] & np.ones((4, 4, 1), bool),
            **kw,
        ),
        _fourier_basis(4),
    ),
    "downsample": (lambda **kw: observe.downsample((4, 4, 1), 2, **kw), _haar_basis(4)),
}


# In float32 the hardest alone, and the others in float64.
QUICK_IN_BASES = [("blur", np.float32), ("fourier", np.float64)]
QUICK_IN_BASES += [("downsample", np.float64)]


@pytest.mark.parametrize("std", [slow(0.2), 0.0])
@pytest.mark.parametrize(
    ("name", "dtype"), pairs(IN_BASES, [np.float32, np.float64], quick=QUICK_IN_BASES)
)
def test_images_are_conditioned_exactly_in_the_basis_of_the_operator(
    name, std, dtype, key
):
    make, U = IN_BASES[name]
    assert np.allclose(U @ U.T, np.eye(16))
    # Coefficients of their own variances, which the model is told the levels of.
    variances = np.exp(np.random.default_rng(0).standard_normal(16)).reshape(4, 4, 1)
    prior = np.log(variances).astype(dtype)
    denoiser = eqmdm.VectorDenoiser(lambda s, z: z * jax.nn.sigmoid(s + prior))
    model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD(interval=ENDS))
    A = np.asarray(jax.jit(lambda: make().as_matrix())()) @ U.T
    o, z = normal(key, (2, 16))
    value = A @ o
    operator = make(basis=Orthonormal(U))
    shape = operator.out_structure().shape
    observation = eqmdm.LinearObservation(operator, value.reshape(shape), std)
    given = model.given(observation)
    assert given.method_name == "exact"
    z = z.reshape(4, 4, 1).astype(dtype)
    actual = denoise(given, jnp.asarray(0.5, dtype), jnp.asarray(z))
    # The normal posterior in all coefficients together.
    C = np.diag(1 / (1 / variances.reshape(-1) + np.exp(0.5)))
    mean = C @ (np.exp(0.5) * z.astype(float).reshape(-1))
    gain = np.linalg.lstsq(A @ C @ A.T + std**2 * np.eye(len(A)), A @ C, rcond=None)
    expected = mean + gain[0].T @ (value - A @ mean)
    # Rounding of numbers of order 1; a blur without noise divides by 0.085 twice.
    atol = 5e-5 if dtype == np.float32 else 1e-12
    expected = expected.reshape(4, 4, 1).astype(dtype)
    assert tree_allclose(actual, expected, rtol=0.0, atol=atol)


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
    model = _mask_model()
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
    model = _mask_model()
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
