"""Validated training examples, all on the device or in batches."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree, Shaped, UInt32

from .._core.checks import as_examples
from .._core.conditions import as_conditions
from .._core.types import PRNGKey
from .objective import Examples, Objective


# The key tag of the example order; the tags of a step's draws are in `step.py`.
_ORDER = 0


@final
class TrainingSet(eqx.Module):
    """Examples in the memory of the devices, validated once.

    A plain array is validated in every call of [`eqmdm.train_step`][], which reads the
    whole array and waits for the device. In a training loop, pass a `TrainingSet`.
    """

    examples: Examples
    n_levels: int | None = eqx.field(static=True)
    condition: PyTree = None

    def __init__(self, examples: Any, objective: Objective, condition: PyTree = None):
        """**Arguments:**

        - `examples`: an array of examples along its first axis. If the state is on
            several devices, it must be on all of them; see [`eqmdm.distribute`][].
        - `objective`: the objective that the examples are validated for.
        - `condition`: the conditions of a conditional model, one for each example.

        **Raises:**

        `TypeError` unless the examples are real numbers of the kind that the objective
        takes; `ValueError` for grey levels that are out of range, points that are not
        finite, or another number of conditions than of examples.
        """
        examples = as_examples("examples", examples)
        if isinstance(examples, Tracer):
            raise TypeError(
                "`examples` must be known, because they are validated; got a traced "
                "array. Create the `TrainingSet` outside of the compiled function."
            )
        objective.check(examples)
        # An array that is already on devices stays there.
        on_device = isinstance(examples, jax.Array)
        self.examples = examples if on_device else jax.device_put(examples)
        self.n_levels = n_levels_of(objective)
        self.condition = as_conditions(condition, len(examples))

    def check_objective(self, objective: Objective) -> None:
        """**Raises:** `ValueError` unless they were validated for these levels."""
        _check_levels(self.n_levels, objective)


@final
class Batches(eqx.Module):
    """The validated batches of one call of `train_step`, as a stream provides them."""

    examples: Shaped[Array, "steps batch *data"]
    n_levels: int | None = eqx.field(static=True)
    condition: PyTree = None

    def check_objective(self, objective: Objective) -> None:
        """See `TrainingSet.check_objective`."""
        _check_levels(self.n_levels, objective)


def n_levels_of(objective: Objective) -> int | None:
    """The number of grey levels of an objective; `None` for points."""
    return None if objective.levels is None else objective.levels.n_levels


def _check_levels(validated: int | None, objective: Objective) -> None:
    wanted = n_levels_of(objective)
    if validated != wanted:
        show = lambda n: "points" if n is None else f"{n} grey levels"
        raise ValueError(
            "`data` must be validated for the same `objective`, which takes "
            f"{show(wanted)}; these are {show(validated)}."
        )


def order_key(key_data: UInt32[Array | np.ndarray, " words"]) -> PRNGKey:
    """The key for the order of the examples, from the `key` of a state."""
    return jr.fold_in(jr.wrap_key_data(jnp.asarray(key_data)), _ORDER)
