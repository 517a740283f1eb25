"""Samplers with noise: ancestral, symmetric splitting, and Langevin corrections."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from .._core.checks import check_count
from .._core.gaussian import Transition, apply_to_vars, lq_root, matmul, solve_lower
from .._core.random import draw_normal
from .._core.types import PRNGKey, Scalar, State, VarsMatrix
from .._diffusion import AbstractLinearDiffusion, AbstractStationaryDiffusion
from .._diffusion.kernel import constant_transition
from .._diffusion.recipe import times_inverse
from .._model.score import AbstractScore
from .base import AbstractSampler, Clip, Reading, SamplerState, Times, part, read_state


@final
class AncestralSampler(AbstractSampler):
    r"""Draws from $q(y_s \mid y_t, x = \hat x)$, step by step, for any diffusion.

    Exact for one data point, on any grid. One evaluation a step.

    **Arguments:**

    - `clip`: as for [`eqmdm.AbstractSampler`][].

    **Source:** Ho, Jain & Abbeel (2020), equation 6, for one variable.
    """

    clip: Clip = None

    def n_evaluations(self, n_steps: int) -> int:
        return n_steps + 1

    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        del score
        readings = read_state(diffusion, times)
        return y, readings, _posteriors(diffusion, times, readings.kernel.root)

    def init(self, y: SamplerState) -> PyTree:
        del y

    def step(
        self,
        score: AbstractScore,
        start: Reading,
        end: Reading,
        coefficients: PyTree,
        y: SamplerState,
        memory: PyTree,
        *,
        key: PRNGKey,
    ) -> tuple[SamplerState, PyTree]:
        x = start.data_estimate(score, y, self.clip)
        deviation = coefficients.sample(y - start.kernel.mean(x), key=key)
        return end.kernel.mean(x) + deviation, memory


@eqx.filter_jit
def _posteriors(
    diffusion: AbstractLinearDiffusion, times: Times, roots: PyTree
) -> Transition:
    r"""The laws of $y_s - a_s x$ given $y_t - a_t x$ and $x$, for all steps."""

    def posterior(t: Scalar, s: Scalar, root: VarsMatrix) -> Transition:
        # A root of the joint covariance, made triangular: the later time first, so
        # that the last block is that of the earlier one given the later.
        forward = diffusion.compute_transition(s, t)
        n_vars = len(root)
        later = jnp.concatenate([matmul(forward.mean_map, root), forward.root], axis=1)
        earlier = jnp.concatenate([root, jnp.zeros_like(root)], axis=1)
        joint = lq_root(jnp.concatenate([later, earlier]))
        marginal, cross = joint[:n_vars, :n_vars], joint[n_vars:, :n_vars]
        gain = solve_lower(marginal, cross.T, transpose=True).T
        return Transition(gain, joint[n_vars:, n_vars:])

    return jax.vmap(posterior)(times[:-1], times[1:], roots[1:])


@final
class _Splitting(eqx.Module):
    """The coefficients of a symmetric splitting step."""

    middle: Reading
    before: Transition
    after: Transition
    # 2 D and 2 D S^-1, over the clock's advance.
    of_score: VarsMatrix
    of_state: VarsMatrix


@final
class SSCS(AbstractSampler):
    r"""Symmetric splitting for stationary diffusions of any number of variables.

    The reverse process is, per unit of its clock, $\mathrm{d}y = (Q - D) S^{-1} y \,
    \mathrm{d}\tau + \sqrt{2 D} \mathrm{d}w$, the recipe with $Q \to -Q$ and solved
    exactly, plus $2 D (s + S^{-1} y) \mathrm{d}\tau$. A step is half of the first, all
    of the second by Euler's method at the middle time, and half of the first again. Of
    first order; exact for data distributed like the prior. One evaluation a step.

    **Arguments:**

    - `clip`: as for [`eqmdm.AbstractSampler`][], for the posterior mean at the cut and
        for the score of a denoiser.

    **Source:** Dockhorn, Vahdat & Kreis (2022), section 3.3, for CLD.
    """

    clip: Clip = None

    def n_evaluations(self, n_steps: int) -> int:
        return n_steps + 1

    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        del score
        if not isinstance(diffusion, AbstractStationaryDiffusion):
            raise TypeError(
                "`diffusion` must be stationary for `SSCS`, a subclass of "
                "`AbstractStationaryDiffusion` with Q, D and S; got "
                f"`{type(diffusion).__name__}`. Use `AncestralSampler` or "
                "`DataPrediction`, which take any linear diffusion."
            )
        middles = 0.5 * (times[:-1] + times[1:])
        readings = read_state(diffusion, jnp.concatenate([times, middles]))
        of_grid = part(readings, slice(len(times)))
        of_middles = part(readings, slice(len(times), None))
        return y, of_grid, _splittings(diffusion, times, of_middles)

    def init(self, y: SamplerState) -> PyTree:
        del y

    def step(
        self,
        score: AbstractScore,
        start: Reading,
        end: Reading,
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
            coefficients.of_score, coefficients.middle.score(score, y, self.clip)
        )
        y = y + push + apply_to_vars(coefficients.of_state, y)
        return coefficients.after.sample(y, key=key_after), memory


@eqx.filter_jit
def _splittings(
    diffusion: AbstractStationaryDiffusion, times: Times, middles: Reading
) -> _Splitting:
    recipe, schedule = diffusion.recipe, diffusion.schedule
    G = recipe.diffusion_matrix(times.dtype)
    noise = matmul(G, G.T)
    pull = times_inverse(noise, diffusion.prior.root.astype(times.dtype))
    # (Q - D) S^-1, from -(Q + D) S^-1 and 2 D S^-1.
    opposite = -recipe.drift_matrix(times.dtype) - pull

    def half_step(s: Scalar, t: Scalar) -> Transition:
        tau = schedule.integrated_rate(s, t)
        return constant_transition(opposite, G, tau)

    earlier = jnp.stack([middles.t, times[1:]])
    later = jnp.stack([times[:-1], middles.t])
    halves = jax.vmap(jax.vmap(half_step))(earlier, later)
    before, after = part(halves, 0), part(halves, 1)
    tau = jax.vmap(schedule.integrated_rate)(times[1:], times[:-1])[:, None, None]
    noise, pull = noise[None], pull[None]
    return jax.vmap(_Splitting)(middles, before, after, tau * noise, tau * pull)


@final
class LangevinCorrector(AbstractSampler):
    r"""Another sampler, with Langevin steps at the end of each of its steps.

    With the kernel's covariance $\Sigma = L L^\top$ as preconditioner, so that no
    variable needs a step of its own, and the part that is linear given $\hat x$ solved
    exactly:

    $$y \leftarrow a \hat x + e^{-\epsilon} (y - a \hat x) + \sqrt{1 - e^{-2
    \epsilon}} L w, \qquad \epsilon = 2 r^2$$

    for the signal-to-noise ratio $r$. Exact for one data point. `n_steps` evaluations
    a step, beside those of the sampler.

    **Arguments:**

    - `sampler`: any other sampler.
    - `snr`: $r$. As Song et al. have it, with the norms of the noise and of the score
        equal, as they are on average in the units of $L$.
    - `n_steps`: Langevin steps a step.

    **Source:** Song et al. (2021), algorithms 4 and 5.
    """

    sampler: AbstractSampler
    snr: float
    n_steps: int
    clip: Clip

    def __init__(self, sampler: AbstractSampler, snr: float = 0.16, n_steps: int = 1):
        if not (math.isfinite(snr) and snr > 0):
            raise ValueError(f"`snr` must be positive and finite; got {snr}.")
        check_count("n_steps", n_steps)
        self.sampler, self.snr, self.n_steps = sampler, snr, n_steps
        self.clip = sampler.clip

    def n_evaluations(self, n_steps: int) -> int:
        return self.sampler.n_evaluations(n_steps) + n_steps * self.n_steps

    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        return self.sampler.prepare(score, diffusion, times, y)

    def init(self, y: SamplerState) -> PyTree:
        return self.sampler.init(y)

    def step(
        self,
        score: AbstractScore,
        start: Reading,
        end: Reading,
        coefficients: PyTree,
        y: SamplerState,
        memory: PyTree,
        *,
        key: PRNGKey,
    ) -> tuple[SamplerState, PyTree]:
        key_step, key_correct = jr.split(key)
        y, memory = self.sampler.step(
            score, start, end, coefficients, y, memory, key=key_step
        )

        def correct(y: State, key: PRNGKey) -> tuple[State, None]:
            mean = end.kernel.mean(end.data_estimate(score, y, self.clip))
            noise = apply_to_vars(end.kernel.root, draw_normal(key, y.shape, y.dtype))
            return mean + keep * (y - mean) + spread * noise, None

        step = 2 * self.snr**2
        keep, spread = math.exp(-step), math.sqrt(-math.expm1(-2 * step))
        y, _ = jax.lax.scan(correct, y, jr.split(key_correct, self.n_steps))
        return y, memory
