"""Calls of the networks of models, with their conditions."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._core.conditions import AbstractConditionalNetwork, as_condition
from .._core.types import LogSNR


@final
class ConditionedNetwork(eqx.Module):
    """A network with its condition."""

    network: Callable[..., Array]
    condition: PyTree

    def __call__(self, time: LogSNR, inputs: Array, **more: Array) -> Array:
        return self.network(time, inputs, condition=self.condition, **more)


def bind_condition(
    network: Callable[..., Array], condition: PyTree
) -> ConditionedNetwork:
    """The network with a condition, which replaces an earlier one.

    **Raises:** `TypeError` for a condition that is not numeric; otherwise as for
    `AbstractConditionalNetwork.check_condition`.
    """
    if isinstance(network, ConditionedNetwork):
        network = network.network
    if isinstance(network, AbstractConditionalNetwork):
        condition = network.check_condition(condition)
    else:
        condition = jax.tree.map(as_condition, condition)
    return ConditionedNetwork(network, condition)


def call_network(
    name: str,
    network: Callable[..., Array],
    time: LogSNR,
    inputs: Array,
    **more: Array,
) -> Array:
    """The output of a network for one example, which takes `more` as keywords.

    **Raises:**

    `TypeError` if the network cannot take the input; `ValueError` if the output does
    not have the shape of the input, because it would broadcast silently.
    """
    example = (
        f"one example of shape {inputs.shape} without a batch axis (batch with "
        "`jax.vmap`)"
    )
    try:
        output = network(time, inputs, **more)
    # The exceptions that JAX raises for operands of incompatible shapes.
    except TypeError as error:
        keywords = [f"`{keyword}`" for keyword in more]
        if isinstance(network, ConditionedNetwork):
            keywords.insert(0, "its `condition`")
        given = ""
        if keywords:
            plural = "s" if len(keywords) > 1 else ""
            given = f" and {', '.join(keywords)} as {'' if plural else 'a '}keyword"
            given += plural
        raise TypeError(
            f"`{name}` must accept {example}{given}; it raised: {error}"
        ) from error
    shape = jnp.shape(output)
    if shape != inputs.shape:
        raise ValueError(
            f"`{name}` must return an array of the shape of its input, {inputs.shape}; "
            f"got {shape}. It is called on {example}."
        )
    return output
