"""The Langevin corrector of another sampler."""

import math
from typing import final

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from .._core.checks import check_count
from .._core.gaussian import PerturbationKernel, apply_to_vars
from .._core.random import draw_normal
from .._core.types import PRNGKey, State
from .._model.base import AbstractModel
from .grids import AbstractGrid, Times
from .stacks import Clip, SamplerState, check_follows_data, data_estimate
from .step_sampler import AbstractStepSampler


@final
class LangevinCorrector(AbstractStepSampler):
    r"""Another sampler, with Langevin steps at the end of each of its steps.

    The preconditioner is the kernel's covariance $\Sigma = L L^\top$, so that one step
    size serves all variables. The part that is linear given $\hat x$ is solved exactly:

    $$y \leftarrow a \hat x + e^{-\epsilon} (y - a \hat x) + \sqrt{1 - e^{-2
    \epsilon}} L w, \qquad \epsilon = 2 r^2$$

    for the signal-to-noise ratio $r$. Exact for a single data point. It adds `n_steps`
    evaluations per step to those of the sampler.

    **Arguments:**

    - `sampler`: any other fixed-step sampler, whose grid and clip are used.
    - `snr`: $r$, as in Song et al., but with equal norms of the noise and the score,
        as they are on average in the units of $L$.
    - `n_steps`: the number of Langevin steps per step.

    **Source:** Song et al. (2021), algorithms 4 and 5.
    """

    sampler: AbstractStepSampler
    snr: float
    n_steps: int
    grid: AbstractGrid
    clip: Clip

    def __init__(
        self, sampler: AbstractStepSampler, snr: float = 0.16, n_steps: int = 1
    ):
        if not (math.isfinite(snr) and snr > 0):
            raise ValueError(f"`snr` must be positive and finite; got {snr}.")
        check_count("n_steps", n_steps)
        self.sampler, self.snr, self.n_steps = sampler, snr, n_steps
        self.grid, self.clip = sampler.grid, sampler.clip

    def n_evaluations(self, n_steps: int) -> int | None:
        inner = self.sampler.n_evaluations(n_steps)
        return None if inner is None else inner + n_steps * self.n_steps

    def prepare(
        self, model: AbstractModel, times: Times, y: State
    ) -> tuple[SamplerState, PerturbationKernel, PyTree, PyTree]:
        check_follows_data(model, self)
        y, kernels, coefficients, memory = self.sampler.prepare(model, times, y)
        # Correct only at times of the grid: steps that end between them are stages.
        on_grid = jnp.any(kernels.t[1:, None] == times[None], axis=1)
        has_parts = len(kernels.t) > len(times)
        return y, kernels, (coefficients, on_grid if has_parts else None), memory

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
        coefficients, on_grid = coefficients
        key_step, key_correct = jr.split(key)
        y, memory = self.sampler.step(
            model, start, end, coefficients, y, memory, key=key_step
        )
        correct = lambda y: self._correct(model, end, y, key_correct)
        if on_grid is None:
            return correct(y), memory
        return jax.lax.cond(on_grid, correct, lambda y: y, y), memory

    def _correct(
        self,
        model: AbstractModel,
        kernel: PerturbationKernel,
        y: SamplerState,
        key: PRNGKey,
    ) -> SamplerState:
        step = 2 * self.snr**2
        keep, spread = math.exp(-step), math.sqrt(-math.expm1(-2 * step))

        def move(y: State, key: PRNGKey) -> tuple[State, None]:
            mean = kernel.mean(data_estimate(model, kernel, y, self.clip))
            noise = apply_to_vars(kernel.root, draw_normal(key, y.shape, y.dtype))
            return mean + keep * (y - mean) + spread * noise, None

        y, _ = jax.lax.scan(move, y, jr.split(key, self.n_steps))
        return y
