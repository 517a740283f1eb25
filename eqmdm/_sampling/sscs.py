"""SSCS: symmetric splitting with an exactly solved linear part."""

from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from .._core.blocks import matmul
from .._core.gaussian import PerturbationKernel, Transition, apply_to_vars
from .._core.types import PRNGKey, Scalar, State, VarsMatrix
from .._diffusion import (
    AbstractLinearDiffusion,
    AbstractStationaryDiffusion,
    BandedDiffusion,
    ScaledDiffusion,
)
from .._diffusion.kernel import constant_transition
from .._diffusion.recipe import times_inverse
from .._model.base import AbstractModel
from .grids import AbstractGrid, QuadraticGrid, Times
from .stacks import Clip, SamplerState, clipped_score, kernels_at, part
from .step_sampler import AbstractStepSampler


@final
class _Splitting(eqx.Module):
    """The coefficients of a symmetric splitting step."""

    middle: PerturbationKernel
    before: Transition
    after: Transition
    # 2 D and 2 D S^-1, times the integral of the rate over the step.
    score_weight: VarsMatrix
    state_weight: VarsMatrix


@final
class SSCS(AbstractStepSampler):
    r"""Symmetric splitting for stationary diffusions of any number of variables.

    Per unit $\tau$ of integrated rate, the reverse process is the sum of two parts. The
    first, $\mathrm{d}y = (Q - D) S^{-1} y \, \mathrm{d}\tau + \sqrt{2 D} \mathrm{d}w$,
    is the (Q, D) recipe with $Q \to -Q$, and is solved exactly. The second is $2 D (s +
    S^{-1} y) \mathrm{d}\tau$. A step takes half a step of the first part, a full Euler
    step of the second at the middle time, and another half step of the first. The
    method is of first order, and exact for data distributed like the prior. One
    evaluation per step.

    **Arguments:**

    - `grid`: the step grid. The default is finer towards the data and, unlike a
        `LogSNRGrid`, takes no long steps in time where log-SNR is nearly stationary.
    - `clip`: as for [`eqmdm.AbstractStepSampler`][], for the posterior mean at t0 and
        for the score of a denoiser.

    **Source:** Dockhorn, Vahdat & Kreis (2022), section 3.3, for CLD.
    """

    grid: AbstractGrid = QuadraticGrid()
    clip: Clip = None

    def n_evaluations(self, n_steps: int) -> int:
        return n_steps + 1

    def prepare(
        self, model: AbstractModel, times: Times, y: State
    ) -> tuple[SamplerState, PerturbationKernel, PyTree, PyTree]:
        diffusion = given = model.linear_diffusion
        if isinstance(diffusion, ScaledDiffusion):
            diffusion = diffusion.diffusion
        banded = isinstance(diffusion, BandedDiffusion) and diffusion.is_stationary
        if not (banded or isinstance(diffusion, AbstractStationaryDiffusion)):
            raise TypeError(
                "`diffusion` must be stationary for `SSCS`, a subclass of "
                "`AbstractStationaryDiffusion` with Q, D and S, or made of such; got "
                f"`{type(diffusion).__name__}`. Use `AncestralSampler` or "
                "`DPMSolver`, which take any linear diffusion."
            )
        middles = 0.5 * (times[:-1] + times[1:])
        kernels = kernels_at(given, jnp.concatenate([times, middles]))
        on_grid = part(kernels, slice(len(times)))
        at_middles = part(kernels, slice(len(times), None))
        return y, on_grid, _splittings(given, times, at_middles), ()

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
        del start, end
        key_before, key_after = jr.split(key)
        y = coefficients.before.sample(y, key=key_before)
        push = apply_to_vars(
            coefficients.score_weight,
            clipped_score(model, coefficients.middle, y, self.clip),
        )
        y = y + push + apply_to_vars(coefficients.state_weight, y)
        return coefficients.after.sample(y, key=key_after), memory


@eqx.filter_jit
def _splittings(
    diffusion: AbstractLinearDiffusion, times: Times, middles: PerturbationKernel
) -> _Splitting:
    def exact_parts(diffusion: AbstractLinearDiffusion) -> _ExactParts:
        return _exact_parts(diffusion, times, middles.t)

    unscaled = diffusion
    if isinstance(diffusion, ScaledDiffusion):
        unscaled = diffusion.diffusion
    if isinstance(unscaled, BandedDiffusion):
        before, after, score, state = unscaled.by_coordinate(exact_parts)
    else:
        before, after, score, state = exact_parts(unscaled)
    if isinstance(diffusion, ScaledDiffusion):
        # D and S divided by the precision leave the drift unchanged.
        precision = diffusion.precision
        scaled = jax.vmap(lambda step: step.scaled(precision))
        before, after = scaled(before), scaled(after)
        score = score / precision.astype(score.dtype)
    return jax.vmap(_Splitting)(middles, before, after, score, state)


# All fields of the coefficients of all steps but the kernels.
_ExactParts: TypeAlias = tuple[Transition, Transition, Array, Array]


def _exact_parts(
    diffusion: AbstractLinearDiffusion, times: Times, middles: Float[Array, " steps"]
) -> _ExactParts:
    assert isinstance(diffusion, AbstractStationaryDiffusion)
    recipe, schedule = diffusion.recipe, diffusion.schedule
    G = recipe.diffusion_matrix(times.dtype)
    noise = matmul(G, G.T)
    pull = times_inverse(noise, diffusion.prior.root.astype(times.dtype))
    # (Q - D) S^-1, from -(Q + D) S^-1 and 2 D S^-1.
    opposite = -recipe.drift_matrix(times.dtype) - pull

    def half_step(s: Scalar, t: Scalar) -> Transition:
        tau = schedule.integrated_rate(s, t)
        return constant_transition(opposite, G, tau)

    earlier = jnp.stack([middles, times[1:]])
    later = jnp.stack([times[:-1], middles])
    halves = jax.vmap(jax.vmap(half_step))(earlier, later)
    before, after = part(halves, 0), part(halves, 1)
    tau = jax.vmap(schedule.integrated_rate)(times[1:], times[:-1])[:, None, None]
    return before, after, tau * noise[None], tau * pull[None]
