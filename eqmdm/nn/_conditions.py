"""Conditions of networks: classes, vectors and images."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Inexact

from .._core.checks import as_examples, check_count, check_shape
from .._core.conditions import as_condition
from ._initialiser import Initialiser
from ._layers import Linear


@final
class ClassCondition(eqx.Module):
    """One of a number of classes, an integer from 0. The missing class is -1.

    A network gives every class a vector of features, and the missing class zeros.

    **Arguments:**

    - `n_classes`: the number of classes.

    **Raises:** `ValueError` unless it is at least 1.
    """

    n_classes: int = eqx.field(static=True)

    def __check_init__(self):
        check_count("n_classes", self.n_classes)

    def check(self, condition: Any) -> Array:
        """The condition of one example, as an array.

        **Raises:** `TypeError` for the wrong dtype; `ValueError` for the wrong shape or
        a class that does not exist. The values of traced arrays are not checked.
        """
        array = as_condition(condition)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(
                "`condition` must be a class, an integer from 0 to "
                f"{self.n_classes - 1}; got {array.dtype}."
            )
        _check_example(array, ())
        if not isinstance(array, Tracer):
            value = int(array)
            if not -1 <= value < self.n_classes:
                raise ValueError(
                    "`condition` must be a class from 0 to "
                    f"{self.n_classes - 1}, or -1 if it is missing; got {value}."
                )
        return array.astype(jnp.int32)


@final
class ArrayCondition(eqx.Module):
    r"""An array of numbers, such as the parameters of a simulator or another image.
    Missing entries are NaN.

    A network receives $(c - \text{mean}) / \text{std}$, with zeros for missing entries,
    and beside it which entries are missing. An [`eqmdm.nn.UNet`][] takes an image of
    its own height and width as additional channels, and embeds a number or a vector
    beside the time. An [`eqmdm.nn.MLP`][] embeds any array beside the time.

    **Arguments:**

    - `shape`: the shape of the condition of one example.
    - `mean`, `std`: the location and the scale of the conditions: one number, or one
        for every entry.

    **Raises:** `ValueError` for a scale that is not positive, or a number of means or
    scales that does not match the shape.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    # Python numbers, which are not trained.
    mean: tuple[float, ...] = eqx.field(static=True)
    std: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        mean: float | Sequence[float] | np.ndarray = 0.0,
        std: float | Sequence[float] | np.ndarray = 1.0,
    ):
        self.shape = check_shape(shape)
        self.mean = self._numbers("mean", mean)
        self.std = self._numbers("std", std)
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive; got {min(self.std)}.")

    def _numbers(self, name: str, values: Any) -> tuple[float, ...]:
        numbers = tuple(np.ravel(np.asarray(values, np.float64)).tolist())
        if (
            len(numbers) not in (1, math.prod(self.shape))
            or not np.isfinite(numbers).all()
        ):
            raise ValueError(
                f"`{name}` must be one finite number, or one for each of the "
                f"{math.prod(self.shape)} entries of the condition; got {values}."
            )
        return numbers

    def check(self, condition: Any) -> Array:
        """The condition of one example, as an array.

        **Raises:** `TypeError` for the wrong dtype; `ValueError` for the wrong shape or
        infinite values. The values of traced arrays are not checked.
        """
        array = as_condition(condition)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                "`condition` must be an array of floating-point numbers of shape "
                f"{self.shape}; got {array.dtype}."
            )
        _check_example(array, self.shape)
        if not isinstance(array, Tracer) and np.isinf(np.asarray(array)).any():
            raise ValueError(
                "`condition` must be finite, or NaN where it is missing; some of its "
                "values are infinite."
            )
        return array

    def standardise(
        self, condition: Inexact[Array, "..."], dtype: DTypeLike
    ) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."]]:
        """The standardised condition, with zeros where it is missing, and an array of
        ones there and zeros elsewhere."""
        missing = jnp.isnan(condition)
        mean, std = (self._filled(numbers) for numbers in (self.mean, self.std))
        # Substituted before the arithmetic, whose derivatives would be NaN.
        known = jnp.where(missing, mean.astype(condition.dtype), condition)
        scaled = (known - mean.astype(known.dtype)) / std.astype(known.dtype)
        return scaled.astype(dtype), missing.astype(dtype)

    def _filled(self, numbers: tuple[float, ...]) -> np.ndarray:
        values = np.asarray(numbers)
        return values.reshape(self.shape) if len(numbers) > 1 else values.reshape(())


Condition: TypeAlias = ClassCondition | ArrayCondition


def condition_for(values: Any) -> Condition:
    """The kind of condition that `values` are, one for each training example.

    Integers are classes. Floating-point numbers are arrays, standardised by their mean
    and standard deviation: those of each entry for vectors, and one of each for arrays
    of several axes, such as images. NaN, a missing entry, is left out of both.

    !!! Example

        ```python
        kind = eqmdm.nn.condition_for(parameters)
        network = eqmdm.nn.MLP((2,), 1, condition=kind, key=key)
        model = eqmdm.DenoiserModel.for_data(network, eqmdm.CLD(), x)
        model = eqmdm.fit(model, x, condition=parameters, key=key)
        ```

    **Arguments:**

    - `values`: conditions along the first axis.

    **Raises:** `TypeError` for anything but an array of numbers; `ValueError` for
    classes of several axes, negative classes other than -1, an entry that is always
    missing, or an infinite value.
    """
    array = np.asarray(as_examples("condition", values))
    if np.issubdtype(array.dtype, np.bool_):
        array = array.astype(np.int64)
    if np.issubdtype(array.dtype, np.integer):
        if array.ndim != 1 or array.min() < -1 or array.max() < 0:
            raise ValueError(
                "`condition` must be one class for each example, an integer from 0, or "
                f"-1 where it is missing; got shape {array.shape} with values from "
                f"{array.min()} to {array.max()}. Convert numbers that are not classes "
                "to floats."
            )
        return ClassCondition(int(array.max()) + 1)
    axis = 0 if array.ndim <= 2 else None
    if np.isinf(array).any() or np.isnan(array).all(axis).any():
        raise ValueError(
            "`condition` must be finite, or NaN where it is missing; some of its "
            "values are infinite, or an entry is missing in every example."
        )
    mean, std = np.nanmean(array, axis), np.nanstd(array, axis)
    # A constant entry is left unscaled.
    std = np.where(std > 0, std, 1.0)
    return ArrayCondition(array.shape[1:], mean=mean, std=std)


@final
class ConditionEmbedding(eqx.Module):
    """Features of a condition, which are added to those of the time."""

    condition: Condition
    table: Inexact[Array, "classes features"] | None
    linear1: Linear | None
    linear2: Linear | None

    def __init__(self, condition: Condition, n_out: int, *, init: Initialiser):
        self.condition = condition
        self.table = self.linear1 = self.linear2 = None
        if isinstance(condition, ClassCondition):
            # Of variance 1, as the labels of Karras et al. (2022).
            shape = condition.n_classes, n_out
            self.table = init.weight(shape, fan_in=1, fan_out=1)
        else:
            n_in = 2 * math.prod(condition.shape)
            self.linear1 = Linear(n_in, n_out, fan_in_only=True, init=init)
            self.linear2 = Linear(n_out, n_out, init=init)

    def __call__(
        self, condition: Array, dtype: DTypeLike
    ) -> Inexact[Array, " features"]:
        if self.table is not None:
            n_classes = len(self.table)
            features = self.table[jnp.clip(condition, 0, n_classes - 1)]
            features = jnp.where(condition < 0, 0, features)
            # A class that does not exist, which only a traced condition can hold, must
            # not pass for the last one.
            return jnp.where(condition < n_classes, features, jnp.nan).astype(dtype)
        assert isinstance(self.condition, ArrayCondition)
        assert self.linear1 is not None and self.linear2 is not None
        parts = self.condition.standardise(condition, dtype)
        inputs = jnp.concatenate([part.reshape(-1) for part in parts])
        return self.linear2(jax.nn.silu(self.linear1(inputs)))


def _check_example(array: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(
            f"`condition` must have the shape {shape} for one example; got "
            f"{array.shape}. Batch with `jax.vmap`."
        )
