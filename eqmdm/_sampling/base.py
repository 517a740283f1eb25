"""The interface of samplers."""

import abc

import equinox as eqx
from jax.typing import DTypeLike

from .._core.types import Data, PRNGKey, State
from .._diffusion import AbstractProcess
from .._model.base import AbstractModel, check_model
from .grids import SavedTimes, Times
from .trajectory import SampleResult


class AbstractSampler(eqx.Module):
    """A sampler, which takes a state at the final time t1 to a sample of the data.

    Fixed-step samplers subclass [`eqmdm.AbstractStepSampler`][], which only needs one
    step.
    """

    @abc.abstractmethod
    def times(
        self,
        diffusion: AbstractProcess,
        n_steps: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        through: SavedTimes | None = None,
    ) -> Times:
        """The times of the steps, from t1 to t0.

        **Arguments:** as for [`eqmdm.AbstractGrid`][].

        **Raises:**

        `ValueError` if the sampler cannot take that number of steps or does not support
        the diffusion.
        """

    @abc.abstractmethod
    def n_evaluations(self, n_steps: int) -> int | None:
        """The number of network evaluations for a sample of `n_steps` steps, including
        the posterior mean at t0; `None` if it varies."""

    @abc.abstractmethod
    def solve(
        self,
        model: AbstractModel,
        y: State,
        times: Times,
        *,
        key: PRNGKey,
        saved: SavedTimes | None = None,
    ) -> SampleResult:
        """One sample with its full output, without checks.

        **Arguments:**

        - `model`, `y`, `times`, `key`: as for `__call__`.
        - `saved`: the subset of `times`, decreasing, at which states are saved.
        """

    def __call__(
        self, model: AbstractModel, y: State, times: Times, *, key: PRNGKey
    ) -> Data:
        """One sample of the data.

        **Arguments:**

        - `model`: the model to sample from.
        - `y`: the state at `times[0]`, drawn from the prior.
        - `times`: two or more decreasing times, as returned by the method `times`.
        - `key`: for the noise; unused by deterministic samplers.

        **Returns:**

        The posterior mean of the data given the state at `times[-1]`, in the dtype of
        `y`.

        **Raises:**

        `ValueError` for shapes that do not match; `TypeError` for a model that the
        sampler does not support.
        """
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(
                f"`times` must be a vector of two or more; got shape {times.shape}."
            )
        y = check_model(model).check_state(y)
        return _solve(self, model, y, times, key)


# Jitted here, because outside of `jax.jit` the loop over a new function would be
# compiled at every call.
@eqx.filter_jit
def _solve(
    sampler: AbstractSampler,
    model: AbstractModel,
    y: State,
    times: Times,
    key: PRNGKey,
) -> Data:
    return sampler.solve(model, y, times, key=key).x
