"""Fixed-step samplers, and the scan that runs them."""

import abc
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key, PyTree

from .._core.gaussian import PerturbationKernel
from .._core.types import PRNGKey, State
from .._diffusion import AbstractProcess
from .._diffusion.base import check_linear
from .._model.base import AbstractModel
from .base import AbstractSampler
from .grids import AbstractGrid, SavedTimes, Times
from .stacks import Clip, SamplerState, as_dtype, data_estimate, make_trajectory, part
from .trajectory import SampleResult, finish


class AbstractStepSampler(AbstractSampler):
    r"""A sampler that steps along a grid of times.

    It computes the kernels at all times and the coefficients of all steps, and then
    scans over the steps. Its state is the diffusion's state or a statistic of it, and
    the kernel at each time is the law of that state given the data. The sample is the
    posterior mean of the data given the state at t0.

    A new sampler has the fields `grid` and `clip` and implements `n_evaluations`,
    `prepare` and `step`:

        @final
        class DDIM(eqmdm.AbstractStepSampler):
            grid: eqmdm.AbstractGrid = eqmdm.LogSNRGrid()
            clip: tuple[float, float] | None = None

            def n_evaluations(self, n_steps):
                return n_steps + 1

            def prepare(self, model, times, y):
                kernels = jax.vmap(model.diffusion.compute_kernel)(times)
                return y, kernels, (), ()

            def step(self, model, start, end, coefficients, y, memory, *, key):
                x = model.data_estimate(start, y)
                return end.perturb(x, start.whiten(y - start.mean(x))), memory

    `clip` is the range `(low, high)` of the data, in their units. The data estimates
    $\hat x$ that steps use are clipped to it; `None` does not clip.

    A class may set `ends_in_data = True` if its step, with coefficients of 0 and an
    `end` that is the law of the data themselves (root 0, mean map 1 for the data and 0
    for the auxiliaries), gives the data estimate at `start`. The scan then takes the
    posterior mean at t0 as one more step, and the network is compiled once, not twice.
    """

    ends_in_data: ClassVar[bool] = False

    grid: eqx.AbstractVar[AbstractGrid]
    clip: eqx.AbstractVar[Clip]

    def __check_init__(self):
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(
                f"`clip` must be (low, high), increasing, or None; got {self.clip}."
            )

    @abc.abstractmethod
    def prepare(
        self, model: AbstractModel, times: Times, y: State
    ) -> tuple[SamplerState, PerturbationKernel, PyTree, PyTree]:
        """The initial carry of the scan and its inputs, from the diffusion's state `y`.

        **Returns:**

        - the sampler's own state at the first time;
        - the stacked kernels at all times, which may include stages between the times
            of the grid, and may contain a time twice;
        - the stacked coefficients of all steps, one fewer than the kernels;
        - the initial memory of previous steps.

        **Raises:**

        `TypeError` for a model that the sampler does not support.
        """

    @abc.abstractmethod
    def step(
        self,
        model: AbstractModel,
        start: PerturbationKernel,
        end: PerturbationKernel,
        coefficients: PyTree,
        y: SamplerState,
        memory: PyTree,
        *,
        key: PRNGKey,
    ) -> tuple[SamplerState, PyTree]:
        """The state at the end of a step, and the memory for the next step."""

    def times(
        self,
        diffusion: AbstractProcess,
        n_steps: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        through: SavedTimes | None = None,
    ) -> Times:
        check_linear(diffusion)
        return self.grid(diffusion, n_steps, dtype, through=through)

    def solve(
        self,
        model: AbstractModel,
        y: State,
        times: Times,
        *,
        key: PRNGKey,
        saved: SavedTimes | None = None,
    ) -> SampleResult:
        y, kernels, coefficients, memory = self.prepare(model, times, y)
        n_steps = len(kernels.t) - 1
        place = None if saved is None else _last_places(kernels.t, saved)
        kernels, coefficients = as_dtype((kernels, coefficients), y.dtype)

        def step(carry, inputs):
            start, end, coefficients, key = inputs
            y, memory = self.step(model, start, end, coefficients, *carry, key=key)
            return (y, memory), None if place is None else y

        keys = jr.split(key, n_steps)
        # Kernels and coefficients are inputs of a scan, and not computed in its steps:
        # all of them are one batched computation, and the scan compiles a single step.
        starts, ends = part(kernels, slice(-1)), part(kernels, slice(1, None))
        inputs = starts, ends, coefficients, keys
        if self.ends_in_data:
            inputs = _with_step_to_data(kernels, coefficients, keys)
        (end, _), path = jax.lax.scan(step, (y, memory), inputs)
        states = None if path is None else jnp.concatenate([y[None], path])
        x = end[0]
        if not self.ends_in_data:
            x = data_estimate(model, part(kernels, -1), end, self.clip)
        n_evaluations = self.n_evaluations(len(times) - 1)
        trajectory = None
        if states is not None:
            kernels, states = part((kernels, states), place)
            trajectory = make_trajectory(model, kernels, states, self.clip)
            if n_evaluations is not None:
                n_evaluations += len(states)
        return finish(x, trajectory, n_evaluations, dfx.RESULTS.successful)


def _with_step_to_data(
    kernels: PerturbationKernel, coefficients: PyTree, keys: Key[Array, " steps"]
) -> tuple[PerturbationKernel, PerturbationKernel, PyTree, Key[Array, " all_steps"]]:
    """The inputs of the scan, with a last step from the last kernel to the data."""
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[-1:]), kernels)
    first = zero.mean_map.at[:, 0].set(1)
    data = eqx.tree_at(lambda kernel: kernel.mean_map, zero, first)
    join = lambda *parts: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    no_coefficients = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[-1:]), coefficients)
    return (
        kernels,
        join(part(kernels, slice(1, None)), data),
        join(coefficients, no_coefficients),
        # The last step takes no noise.
        jnp.concatenate([keys, keys[-1:]]),
    )


def _last_places(times: Times, saved: SavedTimes) -> Int[Array, " saves"]:
    """The last index of each of `saved` in `times`, at which its state is final."""
    order = jnp.arange(len(times))
    return jnp.max(jnp.where(times[None] == saved[:, None], order[None], 0), axis=1)
