"""Ancestral sampling, by draws from the posterior at each earlier time."""

from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._core.blocks import lq_root, matmul, solve_lower, transpose
from .._core.gaussian import PerturbationKernel, Transition
from .._core.types import PRNGKey, Scalar, State, VarsMatrix
from .._diffusion import AbstractLinearDiffusion
from .._model.base import AbstractModel
from .grids import AbstractGrid, LogSNRGrid, Times
from .stacks import (
    Clip,
    SamplerState,
    check_follows_data,
    data_estimate,
    kernels_at,
)
from .step_sampler import AbstractStepSampler


@final
class AncestralSampler(AbstractStepSampler):
    r"""Draws from $q(y_s \mid y_t, x = \hat x)$, step by step, for any diffusion.

    Exact for a single data point, on any grid. One evaluation per step.

    **Arguments:**

    - `grid`: the step grid.
    - `clip`: as for [`eqmdm.AbstractStepSampler`][].

    **Source:** Ho, Jain & Abbeel (2020), equation 6, for one variable.
    """

    ends_in_data: ClassVar[bool] = True

    grid: AbstractGrid = LogSNRGrid()
    clip: Clip = None

    def n_evaluations(self, n_steps: int) -> int:
        return n_steps + 1

    def prepare(
        self, model: AbstractModel, times: Times, y: State
    ) -> tuple[SamplerState, PerturbationKernel, PyTree, PyTree]:
        check_follows_data(model, self)
        kernels = kernels_at(model.linear_diffusion, times)
        return y, kernels, _posteriors(model.linear_diffusion, times, kernels.root), ()

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
        x = data_estimate(model, start, y, self.clip)
        deviation = coefficients.sample(y - start.mean(x), key=key)
        return end.mean(x) + deviation, memory


@eqx.filter_jit
def _posteriors(
    diffusion: AbstractLinearDiffusion, times: Times, roots: PyTree
) -> Transition:
    r"""The laws of $y_s - a_s x$ given $y_t - a_t x$ and $x$, for all steps."""

    def posterior(t: Scalar, s: Scalar, root: VarsMatrix) -> Transition:
        # Take a triangular root of the joint covariance with the later time first. Its
        # last block is then the root for the earlier time given the later one. The
        # textbook formulas subtract, and lose up to eight digits on three variables.
        forward = diffusion.compute_transition(s, t)
        n_vars = len(root)
        later = jnp.concatenate([matmul(forward.mean_map, root), forward.root], axis=1)
        earlier = jnp.concatenate([root, jnp.zeros_like(root)], axis=1)
        joint = lq_root(jnp.concatenate([later, earlier]))
        marginal, cross = joint[:n_vars, :n_vars], joint[n_vars:, :n_vars]
        gain = transpose(solve_lower(marginal, transpose(cross), transpose=True))
        return Transition(gain, joint[n_vars:, n_vars:])

    return jax.vmap(posterior)(times[:-1], times[1:], roots[1:])
