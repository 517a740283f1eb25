"""The interface of samplers, and the scan that runs them."""

import abc
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from .._core.gaussian import PerturbationKernel, apply_to_vars, contract
from .._core.types import Data, PRNGKey, Scalar, State, VarsMatrix, VarsVector
from .._diffusion import AbstractLinearDiffusion
from .._model.score import (
    AbstractScore,
    CallableScore,
    DenoiserScore,
    FreeScore,
    ScoreFunction,
    as_score,
)


Clip: TypeAlias = tuple[float, float] | None
Times: TypeAlias = Float[Array, " times"]
# A sampler's own: the diffusion's, or that of a statistic, which has one row.
SamplerState: TypeAlias = Float[Array, "rows *data"]


def part(tree: PyTree, index: int | slice) -> PyTree:
    """The part of every leaf of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def clipped(x: Data, clip: Clip) -> Data:
    return x if clip is None else jnp.clip(x, *clip)


@final
class Reading(eqx.Module):
    """What a score is read with at one time: the kernel, and what follows from it.

    Made for all times of a grid at once, so that no step solves anything.
    """

    t: Scalar
    kernel: PerturbationKernel
    log_snr: Scalar
    whitening: VarsMatrix
    data_weights: VarsVector
    score_weights: VarsVector

    @classmethod
    def of(cls, t: Scalar, kernel: PerturbationKernel) -> "Reading":
        log_snr = kernel.log_snr
        return cls(
            t,
            kernel,
            log_snr,
            kernel.whitening,
            kernel.data_weights,
            kernel.mean_map / jnp.exp(log_snr),
        )

    def data_estimate(self, score: AbstractScore, y: State, clip: Clip) -> Data:
        r"""$E[x \mid y]$ according to the score, by one evaluation of its network."""
        if isinstance(score, DenoiserScore):
            z = contract(self.data_weights, y)
            return clipped(score.estimate(self.log_snr, z), clip)
        if isinstance(score, FreeScore | CallableScore):
            # Tweedie's formula for the sufficient statistic.
            z = contract(self.data_weights, y)
            shift = contract(self.score_weights, self.score(score, y, None))
            return clipped(z + shift, clip)
        return clipped(score.data_estimate(self.t, self.kernel, y), clip)

    def score(self, score: AbstractScore, y: State, clip: Clip) -> State:
        """The score at `y`, by one evaluation of its network.

        Only the data estimate that a denoiser's score is made of can be clipped.
        """
        if isinstance(score, DenoiserScore):
            residual = self.kernel.mean(self.data_estimate(score, y, clip)) - y
            whitened = apply_to_vars(self.whitening, residual)
            return apply_to_vars(self.whitening.T, whitened)
        if isinstance(score, FreeScore):
            return -apply_to_vars(self.whitening.T, score.noise(self.t, y))
        return score(self.t, y)


class AbstractSampler(eqx.Module):
    r"""A way from the prior to the data along a grid of times.

    A sampler reads the score at every time, prepares the coefficients of its steps, and
    then scans over them. Its state is the diffusion's own, or a statistic of it; the
    kernel of each reading is the law of that state given the data. The last step of
    every sampler is the posterior mean of the data at the cut.

    `clip` bounds the estimates $\hat x$ of the data that steps are made of, `(low,
    high)` in their units, where they are known to lie between; `None` leaves them.
    """

    clip: eqx.AbstractVar[Clip]

    def __check_init__(self):
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(
                f"`clip` must be (low, high), increasing, or None; got {self.clip}."
            )

    @abc.abstractmethod
    def n_evaluations(self, n_steps: int) -> int:
        """The evaluations of the network for a grid of `n_steps` steps, the posterior
        mean at the cut included."""

    @abc.abstractmethod
    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        """What the scan starts from and runs over, from the diffusion's state `y`.

        **Returns:**

        The sampler's own state at the first time; the readings at all times, stacked;
        and the coefficients of all steps, stacked.

        **Raises:**

        `TypeError` for a score or a diffusion that the sampler cannot use.
        """

    @abc.abstractmethod
    def init(self, y: SamplerState) -> PyTree:
        """What the first step is to remember of the steps before it."""

    @abc.abstractmethod
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
        """The state at the end of a step, and what the next is to remember."""

    def __call__(
        self,
        score: ScoreFunction,
        diffusion: AbstractLinearDiffusion,
        y: State,
        times: Times,
        *,
        key: PRNGKey,
    ) -> Data:
        """One sample of the data.

        **Arguments:**

        - `score`: a score, or any callable `(t, y) -> score`, on one example.
        - `diffusion`: that the score is of.
        - `y`: the state at `times[0]`, drawn from the prior.
        - `times`: a grid's: decreasing, at least two.
        - `key`: of the noises; unused where a sampler has none.

        **Returns:**

        The posterior mean of the data given the state at `times[-1]`, in the dtype of
        `y`.

        **Raises:**

        `ValueError` for shapes that do not fit; `TypeError` for a score or a diffusion
        that the sampler cannot use.
        """
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(
                f"`times` must be a vector of two or more; got shape {times.shape}."
            )
        if y.ndim < 1 or len(y) != diffusion.n_vars:
            raise ValueError(
                f"`y` must have a row for each of the {diffusion.n_vars} variables of "
                f"`diffusion`; got shape {y.shape}. Batch with `jax.vmap`."
            )
        score = as_score(score, diffusion)
        return _run(self, score, diffusion, y, times, key)


# Compiled by itself: outside of `jax.jit` the loop over a new function would be
# compiled at every call.
@eqx.filter_jit
def _run(
    sampler: AbstractSampler,
    score: AbstractScore,
    diffusion: AbstractLinearDiffusion,
    y: State,
    times: Times,
    key: PRNGKey,
) -> Data:
    y, readings, coefficients = sampler.prepare(score, diffusion, times, y)
    # Coefficients may be of a wider dtype, the state's stays.
    cast = lambda leaf: leaf.astype(y.dtype)
    readings, coefficients = jax.tree.map(cast, (readings, coefficients))
    start, end = part(readings, slice(-1)), part(readings, slice(1, None))

    def step(carry, inputs):
        start, end, coefficients, key = inputs
        y, memory = sampler.step(score, start, end, coefficients, *carry, key=key)
        return (y, memory), None

    keys = jr.split(key, len(times) - 1)
    inputs = start, end, coefficients, keys
    (y, _), _ = jax.lax.scan(step, (y, sampler.init(y)), inputs)
    return part(readings, -1).data_estimate(score, y, sampler.clip)


@eqx.filter_jit
def read_state(diffusion: AbstractLinearDiffusion, times: Times) -> Reading:
    """The readings of the diffusion's own state at several times, stacked."""
    read = lambda t: Reading.of(t, diffusion.compute_kernel(t))
    return jax.vmap(read)(times)
