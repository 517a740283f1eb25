"""The diffusion coefficient as a Lineax operator on the `vars` axis."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from .gaussian import apply_to_vars


# Diffrax would also take a dense array over all coordinates, of 19 million entries for
# CLD on CIFAR-10 images, or a diagonal, which cannot mix variables.
@final
class VarsOperator(lx.AbstractLinearOperator):
    r"""$M \otimes I$: a small matrix on the leading axis, the same for every data
    coordinate.

    The matrix is `rows x columns`. The operator maps `(columns, *data)` to
    `(rows, *data)`. Only `as_matrix` forms it densely.
    """

    matrix: Float[Array, "rows columns"]
    data_shape: tuple[int, ...] = eqx.field(static=True)

    def mv(self, vector: Float[Array, "columns *data"]) -> Float[Array, "rows *data"]:
        return apply_to_vars(self.matrix, vector)

    def as_matrix(self) -> Float[Array, "all_rows all_columns"]:
        n_coordinates = 1
        for length in self.data_shape:
            n_coordinates *= length
        return jnp.kron(self.matrix, jnp.eye(n_coordinates, dtype=self.matrix.dtype))

    def transpose(self) -> "VarsOperator":
        return VarsOperator(self.matrix.T, self.data_shape)

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
        return operator.matrix.shape == (1, 1)


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
    diagonal = jnp.diag(operator.matrix)
    n_coordinates = 1
    for length in operator.data_shape:
        n_coordinates *= length
    return jnp.repeat(diagonal, n_coordinates)
