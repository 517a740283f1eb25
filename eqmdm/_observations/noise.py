"""The noise of observations: its covariance, some of which may be zero."""

import abc
import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
import jax.scipy as jsp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._core.blocks import matmul
from .._core.checks import as_scalar, is_known, now_if_known
from .._core.types import Scalar


class AbstractNoise(eqx.Module):
    r"""Normal noise of an observation, with mean 0 and covariance $R$.

    Numbers without noise are *exact*. Their precision is infinite, and is left out of
    `precision`."""

    @property
    @abc.abstractmethod
    def has_exact(self) -> bool | None:
        """Whether any number is exact; `None` if that is traced."""

    @abc.abstractmethod
    def factored(self) -> tuple[Scalar, "AbstractNoise"]:
        """The standard deviation that all numbers share, and the noise in its units."""

    @abc.abstractmethod
    def covariance(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        r"""$R u$."""

    @abc.abstractmethod
    def precision(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        r"""$R^{-1} u$, and 0 for the exact numbers."""

    @abc.abstractmethod
    def exact(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        """`u` for the exact numbers, and 0 for the others."""

    @abc.abstractmethod
    def as_matrix(self, size: int, dtype: DTypeLike) -> Float[Array, "size size"]:
        r"""$R$, for `size` numbers in one vector."""


@final
class IndependentNoise(AbstractNoise):
    """Noise of one standard deviation, or of one for each number."""

    std: Float[Array, "..."]

    @property
    def has_exact(self) -> bool | None:
        if not is_known(self.std):
            return None
        with now_if_known(self.std):
            return bool(jnp.any(self.std == 0))

    def factored(self) -> tuple[Scalar, AbstractNoise]:
        one = as_scalar(1.0, self.std.dtype)
        return (self.std, IndependentNoise(one)) if self.std.ndim == 0 else (one, self)

    def covariance(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        return self.std.astype(u.dtype) ** 2 * u

    def precision(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        std = self.std.astype(u.dtype)
        # Divided twice, because a square may underflow.
        return jnp.where(std > 0, u / jnp.where(std > 0, std, 1), 0) / jnp.where(
            std > 0, std, 1
        )

    def exact(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        return jnp.where(self.std > 0, 0, u)

    def as_matrix(self, size: int, dtype: DTypeLike) -> Float[Array, "size size"]:
        variances = jnp.broadcast_to(self.std.reshape(-1) ** 2, (size,))
        return jnp.diag(variances.astype(dtype))


@final
class CorrelatedNoise(AbstractNoise):
    r"""Noise of covariance $L L^\top$ on the numbers in one vector."""

    root: Float[Array, "size size"]

    @property
    def has_exact(self) -> bool:
        return False

    def factored(self) -> tuple[Scalar, AbstractNoise]:
        return as_scalar(1.0, self.root.dtype), self

    def covariance(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        root = self.root.astype(u.dtype)
        return matmul(root, matmul(root.T, u.reshape(-1))).reshape(u.shape)

    def precision(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        root = self.root.astype(u.dtype), True
        return jsp.linalg.cho_solve(root, u.reshape(-1)).reshape(u.shape)

    def exact(self, u: Float[Array, "*out"]) -> Float[Array, "*out"]:
        return jnp.zeros_like(u)

    def as_matrix(self, size: int, dtype: DTypeLike) -> Float[Array, "size size"]:
        assert len(self.root) == size
        root = self.root.astype(dtype)
        return matmul(root, root.T)


def normal_log_density(
    residual: Float[Array, " size"], root: Float[Array, "size size"]
) -> Scalar:
    r"""The log-density of a residual of covariance $L L^\top$, in nats."""
    white = jsp.linalg.solve_triangular(root, residual, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diag(root)))
    constant = 0.5 * residual.size * math.log(2 * math.pi)
    return -0.5 * jnp.sum(white**2) - log_det - constant
