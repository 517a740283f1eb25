"""The interface of samplers."""

import abc

import equinox as eqx
from jax.typing import DTypeLike

from .._core.types import Data, PRNGKey, State
from .._diffusion import AbstractLinearDiffusion
from .._model.base import AbstractModel, check_model
from .grids import SavedTimes, Times
from .trajectory import SampleResult


class AbstractSampler(eqx.Module):
    """A sampler: from a state at the final time t1 to a sample of the data.

    Samplers of fixed steps subclass [`eqmdm.AbstractStepSampler`][], which needs a step
    only.
    """

    @abc.abstractmethod
    def times(
        self,
        diffusion: AbstractLinearDiffusion,
        n_steps: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        through: SavedTimes | None = None,
    ) -> Times:
        """The times to run on, from t1 to t0.

        **Arguments:** as for [`eqmdm.AbstractGrid`][].

        **Raises:**

        `ValueError` for a number of steps that the sampler cannot take, or a diffusion
        that it cannot run on.
        """

    @abc.abstractmethod
    def n_evaluations(self, n_steps: int) -> int | None:
        """The evaluations of the network for a sample of `n_steps` steps, the posterior
        mean at t0 included; `None` where they vary."""

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
        """One sample, and the account of it, without checks.

        **Arguments:**

        - `model`, `y`, `times`, `key`: as for `__call__`.
        - `saved`: those of `times`, decreasing, at which states are to be kept.
        """

    def __call__(
        self, model: AbstractModel, y: State, times: Times, *, key: PRNGKey
    ) -> Data:
        """One sample of the data.

        **Arguments:**

        - `model`: what is sampled from.
        - `y`: the state at `times[0]`, drawn from the prior.
        - `times`: decreasing, at least two, as the method `times` makes them.
        - `key`: of the noises; unused where a sampler has none.

        **Returns:**

        The posterior mean of the data given the state at `times[-1]`, in the dtype of
        `y`.

        **Raises:**

        `ValueError` for shapes that do not fit; `TypeError` for a model that the
        sampler cannot use.
        """
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(
                f"`times` must be a vector of two or more; got shape {times.shape}."
            )
        y = check_model(model).check_state(y)
        return _solve(self, model, y, times, key)


# Compiled by itself: outside of `jax.jit` the loop over a new function would be
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
