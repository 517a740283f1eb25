"""The interfaces of linear observations and of methods that condition on them."""

import abc
import math
from typing import Any

import equinox as eqx
import lineax as lx
from jaxtyping import Array, Float

from .._core.types import Data, LogSNR
from .._model.base import AbstractModel
from .._model.noise import no_denoiser
from .._model.observation import AbstractObservation
from .noise import AbstractNoise


class AbstractLinearObservation(AbstractObservation):
    r"""$o = A x + \mathcal{N}(0, R)$, an observation of data $x$ of model space."""

    # A, from one example of data to an array of any shape.
    operator: eqx.AbstractVar[lx.AbstractLinearOperator]
    # o.
    value: eqx.AbstractVar[Float[Array, "..."]]
    # R.
    noise: eqx.AbstractVar[AbstractNoise]

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one example of data."""
        return self.operator.in_structure().shape

    @property
    def size(self) -> int:
        """How many numbers are observed."""
        return math.prod(self.value.shape)

    def project(self, x: Data) -> Float[Array, "*out"]:
        r"""$A x$, in the dtype of `x`."""
        return apply_operator(self.operator, x)

    def adjoint(self, u: Float[Array, "*out"]) -> Data:
        r"""$A^\top u$, in the dtype of `u`."""
        return apply_operator(self.operator.transpose(), u)

    def check_data_shape(self, shape: tuple[int, ...]) -> None:
        """**Raises:** `ValueError` unless the operator takes data of this shape."""
        check_data_shape(self.data_shape, shape)


def apply_operator(
    operator: lx.AbstractLinearOperator, vector: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The product of an operator with a vector of any precision."""
    # An operator is built for one dtype.
    result = operator.mv(vector.astype(operator.in_structure().dtype))
    return result.astype(vector.dtype)


def check_data_shape(observed: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """**Raises:** `ValueError` unless the shape of observed data is that of an
    example."""
    if observed != shape:
        raise ValueError(
            "`observation` must be of data of the shape of one example, "
            f"{shape}; its operator takes data of shape {observed}. Batch observations "
            "with `jax.vmap`."
        )


class AbstractConditioning(eqx.Module):
    """An observation prepared by a method: it turns the denoiser of a model into that
    of the data given the observation."""

    @property
    @abc.abstractmethod
    def method_name(self) -> str:
        """The method in words, with "approximate" if it is."""

    @abc.abstractmethod
    def residual(self, model: AbstractModel, log_snr: LogSNR, z: Data) -> Data:
        r"""$\mathrm{E}[x \mid z, o] - c^2 z / (c^2 + \sigma^2)$, where $c$ is the
        `data_std` of the model."""


class AbstractObservationMethod(eqx.Module):
    """A way to condition a model on a linear observation."""

    @abc.abstractmethod
    def condition(
        self, model: AbstractModel, observation: AbstractLinearObservation
    ) -> AbstractModel:
        """The model of the data given the observation.

        **Raises:** `TypeError` or `ValueError` if the method does not support the model
        or the observation.
        """


def check_method(method: Any) -> AbstractObservationMethod:
    """**Raises:** `TypeError` unless `method` is one."""
    if not isinstance(method, AbstractObservationMethod):
        raise TypeError(
            "`method` must be `eqmdm.Exact()`, `eqmdm.MomentMatching()`, which is "
            f"approximate, or `None` for a choice between them; got {method!r}."
        )
    return method


def check_has_denoiser(model: AbstractModel) -> None:
    """**Raises:** `TypeError` for a model without a denoiser, whose estimate an
    observation could change."""
    if not model.has_denoiser:
        raise no_denoiser(model)
