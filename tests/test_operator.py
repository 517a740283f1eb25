import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from eqmdm._core.operator import VarsOperator
from helpers import tree_allclose


CASES = [((1, 1), ()), ((1, 1), (3,)), ((2, 2), (3,)), ((3, 1), (2, 2)), ((2, 3), ())]
cases = pytest.mark.parametrize("shape, data_shape", CASES, ids=str)

# Each of Lineax's queries about a matrix, decided from the dense matrix.
QUERIES = {
    lx.is_symmetric: lambda M: M.shape[0] == M.shape[1] and np.all(M == M.T),
    lx.is_diagonal: lambda M: (
        M.shape[0] == M.shape[1] and np.all(M == np.diag(np.diag(M)))
    ),
    lx.is_lower_triangular: lambda M: (
        M.shape[0] == M.shape[1] and np.all(M == np.tril(M))
    ),
    lx.is_upper_triangular: lambda M: (
        M.shape[0] == M.shape[1] and np.all(M == np.triu(M))
    ),
    lx.is_tridiagonal: lambda M: (
        M.shape[0] == M.shape[1] and np.all(M == np.tril(np.triu(M, -1), 1))
    ),
    lx.has_unit_diagonal: lambda M: (
        M.shape[0] == M.shape[1] and np.all(np.diag(M) == 1)
    ),
    lx.is_positive_semidefinite: lambda M: (
        M.shape[0] == M.shape[1] and np.all(M == M.T) and np.linalg.eigvalsh(M)[0] >= 0
    ),
    lx.is_negative_semidefinite: lambda M: (
        M.shape[0] == M.shape[1] and np.all(M == M.T) and np.linalg.eigvalsh(M)[-1] <= 0
    ),
}


@cases
def test_mv_is_the_product_with_the_dense_matrix(shape, data_shape, key):
    key_matrix, key_vector = jr.split(key)
    operator = VarsOperator(jr.normal(key_matrix, shape), data_shape)
    vector = jr.normal(key_vector, (shape[1], *data_shape))
    # A sum of at most three products, in two orders.
    dense = (operator.as_matrix() @ vector.reshape(-1)).reshape(shape[0], *data_shape)
    assert tree_allclose(operator.mv(vector), dense, rtol=1e-14, atol=1e-15)


@cases
def test_transpose_is_the_transpose_of_the_dense_matrix(shape, data_shape, key):
    operator = VarsOperator(jr.normal(key, shape), data_shape)
    dense = operator.as_matrix()
    assert tree_allclose(operator.T.as_matrix(), dense.T, rtol=0, atol=0)


@cases
def test_structures_are_those_of_mv(shape, data_shape, key):
    operator = VarsOperator(jr.normal(key, shape, jnp.float32), data_shape)
    structure = operator.in_structure()
    assert structure == jax.ShapeDtypeStruct((shape[1], *data_shape), jnp.float32)
    assert operator.out_structure() == jax.eval_shape(operator.mv, structure)
    assert operator.as_matrix().shape == (operator.out_size(), operator.in_size())


@cases
@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.__name__)
def test_queries_claim_only_what_the_dense_matrix_has(query, shape, data_shape, key):
    operator = VarsOperator(jr.normal(key, shape), data_shape)
    claimed, true = query(operator), QUERIES[query](np.asarray(operator.as_matrix()))
    # A query may not know, but what it claims must hold.
    assert isinstance(claimed, bool)
    assert not claimed or true


@cases
def test_linearise_materialise_and_conj_change_nothing(shape, data_shape, key):
    operator = VarsOperator(jr.normal(key, shape), data_shape)
    for same in (lx.linearise(operator), lx.materialise(operator), lx.conj(operator)):
        assert tree_allclose(same.as_matrix(), operator.as_matrix(), rtol=0, atol=0)


@pytest.mark.parametrize("data_shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("n_vars", [1, 3])
def test_diagonal_is_that_of_the_dense_matrix(n_vars, data_shape, key):
    operator = VarsOperator(jr.normal(key, (n_vars, n_vars)), data_shape)
    dense = jnp.diag(operator.as_matrix())
    assert tree_allclose(lx.diagonal(operator), dense, rtol=0, atol=0)


def test_operator_can_be_solved_with(key):
    key_matrix, key_vector = jr.split(key)
    operator = VarsOperator(jr.normal(key_matrix, (2, 2)) + 2 * jnp.eye(2), (3,))
    vector = jr.normal(key_vector, (2, 3))
    solution = lx.linear_solve(operator, vector).value
    # The condition number of this 2 x 2 matrix is of order ten.
    assert tree_allclose(operator.mv(solution), vector, rtol=1e-12, atol=1e-13)


def test_operator_sums_and_scales_as_dense_matrices_do(key):
    operator = VarsOperator(jr.normal(key, (2, 3)), (2,))
    combined = operator + 2 * operator
    dense = 3 * operator.as_matrix()
    assert tree_allclose(combined.as_matrix(), dense, rtol=1e-15, atol=0)


def test_operator_is_the_coefficient_of_a_control_term(key):
    matrix = jr.normal(key, (3, 2))
    structure = jax.ShapeDtypeStruct((2, 4), matrix.dtype)
    path = dfx.VirtualBrownianTree(0.0, 1.0, tol=0.1, shape=structure, key=key)
    term = dfx.ControlTerm(lambda t, y, args: VarsOperator(matrix, (4,)), path)
    y0, zero, one = jnp.zeros((3, 4)), jnp.zeros(()), jnp.ones(())
    solution = dfx.diffeqsolve(term, dfx.Euler(), zero, one, 0.25 * one, y0)
    # With a constant coefficient the steps add up to the whole increment.
    expected = matrix @ path.evaluate(0.0, 1.0)
    assert tree_allclose(solution.ys[-1], expected, rtol=1e-12, atol=1e-13)
