import jax
import jax.numpy as jnp
import jax.random as jr
import mpmath as mp
import numpy as np
import pytest
from references import DIGITS
from scipy import stats

import eqmdm
from eqmdm._core.blocks import lq_root
from eqmdm._core.gaussian import apply_to_vars, contract
from helpers import (
    generator_of,
    optimised_jit,
    slow,
    tree_allclose,
    within_standard_errors,
)


@pytest.fixture
def generator(key):
    """NumPy's, which compiles nothing."""
    return generator_of(key)


def random_root(generator, n_vars):
    """A lower-triangular root with a diagonal between 0.5 and 1.5."""
    lower = np.tril(generator.standard_normal((n_vars, n_vars)), -1)
    return lower + np.diag(0.5 + generator.uniform(size=n_vars))


def random_transitions(generator, n, n_vars):
    mean_maps = generator.standard_normal((n, n_vars, n_vars))
    return [
        eqmdm.Transition(
            jnp.asarray(mean_map), jnp.asarray(random_root(generator, n_vars))
        )
        for mean_map in mean_maps
    ]


def covariance(law):
    root = np.asarray(law.root)
    return root @ root.T


# The triangular factor of A against the Cholesky factor of A A^T.


@pytest.mark.parametrize("n_vars, n_columns", [(1, 1), (1, 4), (2, 2), (3, 7), (8, 16)])
def test_lq_root_is_the_cholesky_factor_of_the_product(n_vars, n_columns, generator):
    rows = generator.standard_normal((10, n_vars, n_columns))
    roots = np.asarray(jax.jit(jax.vmap(lq_root))(rows))
    expected = np.linalg.cholesky(rows @ np.swapaxes(rows, 1, 2))
    # Square Gaussian matrices are the worst conditioned, and Cholesky squares that.
    assert tree_allclose(roots, expected, rtol=1e-9, atol=1e-9)
    assert np.all(np.diagonal(roots, axis1=1, axis2=2) > 0)
    assert np.all(np.triu(roots, 1) == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lq_root_is_accurate_relative_to_each_row_whatever_their_sizes(dtype):
    generator = np.random.default_rng(0)
    scales = np.asarray([1e-2, 1e-6, 1e-11, 1e-15])
    rows = generator.standard_normal((12, 4, 9)) * scales[:, None]
    # From the smallest to the largest row, and the reverse.
    rows = np.concatenate([rows, rows[:, ::-1]]).astype(dtype)
    roots = np.asarray(jax.jit(jax.vmap(lq_root))(jnp.asarray(rows)), np.float64)
    # Householder reflections of nine columns: some tens of roundings, and the rows
    # themselves, scaled, have a condition number below ten.
    bar = 30 * np.finfo(dtype).eps
    for A, L in zip(rows, roots, strict=True):
        with mp.workdps(DIGITS):
            exact = mp.matrix(A.astype(np.float64).tolist())
            exact = np.array(mp.cholesky(exact * exact.T).tolist(), float)
        norms = np.linalg.norm(exact, axis=1, keepdims=True)
        assert np.all(np.abs(L - exact) <= bar * norms)
        assert np.all(np.abs(np.diag(L - exact)) <= bar * np.diag(exact))


def test_lq_root_takes_rows_that_are_zero_ahead_of_others():
    rows = np.asarray([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    root, zero = np.asarray(jax.jit(jax.vmap(lq_root))(np.stack([rows, 0 * rows])))
    assert tree_allclose(root, np.diag([5.0, 2.0]), rtol=1e-15, atol=1e-15)
    assert tree_allclose(zero, np.zeros((2, 2)), rtol=0, atol=0)


@pytest.mark.parametrize("n_vars", [slow(1), 3])
def test_lq_root_has_the_derivative_of_the_cholesky_factor(n_vars, generator):
    rows, first, second = generator.standard_normal((3, n_vars, 2 * n_vars + 1))

    def cholesky(rows):
        return jnp.linalg.cholesky(rows @ rows.T)

    def derivatives(root):
        along = lambda rows: jax.jvp(root, (rows,), (first,))[1]
        return along(rows), jax.jvp(along, (rows,), (second,))[1]

    @jax.jit
    def compute(rows):
        weights = jnp.tril(jnp.ones((n_vars, n_vars)))
        pulled = [
            jax.grad(lambda rows, root=root: jnp.sum(weights * root(rows) ** 2))(rows)
            for root in (lq_root, cholesky)
        ]
        return derivatives(lq_root), derivatives(cholesky), pulled

    actual, expected, (pulled, expected_pulled) = compute(rows)
    # The condition number of A A^T, of order 100, in a few products.
    assert tree_allclose(actual, expected, rtol=1e-10, atol=1e-10)
    assert tree_allclose(pulled, expected_pulled, rtol=1e-10, atol=1e-10)


def test_lq_root_has_the_derivative_of_finite_differences_with_graded_rows(generator):
    rows, tangent = generator.standard_normal((2, 3, 7))
    scales = np.asarray([1e-2, 1e-7, 1e-13])[:, None]
    rows, tangent = rows * scales, tangent * scales
    actual = jax.jit(lambda A, B: jax.jvp(lq_root, (A,), (B,))[1])(rows, tangent)
    actual = np.asarray(actual)
    h = 1e-5
    beside = np.stack([rows - h * tangent, rows + h * tangent])
    low, high = np.asarray(jax.jit(jax.vmap(lq_root))(beside))
    difference = (high - low) / (2 * h)
    # The step's error: 1e-10 by truncation, 1e-11 by rounding, both per row.
    assert tree_allclose(actual / scales, difference / scales, rtol=1e-8, atol=1e-8)


# Transitions.


@jax.jit
def composed_both_ways(first, second, third):
    return first.then(second).then(third), first.then(second.then(third))


@pytest.mark.parametrize("n_vars", [1, 3])
def test_then_is_associative(n_vars, generator):
    left, right = composed_both_ways(*random_transitions(generator, 3, n_vars))
    # Well-conditioned factors: rounding only.
    assert tree_allclose(left, right, rtol=1e-12, atol=1e-13)


def test_then_composes_means_and_covariances(generator):
    first, second = random_transitions(generator, 2, 3)
    both = jax.jit(lambda first, second: first.then(second))(first, second)
    M = np.asarray(second.mean_map)
    mean_map = M @ np.asarray(first.mean_map)
    assert tree_allclose(both.mean_map, mean_map, rtol=1e-13, atol=1e-14)
    expected = M @ covariance(first) @ M.T + covariance(second)
    assert tree_allclose(covariance(both), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transitions_over_adjoining_intervals_compose_to_that_over_both(dtype):
    diffusion = eqmdm.MALDA()

    @jax.jit
    def compute(times):
        starts, ends = times[jnp.asarray([0, 1, 0])], times[jnp.asarray([1, 2, 2])]
        steps = jax.vmap(diffusion.transition)(starts, ends)
        first, second, direct = (
            jax.tree.map(lambda leaf, i=i: leaf[i], steps) for i in range(3)
        )
        return first.then(second), direct

    composed, direct = compute(np.asarray([1e-4, 0.2, 0.9], dtype))
    # The clock's integrals over the parts round apart from that over the whole.
    rtol = 100 * float(np.finfo(dtype).eps)
    assert tree_allclose(composed, direct, rtol=rtol, atol=rtol)


def test_transition_samples_have_its_mean_and_covariance(generator, key):
    (transition,) = random_transitions(generator, 1, 2)
    y = generator.standard_normal((2, 1))
    draw = lambda key: transition.sample(jnp.asarray(y), key=key)[:, 0]
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, 4000)))
    mean = (np.asarray(transition.mean_map) @ y)[:, 0]
    gap = samples - mean
    assert within_standard_errors(samples, mean)
    products = gap[:, :, None] * gap[:, None, :]
    assert within_standard_errors(products, covariance(transition))


# The law given the data.


def random_kernel(generator, n_vars):
    mean_map = generator.standard_normal(n_vars)
    return kernel_of(mean_map, random_root(generator, n_vars))


@jax.jit
def kernel_of(mean_map, root):
    """The kernel of a start whose auxiliaries are known to be 0."""
    n_vars, dtype = len(root), root.dtype
    psi = jnp.zeros((n_vars, n_vars), dtype).at[:, 0].set(mean_map)
    step = eqmdm.Transition(psi, root)
    start_root = jnp.zeros((n_vars, 0), dtype)
    return eqmdm.PerturbationKernel.after(jnp.ones((), dtype), step, start_root)


@pytest.mark.parametrize("n_vars", [1, 2, 4])
def test_kernel_projects_as_the_dense_formulas_do(n_vars, generator):
    kernel = random_kernel(generator, n_vars)
    y = generator.standard_normal((n_vars, 2, 3))
    a, sigma = np.asarray(kernel.mean_map), covariance(kernel)
    snr = a @ np.linalg.solve(sigma, a)
    weights = np.linalg.solve(sigma, a) / snr
    # The condition number of these covariances is at most a few thousand.
    close = dict(rtol=1e-11, atol=1e-12)
    of_kernel = jax.jit(lambda kernel, y: (kernel.log_snr, kernel.project(y)))
    log_snr, projected = of_kernel(kernel, y)
    assert tree_allclose(log_snr, np.log(snr), **close)
    assert tree_allclose(kernel.data_weights, weights, **close)
    assert tree_allclose(projected, np.einsum("i,ijk->jk", weights, y), **close)
    whitened = np.asarray(kernel.whitening) @ np.asarray(kernel.root)
    assert tree_allclose(whitened, np.eye(n_vars), rtol=0, atol=1e-12)
    # z is the data plus noise of variance 1 / SNR.
    assert tree_allclose(weights @ a, np.float64(1.0), **close)
    assert tree_allclose(weights @ sigma @ weights, 1 / snr, **close)


@pytest.mark.parametrize(
    "function, matrix", [(apply_to_vars, (2, 3)), (contract, (3,))]
)
def test_sums_over_variables_see_the_data_as_one_axis(function, matrix, generator):
    # Of seven axes they can crash in XLA's code for CPUs, and images have three.
    shapes = (2, 2, *matrix), (2, 2, 3, 4, 4, 1)
    matrices, states = map(generator.standard_normal, shapes)
    over_batches = jax.vmap(jax.vmap(function))
    summed = jax.make_jaxpr(over_batches)(matrices, states).eqns
    (operand,) = [e.invars[0] for e in summed if e.primitive.name == "reduce_sum"]
    assert operand.aval.ndim == 2 + 3
    found = jax.jit(over_batches)(matrices, states)
    dense = np.einsum("ab...v,abvijk->ab...ijk", matrices, states)
    assert tree_allclose(found, dense, rtol=1e-12, atol=1e-12)


def test_kernel_samples_have_its_mean_and_covariance(generator, key):
    kernel = random_kernel(generator, 2)
    draw = lambda key: kernel.sample(jnp.asarray([0.7]), key=key)[:, 0]
    samples = np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, 4000)))
    mean = np.asarray(kernel.mean_map) * 0.7
    gap = samples - mean
    assert within_standard_errors(samples, mean)
    assert within_standard_errors(gap[:, :, None] * gap[:, None, :], covariance(kernel))


def test_log_snr_is_finite_where_the_ratio_leaves_float32():
    root = np.diag(np.asarray([1e-22, 3e-22], np.float32))
    kernel = kernel_of(np.ones(2, np.float32), root)
    of_kernel = jax.jit(lambda kernel: (kernel.log_snr, kernel.sigma))
    log_snr, sigma = of_kernel(kernel)
    expected = np.log(np.sum(1 / np.asarray([1e-22, 3e-22]) ** 2))
    assert tree_allclose(log_snr, np.float32(expected), rtol=1e-6, atol=0)
    # The logarithm is of size 100, so its roundings are this large.
    expected = np.float32(np.exp(-0.5 * expected))
    assert tree_allclose(sigma, expected, rtol=1e-5, atol=0)


# Centred Gaussians on states.


def test_log_density_is_that_of_the_dense_normal(generator):
    gaussian = eqmdm.Gaussian(jnp.asarray(random_root(generator, 3)))
    y = generator.standard_normal((3, 2, 2))
    dense = np.kron(covariance(gaussian), np.eye(4))
    expected = stats.multivariate_normal(np.zeros(12), dense).logpdf(y.reshape(-1))
    actual = jax.jit(lambda y: gaussian.log_density(y))(y)
    assert tree_allclose(actual, expected, rtol=1e-11, atol=0)


def test_gaussian_samples_have_its_covariance(generator, key):
    gaussian = eqmdm.Gaussian(jnp.asarray(random_root(generator, 3)))
    y = np.asarray(jax.jit(lambda key: gaussian.sample((4000,), key=key))(key))
    assert y.shape == (3, 4000)
    products = np.moveaxis(y[:, None] * y[None], -1, 0)
    assert within_standard_errors(products, covariance(gaussian))


@pytest.mark.parametrize("n_vars", [1, 3])
def test_kl_from_is_the_dense_formula(n_vars, generator):
    gaussian = eqmdm.Gaussian(jnp.asarray(random_root(generator, n_vars)))
    root = random_root(generator, n_vars)
    mean = generator.standard_normal((n_vars, 2, 2))
    own = np.kron(covariance(gaussian), np.eye(4))
    other = np.kron(root @ root.T, np.eye(4))
    flat = mean.reshape(-1)
    expected = 0.5 * (
        np.trace(np.linalg.solve(own, other))
        - len(own)
        + flat @ np.linalg.solve(own, flat)
        + np.linalg.slogdet(own)[1]
        - np.linalg.slogdet(other)[1]
    )
    actual = jax.jit(lambda *of: gaussian.kl_from(*of))(root, mean)
    assert tree_allclose(actual, expected, rtol=1e-11, atol=1e-12)


@optimised_jit
def kl_of_root(own, root):
    return eqmdm.Gaussian(own).kl_of_root(root)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_keeps_its_digits_near_stationarity(gap, dtype, generator):
    own = random_root(generator, 3).astype(dtype)
    apart = np.tril(generator.standard_normal((3, 3)))
    root = own @ (np.eye(3) + gap * apart).astype(dtype)
    with mp.workdps(DIGITS):
        parts = [mp.matrix(np.asarray(part, float).tolist()) for part in (own, root)]
        M = mp.inverse(parts[0]) * parts[1]
        total = sum(M[i, j] ** 2 for i in range(3) for j in range(i + 1)) - 3
        exact = float((total - 2 * sum(mp.log(M[i, i]) for i in range(3))) / 2)
    kl = float(kl_of_root(own, root))
    # M - I carries the rounding of M, of the condition number of the root: below 100.
    rounding = 100 * float(np.finfo(dtype).eps)
    assert kl >= 0
    assert abs(kl - exact) <= rounding * np.sqrt(exact) + rounding**2
