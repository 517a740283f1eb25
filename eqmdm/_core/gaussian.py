"""Linear-Gaussian maps in root form: a covariance is held as $L$ with $L L^\\top$."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from .random import draw_normal
from .types import (
    Data,
    PRNGKey,
    Scalar,
    State,
    VarsMatrix,
    VarsVector,
)


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product of two small matrices, never in a GPU's reduced-precision mode."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def apply_to_vars(
    matrix: Float[Array, "rows vars"], y: Float[Array, "vars *data"]
) -> Float[Array, "rows *data"]:
    """The product of a matrix with the leading axis of a state.

    A sum of `vars` scaled images: XLA fuses it with its neighbours, which it does not
    do with a matrix product, and no backend rounds it below the dtype of `y`.
    """
    # Of a single row NumPy's rules would make as many as are asked for.
    assert len(y) == matrix.shape[1]
    # With one axis for the data: of seven axes and more, which images under a few
    # `vmap`s would have, XLA's sums over one crash on a CPU (JAX 0.10).
    flat = y.reshape(1, len(y), math.prod(y.shape[1:]))
    product = jnp.sum(matrix[:, :, None].astype(y.dtype) * flat, axis=1)
    return product.reshape(len(matrix), *y.shape[1:])


def contract(vector: VarsVector, y: State) -> Data:
    """The sum of the variables of a state, each times its entry of `vector`."""
    return apply_to_vars(vector[None], y)[0]


def outer_with_data(vector: VarsVector, x: Data) -> State:
    """The state whose variable `i` is `vector[i] * x`."""
    return vector.reshape(-1, *([1] * x.ndim)).astype(x.dtype) * x[None]


def solve_lower(
    root: VarsMatrix, rhs: Float[Array, "vars *columns"], *, transpose: bool = False
) -> Float[Array, "vars *columns"]:
    r"""$L^{-1} b$, or $L^{-\top} b$, for a lower-triangular root."""
    root = jnp.tril(root)
    product = lambda x: matmul(root.T if transpose else root, x)
    solve = lambda _, b: _solve_triangular(root, b, transpose)
    transpose_solve = lambda _, b: _solve_triangular(root, b, not transpose)
    # JAX's rule for derivatives of a solve and not Lineax's, whose own solves check
    # their results, `throw=False` or not.
    return jax.lax.custom_linear_solve(product, rhs, solve, transpose_solve)


def _solve_triangular(
    root: VarsMatrix, rhs: Float[Array, "vars *columns"], transpose: bool
) -> Float[Array, "vars *columns"]:
    if transpose:
        operator = lx.MatrixLinearOperator(root.T, lx.upper_triangular_tag)
    else:
        operator = lx.MatrixLinearOperator(root, lx.lower_triangular_tag)
    # Lineax's check of its result calls back to Python in every program that has it: a
    # GPU waits for it, and XLA keeps no such program. A singular root gives what is not
    # a finite number instead.
    solve = lambda column: (
        lx.linear_solve(operator, column, lx.Triangular(), throw=False).value
    )
    if rhs.ndim == 1:
        return solve(rhs)
    return jax.vmap(solve, in_axes=1, out_axes=1)(rhs)


def _reflectors(
    rows: Float[Array, "vars columns"],
) -> tuple[VarsMatrix, list[tuple[Array, Array]], Float[Array, " vars"]]:
    # Rows of very different size are the normal case: a chain of three variables
    # spreads over tau^(1/2), tau^(3/2), tau^(5/2). Each row is treated relative to
    # itself, and scaled by its largest entry so that squares do not underflow.
    # Reflections, because they remove a finished column altogether: Gram-Schmidt
    # leaves the rounding of a large start variance in it, beside a small noise.
    # The loop is unrolled: K is small, and a batched LAPACK call inside a training
    # step costs more.
    n_vars = len(rows)
    scale = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    rest = rows / jnp.where(scale > 0, scale, 1)
    columns, reflectors, signs = [], [], []
    for i in range(n_vars):
        row = rest[i]
        norm = jnp.sqrt(jnp.sum(row**2))
        sign = jnp.where(row[0] < 0, -1, 1).astype(row.dtype)
        normal = row.at[0].add(sign * norm)
        square = jnp.sum(normal**2)
        factor = 2 / jnp.where(square > 0, square, 1)
        below = (jnp.arange(n_vars) > i)[:, None]
        weight = jnp.sum(rest * normal[None], axis=1, keepdims=True) * factor
        rest = jnp.where(below, rest - weight * normal[None], 0)
        diagonal = jnp.zeros(n_vars, row.dtype).at[i].set(norm)
        # The reflection sends the row to -sign * norm; the sign moves into Q.
        columns.append(diagonal - sign * rest[:, 0])
        rest = rest[:, 1:]
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
        Q = Q.at[:, i:].set(tail - weight * normal[None])
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
def lq_root(rows: Float[Array, "vars columns"]) -> VarsMatrix:
    r"""The lower-triangular $L$, with positive diagonal, of $A = L Q$.

    $L L^\top = A A^\top$ without forming either product, so an entry is accurate
    relative to its row whatever the sizes of the rows. Its derivative is
    $\dot L = L \,\Phi(W + W^\top)$ with $W = L^{-1} \dot A Q^\top$ and $\Phi$ the lower
    triangle with halved diagonal; it exists where $A$ has full row rank.

    **Arguments:**

    - `rows`: $A$, with at least as many columns as rows.
    """
    return _lq_root(rows)


@final
class Transition(eqx.Module):
    r"""The law of $y(t)$ given $y(s)$: normal, mean $\Psi y(s)$, covariance $L L^\top$.

    Both matrices act on the `vars` axis, alike for every data coordinate.
    """

    mean_map: VarsMatrix
    root: VarsMatrix

    def mean(self, y: State) -> State:
        return apply_to_vars(self.mean_map, y)

    def perturb(self, y: State, noise: State) -> State:
        r"""$\Psi y + L \epsilon$."""
        return self.mean(y) + apply_to_vars(self.root, noise)

    def sample(self, y: State, *, key: PRNGKey) -> State:
        return self.perturb(y, draw_normal(key, y.shape, y.dtype))

    def then(self, later: "Transition") -> "Transition":
        r"""The law over both intervals, for a `later` one that starts where this ends.

        $(\Psi_2, L_2) \circ (\Psi_1, L_1) = (\Psi_2 \Psi_1, \mathrm{LQ}[\Psi_2 L_1,
        L_2])$, which is associative.
        """
        columns = [matmul(later.mean_map, self.root), later.root]
        return Transition(
            matmul(later.mean_map, self.mean_map),
            lq_root(jnp.concatenate(columns, axis=1)),
        )


@final
class PerturbationKernel(eqx.Module):
    r"""The law of $y(t)$ given the data: normal, mean $a x$, covariance $L L^\top$."""

    mean_map: VarsVector
    root: VarsMatrix

    def mean(self, x: Data) -> State:
        return outer_with_data(self.mean_map, x)

    def perturb(self, x: Data, noise: State) -> State:
        r"""$a x + L \epsilon$."""
        return self.mean(x) + apply_to_vars(self.root, noise)

    def sample(self, x: Data, *, key: PRNGKey) -> State:
        noise = draw_normal(key, (*self.mean_map.shape, *x.shape), x.dtype)
        return self.perturb(x, noise)

    @property
    def whitening(self) -> VarsMatrix:
        r"""$L^{-1}$, lower triangular."""
        identity = jnp.eye(len(self.root), dtype=self.root.dtype)
        return solve_lower(self.root, identity)

    @property
    def whitened_mean_map(self) -> VarsVector:
        r"""$L^{-1} a$, whose squared norm is the signal-to-noise ratio."""
        return solve_lower(self.root, self.mean_map)

    @property
    def log_snr(self) -> Scalar:
        r"""$\log a^\top \Sigma^{-1} a$."""
        b = self.whitened_mean_map
        # The ratio reaches e^60 and its square root is what fits into float32.
        scale = jax.lax.stop_gradient(jnp.max(jnp.abs(b)))
        scale = jnp.where(scale > 0, scale, 1)
        return 2 * jnp.log(scale) + jnp.log(jnp.sum((b / scale) ** 2))

    @property
    def data_weights(self) -> VarsVector:
        r"""$w = \Sigma^{-1} a / \mathrm{SNR}$, so that $w \cdot y$ is the data plus
        noise of variance $1 / \mathrm{SNR}$, and sufficient for it."""
        b = self.whitened_mean_map
        norm = jnp.exp(0.5 * self.log_snr)
        return solve_lower(self.root, b / norm, transpose=True) / norm

    def project(self, y: State) -> Data:
        r"""$z = w \cdot y$, the sufficient statistic of the data in `y`."""
        return contract(self.data_weights, y)


@final
class Gaussian(eqx.Module):
    r"""$\mathcal{N}(0, L L^\top \otimes I)$ on states."""

    root: VarsMatrix

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        """A draw of shape `(vars, *shape)`, in the dtype of the root."""
        noise = draw_normal(key, (len(self.root), *shape), self.root.dtype)
        return apply_to_vars(self.root, noise)

    def log_density(self, y: State) -> Scalar:
        """The log-density at `y`, in nats, summed over every data coordinate."""
        volume = n_coordinates(y) * log_det(self.root).astype(y.dtype)
        return standard_log_density(apply_to_vars(self._whitening, y)) - volume

    def kl_from(self, root: VarsMatrix, mean: State) -> Scalar:
        r"""$\mathrm{KL}(\mathcal{N}(m, L L^\top \otimes I) \,\|\, \text{self})$, nats.

        Written in $M = L_\pi^{-1} L$, so that its terms are all positive and vanish
        together: near stationarity the textbook form cancels.
        """
        per_dim = self.kl_of_root(root.astype(self.root.dtype))
        square = jnp.sum(apply_to_vars(self._whitening, mean) ** 2)
        return n_coordinates(mean) * per_dim.astype(mean.dtype) + 0.5 * square

    @property
    def _whitening(self) -> VarsMatrix:
        return solve_lower(self.root, jnp.eye(len(self.root), dtype=self.root.dtype))

    def kl_of_root(self, root: VarsMatrix) -> Scalar:
        r"""$\mathrm{KL}(\mathcal{N}(0, L L^\top) \,\|\, \text{self})$ a coordinate."""
        M = solve_lower(self.root, root)
        gap = jnp.diag(M) - 1
        diagonal = jnp.sum(gap**2 + 2 * (gap - jnp.log1p(gap)))
        return 0.5 * (jnp.sum(jnp.tril(M, -1) ** 2) + diagonal)


def n_coordinates(y: State) -> int:
    """The number of data coordinates of a state."""
    return math.prod(y.shape[1:])


def log_det(root: VarsMatrix) -> Scalar:
    """The log-determinant of a triangular root with positive diagonal."""
    return jnp.sum(jnp.log(jnp.diag(root)))


def standard_log_density(noise: Float[Array, "..."]) -> Scalar:
    """The log-density of a standard normal draw of any shape, in nats."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * noise.size * math.log(2 * math.pi)
