"""Users' matrices, as constants, parameters or traced arrays, and their checks."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._core.types import MatrixLike


# A constant is stored as nested tuples of Python floats. Equinox treats every array,
# including NumPy's, as trainable, and a float is exact in any dtype it is cast to.
Constant: TypeAlias = tuple[tuple[float | Float[Array, ""], ...], ...]
Matrix: TypeAlias = Constant | Float[Array, "_ _"]

DEFAULT_START_VARIANCE = 0.01


def as_matrix(name: str, matrix: MatrixLike, *, learn: bool = False) -> Matrix:
    """A JAX array for a traced or learned matrix, and a constant for any other.

    A constant does not keep its dtype: its floats are exact in any dtype that they are
    cast to. A parameter keeps the dtype of a JAX array, and otherwise has the default.
    """
    leaves = jax.tree.leaves(matrix)
    if any(isinstance(entry, Tracer) for entry in leaves):
        array = jnp.asarray(matrix)
    elif learn:
        given = matrix if isinstance(matrix, jax.Array) else np.asarray(matrix, float)
        dtype = given.dtype if isinstance(given, jax.Array) else jnp.result_type(float)
        array = jnp.asarray(given, dtype)
    else:
        array = np.asarray(matrix, float)
    if array.ndim != 2 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must be a matrix of real floating-point numbers over the vars "
            f"axis; got shape {array.shape} and dtype {array.dtype}."
        )
    if isinstance(array, jax.Array):
        return array
    return tuple(tuple(float(entry) for entry in row) for row in array)


def as_array(matrix: Matrix, dtype: jnp.dtype) -> Float[Array, "_ _"]:
    if isinstance(matrix, jax.Array):
        return matrix.astype(dtype)
    values = known(matrix)
    if values is not None:
        return jnp.asarray(values, dtype)
    # Unlike Equinox's, a plain `jax.jit` or `jax.grad` also traces the floats.
    cast = lambda entry: jnp.asarray(entry, dtype)
    return jnp.stack([jnp.stack([cast(entry) for entry in row]) for row in matrix])


def known(matrix: Matrix) -> np.ndarray | None:
    """The values of a matrix in float64, or `None` if they are traced."""
    if isinstance(matrix, jax.Array):
        return known_array(matrix)
    try:
        return _constant(matrix)
    except jax.errors.TracerArrayConversionError:
        return None


def known_array(array: Float[Array, "..."]) -> Float[np.ndarray, "..."] | None:
    """The values of an array in float64, or `None` if they are traced."""
    return None if isinstance(array, Tracer) else np.asarray(array, float)


def _constant(matrix: Constant) -> np.ndarray:
    # The reshape keeps the rows of a matrix without columns.
    return np.asarray(matrix, float).reshape(len(matrix), -1)


def shape_of(matrix: Matrix) -> tuple[int, ...]:
    if isinstance(matrix, tuple):
        return len(matrix), len(matrix[0]) if matrix else 0
    return matrix.shape


def check_skew(skew: Matrix) -> None:
    n_vars = len(skew)
    if n_vars < 1:
        raise ValueError("`skew` must have at least one row: K = 0 leaves no data.")
    if shape_of(skew) != (n_vars, n_vars):
        raise ValueError(f"`skew` must be square; got shape {shape_of(skew)}.")
    values = known(skew)
    if values is None:
        return
    check_entries("skew", values)
    if not np.allclose(values, -values.T, rtol=0, atol=_rounding(values)):
        raise ValueError(
            "`skew` must be skew-symmetric, Q = -Q^T, or the stationary law would not "
            f"be the one given; got {values.tolist()}. Pass (Q - Q^T) / 2 and add its "
            "symmetric part to `dissipation`."
        )


def _rounding(values: np.ndarray) -> float:
    """The rounding error that float32 parameters may have."""
    return 1e-6 * float(np.abs(values).max())


def check_constant(name: str, value: object) -> None:
    """**Raises:** `TypeError` for a JAX array in place of a constant."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"`{name}` must be a Python or NumPy number, because it is a constant. For "
            "a traced or learned number, build the matrices yourself, pass them to "
            "`eqmdm.LinearDiffusion`, and name the learned ones in its `learn`."
        )


def check_entries(name: str, values: np.ndarray) -> None:
    """**Raises:** `ValueError` unless all entries are finite."""
    if not np.all(np.isfinite(values)):
        raise ValueError(f"`{name}` must be finite; got {values.tolist()}.")


def _check_symmetric(name: str, matrix: Matrix, n_vars: int) -> np.ndarray | None:
    if shape_of(matrix) != (n_vars, n_vars):
        raise ValueError(
            f"`{name}` must be {n_vars} x {n_vars}, one row for each variable; got "
            f"shape {shape_of(matrix)}."
        )
    values = known(matrix)
    if values is None:
        return None
    check_entries(name, values)
    if not np.allclose(values, values.T, rtol=0, atol=_rounding(values)):
        raise ValueError(f"`{name}` must be symmetric; got {values.tolist()}.")
    return values


def smallest_pivot(matrix: MatrixLike) -> float:
    """The size, relative to the largest entry, up to which a pivot is rounding error.

    Rounding in float32 leaves pivots of 1e-8 in float64, which must not add to the
    rank.
    """
    dtypes = [np.dtype(getattr(x, "dtype", float)) for x in jax.tree.leaves(matrix)]
    return 1e-13 if all(dtype.itemsize >= 8 for dtype in dtypes) else 1e-6


def semidefinite_root(
    name: str, matrix: Matrix, n_vars: int, *, smallest_pivot: float
) -> Matrix:
    """R with R R^T the matrix, and as many columns as its rank.

    Its columns are those of a pivoted Cholesky factorisation, which stops once the
    largest remaining pivot is below `smallest_pivot` of the largest entry.
    """
    values = _check_symmetric(name, matrix, n_vars)
    if values is None:
        return _traced_root(as_array(matrix, jnp.result_type(float)))
    smallest = np.linalg.eigvalsh(values)[0]
    if smallest < -_rounding(values) or not values.any():
        raise ValueError(
            f"`{name}` must be positive semidefinite and not zero; its smallest "
            f"eigenvalue is {smallest:.3g} and its entries are {values.tolist()}."
        )
    tolerance = smallest_pivot * float(np.abs(values).max())
    pivots, rest = [], values.copy()
    while len(pivots) < n_vars and np.diag(rest).max() > tolerance:
        pivot = int(np.argmax(np.diag(rest)))
        pivots.append(pivot)
        rest = rest - np.outer(rest[:, pivot], rest[pivot]) / rest[pivot, pivot]
    pivots = np.sort(pivots)
    factor = np.linalg.cholesky(values[np.ix_(pivots, pivots)])
    root = np.linalg.solve(factor, values[:, pivots].T).T
    return _like(matrix, root)


def _like(matrix: Matrix, values: np.ndarray) -> Matrix:
    """Values computed on the host from a matrix, in the type of that matrix."""
    if isinstance(matrix, jax.Array):
        return jnp.asarray(values, matrix.dtype)
    return tuple(tuple(float(entry) for entry in row) for row in values)


def _traced_root(matrix: Float[Array, "vars vars"]) -> Float[Array, "vars vars"]:
    """The Cholesky factor, with a column of zeros for each pivot within rounding.

    The rank is unknown under a trace. Matrices are usually singular, with noise on some
    variables only, and `jnp.linalg.cholesky` then gives NaN.
    """
    n_vars = len(matrix)
    least = n_vars * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diag(matrix))
    rest, columns = matrix, []
    for i in range(n_vars):
        positive = rest[i, i] > least
        root = jnp.sqrt(jnp.where(positive, rest[i, i], 1))
        column = jnp.where(positive, rest[:, i] / root, 0)
        rest = rest - column[:, None] * column[None]
        columns.append(jnp.where(jnp.arange(n_vars) >= i, column, 0))
    return jnp.stack(columns, axis=1)


def positive_root(name: str, matrix: Matrix, n_vars: int) -> Matrix:
    """The Cholesky factor of a positive definite matrix."""
    values = _check_symmetric(name, matrix, n_vars)
    if values is not None and (smallest := np.linalg.eigvalsh(values)[0]) <= 0:
        raise ValueError(
            f"`{name}` must be positive definite; got {values.tolist()}, whose "
            f"smallest eigenvalue is {smallest:.3g}."
        )
    if values is not None:
        return _like(matrix, np.linalg.cholesky(values))
    return jnp.linalg.cholesky(as_array(matrix, jnp.result_type(float)))


def make_start_root(
    covariance: MatrixLike | None, n_vars: int, *, learn: bool = False
) -> Matrix:
    """A root of the start covariance, by default 0.01 for each auxiliary."""
    if covariance is None:
        covariance = DEFAULT_START_VARIANCE * np.diag([0.0] + [1.0] * (n_vars - 1))
    name = "start_covariance"
    matrix = as_matrix(name, covariance, learn=learn)
    values = _check_symmetric(name, matrix, n_vars)
    if values is not None and np.any(values[0] != 0):
        raise ValueError(
            f"`{name}` must have a zero first row and column: the state starts at the "
            f"data. Got first row {values[0].tolist()}."
        )
    if n_vars == 1:
        return ((0.0,),)
    if values is not None:
        inner = positive_root(name, _like((), values[1:, 1:]), n_vars - 1)
        return _like(matrix, np.pad(np.asarray(known(inner)), ((1, 0), (0, 0))))
    traced = as_array(matrix, jnp.result_type(float))
    root = as_array(positive_root(name, traced[1:, 1:], n_vars - 1), traced.dtype)
    return jnp.pad(root, ((1, 0), (0, 0)))


def check_controllable(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """**Raises:** `ValueError` if the controllability matrices of the pairs (F, G)
    together miss a variable."""
    n_vars = len(pairs[0][0])
    reach = []
    for F, G in pairs:
        power = G / (np.linalg.norm(G, 2) or 1.0)
        reach.append(power)
        for _ in range(n_vars - 1):
            power = F @ power / (np.linalg.norm(F, 2) or 1.0)
            reach.append(power)
    left, singular_values, _ = np.linalg.svd(np.concatenate(reach, axis=1))
    # float32 parameters leave 1e-7 where there should be 0.
    sizes = np.append(singular_values, np.zeros(n_vars))[:n_vars]
    unreached = left[:, sizes < 1e-7]
    if unreached.shape[1] == 0:
        return
    names = [
        "the data (variable 0)" if i == 0 else f"auxiliary variable {i}"
        for i in np.flatnonzero(np.abs(unreached).max(axis=1) > 1e-3)
    ]
    raise ValueError(
        "The noise must reach every variable, directly or through the drift; it does "
        f"not reach {' and '.join(names)}, so the kernel would have no density. Couple "
        "it to a variable with noise by `skew`, or give it noise in `dissipation`."
    )
