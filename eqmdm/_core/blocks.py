"""Small matrices on the variables, the same for every data coordinate or one each."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .types import VarsMatrix


def by_coordinate(
    function: Callable[..., PyTree], matrix: Array, *others: Array
) -> PyTree:
    """The value of a function of small matrices, for every coordinate if they differ.

    Matrices that differ by coordinate have the axes of the data last; so do the results
    then. `matrix` is one with two axes of its own.
    """
    coordinates = matrix.shape[2:]
    if not coordinates:
        return function(matrix, *others)
    # One axis instead of several, for the reason that `apply_to_vars` gives.
    size = (math.prod(coordinates),)
    flat = [m.reshape(m.shape[: -len(coordinates)] + size) for m in (matrix, *others)]
    values = jax.vmap(function, in_axes=-1, out_axes=-1)(*flat)
    return jax.tree.map(lambda v: v.reshape(v.shape[:-1] + coordinates), values)


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product of two small matrices, never in a GPU's reduced-precision mode."""
    if a.ndim > 2:
        return jnp.sum(a[:, :, None] * b[None], axis=1)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transpose(matrix: Float[Array, "..."]) -> Float[Array, "..."]:
    """The transpose of a small matrix."""
    return jnp.swapaxes(matrix, 0, 1)


def solve_lower(
    root: VarsMatrix, rhs: Float[Array, "vars *columns"], *, transpose: bool = False
) -> Float[Array, "vars *columns"]:
    r"""$L^{-1} b$, or $L^{-\top} b$, for a lower-triangular root.

    If the root differs by coordinate, so does `rhs`.

    The substitution is unrolled, because for matrices of this size a library call takes
    ten times as long to trace, lower and compile, and computes the same values. A
    singular root gives non-finite values.
    """
    if root.ndim > 2:
        solve = lambda root, rhs: solve_lower(root, rhs, transpose=transpose)
        return by_coordinate(solve, root, rhs)
    n_vars = len(root)
    columns = root.T if not transpose else root
    rest = rhs.reshape(n_vars, -1)
    solution: list[Array] = [rest[0]] * n_vars
    for i in reversed(range(n_vars)) if transpose else range(n_vars):
        solution[i] = rest[i] / root[i, i]
        rest = rest - columns[i][:, None] * solution[i][None]
    return jnp.stack(solution).reshape(rhs.shape)


def _reflectors(
    rows: Float[Array, "vars columns"],
) -> tuple[VarsMatrix, list[tuple[Array, Array]], Float[Array, " vars"]]:
    # Rows of very different size are the normal case: those of a chain of three
    # variables grow like tau^(1/2), tau^(3/2), tau^(5/2). Each row is handled relative
    # to itself, and scaled by its largest entry so that squares do not underflow.
    # Reflections remove a finished column completely. Gram-Schmidt would leave the
    # rounding error of a large start variance in it, next to a small noise.
    # The loop is unrolled, because K is small and a batched LAPACK call inside a
    # training step costs more.
    n_vars = len(rows)
    scale = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    # The rows from the i-th on, without the finished columns.
    rest = rows / jnp.where(scale > 0, scale, 1)
    columns, reflectors, signs = [], [], []
    for i in range(n_vars):
        row, below = rest[0], rest[1:]
        norm = jnp.sqrt(jnp.sum(row**2))
        sign = jnp.where(row[0] < 0, -1, 1).astype(row.dtype)
        # Concatenate rather than assign by index, because a scatter compiles slowly.
        normal = jnp.concatenate([row[:1] + sign * norm, row[1:]])
        square = jnp.sum(normal**2)
        factor = 2 / jnp.where(square > 0, square, 1)
        weight = jnp.sum(below * normal[None], axis=1, keepdims=True) * factor
        below = below - weight * normal[None]
        # The reflection maps the row to -sign * norm; the sign moves into Q.
        above = jnp.zeros(i, row.dtype)
        columns.append(jnp.concatenate([above, norm[None], -sign * below[:, 0]]))
        rest = below[:, 1:]
        reflectors.append((normal, factor))
        signs.append(-sign)
    return jnp.stack(columns, axis=1) * scale, reflectors, jnp.stack(signs)


def _orthogonal_rows(
    reflectors: list[tuple[Array, Array]], signs: Array
) -> Float[Array, "vars columns"]:
    Q = jnp.diag(signs)
    extra = len(reflectors[0][0]) - len(signs)
    Q = jnp.pad(Q, ((0, 0), (0, extra)))
    for i, (normal, factor) in reversed(list(enumerate(reflectors))):
        tail = Q[:, i:]
        weight = jnp.sum(tail * normal[None], axis=1, keepdims=True) * factor
        Q = jnp.concatenate([Q[:, :i], tail - weight * normal[None]], axis=1)
    return Q


@jax.custom_jvp
def _lq_root(rows: Float[Array, "vars columns"]) -> VarsMatrix:
    return _reflectors(rows)[0]


@_lq_root.defjvp
def _lq_root_jvp(primals, tangents):
    (rows,), (rows_dot,) = primals, tangents
    L, reflectors, signs = _reflectors(rows)
    Q = _orthogonal_rows(reflectors, signs)
    W = solve_lower(L, matmul(rows_dot, Q.T))
    symmetric = W + W.T
    half_lower = jnp.tril(symmetric, -1) + 0.5 * jnp.diag(jnp.diag(symmetric))
    return L, matmul(L, half_lower)


@jax.jit
def lq_root(rows: Float[Array, "vars columns *coordinates"]) -> VarsMatrix:
    r"""The lower-triangular $L$, with positive diagonal, of $A = L Q$.

    $L L^\top = A A^\top$ without forming either product, so every entry is accurate
    relative to its row, for rows of any sizes. The derivative is $\dot L = L \,\Phi(W +
    W^\top)$, where $W = L^{-1} \dot A Q^\top$ and $\Phi$ takes the lower triangle and
    halves the diagonal. It exists where $A$ has full row rank.

    **Arguments:**

    - `rows`: $A$, with at least as many columns as rows.
    """
    return by_coordinate(_lq_root, rows)
