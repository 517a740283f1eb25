"""Samplers without noise: exponential multistep in the data estimate, and Heun's."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._core.gaussian import (
    PerturbationKernel,
    apply_to_vars,
    contract,
    matmul,
    outer_with_data,
)
from .._core.types import Data, PRNGKey, Scalar, State, VarsMatrix, VarsVector
from .._diffusion import AbstractLinearDiffusion
from .._model.score import AbstractScore, DenoiserScore
from .base import AbstractSampler, Clip, Reading, SamplerState, Times, part, read_state


# Of Gauss-Legendre quadrature over a step. The integrands are exponentials in log-SNR;
# 16 nodes hold them to float32's rounding over steps of up to 50 in log-SNR.
_N_NODES = 16


class AbstractRoot(eqx.Module):
    r"""A differentiable root $R$ of the kernel's covariance along the path.

    Every root gives a flow $\mathrm{d}(R^{-1} y) = \hat x \, \mathrm{d}(R^{-1} a)$ with
    the marginals of the diffusion, because $y = a x + R \epsilon$ has them.
    """

    @abc.abstractmethod
    def propagator(self, start: Reading, end: Reading) -> VarsMatrix:
        r"""$R_s R_t^{-1}$, from the start $t$ of a step to its end $s$."""

    @abc.abstractmethod
    def moments(
        self, diffusion: AbstractLinearDiffusion, start: Reading, end: Reading
    ) -> Float[Array, "2 vars"]:
        r"""$R_s \int_t^s (\lambda - \lambda_t)^k \mathrm{d}(R^{-1} a)$ for $k = 1, 2$,
        with $\lambda$ the log-SNR."""


@final
class CholeskyRoot(AbstractRoot):
    r"""$R = L$, the lower-triangular root.

    The row of the data then moves by itself, given $\hat x$.
    """

    def propagator(self, start: Reading, end: Reading) -> VarsMatrix:
        return matmul(end.kernel.root, start.whitening)

    def moments(
        self, diffusion: AbstractLinearDiffusion, start: Reading, end: Reading
    ) -> Float[Array, "2 vars"]:
        # By parts, because of L^-1 a only values are known. In the logarithm of time,
        # in which it is close to exponential near the data.
        nodes, weights = _nodes(start.t.dtype)
        width = jnp.log(end.t) - jnp.log(start.t)

        def integrands(node: Scalar) -> Float[Array, "2 vars"]:
            t = start.t * jnp.exp(node * width)
            kernel = diffusion.compute_kernel(t)
            carried = matmul(end.kernel.root, kernel.whitened_mean_map)
            rate = width * t * diffusion.log_snr_rate(t, kernel)
            gain = kernel.log_snr - start.log_snr
            return jnp.stack([rate * carried, 2 * rate * gain * carried])

        inner = jnp.sum(weights[:, None, None] * jax.vmap(integrands)(nodes), axis=0)
        gain = end.log_snr - start.log_snr
        ends = jnp.stack([gain, gain**2])
        return ends[:, None] * end.kernel.mean_map[None] - inner


@final
class AlignedRoot(AbstractRoot):
    r"""$R = L O$ with rotations $O$ such that $R^{-1} a$ keeps its direction.

    One coordinate of $R^{-1} y$ is then the data's sufficient statistic in units of its
    noise, and all others stay as they are: the flow is that of the statistic, whatever
    the diffusion. From one time to the next $O$ turns in the plane of the two
    directions of $L^{-1} a$ only, so it exists for every number of variables.
    """

    def propagator(self, start: Reading, end: Reading) -> VarsMatrix:
        u, v = (_unit(reading.kernel.whitened_mean_map) for reading in (start, end))
        between = u + v
        turn = (
            jnp.eye(len(u), dtype=u.dtype)
            - jnp.outer(between, between) / (1 + jnp.sum(u * v))
            + 2 * jnp.outer(v, u)
        )
        return matmul(end.kernel.root, matmul(turn, start.whitening))

    def moments(
        self, diffusion: AbstractLinearDiffusion, start: Reading, end: Reading
    ) -> Float[Array, "2 vars"]:
        # d(R^-1 a) is that of SNR^(1/2), along the one direction.
        del diffusion
        nodes, weights = _nodes(start.t.dtype)
        gain = end.log_snr - start.log_snr
        densities = 0.5 * gain * jnp.exp(-0.5 * gain * (1 - nodes)) * weights
        first = gain * jnp.sum(nodes * densities)
        second = gain**2 * jnp.sum(nodes**2 * densities)
        return jnp.stack([first, second])[:, None] * end.kernel.mean_map[None]


def _nodes(dtype: jnp.dtype) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    nodes, weights = np.polynomial.legendre.leggauss(_N_NODES)
    return jnp.asarray(0.5 * (nodes + 1), dtype), jnp.asarray(0.5 * weights, dtype)


def _unit(vector: VarsVector) -> VarsVector:
    return vector / jnp.linalg.norm(vector)


@final
class _Coefficients(eqx.Module):
    """Of a step with extrapolated estimates.

    The step is the exact one for an estimate that is constant, here that of the middle
    of the step; `differences` of the last two estimates, and of the two before, are
    added where the order is 3.
    """

    propagator: VarsMatrix
    lead: Scalar
    differences: Float[Array, "lags vars"]


def _advance(
    coefficients: _Coefficients,
    start: Reading,
    end: Reading,
    y: State,
    estimates: tuple[Data, ...],
) -> State:
    pairs = zip(estimates[:-1], estimates[1:], strict=True)
    gaps = [newer - older for newer, older in pairs]
    middle = estimates[0]
    if gaps:
        middle = middle + coefficients.lead * gaps[0]
    y = end.kernel.mean(middle) + apply_to_vars(
        coefficients.propagator, y - start.kernel.mean(middle)
    )
    for weights, gap in zip(coefficients.differences, gaps, strict=False):
        y = y + outer_with_data(weights, gap)
    return y


def _earlier(
    steps: Float[Array, " steps"], log_snrs: Times
) -> tuple[Float[Array, " steps"], Bool[Array, " steps"]]:
    """The step before each of these in log-SNR, and whether it is one; 1 where not.

    A gain below the rounding of log-SNR, as near a stationary point, is none: nothing
    about a derivative can be learned over it.
    """
    before = jnp.concatenate([jnp.zeros_like(steps[:1]), steps[:-1]])
    scale = jnp.maximum(jnp.abs(log_snrs[:-1]), 1)
    known = before > 64 * jnp.finfo(steps.dtype).eps * scale
    return jnp.where(known, before, 1), known


@eqx.filter_jit
def _multistep(
    root: AbstractRoot,
    order: int,
    diffusion: AbstractLinearDiffusion,
    readings: Reading,
) -> _Coefficients:
    """The coefficients of all steps, stacked; the first ones are of lower order."""
    start, end = part(readings, slice(-1)), part(readings, slice(1, None))
    propagator = jax.vmap(root.propagator)(start, end)
    n_steps, n_vars, _ = propagator.shape
    dtype = propagator.dtype
    none = jnp.zeros((n_steps, 0, n_vars), dtype)
    if order == 1:
        lead = jnp.zeros(n_steps, dtype)
        return jax.vmap(_Coefficients)(propagator, lead, none)
    gain = end.log_snr - start.log_snr
    before, known = _earlier(gain, readings.log_snr)
    lead = jnp.where(known, 0.5 * gain / before, 0)
    if order == 2:
        return jax.vmap(_Coefficients)(propagator, lead, none)
    shifted = jnp.where(known, before, 0)
    before_that, also_known = _earlier(shifted, readings.log_snr)
    known = known & also_known
    moments = jax.vmap(lambda start, end: root.moments(diffusion, start, end))
    first, second = jnp.moveaxis(moments(start, end), 1, 0)
    # Newton's form of the quadratic through the last three estimates.
    before, before_that = before[:, None], before_that[:, None]
    curvature = (second + before * first) / (before + before_that)
    differences = [(first + curvature) / before, -curvature / before_that]
    differences = jnp.where(known[:, None, None], jnp.stack(differences, axis=1), 0)
    lead = jnp.where(known, 0, lead)
    return jax.vmap(_Coefficients)(propagator, lead, differences)


class AbstractMultistep(AbstractSampler):
    """Exponential multistep, of the diffusion's state or of a statistic of it."""

    order: eqx.AbstractVar[int]

    def __check_init__(self):
        if self.order not in (1, 2, 3):
            raise ValueError(f"`order` must be 1, 2 or 3; got {self.order}.")

    def n_evaluations(self, n_steps: int) -> int:
        return n_steps + 1

    def init(self, y: SamplerState) -> PyTree:
        return (jnp.zeros_like(y[0]),) * (self.order - 1)

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
        del key
        estimates = (start.data_estimate(score, y, self.clip), *memory)
        y = _advance(coefficients, start, end, y, estimates)
        return y, estimates[: self.order - 1]


@final
class DataPrediction(AbstractMultistep):
    r"""Exponential multistep for the state of any diffusion, without noise.

    With $R$ a root of the covariance, $a$ the mean map and $\hat x$ the estimate of the
    data, extrapolated in log-SNR from the last `order` ones,

    $$y_s = R_s R_t^{-1} y_t + R_s \int_t^s \hat x \, \mathrm{d}(R^{-1} a).$$

    Order 1 is $a_s \hat x + R_s R_t^{-1} (y_t - a_t \hat x)$, exact for one data point.
    Order 2 is the same with $\hat x$ extrapolated to the middle of the step, which over
    long steps errs less than the integral of the line; order 3 integrates the parabola.
    One evaluation a step; the first steps are of lower order.

    **Arguments:**

    - `order`: 1, 2 or 3.
    - `root`: $R$; all have the same marginals. [`eqmdm.AlignedRoot`][] by default.
    - `clip`: as for [`eqmdm.AbstractSampler`][].

    **Source:** Lu et al. (2022b), algorithm 2 for order 2, of one variable.
    """

    order: int = 2
    root: AbstractRoot = AlignedRoot()
    clip: Clip = None

    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        del score
        readings = read_state(diffusion, times)
        return y, readings, _multistep(self.root, self.order, diffusion, readings)


@final
class Collapsed(AbstractMultistep):
    r"""Exponential multistep for the data's sufficient statistic alone, for denoisers.

    $z = x + \sigma \epsilon$ with $\sigma = \mathrm{SNR}^{-1/2}$, whatever the
    diffusion: [`eqmdm.DataPrediction`][] for a state of one variable. Order 1 is DDIM,
    order 2 is DPM-Solver++(2M).

    **Arguments:**

    - `order`: 1, 2 or 3.
    - `clip`: as for [`eqmdm.AbstractSampler`][].

    **Source:** Song, Meng & Ermon (2021), equation 12; Lu et al. (2022b), algorithm 2.
    """

    order: int = 2
    clip: Clip = None

    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        z, readings = _collapse(self, score, diffusion, times, y)
        return z, readings, _multistep(AlignedRoot(), self.order, diffusion, readings)


@final
class CollapsedHeun(AbstractSampler):
    r"""Heun's method in $\sigma$ for the data's sufficient statistic, for denoisers.

    $\mathrm{d} z / \mathrm{d} \sigma = (z - \hat x) / \sigma$. Two evaluations a step.

    **Arguments:**

    - `clip`: as for [`eqmdm.AbstractSampler`][].

    **Source:** Karras et al. (2022), algorithm 1.
    """

    clip: Clip = None

    def n_evaluations(self, n_steps: int) -> int:
        return 2 * n_steps + 1

    def prepare(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        times: Times,
        y: State,
    ) -> tuple[SamplerState, Reading, PyTree]:
        z, readings = _collapse(self, score, diffusion, times, y)
        # The change of sigma, relative to that at the start and to that at the end.
        gain = jnp.diff(readings.log_snr)
        return z, readings, (jnp.expm1(-0.5 * gain), -jnp.expm1(0.5 * gain))

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
        del key
        of_start, of_end = coefficients
        first = of_start * (y - start.data_estimate(score, y, self.clip)[None])
        euler = y + first
        second = of_end * (euler - end.data_estimate(score, euler, self.clip)[None])
        return y + 0.5 * (first + second), memory


def _collapse(
    sampler: AbstractSampler,
    score: AbstractScore,
    diffusion: AbstractLinearDiffusion,
    times: Times,
    y: State,
) -> tuple[SamplerState, Reading]:
    """The statistic of `y` as a state of one variable, and its readings."""
    if not isinstance(score, DenoiserScore):
        raise TypeError(
            f"`score` must be a `DenoiserScore` for `{type(sampler).__name__}`, which "
            "follows the sufficient statistic of the data alone; got "
            f"`{type(score).__name__}`. Use `DataPrediction`, which follows the whole "
            "state with any score."
        )
    of_state = read_state(diffusion, times)

    def of_statistic(t: Scalar, log_snr: Scalar) -> Reading:
        one, sigma = jnp.ones((1,), log_snr.dtype), jnp.exp(-0.5 * log_snr)
        kernel = PerturbationKernel(one, sigma[None, None])
        whitening, variance = 1 / sigma[None, None], jnp.exp(-log_snr)[None]
        return Reading(t, kernel, log_snr, whitening, one, variance)

    readings = jax.vmap(of_statistic)(of_state.t, of_state.log_snr)
    z = contract(of_state.data_weights[0], y)
    return z[None], readings
