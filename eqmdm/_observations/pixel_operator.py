"""Linear maps of pixels as Lineax operators, on pixels or on coefficients."""

import abc
import math
from typing import Protocol, final, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from .._core.blocks import matmul
from .._core.types import Data


@runtime_checkable
class Basis(Protocol):
    """An orthonormal basis of the pixels, such as Haar's."""

    def forward(self, pixels: Data, /) -> Data:
        """The coefficients of pixels."""
        ...

    def inverse(self, coefficients: Data, /) -> Data:
        """The pixels of coefficients."""
        ...


class AbstractPixelMap(eqx.Module):
    """A linear map of pixels of shape `shape` to an array of shape `out_shape`."""

    shape: eqx.AbstractVar[tuple[int, ...]]

    @property
    @abc.abstractmethod
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the result."""

    @abc.abstractmethod
    def apply(self, x: Data) -> Float[Array, "*out"]:
        r"""$A x$."""

    @abc.abstractmethod
    def adjoint(self, u: Float[Array, "*out"]) -> Data:
        r"""$A^\top u$."""


@final
class MaskMap(AbstractPixelMap):
    """The pixels at some places, as a vector."""

    places: Int[Array, " seen"]
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.places.shape

    def apply(self, x: Data) -> Float[Array, " seen"]:
        return x.reshape(-1)[self.places]

    def adjoint(self, u: Float[Array, " seen"]) -> Data:
        zeros = jnp.zeros(math.prod(self.shape), u.dtype)
        return zeros.at[self.places].set(u).reshape(self.shape)


@final
class DownsampleMap(AbstractPixelMap):
    """The means of blocks of `factors` pixels."""

    shape: tuple[int, ...] = eqx.field(static=True)
    factors: tuple[int, ...] = eqx.field(static=True)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(n // f for n, f in zip(self.shape, self.factors, strict=True))

    def apply(self, x: Data) -> Float[Array, "*out"]:
        pairs = zip(self.out_shape, self.factors, strict=True)
        blocks = x.reshape([size for pair in pairs for size in pair])
        return jnp.mean(blocks, axis=tuple(range(1, 2 * x.ndim, 2)))

    def adjoint(self, u: Float[Array, "*out"]) -> Data:
        u = u / math.prod(self.factors)
        for axis, factor in enumerate(self.factors):
            u = jnp.repeat(u, factor, axis=axis)
        return u


@final
class BlurMap(AbstractPixelMap):
    """The product with one symmetric matrix for each of the leading axes."""

    matrices: tuple[Float[Array, "_ _"], ...]
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.shape

    def apply(self, x: Data) -> Data:
        for axis, matrix in enumerate(self.matrices):
            rows = jnp.moveaxis(x, axis, 0)
            product = matmul(matrix.astype(x.dtype), rows.reshape(len(matrix), -1))
            x = jnp.moveaxis(product.reshape(rows.shape), 0, axis)
        return x

    def adjoint(self, u: Data) -> Data:
        return self.apply(u)


@final
class FourierMap(AbstractPixelMap):
    r"""Some coefficients of the real Fourier transform $\mathrm{Re} - \mathrm{Im}$ over
    the leading axes, which is symmetric and orthonormal."""

    places: Int[Array, " seen"]
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.places.shape

    def apply(self, x: Data) -> Float[Array, " seen"]:
        return hartley(x).reshape(-1)[self.places]

    def adjoint(self, u: Float[Array, " seen"]) -> Data:
        zeros = jnp.zeros(math.prod(self.shape), u.dtype)
        return hartley(zeros.at[self.places].set(u).reshape(self.shape))


@final
class DenseMap(AbstractPixelMap):
    """A matrix times the pixels as a vector."""

    matrix: Float[Array, "out in"]
    shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.matrix.shape[:1]

    def apply(self, x: Data) -> Float[Array, " out"]:
        return matmul(self.matrix.astype(x.dtype), x.reshape(-1))

    def adjoint(self, u: Float[Array, " out"]) -> Data:
        return matmul(self.matrix.T.astype(u.dtype), u).reshape(self.shape)


def hartley(x: Data) -> Data:
    """The discrete Hartley transform over the leading axes (two, or one of a vector),
    which is its own inverse."""
    transformed = jnp.fft.fftn(x, axes=spatial_axes(x.shape), norm="ortho")
    return transformed.real - transformed.imag


def spatial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of an image, or the axis of a vector."""
    return tuple(range(min(2, len(shape))))


@final
class PixelOperator(lx.AbstractLinearOperator):
    """A map of pixels, or of the coefficients of pixels in an orthonormal basis.

    `dtype` is that of the operator's structures; the map works in any precision.
    """

    pixel_map: AbstractPixelMap
    basis: Basis | None = None
    is_transposed: bool = eqx.field(static=True, default=False)
    dtype: np.dtype = eqx.field(
        static=True, default_factory=lambda: np.dtype(jnp.result_type(float))
    )

    def mv(self, vector: Float[Array, "..."]) -> Float[Array, "..."]:
        basis = self.basis
        if self.is_transposed:
            pixels = self.pixel_map.adjoint(vector)
            return pixels if basis is None else basis.forward(pixels)
        pixels = vector if basis is None else basis.inverse(vector)
        return self.pixel_map.apply(pixels)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        structure = self.in_structure()
        columns = jnp.eye(structure.size, dtype=self.dtype)
        flat = lambda column: self.mv(column.reshape(structure.shape)).reshape(-1)
        return jax.vmap(flat, out_axes=1)(columns)

    def transpose(self) -> "PixelOperator":
        is_transposed = not self.is_transposed
        return PixelOperator(self.pixel_map, self.basis, is_transposed, self.dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        shapes = self.pixel_map.shape, self.pixel_map.out_shape
        return jax.ShapeDtypeStruct(shapes[self.is_transposed], self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return self.transpose().in_structure()


@lx.linearise.register(PixelOperator)
@lx.materialise.register(PixelOperator)
@lx.conj.register(PixelOperator)
def _(operator):
    return operator


@lx.diagonal.register(PixelOperator)
def _(operator):
    return jnp.diag(operator.as_matrix())


# Products do not need these, and Lineax then assumes no structure.
for _query in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_tridiagonal,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
    lx.has_unit_diagonal,
):

    @_query.register(PixelOperator)
    def _(operator):
        del operator
        return False
