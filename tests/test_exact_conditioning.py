"""Exact conditioning, of coordinates and in the basis of an operator."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from mixtures import OPERATOR, PLANE, TURN, VALUE, VARIANCE, Turned
from normal_posterior import ENDS, denoise, denoise_all

import eqmdm
from eqmdm import observe
from helpers import normal, slow, slow_pairs_but, tree_allclose


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
    model = PLANE.model(eqmdm.CLD(interval=ENDS), vector=case != "identity")
    given = model.given(observation, eqmdm.Exact())
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
    ("name", "dtype"),
    slow_pairs_but(QUICK_IN_BASES, IN_BASES, [np.float32, np.float64]),
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
