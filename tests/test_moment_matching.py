"""Moment matching: its solvers, and networks whose derivatives are not symmetric."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from normal_posterior import ENDS, denoise, kalman, normal_model, observed
from small_networks import perturbed_mlp

import eqmdm
from eqmdm import observe
from helpers import generator_of, tree_allclose


def test_solvers_of_any_matrix_give_the_same_estimate_of_a_network(key):
    observation, model, z = _blocks_of_a_network(0.3, key)
    estimates = [
        model.given(observation, eqmdm.MomentMatching(solver))
        for solver in (lx.LU(), lx.GMRES(rtol=0.0, atol=1e-10))
    ]
    assert all("approximate" in given.method_name for given in estimates)
    assert "approximate" in repr(eqmdm.MomentMatching())
    a, b = (denoise(given, jnp.asarray(2.0), z) for given in estimates)
    # The tolerance of the iteration, times the condition of the matrix, below 1e4.
    assert tree_allclose(a, b, rtol=0.0, atol=1e-6 * np.max(np.abs(a)))


def test_the_default_is_stable_for_any_network():
    log_snrs = np.linspace(-10.0, 2.0, 25)

    @eqx.filter_jit
    def largest(model, z):
        estimates = jax.vmap(lambda log_snr: model.denoise(log_snr, z))(log_snrs)
        return jnp.max(jnp.abs(estimates))

    sizes = {"default": [], "as it is": []}
    for seed in range(3):
        observation, model, z = _blocks_of_a_network(0.3, jr.key(seed))
        methods = eqmdm.MomentMatching(), eqmdm.MomentMatching(lx.LU())
        for name, method in zip(sizes, methods, strict=True):
            sizes[name].append(float(largest(model.given(observation, method), z)))
    # Random parameters have a derivative with negative eigenvalues, and some of them
    # nearly cancel the noise. The data and the estimates of the network are of order 1.
    assert max(sizes["default"]) < 20 < 200 < max(sizes["as it is"])


def _blocks_of_a_network(std, key):
    denoiser = eqmdm.PreconditionedDenoiser(perturbed_mlp(key), 0.5, (-10.1, 13.0))
    model = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE(interval=ENDS))
    operator = observe.downsample((8, 8, 1), 2)

    @jax.jit
    def draw(key):
        key_x, key_z = jr.split(key)
        value = operator.mv(jr.normal(key_x, (8, 8, 1)))
        return value, jr.normal(key_z, (8, 8, 1))

    value, z = draw(key)
    return eqmdm.LinearObservation(operator, value, std), model, z


@pytest.mark.parametrize("max_steps", [1, 4])
def test_many_numbers_are_solved_for_by_iteration(max_steps, key):
    generator = generator_of(key)
    A, value = generator.standard_normal((300, 3)), generator.standard_normal(300)
    observation = eqmdm.LinearObservation(observe.dense(A, (3,)), value, 2.0)
    model = normal_model(eqmdm.VPSDE(interval=ENDS))
    given = model.given(observation, eqmdm.MomentMatching(max_steps=max_steps))
    assert isinstance(given.conditioning.solver, lx.GMRES)
    z = generator.standard_normal(3)
    mean, _ = kalman(0.5, z, A, 4 * np.eye(300), value)
    actual = denoise(given, jnp.asarray(0.5), jnp.asarray(z))
    # A V A^T has rank 3, so that one cycle of 16 products is exact.
    assert tree_allclose(actual, mean, rtol=0.0, atol=1e-8)


def test_a_solver_that_fails_gives_nan():
    model = normal_model(eqmdm.VPSDE(interval=ENDS))
    lazy = eqmdm.MomentMatching(lx.GMRES(rtol=0.0, atol=1e-12, max_steps=1))
    given = model.given(observed({"noise_std": 0.3}), lazy)
    assert np.isnan(denoise(given, jnp.asarray(0.0), jnp.zeros(3))).all()
