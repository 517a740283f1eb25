"""Linear observations of the data, with normal noise."""

from typing import Any, final

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from .._core.checks import as_array, check_finite, constant, is_known, now_if_known
from .._model.base import AbstractModel
from .base import AbstractLinearObservation, check_has_denoiser, check_method
from .consistency import is_in_range
from .exact import Exact, exact_applies
from .moment_matching import MomentMatching
from .noise import AbstractNoise, CorrelatedNoise, IndependentNoise


@final
class LinearObservation(AbstractLinearObservation):
    r"""A linear observation of the data with normal noise, $o = A x + \mathcal{N}(0,
    R)$.

    `model.given(observation)` is the model of the data given it. The data are those
    that the model sees: a model of coefficients in a basis needs an operator on
    coefficients, which the functions of `eqmdm.observe` make.

    It is a tree of arrays. With another value, or other noise of the same kind, it runs
    through the same compiled programs, and `jax.vmap` batches it:

        operator = eqmdm.observe.mask(seen)

        def posterior(value, key):
            given = model.given(eqmdm.LinearObservation(operator, value, 0.1))
            return eqmdm.sample(given, shape, key=key)

        x = jax.vmap(posterior)(values, keys)

    **Arguments:**

    - `operator`: $A$, a Lineax operator from one example of data to an array.
    - `value`: $o$, of the shape that the operator returns.
    - `noise_std`: the standard deviation of the noise: a number, or one for each number
        of the value. 0 for numbers that are known exactly.
    - `covariance`: in place of `noise_std`, $R$: a positive definite matrix for the
        value as a vector, or a Lineax operator that is tagged as such.

    **Raises:** `TypeError` for an operator that is not one of Lineax's between arrays,
    and for both or neither of `noise_std` and `covariance`; `ValueError` for a value of
    another shape, that is not finite or, without noise, that no data can give, for a
    negative `noise_std`, and for a covariance that is not positive definite. Traced
    values are not checked.
    """

    operator: lx.AbstractLinearOperator
    value: Float[Array, "..."]
    noise: AbstractNoise

    def __init__(
        self,
        operator: Any,
        value: Any,
        noise_std: Any = None,
        *,
        covariance: Any = None,
    ):
        shape = _check_operator(operator)
        self.operator, self.value = operator, _as_float("value", value)
        if self.value.shape != shape:
            raise ValueError(
                f"`value` must have the shape that the operator returns, {shape}; got "
                f"{self.value.shape}. Batch observations with `jax.vmap`."
            )
        if (noise_std is None) == (covariance is None):
            raise TypeError(
                "`LinearObservation` must have either `noise_std` or `covariance`; got "
                f"{'neither' if noise_std is None else 'both'}. For values without "
                "noise, `noise_std=0.0`."
            )
        if covariance is None:
            self.noise = _independent(noise_std, shape)
        else:
            self.noise = _correlated(covariance, shape)
        if not is_in_range(self):
            raise ValueError(
                "`value` must be one that some data give where there is no noise; this "
                "one is outside the range of the operator. Give a `noise_std` above 0, "
                "or check the order of the numbers and the units of the data."
            )

    def condition(self, model: AbstractModel, method: Any) -> AbstractModel:
        check_has_denoiser(model)
        if method is None:
            method = Exact() if exact_applies(model, self) else MomentMatching()
        return check_method(method).condition(model, self)


def _check_operator(operator: Any) -> tuple[int, ...]:
    """The shape that the operator returns."""
    must = "`operator` must be a Lineax operator from one array of floats to another"
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"{must}, such as those of `eqmdm.observe`; got {type(operator).__name__}. "
            "For a matrix, `eqmdm.observe.dense(matrix, shape)`."
        )
    structures = operator.in_structure(), operator.out_structure()
    for structure in structures:
        is_array = isinstance(structure, jax.ShapeDtypeStruct)
        if not is_array or not jnp.issubdtype(structure.dtype, jnp.floating):
            raise TypeError(f"{must}; got one between {structures}.")
    return structures[1].shape


def _as_float(name: str, value: Any) -> Float[Array, "..."]:
    array = as_array(name, value)
    check_finite(name, array)
    dtype = jnp.result_type(float)
    if jnp.issubdtype(array.dtype, jnp.floating) and isinstance(array, jax.Array):
        return array
    # A JAX array, so that another value does not compile another program.
    known = isinstance(array, np.ndarray)
    return constant(array.astype(dtype)) if known else array.astype(dtype)


def _independent(noise_std: Any, shape: tuple[int, ...]) -> IndependentNoise:
    std = _as_float("noise_std", noise_std)
    if std.shape not in ((), shape):
        raise ValueError(
            "`noise_std` must be a number or have the shape of the value, "
            f"{shape}; got {std.shape}."
        )
    if is_known(std):
        least = float(np.asarray(std).min())
        if least < 0:
            raise ValueError(
                f"`noise_std` must be at least 0, a standard deviation; got {least}."
            )
    return IndependentNoise(std)


def _correlated(covariance: Any, shape: tuple[int, ...]) -> AbstractNoise:
    size = int(np.prod(shape))
    if isinstance(covariance, lx.AbstractLinearOperator):
        if not lx.is_positive_semidefinite(covariance):
            raise ValueError(
                "`covariance` must be tagged as positive semidefinite if it is an "
                f"operator; this {type(covariance).__name__} is not. Build it with the "
                "tag `lineax.positive_semidefinite_tag`."
            )
        if lx.is_diagonal(covariance):
            variances = lx.diagonal(covariance).reshape(shape)
            return _independent(jnp.sqrt(variances), shape)
        covariance = covariance.as_matrix()
    matrix = _as_float("covariance", covariance)
    if matrix.shape != (size, size):
        raise ValueError(
            f"`covariance` must be a matrix of {size} rows and columns, one for each "
            f"number of the value; got shape {matrix.shape}."
        )
    with now_if_known(matrix):
        root = jnp.linalg.cholesky(matrix)
    if is_known(matrix):
        values = np.asarray(matrix)
        scale = float(np.abs(values).max())
        slack = 64 * float(jnp.finfo(matrix.dtype).eps) * scale
        if not (np.isfinite(root).all() and np.abs(values - values.T).max() <= slack):
            raise ValueError(
                "`covariance` must be symmetric and positive definite; this matrix is "
                "not. For numbers without noise give `noise_std`, with zeros."
            )
    return CorrelatedNoise(root)
