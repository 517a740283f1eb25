import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import (
    TAUS,
    errors,
    exact_kernel,
    named_diffusions,
    random_recipes,
)

import eqmdm
from helpers import OPTIMISED, slow_but


OPTIONS = {
    "schedule": eqmdm.ConstantSchedule(1.0),
    "interval": eqmdm.TimeInterval(1e-6, 20.0),
}
# The accuracy that the design asks for: of the root, of the mean map up to tau = 5, and
# of the mean map at 20.
BARS = {"float32": (5e-6, 2e-5, 1e-3), "float64": (1e-12, 1e-12, 1e-11)}


def assert_accurate(mean_map, root, exact, tau, dtype):
    root_bar, mean_bar, late_bar = BARS[dtype]
    diagonal, rows, mean = errors(mean_map, root, *exact)
    # Rounding an entry of the noise matrix moves a diagonal entry of the root by that
    # rounding times the ratio of the row's norm to it, whatever the algorithm.
    condition = row_condition(exact[1])
    assert diagonal < max(root_bar, condition * jnp.finfo(dtype).eps)
    assert rows < root_bar
    # A mean map below the normal numbers of the dtype has no digits to compare.
    if largest(exact[0]) > jnp.finfo(dtype).tiny:
        assert mean < (mean_bar if tau <= 5 else late_bar)


def row_condition(exact_root):
    root = np.array(exact_root.tolist(), float)
    return np.max(np.linalg.norm(root, axis=1) / np.diag(root))


def largest(exact_mean):
    return np.abs(np.array(exact_mean.tolist(), float)).max()


def check(laws, exact_laws, taus, dtype):
    for i, tau in enumerate(taus):
        given_start, given_data = exact_laws(tau)
        step, kernel = laws.step, laws
        assert_accurate(step.mean_map[i], step.root[i], given_start, tau, dtype)
        mean = kernel.mean_map[i][:, None]
        assert_accurate(mean, kernel.root[i], given_data, tau, dtype)


@functools.cache
def exact_laws_of(source, index, tau):
    """The exact laws of a named or random diffusion, given the start and the data."""
    if isinstance(source, str):
        recipe = named_diffusions(**OPTIONS)[source].recipe
        parts = recipe.skew, recipe.dissipation_root, recipe.stationary_root
        start = np.asarray(recipe.start_root).reshape(len(recipe.skew), -1)
    else:
        skews, roots = random_recipes(source)
        parts = skews[index], roots[index], np.eye(source)
        start = np.sqrt(0.01) * np.diag([0.0] + [1.0] * (source - 1))
    psi, root = exact_kernel(*parts, start, tau)
    return exact_kernel(*parts, 0 * start, tau), (psi[:, 0], root)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "name",
    # One for each number of variables.
    slow_but(["VPSDE", "CLD", "CriticalThirdOrder"], named_diffusions()),
)
def test_kernels_of_named_diffusions_are_those_of_60_digits(name, dtype):
    diffusion = named_diffusions(**OPTIONS)[name]
    # In float64 the bar is four thousand roundings, whatever XLA makes of them.
    options = OPTIMISED if dtype == "float32" else None
    compute = jax.jit(jax.vmap(diffusion.compute_kernel), compiler_options=options)
    laws = compute(jnp.asarray(TAUS, dtype))
    check(laws, lambda tau: exact_laws_of(name, 0, tau), TAUS, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_vars", [2, 3, 4])
def test_kernels_of_random_recipes_are_those_of_60_digits(n_vars, dtype):
    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def all_laws(skew, root, tau):
        diffusion = eqmdm.LinearDiffusion(skew, dissipation_root=root, **OPTIONS)
        return diffusion.compute_kernel(tau)

    matrices = (jnp.asarray(part, dtype) for part in random_recipes(n_vars))
    laws = all_laws(*matrices, jnp.asarray(TAUS, dtype))
    for i in range(len(laws.step.root)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], laws)
        check(one, lambda tau, i=i: exact_laws_of(n_vars, i, tau), TAUS, dtype)


# Eight variables with noise on the last take longer than that to forget the data.
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@pytest.mark.parametrize("n_vars", [5, 8])
def test_kernels_of_long_chains_are_those_of_60_digits(n_vars):
    skew = np.diag(np.ones(n_vars - 1), -1) - np.diag(np.ones(n_vars - 1), 1)
    root = np.zeros((n_vars, 1))
    root[-1] = 1.0
    diffusion = eqmdm.LinearDiffusion(skew, dissipation_root=root, **OPTIONS)
    start = np.sqrt(0.01) * np.diag([0.0] + [1.0] * (n_vars - 1))
    taus = (0.1, 1.0, 5.0)
    laws = jax.jit(jax.vmap(diffusion.compute_kernel))(jnp.asarray(taus, "float64"))

    def exact_laws(tau):
        psi, exact_root = exact_kernel(skew, root, np.eye(n_vars), start, tau)
        given_start = exact_kernel(skew, root, np.eye(n_vars), 0 * start, tau)
        return given_start, (psi[:, 0], exact_root)

    check(laws, exact_laws, taus, "float64")
