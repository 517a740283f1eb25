"""The diffusion coefficient as a Lineax operator on the `vars` axis."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from .blocks import transpose
from .gaussian import apply_to_vars


# Diffrax would also take a dense array over all coordinates, of 19 million entries for
# CLD on CIFAR-10 images, or a diagonal, which cannot mix variables.
@final
class VarsOperator(lx.AbstractLinearOperator):
    r"""$M \otimes I$: a small matrix on the leading axis, the same for every data
    coordinate, or one matrix for each.

    The matrix is `rows x columns`, followed by the axes of the data if it differs. The
    operator maps `(columns, *data)` to `(rows, *data)`. Only `as_matrix` forms it
    densely.
    """

    matrix: Float[Array, "rows columns *coordinates"]
    data_shape: tuple[int, ...] = eqx.field(static=True)

    def mv(self, vector: Float[Array, "columns *data"]) -> Float[Array, "rows *data"]:
        return apply_to_vars(self.matrix, vector)

    def as_matrix(self) -> Float[Array, "all_rows all_columns"]:
        rows, columns, size = _flat(self).shape
        # For every row and column, a diagonal matrix over the coordinates.
        blocks = jax.vmap(jax.vmap(jnp.diag))(_flat(self))
        return blocks.transpose(0, 2, 1, 3).reshape(rows * size, columns * size)

    def transpose(self) -> "VarsOperator":
        return VarsOperator(transpose(self.matrix), self.data_shape)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        shape = (self.matrix.shape[1], *self.data_shape)
        return jax.ShapeDtypeStruct(shape, self.matrix.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        shape = (self.matrix.shape[0], *self.data_shape)
        return jax.ShapeDtypeStruct(shape, self.matrix.dtype)


@lx.linearise.register(VarsOperator)
@lx.materialise.register(VarsOperator)
def _(operator):
    return operator


@lx.conj.register(VarsOperator)
def _(operator):
    return VarsOperator(jnp.conj(operator.matrix), operator.data_shape)


# The large matrix inherits structural properties of the small one. Only a single row
# and column is known to be diagonal.
for _query in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_tridiagonal,
):

    @_query.register(VarsOperator)
    def _(operator):
        return operator.matrix.shape[:2] == (1, 1)


for _query in (
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
    lx.has_unit_diagonal,
):

    @_query.register(VarsOperator)
    def _(operator):
        del operator
        return False


@lx.diagonal.register(VarsOperator)
def _(operator):
    return jnp.diagonal(_flat(operator)).T.reshape(-1)


def _flat(operator: VarsOperator) -> Float[Array, "rows columns size"]:
    """The matrix for every data coordinate, on one axis."""
    rows, columns, *_ = operator.matrix.shape
    size = math.prod(operator.data_shape)
    if operator.matrix.ndim > 2:
        return operator.matrix.reshape(rows, columns, size)
    return jnp.broadcast_to(operator.matrix[:, :, None], (rows, columns, size))
