"""Heun's method in the noise level, from EDM."""

from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._core.gaussian import PerturbationKernel, apply_to_vars
from .._core.types import PRNGKey, State
from .._model.base import AbstractModel
from .grids import AbstractGrid, LogSNRGrid, Times
from .stacks import Clip, SamplerState, collapse, data_estimate, log_snrs_of
from .step_sampler import AbstractStepSampler


@final
class EDMHeun(AbstractStepSampler):
    r"""Heun's method in $\sigma$ for the data's sufficient statistic, for denoisers.

    It solves $\mathrm{d} z / \mathrm{d} \sigma = (z - \hat x) / \sigma$, with two
    evaluations per step. The last step is an Euler step with one evaluation, as
    published: Heun's second slope would be that at the lowest noise level, which is not
    representative of a long step.

    **Arguments:**

    - `grid`: the step grid. The source uses `RhoGrid()`.
    - `clip`: as for [`eqmdm.AbstractStepSampler`][].

    **Source:** Karras et al. (2022), algorithm 1.
    """

    grid: AbstractGrid = LogSNRGrid()
    clip: Clip = None

    def n_evaluations(self, n_steps: int) -> int:
        return 2 * n_steps

    def prepare(
        self, model: AbstractModel, times: Times, y: State
    ) -> tuple[SamplerState, PerturbationKernel, PyTree, PyTree]:
        z, kernels = collapse(self, model, times, y)
        is_last = np.arange(len(times) - 1) == len(times) - 2
        # The change in sigma, relative to sigma at the start and at the end of a step.
        gain = jnp.diff(log_snrs_of(kernels), axis=0)[:, None, None]
        from_start, from_end = jnp.expm1(-0.5 * gain), -jnp.expm1(0.5 * gain)
        return z, kernels, (from_start, from_end, jnp.asarray(is_last)), ()

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
        del key
        from_start, from_end, is_last = coefficients
        estimate = data_estimate(model, start, y, self.clip)
        first = apply_to_vars(from_start, y - estimate[None])

        def second() -> SamplerState:
            euler = y + first
            estimate = data_estimate(model, end, euler, self.clip)
            return apply_to_vars(from_end, euler - estimate[None])

        # Under `jax.vmap` only one branch runs, because the predicate is the same for
        # all samples of a batch.
        change = jax.lax.cond(is_last, lambda: first, lambda: 0.5 * (first + second()))
        return y + change, memory
