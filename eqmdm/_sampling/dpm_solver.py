"""DPM-Solver++: an exponential multistep method in the data estimate."""

from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._core.blocks import by_coordinate, matmul
from .._core.gaussian import PerturbationKernel, apply_to_vars
from .._core.types import PRNGKey, State, VarsMatrix, VarsVector
from .._model.base import AbstractModel
from .grids import AbstractGrid, LogSNRGrid, Times
from .stacks import (
    Clip,
    SamplerState,
    check_follows_data,
    collapse,
    data_estimate,
    kernels_at,
    log_snrs_of,
    part,
)
from .step_sampler import AbstractStepSampler


# Gauss-Legendre quadrature over a step. The integrands are exponentials in log-SNR; 16
# nodes integrate them to float32 rounding over steps of up to 50 in log-SNR.
_N_NODES = 16


@final
class _Coefficients(eqx.Module):
    """The coefficients of all steps, stacked.

    Let $x_0$ be the newest estimate, $x_1$ and $x_2$ the ones in memory, and $R$ the
    aligned root. A step is $a_s u + R_s R_t^{-1} (y - a_t v)$, where $u$ and $v$ are
    combinations of the three estimates. `base` (for $v$) and `target` (for $u$) are the
    weights of $x_0 - x_1$ and $x_1 - x_2$, which are added to $x_0$. `keep_older` is
    whether the step drops $x_1$ from memory rather than $x_2$.
    """

    propagator: Float[Array, "steps vars vars *coordinates"]
    base: Float[Array, "steps differences *coordinates"]
    target: Float[Array, "steps differences *coordinates"]
    keep_older: Bool[Array, " steps"]


@final
class DPMSolver(AbstractStepSampler):
    r"""DPM-Solver++, a deterministic exponential multistep method in the data estimate.

    $z = x + \sigma \epsilon$ with $\sigma = e^{-\lambda / 2}$ is a sufficient statistic
    for the data, for every diffusion. With the estimate $\hat x$ extrapolated in
    log-SNR $\lambda$ from the last `order` estimates,

    $$z_s = \frac{\sigma_s}{\sigma_t} z_t + \sigma_s \int_t^s \hat x \,
    \mathrm{d} \sigma^{-1}.$$

    A model with a denoiser only needs $z$. For any other model the whole state moves,
    by $y = a x + R \epsilon$, where $R$ is the root of the covariance for which
    $R^{-1} a$ has a constant direction. Then $z$ moves as above, and the samples are
    the same.

    Order 1 is DDIM, which is exact for a single data point. Order 2 takes $\hat x$ at
    the middle of the step, which is more accurate over long steps than the integral of
    the line, and starts with a step of order 1. Order 3 integrates the parabola. It
    starts with two additional evaluations within the first step, so that this step is
    also of order 3. All other steps take one evaluation.

    **Arguments:**

    - `order`: 1, 2 or 3.
    - `grid`: the step grid.
    - `clip`: as for [`eqmdm.AbstractStepSampler`][].

    **Source:** Song, Meng & Ermon (2021), equation 12, for order 1; Lu et al. (2022b),
    algorithm 2, for order 2; Lu et al. (2022), algorithm 2, for the first step of order
    3.
    """

    ends_in_data: ClassVar[bool] = True

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
        check_follows_data(model, self)
        if self.order == 3:
            times = _with_stages(times)
        if model.has_denoiser:
            y, kernels = collapse(self, model, times, y)
        else:
            kernels = kernels_at(model.linear_diffusion, times)
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
        # Combine differences, so that no accuracy is lost where all estimates agree.
        deviation = apply_to_vars(coefficients.propagator, y - start.mean(base))
        y = end.mean(target) + deviation
        if self.order < 3:
            return y, estimates[: self.order - 1]
        newest, middle, oldest = estimates
        return y, (newest, jnp.where(coefficients.keep_older, oldest, middle))


def _with_stages(times: Times) -> Float[Array, " all_times"]:
    """The times, with the two stages of the order-3 start added in the first step.

    The stages are uniform in time, which needs no search. Their log-SNRs are read from
    their kernels.
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
    # The last step of the start drops the middle stage, the least accurate estimate.
    # The step after it drops the last stage.
    keep_older[2:4] = True
    third_order = lambda _, log_snrs: _third_order(log_snrs)
    base, target = by_coordinate(third_order, end.root[0], log_snrs)
    return _Coefficients(propagator, base, target, jnp.asarray(keep_older))


def _propagator(start: PerturbationKernel, end: PerturbationKernel) -> VarsMatrix:
    r"""$R_s R_t^{-1}$, where $R = L O$ with rotations $O$ such that $R^{-1} a$ has a
    constant direction.

    Between two times $O$ rotates only in the plane of the two directions of $L^{-1} a$,
    so it exists for every number of variables.
    """

    def propagator(
        root: VarsMatrix, whitening: VarsMatrix, u: VarsVector, v: VarsVector
    ) -> VarsMatrix:
        between = u + v
        turn = (
            jnp.eye(len(u), dtype=u.dtype)
            - jnp.outer(between, between) / (1 + jnp.sum(u * v))
            + 2 * jnp.outer(v, u)
        )
        return matmul(root, matmul(turn, whitening))

    return by_coordinate(
        propagator, end.root, start.whitening, start.direction, end.direction
    )


def _second_order(
    log_snrs: Float[Array, "times *coordinates"],
) -> Float[Array, "steps 1 *coordinates"]:
    """The weight that extrapolates two estimates linearly to the middle of a step."""
    gain = jnp.diff(log_snrs, axis=0)
    before = jnp.concatenate([jnp.zeros_like(gain[:1]), gain[:-1]])
    known, before = _resolved(before, log_snrs[:-1])
    return jnp.where(known, 0.5 * gain / before, 0)[:, None]


def _resolved(
    gap: Float[Array, "..."], log_snr: Float[Array, "..."]
) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """Whether gaps in log-SNR exceed rounding, and the gaps, replaced by 1 if not.

    A smaller gap, for example near a stationary point, gives no information about a
    derivative.
    """
    scale = jnp.maximum(jnp.abs(log_snr), 1)
    known = gap > 64 * jnp.finfo(gap.dtype).eps * scale
    return known, jnp.where(known, gap, 1)


def _moments(
    gain: Float[Array, " steps"],
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    r"""$\sigma_s \int_t^s (\lambda - \lambda_t)^k \mathrm{d} \sigma^{-1}$ for $k = 1,
    2$, from the increase of log-SNR over a step."""
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
    # The log-SNRs of the newest estimates and of the two estimates in memory.
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
    # Reduce the order where an estimate is missing.
    line = jnp.stack([jnp.where(known, 0.5 * gain / before, 0), jnp.zeros_like(gain)])
    base = jnp.where(both[None], 0, line).T
    target = jnp.where(both[None], parabola, line).T
    start_base, start_target = _third_order_start(log_snrs[:4])
    base = jnp.concatenate([start_base, base[3:]])
    return base, jnp.concatenate([start_target, target[3:]])


def _third_order_start(
    log_snrs: Float[Array, "4"],
) -> tuple[Float[Array, "3 2"], Float[Array, "3 2"]]:
    """The weights of the first step, which is taken through two stages.

    The first stage is reached with order 1. The second integrates a line, and the end
    of the step a parabola through all three estimates, both from the start of the step.
    `base` therefore undoes the estimate that the previous part used.
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
