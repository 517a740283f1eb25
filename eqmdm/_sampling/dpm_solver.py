"""DPM-Solver++: exponential multistep in the estimate of the data."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._core.gaussian import PerturbationKernel, apply_to_vars, matmul
from .._core.types import PRNGKey, State, VarsMatrix
from .._model.base import AbstractModel
from .grids import AbstractGrid, LogSNRGrid, Times
from .stacks import (
    Clip,
    SamplerState,
    collapse,
    data_estimate,
    kernels_at,
    log_snrs_of,
    part,
)
from .step_sampler import AbstractStepSampler


# Of Gauss-Legendre quadrature over a step. The integrands are exponentials in log-SNR;
# 16 nodes hold them to float32's rounding over steps of up to 50 in log-SNR.
_N_NODES = 16


@final
class _Coefficients(eqx.Module):
    """The coefficients of steps, stacked.

    With $x_0$ the newest estimate, $x_1$ and $x_2$ those that are remembered, and $R$
    the aligned root, a step is $a_s u + R_s R_t^{-1} (y - a_t v)$ with $u$ and $v$
    combinations of the three. `base` ($v$) and `target` ($u$) are the weights of $x_0 -
    x_1$ and $x_1 - x_2$ in addition to $x_0$. `keep_older` is whether to forget $x_1$
    rather than $x_2$ after the step.
    """

    propagator: Float[Array, "steps vars vars"]
    base: Float[Array, "steps differences"]
    target: Float[Array, "steps differences"]
    keep_older: Bool[Array, " steps"]


@final
class DPMSolver(AbstractStepSampler):
    r"""DPM-Solver++, exponential multistep in the estimate of the data, without noise.

    $z = x + \sigma \epsilon$ with $\sigma = e^{-\lambda / 2}$ is the data's sufficient
    statistic, whatever the diffusion. With the estimate $\hat x$ extrapolated in
    log-SNR $\lambda$ from the last `order` ones,

    $$z_s = \frac{\sigma_s}{\sigma_t} z_t + \sigma_s \int_t^s \hat x \,
    \mathrm{d} \sigma^{-1}.$$

    A model with a denoiser needs $z$ alone. For any other the whole state moves, by $y
    = a x + R \epsilon$ with the one root $R$ of the covariance for which $R^{-1} a$
    keeps its direction: $z$ then moves as above, and the samples are the same.

    Order 1 is DDIM, exact for one data point. Order 2 takes $\hat x$ at the middle of
    the step, which over long steps errs less than the integral of the line, and starts
    with a step of order 1. Order 3 integrates the parabola, and starts with two further
    evaluations within the first step, so that this is of its order too. One evaluation
    a step otherwise.

    **Arguments:**

    - `order`: 1, 2 or 3.
    - `grid`: the steps.
    - `clip`: as for [`eqmdm.AbstractStepSampler`][].

    **Source:** Song, Meng & Ermon (2021), equation 12, for order 1; Lu et al. (2022b),
    algorithm 2, for order 2; Lu et al. (2022), algorithm 2, for the first step of order
    3.
    """

    order: int = 2
    grid: AbstractGrid = LogSNRGrid()
    clip: Clip = None

    def __check_init__(self):
        if self.order not in (1, 2, 3):
            raise ValueError(f"`order` must be 1, 2 or 3; got {self.order}.")

    def n_evaluations(self, n_steps: int) -> int:
        return n_steps + (3 if self.order == 3 else 1)

    def prepare(
        self, model: AbstractModel, times: Times, y: State
    ) -> tuple[SamplerState, PerturbationKernel, PyTree, PyTree]:
        if self.order == 3:
            times = _with_stages(times)
        if model.has_denoiser:
            y, kernels = collapse(self, model, times, y)
        else:
            kernels = kernels_at(model.diffusion, times)
        memory = (jnp.zeros_like(y[0]),) * (self.order - 1)
        return y, kernels, _coefficients(self.order, kernels), memory

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
        base = target = data_estimate(model, start, y, self.clip)
        estimates = (base, *memory)
        pairs = zip(estimates[:-1], estimates[1:], strict=True)
        for i, (newer, older) in enumerate(pairs):
            base = base + coefficients.base[i] * (newer - older)
            target = target + coefficients.target[i] * (newer - older)
        # Of differences, so that nothing is lost where all estimates agree.
        deviation = apply_to_vars(coefficients.propagator, y - start.mean(base))
        y = end.mean(target) + deviation
        if self.order < 3:
            return y, estimates[: self.order - 1]
        newest, middle, oldest = estimates
        return y, (newest, jnp.where(coefficients.keep_older, oldest, middle))


def _with_stages(times: Times) -> Float[Array, " all_times"]:
    """The times with the two stages of a start of order 3 in the first step.

    Uniform in time, which needs no search; their log-SNRs are those of their kernels.
    """
    shares = np.asarray([1 / 3, 2 / 3])
    stages = times[0] + (times[1] - times[0]) * jnp.asarray(shares, times.dtype)
    return jnp.concatenate([times[:1], stages, times[1:]])


@eqx.filter_jit
def _coefficients(order: int, kernels: PerturbationKernel) -> _Coefficients:
    start, end = part(kernels, slice(-1)), part(kernels, slice(1, None))
    propagator = jax.vmap(_propagator)(start, end)
    n_steps, log_snrs = len(propagator), log_snrs_of(kernels)
    keep_older = np.zeros(n_steps, bool)
    if order < 3:
        weights = _second_order(log_snrs)[:, : order - 1]
        return _Coefficients(propagator, weights, weights, jnp.asarray(keep_older))
    # After the last step of the start the middle stage is forgotten, which is known
    # least well, and after the step that follows the last stage.
    keep_older[2:4] = True
    base, target = _third_order(log_snrs)
    return _Coefficients(propagator, base, target, jnp.asarray(keep_older))


def _propagator(start: PerturbationKernel, end: PerturbationKernel) -> VarsMatrix:
    r"""$R_s R_t^{-1}$ with $R = L O$ and rotations $O$ such that $R^{-1} a$ keeps its
    direction.

    From one time to the next $O$ turns in the plane of the two directions of $L^{-1} a$
    only, so it exists for every number of variables.
    """
    u, v = start.direction, end.direction
    between = u + v
    turn = (
        jnp.eye(len(u), dtype=u.dtype)
        - jnp.outer(between, between) / (1 + jnp.sum(u * v))
        + 2 * jnp.outer(v, u)
    )
    return matmul(end.root, matmul(turn, start.whitening))


def _second_order(log_snrs: Times) -> Float[Array, "steps 1"]:
    """The weight that takes the line through two estimates to the middle of a step."""
    gain = jnp.diff(log_snrs)
    before = jnp.concatenate([jnp.zeros_like(gain[:1]), gain[:-1]])
    known, before = _resolved(before, log_snrs[:-1])
    return jnp.where(known, 0.5 * gain / before, 0)[:, None]


def _resolved(
    gap: Float[Array, " steps"], log_snr: Float[Array, " steps"]
) -> tuple[Bool[Array, " steps"], Float[Array, " steps"]]:
    """Whether gaps in log-SNR are above its rounding, and the gaps, 1 where not.

    Over a smaller gap, as near a stationary point, nothing can be learned about a
    derivative.
    """
    scale = jnp.maximum(jnp.abs(log_snr), 1)
    known = gap > 64 * jnp.finfo(gap.dtype).eps * scale
    return known, jnp.where(known, gap, 1)


def _moments(
    gain: Float[Array, " steps"],
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    r"""$\sigma_s \int_t^s (\lambda - \lambda_t)^k \mathrm{d} \sigma^{-1}$ for $k = 1,
    2$, from the gain of log-SNR in a step."""
    nodes, weights = (
        jnp.asarray(a, gain.dtype) for a in np.polynomial.legendre.leggauss(_N_NODES)
    )
    nodes, weights = 0.5 * (nodes + 1), 0.5 * weights
    gain = gain[:, None]
    densities = 0.5 * gain * jnp.exp(-0.5 * gain * (1 - nodes)[None]) * weights[None]
    first = jnp.sum(gain * nodes[None] * densities, axis=1)
    return first, jnp.sum((gain * nodes[None]) ** 2 * densities, axis=1)


def _third_order(
    log_snrs: Times,
) -> tuple[Float[Array, "steps 2"], Float[Array, "steps 2"]]:
    """The weights of `base` and `target`, for log-SNRs with the stages of the start."""
    n_steps = len(log_snrs) - 1
    # The times of the last estimates and of those before, as they are remembered.
    newest = np.arange(n_steps)
    middle = np.maximum(newest - 1, 0)
    oldest = np.maximum(newest - 2, 0)
    oldest[3:5] = 0
    at_newest, at_middle = log_snrs[newest], log_snrs[middle]
    known, before = _resolved(at_newest - at_middle, at_newest)
    both, before_that = _resolved(at_middle - log_snrs[oldest], at_newest)
    both = known & both
    gain = jnp.diff(log_snrs)
    first, second = _moments(gain)
    # Newton's form of the parabola through the three estimates.
    curvature = (second + before * first) / (before + before_that)
    parabola = jnp.stack([(first + curvature) / before, -curvature / before_that])
    # Of lower order where an estimate is missing.
    line = jnp.stack([jnp.where(known, 0.5 * gain / before, 0), jnp.zeros_like(gain)])
    base = jnp.where(both[None], 0, line).T
    target = jnp.where(both[None], parabola, line).T
    start_base, start_target = _third_order_start(log_snrs[:4])
    base = jnp.concatenate([start_base, base[3:]])
    return base, jnp.concatenate([start_target, target[3:]])


def _third_order_start(
    log_snrs: Float[Array, "4"],
) -> tuple[Float[Array, "3 2"], Float[Array, "3 2"]]:
    """The weights of the first step, taken by way of two stages in it.

    The first stage is reached by order 1, the second by the integral of a line from the
    start of the step, the end by that of the parabola through all three estimates, from
    there too: what the last part took for the estimate is `base`, and is taken back.
    """
    gaps = jnp.diff(log_snrs)
    known, gaps = _resolved(gaps, log_snrs[:-1])
    a, a_to_b, _ = gaps
    b = a + a_to_b
    whole = b + gaps[2]
    first, second = _moments(jnp.stack([b, whole]))
    slope = first[0] / a
    bend = (second[1] - a * first[1]) / b
    zero, one = jnp.zeros_like(slope), jnp.ones_like(slope)
    base = [[zero, zero], [-one, zero], [-one, slope - 1]]
    last = [bend / a_to_b - 1, (first[1] - bend) / a - 1]
    target = [[zero, zero], [slope - 1, zero], last]
    usable = jnp.all(known)
    stack = lambda rows: jnp.where(usable, jnp.asarray(rows), 0)
    return stack(base), stack(target)
