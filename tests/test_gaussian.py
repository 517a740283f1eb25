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
from helpers import tree_allclose, within_standard_errors


def random_root(key, n_vars, dtype=jnp.float64):
    """A lower-triangular root with a diagonal between 0.5 and 1.5."""
    key_lower, key_diagonal = jr.split(key)
    lower = jnp.tril(jr.normal(key_lower, (n_vars, n_vars), dtype), -1)
    return lower + jnp.diag(0.5 + jr.uniform(key_diagonal, (n_vars,), dtype))


def random_transitions(key, n, n_vars):
    key_mean, *keys_root = jr.split(key, n + 1)
    mean_maps = jr.normal(key_mean, (n, n_vars, n_vars))
    return [
        eqmdm.Transition(mean_map, random_root(key_root, n_vars))
        for mean_map, key_root in zip(mean_maps, keys_root, strict=True)
    ]


def covariance(law):
    return law.root @ law.root.T


# The triangular factor of A against the Cholesky factor of A A^T.


@pytest.mark.parametrize("n_vars, n_columns", [(1, 1), (1, 4), (2, 2), (3, 7), (8, 16)])
def test_lq_root_is_the_cholesky_factor_of_the_product(n_vars, n_columns, key):
    rows = jr.normal(key, (10, n_vars, n_columns))
    roots = jax.jit(jax.vmap(lq_root))(rows)
    expected = jnp.linalg.cholesky(rows @ jnp.swapaxes(rows, 1, 2))
    # Square Gaussian matrices are the worst conditioned, and Cholesky squares that.
    assert tree_allclose(roots, expected, rtol=1e-9, atol=1e-9)
    assert jnp.all(jnp.diagonal(roots, axis1=1, axis2=2) > 0)
    assert jnp.all(jnp.triu(roots, 1) == 0)


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
    rows = jnp.asarray([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    root, zero = jax.jit(jax.vmap(lq_root))(jnp.stack([rows, 0 * rows]))
    expected = jnp.diag(jnp.asarray([5.0, 2.0]))
    assert tree_allclose(root, expected, rtol=1e-15, atol=1e-15)
    assert tree_allclose(zero, jnp.zeros((2, 2)), rtol=0, atol=0)


@pytest.mark.parametrize("n_vars", [1, 3])
def test_lq_root_has_the_derivative_of_the_cholesky_factor(n_vars, key):
    rows, first, second = jr.normal(key, (3, n_vars, 2 * n_vars + 1))

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


def test_lq_root_has_the_derivative_of_finite_differences_with_graded_rows(key):
    rows, tangent = jr.normal(key, (2, 3, 7))
    scales = jnp.asarray([1e-2, 1e-7, 1e-13])[:, None]
    rows, tangent = rows * scales, tangent * scales
    actual = jax.jit(lambda A, B: jax.jvp(lq_root, (A,), (B,))[1])(rows, tangent)
    h = 1e-5
    beside = jnp.stack([rows - h * tangent, rows + h * tangent])
    low, high = jax.jit(jax.vmap(lq_root))(beside)
    difference = (high - low) / (2 * h)
    # The step's error: 1e-10 by truncation, 1e-11 by rounding, both per row.
    assert tree_allclose(actual / scales, difference / scales, rtol=1e-8, atol=1e-8)


# Transitions.


@jax.jit
def composed_both_ways(first, second, third):
    return first.then(second).then(third), first.then(second.then(third))


@pytest.mark.parametrize("n_vars", [1, 3])
def test_then_is_associative(n_vars, key):
    left, right = composed_both_ways(*random_transitions(key, 3, n_vars))
    # Well-conditioned factors: rounding only.
    assert tree_allclose(left, right, rtol=1e-12, atol=1e-13)


def test_then_composes_means_and_covariances(key):
    first, second = random_transitions(key, 2, 3)
    both = first.then(second)
    M = second.mean_map
    assert tree_allclose(both.mean_map, M @ first.mean_map, rtol=1e-13, atol=1e-14)
    expected = M @ covariance(first) @ M.T + covariance(second)
    assert tree_allclose(covariance(both), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transitions_over_adjoining_intervals_compose_to_that_over_both(dtype):
    diffusion = eqmdm.MALDA()
    transition = jax.jit(diffusion.transition)
    s, t, u = (jnp.asarray(time, dtype) for time in (1e-4, 0.2, 0.9))
    composed = transition(s, t).then(transition(t, u))
    direct = transition(s, u)
    # The clock's integrals over the parts round apart from that over the whole.
    rtol = 100 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(composed, direct, rtol=rtol, atol=rtol)


def test_transition_samples_have_its_mean_and_covariance(key):
    (transition,) = random_transitions(key, 1, 2)
    key_state, key_sample = jr.split(key)
    y = jr.normal(key_state, (2, 1))
    draw = lambda key: transition.sample(y, key=key)[:, 0]
    samples = jax.jit(jax.vmap(draw))(jr.split(key_sample, 4000))
    mean = (transition.mean_map @ y)[:, 0]
    gap = samples - mean[None]
    assert within_standard_errors(samples, mean)
    products = gap[:, :, None] * gap[:, None, :]
    assert within_standard_errors(products, covariance(transition))


# The law given the data.


def random_kernel(key, n_vars, dtype=jnp.float64):
    key_mean, key_root = jr.split(key)
    mean_map = jr.normal(key_mean, (n_vars,), dtype)
    return kernel_of(mean_map, random_root(key_root, n_vars, dtype))


def kernel_of(mean_map, root):
    """The kernel of a start whose auxiliaries are known to be 0."""
    n_vars, dtype = len(root), root.dtype
    psi = jnp.zeros((n_vars, n_vars), dtype).at[:, 0].set(mean_map)
    step = eqmdm.Transition(psi, root)
    start_root = jnp.zeros((n_vars, 0), dtype)
    return eqmdm.PerturbationKernel.after(jnp.ones((), dtype), step, start_root)


@pytest.mark.parametrize("n_vars", [1, 2, 4])
def test_kernel_projects_as_the_dense_formulas_do(n_vars, key):
    key_kernel, key_state = jr.split(key)
    kernel = random_kernel(key_kernel, n_vars)
    y = jr.normal(key_state, (n_vars, 2, 3))
    a, sigma = np.asarray(kernel.mean_map), np.asarray(covariance(kernel))
    snr = a @ np.linalg.solve(sigma, a)
    weights = np.linalg.solve(sigma, a) / snr
    # The condition number of these covariances is at most a few thousand.
    close = dict(rtol=1e-11, atol=1e-12)
    assert tree_allclose(kernel.log_snr, jnp.log(snr), **close)
    assert tree_allclose(kernel.data_weights, weights, **close)
    assert tree_allclose(kernel.project(y), np.einsum("i,ijk->jk", weights, y), **close)
    assert tree_allclose(
        kernel.whitening @ kernel.root, jnp.eye(n_vars), rtol=0, atol=1e-12
    )
    # z is the data plus noise of variance 1 / SNR.
    assert tree_allclose(weights @ a, np.float64(1.0), **close)
    assert tree_allclose(weights @ sigma @ weights, 1 / snr, **close)


@pytest.mark.parametrize(
    "function, matrix", [(apply_to_vars, (2, 3)), (contract, (3,))]
)
def test_sums_over_variables_see_the_data_as_one_axis(function, matrix, key):
    # Of seven axes they can crash in XLA's code for CPUs, and images have three.
    shapes = (2, 2, *matrix), (2, 2, 3, 4, 4, 1)
    matrices, states = (jr.normal(key, shape) for shape in shapes)
    over_batches = jax.vmap(jax.vmap(function))
    summed = jax.make_jaxpr(over_batches)(matrices, states).eqns
    (operand,) = [e.invars[0] for e in summed if e.primitive.name == "reduce_sum"]
    assert operand.aval.ndim == 2 + 3
    found = over_batches(matrices, states)
    dense = np.einsum("ab...v,abvijk->ab...ijk", matrices, states)
    assert tree_allclose(found, dense, rtol=1e-12, atol=1e-12)


def test_kernel_samples_have_its_mean_and_covariance(key):
    kernel = random_kernel(key, 2)
    x = jnp.asarray([0.7])
    draw = lambda key: kernel.sample(x, key=key)[:, 0]
    samples = jax.jit(jax.vmap(draw))(jr.split(key, 4000))
    mean = kernel.mean_map * x
    gap = samples - mean[None]
    assert within_standard_errors(samples, mean)
    assert within_standard_errors(gap[:, :, None] * gap[:, None, :], covariance(kernel))


def test_log_snr_is_finite_where_the_ratio_leaves_float32():
    root = jnp.diag(jnp.asarray([1e-22, 3e-22], jnp.float32))
    mean_map = jnp.asarray([1.0, 1.0], jnp.float32)
    kernel = kernel_of(mean_map, root)
    expected = np.log(np.sum(1 / np.asarray([1e-22, 3e-22]) ** 2))
    assert tree_allclose(kernel.log_snr, jnp.float32(expected), rtol=1e-6, atol=0)
    sigma = jnp.float32(np.exp(-0.5 * expected))
    # The logarithm is of size 100, so its roundings are this large.
    assert tree_allclose(kernel.sigma, sigma, rtol=1e-5, atol=0)


# Centred Gaussians on states.


def test_log_density_is_that_of_the_dense_normal(key):
    key_root, key_state = jr.split(key)
    gaussian = eqmdm.Gaussian(random_root(key_root, 3))
    y = jr.normal(key_state, (3, 2, 2))
    dense = np.kron(covariance(gaussian), np.eye(4))
    expected = stats.multivariate_normal(np.zeros(12), dense).logpdf(y.reshape(-1))
    assert tree_allclose(gaussian.log_density(y), expected, rtol=1e-11, atol=0)


def test_gaussian_samples_have_its_covariance(key):
    gaussian = eqmdm.Gaussian(random_root(key, 3))
    y = gaussian.sample((4000,), key=key)
    assert y.shape == (3, 4000)
    products = jnp.moveaxis(y[:, None] * y[None], -1, 0)
    assert within_standard_errors(products, covariance(gaussian))


@pytest.mark.parametrize("n_vars", [1, 3])
def test_kl_from_is_the_dense_formula(n_vars, key):
    key_own, key_other, key_mean = jr.split(key, 3)
    gaussian = eqmdm.Gaussian(random_root(key_own, n_vars))
    root = random_root(key_other, n_vars)
    mean = jr.normal(key_mean, (n_vars, 2, 2))
    own = np.kron(covariance(gaussian), np.eye(4))
    other = np.kron(root @ root.T, np.eye(4))
    flat = np.asarray(mean).reshape(-1)
    expected = 0.5 * (
        np.trace(np.linalg.solve(own, other))
        - len(own)
        + flat @ np.linalg.solve(own, flat)
        + np.linalg.slogdet(own)[1]
        - np.linalg.slogdet(other)[1]
    )
    assert tree_allclose(gaussian.kl_from(root, mean), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_keeps_its_digits_near_stationarity(gap, dtype, key):
    key_own, key_gap = jr.split(key)
    own = random_root(key_own, 3).astype(dtype)
    root = own @ (
        jnp.eye(3, dtype=dtype) + gap * jnp.tril(jr.normal(key_gap, (3, 3), dtype))
    )
    with mp.workdps(DIGITS):
        parts = [mp.matrix(np.asarray(part, float).tolist()) for part in (own, root)]
        M = mp.inverse(parts[0]) * parts[1]
        total = sum(M[i, j] ** 2 for i in range(3) for j in range(i + 1)) - 3
        exact = float((total - 2 * sum(mp.log(M[i, i]) for i in range(3))) / 2)
    kl = float(eqmdm.Gaussian(own).kl_of_root(root))
    # M - I carries the rounding of M, of the condition number of the root: below 100.
    rounding = 100 * float(jnp.finfo(dtype).eps)
    assert kl >= 0
    assert abs(kl - exact) <= rounding * np.sqrt(exact) + rounding**2
