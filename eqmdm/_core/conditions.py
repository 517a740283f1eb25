"""Conditions of models, and networks that check them."""

import abc
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .checks import as_array


def missing_like(condition: PyTree) -> PyTree:
    """The missing condition: -1 for each integer and NaN for each float.

    A network that is trained with random dropping of its condition models the
    unconditional data if it is given this.
    """

    def missing(leaf: Any) -> Array:
        array = as_condition(leaf)
        value = -1 if jnp.issubdtype(array.dtype, jnp.integer) else jnp.nan
        return jnp.full_like(array, value)

    return jax.tree.map(missing, condition)


def as_condition(condition: Any) -> Array:
    """`condition` as an array of integers or floats; truth values become integers.

    **Raises:** `TypeError` for anything else.
    """
    array = as_array("condition", condition)
    array = array.astype(np.int32) if array.dtype == np.bool_ else array
    # `jnp.asarray` would compile a program for every shape.
    return array if isinstance(array, jax.Array) else jax.device_put(array)


def as_conditions(condition: PyTree, n: int, *, name: str = "condition") -> PyTree:
    """Conditions as arrays with a row for each of `n` examples.

    **Raises:** `TypeError` for anything but arrays of numbers; `ValueError` for another
    number of rows, or infinite values.
    """

    def convert(leaf: Any) -> Array:
        array = as_condition(leaf)
        if array.ndim == 0 or len(array) != n:
            raise ValueError(
                f"`{name}` must have a row for each of the {n:,} examples; got "
                f"shape {array.shape}."
            )
        return array

    return jax.tree.map(convert, condition)


class ConditionKind(Protocol):
    """What a network is conditioned on, such as [`eqmdm.nn.ClassCondition`][]."""

    def check(self, condition: Any) -> Array:
        """The condition of one example, as an array.

        **Raises:** `TypeError` or `ValueError` for one that does not suit the network.
        """
        ...


class AbstractConditionalNetwork(eqx.Module):
    """A network that checks its condition.

    `condition` is the kind of condition, or `None` if there is none. Any callable that
    takes the keyword `condition` is a conditional network; this class adds the check.
    """

    condition: eqx.AbstractVar[ConditionKind | None]

    @abc.abstractmethod
    def __call__(self, t: Any, y: Any, *, condition: Any = None) -> Array:
        """The output for one example, given a condition."""

    def check_condition(self, condition: Any) -> Array | None:
        """The condition of one example, as an array.

        **Raises:** `ValueError` if a condition is given to a network without one, or
        is left out; otherwise as for the `check` of its kind.
        """
        if self.condition is None:
            if condition is not None:
                raise ValueError(
                    "`condition` must be left out, because the network has none. Build "
                    "it with one: `condition=eqmdm.nn.condition_for(values)`."
                )
            return None
        if condition is None:
            raise ValueError(
                f"`condition` must be given to a network conditioned on "
                f"{self.condition}. If the network was trained with random dropping of "
                "its condition, leave it out by `eqmdm.nn.missing_like(condition)`."
            )
        return self.condition.check(condition)
