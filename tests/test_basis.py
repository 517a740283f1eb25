"""Tests of the orthonormal bases."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.fft
from bases import BASES, random_rotation

import eqmdm
from helpers import tree_allclose


def matrix_of(basis):
    """The coefficients of the unit vectors, in the columns."""
    n_dims = math.prod(basis.shape)
    units = jnp.eye(n_dims).reshape(n_dims, *basis.shape)
    transform = eqx.filter_jit(lambda basis, x: jax.vmap(basis.forward)(x))
    return np.asarray(transform(basis, units)).reshape(n_dims, n_dims).T


# Sums of at most 200 products of numbers of order one, in float64.
ROUNDING = {"rtol": 0.0, "atol": 1e-13}


@pytest.mark.parametrize("basis", BASES)
def test_basis_is_orthonormal(basis):
    matrix = matrix_of(basis)
    assert tree_allclose(matrix @ matrix.T, np.eye(len(matrix)), **ROUNDING)


@pytest.mark.parametrize("basis", BASES)
def test_inverse_inverts_and_keeps_the_norm(basis, key):
    x = np.asarray(jr.normal(key, basis.shape))
    coefficients = np.asarray(eqx.filter_jit(basis.forward)(x))
    assert coefficients.shape == basis.shape
    assert tree_allclose(eqx.filter_jit(basis.inverse)(coefficients), x, **ROUNDING)
    norms = (np.sum(part**2) for part in (coefficients, x))
    assert tree_allclose(*norms, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("basis", BASES)
def test_log_jacobian_is_zero(basis):
    differentiate = eqx.filter_jit(lambda basis, x: jax.jacfwd(basis.forward)(x))
    jacobian = differentiate(basis, jnp.ones(basis.shape))
    n_dims = math.prod(basis.shape)
    _, log_det = np.linalg.slogdet(np.asarray(jacobian).reshape(n_dims, n_dims))
    assert abs(log_det) < 1e-12


@pytest.mark.parametrize("basis", BASES)
def test_bands_are_numbered_without_gaps(basis):
    bands = basis.bands
    assert bands.shape == basis.shape and bands.dtype == np.int32
    assert set(bands.ravel()) == set(range(bands.max() + 1))


@pytest.mark.parametrize("n_scales", [1, 2])
def test_haar_coefficients_are_the_means_of_blocks_times_their_side(n_scales, key):
    x = jr.normal(key, (28, 20, 3))
    basis = eqmdm.HaarBasis(x.shape, n_scales)
    side = 2**n_scales
    blocks = x.reshape(28 // side, side, 20 // side, side, 3)
    coarse = basis.bands == 0
    found = np.asarray(basis.forward(x))[coarse].reshape(28 // side, 20 // side, 3)
    assert tree_allclose(found, side * blocks.mean((1, 3)), **ROUNDING)


def test_haar_bands_have_the_scale_of_the_functions():
    basis = eqmdm.HaarBasis((8, 8, 1))
    matrix = matrix_of(basis)
    n_pixels = np.count_nonzero(np.abs(matrix) > 1e-12, axis=1)
    # Functions of the scales cover blocks of 8, 8, 4 and 2 pixels a side.
    expected = np.array([64, 64, 16, 4])[basis.bands.ravel()]
    assert (n_pixels == expected).all()
    # All but the mean are orthogonal to constants.
    means = matrix.sum(axis=1)
    assert tree_allclose(means, np.where(np.arange(64) == 0, 8.0, 0.0), **ROUNDING)


def test_haar_of_mnist_has_two_scales():
    basis = eqmdm.HaarBasis((28, 28, 1))
    assert basis.n_scales == 2
    assert np.bincount(basis.bands.ravel()).tolist() == [7 * 7, 3 * 7 * 7, 3 * 14 * 14]


def test_haar_refuses_sides_that_cannot_be_halved():
    with pytest.raises(ValueError, match=r"`n_scales` must be at most 2 .*\(28, 28\)"):
        eqmdm.HaarBasis((28, 28, 1), 3)
    with pytest.raises(ValueError, match=r"`n_scales` must be at most 0 .*another bas"):
        eqmdm.HaarBasis((8, 7, 1))


@pytest.mark.parametrize("cls", [eqmdm.HaarBasis, eqmdm.CosineBasis])
def test_bases_of_images_refuse_points(cls):
    with pytest.raises(ValueError, match=r"`shape` must be \(height, width, channels"):
        cls((4,))


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 7, 2), (6, 3)])
def test_cosine_coefficients_are_those_of_scipy(shape, key):
    x = np.asarray(jr.normal(key, shape))
    axes = tuple(range(len(shape) - 1))
    expected = scipy.fft.dctn(x, norm="ortho", axes=axes)
    found = eqmdm.CosineBasis(shape).forward(jnp.asarray(x))
    assert tree_allclose(found, expected, **ROUNDING)


def test_cosine_bands_are_octaves():
    bands = eqmdm.CosineBasis((8, 8, 1)).bands[..., 0]
    assert bands[0].tolist() == [0, 1, 2, 2, 3, 3, 3, 3]
    # The radius of (4, 7) is 8.06, and that of (3, 7) is 7.6.
    assert bands[4, 7] == 4 and bands[3, 7] == 3
    # Frequencies relative to the longest side.
    assert eqmdm.CosineBasis((8, 4, 1)).bands[0, :, 0].tolist() == [0, 2, 3, 3]


def test_principal_components_diagonalise_the_covariance(key):
    mixing = np.asarray(jr.normal(key, (12, 12)))
    x = np.asarray(jr.normal(jr.fold_in(key, 1), (500, 12))) @ mixing + 3.0
    x = x.reshape(500, 2, 3, 2)
    basis = eqmdm.PrincipalComponents.fit(x)
    coefficients = np.asarray(jax.vmap(basis.forward)(jnp.asarray(x)))
    covariance = np.cov(coefficients.reshape(500, 12), rowvar=False)
    variances = np.diag(covariance)
    # Rounding relative to the largest variance, of order 100.
    assert tree_allclose(covariance, np.diag(variances), rtol=0.0, atol=1e-11)
    assert (np.diff(variances) < 0).all()
    assert basis.bands.ravel().tolist() == [0, 1, 1, *[2] * 4, *[3] * 5]


def test_a_matrix_must_be_orthonormal():
    with pytest.raises(ValueError, match="`matrix` must be orthonormal.* 0.1"):
        eqmdm.PrincipalComponents(np.eye(3) + 0.1 * np.eye(3, k=1))
    with pytest.raises(ValueError, match=r"`matrix` must be orthonormal.*nan"):
        eqmdm.PrincipalComponents(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match=r"`matrix` must have a row .* 4 numbers"):
        eqmdm.PrincipalComponents(np.eye(3), (2, 2))
    # A rotation in float32 is accepted.
    eqmdm.PrincipalComponents(random_rotation((50,)).matrix.astype(jnp.float32))


def test_a_matrix_is_neither_trained_nor_cast():
    basis = random_rotation((4,))
    assert not jax.tree.leaves(eqx.filter(basis, eqx.is_inexact_array))
    assert basis.matrix.dtype == jnp.float64
    assert basis.forward(jnp.ones(4, jnp.float32)).dtype == jnp.float32


def test_components_of_too_many_dimensions_are_refused():
    with pytest.raises(ValueError, match="`data` must have at most 4,096 numbers"):
        eqmdm.PrincipalComponents.fit(np.zeros((2, 65, 64), np.float32))
    with pytest.raises(TypeError, match="`data` must be"):
        eqmdm.PrincipalComponents.fit(np.zeros((2, 3), np.int32))


@pytest.mark.parametrize("basis", BASES)
def test_another_shape_is_refused(basis):
    for method in (basis.forward, basis.inverse):
        with pytest.raises(ValueError, match="`x` must have the shape of the"):
            method(jnp.zeros((2, *basis.shape)))
