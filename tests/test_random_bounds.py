"""Tests of bounds and likelihoods under any diffusion."""

import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st
from random_recipes import (
    CASES,
    OTHER,
    Dense,
    NormalDenoiser,
    few,
    normal,
    normal_log_density,
    over,
    recipes,
    seeds,
    some,
    stationary_from_the_start,
    variances,
)

import eqmdm
from helpers import slow, within_standard_errors


# Random diffusions end anywhere.
pytestmark = pytest.mark.filterwarnings("ignore:The law of this diffusion")


def expected_bound(recipe, variance, x, dtype):
    r"""The expectations of a bound's terms given `x`, and how far the prior's may be.

    With $u = v \mathrm{SNR}$ the error of the posterior mean is $x / (1 + u)$ and, of
    its own noise, $u / (1 + u)$, so the integrand over log-SNR is $(u x^2 / v + u^2) /
    (1 + u)^2$, whose integral is elementary.
    """
    at_cut, at_end = (Dense(recipe, None, t, dtype) for t in (recipe.t0, recipe.t1))
    u, u_end = variance * at_cut.snr, variance * at_end.snr
    square = np.sum(x**2) / variance
    error = u * (square + x.size * u) / (1 + u) ** 2
    density = 0.5 * x.size * math.log(at_cut.snr / (2 * math.pi))
    reconstruction = density - 0.5 * error
    gained = 1 / (1 + u_end) - 1 / (1 + u)
    integral = square * gained + x.size * (math.log((1 + u) / (1 + u_end)) - gained)

    # KL(N(a x, Sigma) || N(0, S)).
    whiten = lambda matrix: np.linalg.solve(recipe.stationary, matrix)
    root, a = whiten(at_end.root), whiten(at_end.a)
    log_det = np.linalg.slogdet(root)[1]
    per_dim = 0.5 * (np.sum(root**2) - len(a)) - log_det
    divergence = x.size * per_dim + 0.5 * (a @ a) * np.sum(x**2)
    # Each diagonal entry of the root is off by `root_error` of itself, and so on.
    inverse = np.linalg.norm(np.linalg.inv(recipe.stationary), 2)
    bound = x.size * (np.sum(root**2) + len(a)) * at_end.root_error
    bound += np.sum(x**2) * np.linalg.norm(a) * inverse * at_end.mean_error
    return reconstruction, -divergence, -0.5 * integral, 2 * bound


@eqx.filter_jit
def read_bounds(diffusion, variance, x, keys):
    model = eqmdm.DenoiserModel(NormalDenoiser(variance), diffusion)
    return jax.vmap(lambda key: eqmdm.elbo(model, x, key=key))(keys)


@over([OTHER[0], *map(slow, OTHER[1:])])
@few
@given(st.data(), variances, seeds)
def test_terms_of_a_bound_average_to_their_closed_forms(case, data, variance, seed):
    recipe = data.draw(recipes(case))
    key_data, key_bounds = jr.split(jr.key(seed))
    x = 2 * jr.normal(key_data, case.shape, case.dtype)
    keys = jr.split(key_bounds, 4000)
    bounds = read_bounds(recipe.build(), jnp.asarray(variance), x, keys)
    x = np.asarray(x, float)
    *expected, prior_error = expected_bound(recipe, variance, x, case.dtype)
    reconstruction, prior, diffusion = expected
    assert all(leaf.dtype == case.dtype for leaf in jax.tree.leaves(bounds))
    assert within_standard_errors(bounds.reconstruction, reconstruction)
    assert np.max(np.abs(np.asarray(bounds.prior, float) - prior)) <= prior_error
    assert within_standard_errors(bounds.diffusion, diffusion)
    assert not np.any(bounds.auxiliary)


TOLERANCES = {"float32": 1e-5, "float64": 1e-9}


@eqx.filter_jit
def read_likelihood(diffusion, variance, x, route, tolerance):
    model = eqmdm.DenoiserModel(NormalDenoiser(variance), diffusion)
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    options = {"route": route, "stepsize_controller": controller}
    return eqmdm.log_likelihood(model, x, key=jr.key(0), **options)


def check_likelihood(recipe, variance, x, route, expected, size):
    dtype = x.dtype.name
    tolerance = jnp.asarray(TOLERANCES[dtype], dtype)
    variance = jnp.asarray(variance)
    result = read_likelihood(recipe.build(), variance, x, route, tolerance)
    assert result.converged and result.log_likelihood.dtype == dtype
    # The tolerance over a hundred steps: in the volume of each coordinate, and relative
    # in a state at the end, whose square is a part of the density.
    error = abs(float(result.log_likelihood) - expected)
    assert error <= 100 * TOLERANCES[dtype] * size


@over([*OTHER[:2], *map(slow, OTHER[2:])])
@some
@given(st.data(), variances, seeds)
def test_collapsed_likelihood_of_normal_data_is_its_closed_form(
    case, data, variance, seed
):
    recipe = data.draw(recipes(case))
    x = 2 * normal(seed, case.shape, case.dtype)
    at_cut, at_end = (Dense(recipe, None, t, "float64") for t in (recipe.t0, recipe.t1))
    # dz / d sigma = sigma z / (v + sigma^2), so z grows as the deviation of z does; at
    # the end the prior of z is that of w . y.
    start, end = (variance + 1 / dense.snr for dense in (at_cut, at_end))
    prior = np.sum((recipe.stationary.T @ at_end.weights) ** 2)
    z = np.asarray(x, float) * math.sqrt(end / start)
    expected = normal_log_density(z, prior) + 0.5 * x.size * math.log(end / start)
    size = x.size + np.sum(z**2) / prior
    check_likelihood(recipe, variance, x, eqmdm.CollapsedRoute(), expected, size)


@over([CASES[3], CASES[4]])
@few
@given(st.data(), variances, seeds)
def test_augmented_likelihood_of_stationary_data_is_their_density_for_every_draw(
    case, data, variance, seed
):
    recipe = stationary_from_the_start(data.draw(recipes(case)), variance)
    x = math.sqrt(variance) * normal(seed, case.shape, case.dtype)
    dense = Dense(recipe, None, recipe.t0, "float64")
    # The prior is exact wherever the diffusion ends.
    expected = normal_log_density(np.asarray(x, float), variance + 1 / dense.snr)
    size = case.n_vars * x.size + np.sum(np.asarray(x, float) ** 2) / variance
    check_likelihood(recipe, variance, x, eqmdm.AugmentedRoute(), expected, size)
