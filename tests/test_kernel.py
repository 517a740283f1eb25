import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tree_allclose
from references import (
    TAUS,
    errors,
    exact_kernel,
    named_diffusions,
    random_recipes,
)

import eqmdm


OPTIONS = {"clock": eqmdm.ConstantClock(1.0), "t_range": (1e-6, 20.0)}
# The accuracy that DESIGN.md states for float32 and float64: the root, the mean map up
# to tau = 5, the mean map at 20.
BARS = {"float32": (5e-6, 2e-5, 1e-3), "float64": (1e-12, 1e-12, 1e-11)}


def assert_accurate(mean_map, root, exact, tau, dtype):
    root_bar, mean_bar, late_bar = BARS[dtype]
    diagonal, rows, mean = errors(mean_map, root, *exact)
    assert diagonal < root_bar
    assert rows < root_bar
    assert mean < (mean_bar if tau <= 5 else late_bar)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(named_diffusions()))
def test_kernels_of_named_diffusions_are_those_of_60_digits(name, dtype):
    diffusion = named_diffusions(**OPTIONS)[name]
    taus = jnp.asarray(TAUS, dtype)
    recipe = diffusion.recipe
    zero = jnp.zeros((), dtype)
    steps = jax.jit(jax.vmap(lambda t: diffusion.transition(zero, t)))(taus)
    kernels = jax.jit(jax.vmap(diffusion.perturbation_kernel))(taus)
    parts = recipe.skew, recipe.dissipation_root, recipe.stationary_root
    start = np.asarray(recipe.start_root).reshape(diffusion.n_vars, -1)
    for i, tau in enumerate(np.asarray(taus)):
        exact = exact_kernel(*parts, np.zeros_like(start), tau)
        assert_accurate(steps.mean_map[i], steps.root[i], exact, tau, dtype)
        psi, root = exact_kernel(*parts, start, tau)
        mean = kernels.mean_map[i][:, None]
        assert_accurate(mean, kernels.root[i], (psi[:, 0], root), tau, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_vars", [2, 3, 4])
def test_kernels_of_random_recipes_are_those_of_60_digits(n_vars, dtype):
    skews, roots = random_recipes(n_vars)

    @jax.jit
    def kernels(skew, root, tau):
        diffusion = eqmdm.LinearDiffusion(
            skew, dissipation_root=root, n_doublings=11, **OPTIONS
        )
        step = diffusion.transition(jnp.zeros_like(tau), tau)
        return step, diffusion.perturbation_kernel(tau)

    over_taus = jax.vmap(kernels, in_axes=(None, None, 0))
    steps, laws = jax.vmap(over_taus, in_axes=(0, 0, None))(
        jnp.asarray(skews, dtype), jnp.asarray(roots, dtype), jnp.asarray(TAUS, dtype)
    )
    start = np.sqrt(0.01) * np.eye(n_vars)
    start[0, 0] = 0
    identity = np.eye(n_vars)
    for i in range(len(skews)):
        for j, tau in enumerate(np.asarray(TAUS, dtype)):
            exact = exact_kernel(skews[i], roots[i], identity, 0 * start, tau)
            assert_accurate(steps.mean_map[i, j], steps.root[i, j], exact, tau, dtype)
            psi, root = exact_kernel(skews[i], roots[i], identity, start, tau)
            mean = laws.mean_map[i, j][:, None]
            exact = psi[:, 0], root
            assert_accurate(mean, laws.root[i, j], exact, tau, dtype)
