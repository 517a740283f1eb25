"""The interface of observations, which models are conditioned on."""

import abc
from typing import Any

import equinox as eqx


class AbstractObservation(eqx.Module):
    """Knowledge of the data that a model can be conditioned on after training.

    [`eqmdm.LinearObservation`][] is one. `AbstractModel.given` calls it.
    """

    # Models are defined in terms of observations, so the types of these are not known
    # here.
    @abc.abstractmethod
    def condition(self, model: Any, method: Any) -> Any:
        """The model of the data given this observation.

        **Arguments:**

        - `model`: an [`eqmdm.AbstractModel`][] of the data.
        - `method`: how to condition it; `None` for the observation's own choice.

        **Raises:** `TypeError` or `ValueError` if the method does not support the model
        or the observation.
        """
