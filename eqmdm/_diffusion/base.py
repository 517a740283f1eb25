"""The interface that every diffusion implements."""

import abc
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.checks import check_precision, concrete
from .._core.gaussian import (
    Gaussian,
    PerturbationKernel,
    Transition,
    apply_to_vars,
    lq_root,
    matmul,
    solve_lower,
)
from .._core.operator import VarsOperator
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, RankMatrix, Scalar, State, Time, VarsMatrix
from .interval import Interval, LogSNRInterval, TimeInterval
from .schedule import AbstractSchedule


# The search for a log-SNR starts at this time, where float32 still resolves kernels.
_EARLIEST_TIME = 1e-12


def check_schedule_reaches(schedule: AbstractSchedule, interval: Interval) -> None:
    """**Raises:** `ValueError` if the interval ends after the schedule, where both are
    known."""
    t1 = concrete(interval.t1) if isinstance(interval, TimeInterval) else None
    if t1 is None or t1 < schedule.t_limit:
        return
    # Of a traced schedule the limit is not known.
    if concrete(schedule.rate(jnp.zeros((), jnp.result_type(float)))) is not None:
        raise ValueError(
            "`interval` must end before the schedule does, at "
            f"t = {schedule.t_limit}; got t1 = {t1}."
        )


@final
class Laws(eqx.Module):
    """The laws of one time given the whole start, and given the data alone."""

    step: Transition
    kernel: PerturbationKernel


class AbstractDiffusion(eqx.Module):
    r"""An Itô process $\mathrm{d}y = f(t, y) \mathrm{d}t + g(t) \mathrm{d}w$ on states.

    A state has shape `(vars, *data)`: row 0 is the data, further rows are auxiliary
    variables. `drift` and `diffusion_coefficient` take `(t, y, args)`, as the terms of
    Diffrax call them. Methods act on one example.
    """

    @property
    @abc.abstractmethod
    def n_vars(self) -> int:
        """$K$, the variables per data coordinate, the data included."""

    @property
    @abc.abstractmethod
    def prior(self) -> Gaussian:
        """The law that stands for $y(t_1)$ when sampling and in bounds."""

    @property
    @abc.abstractmethod
    def t0(self) -> Scalar:
        """The cut: the earliest time that is trained on or sampled down to."""

    @property
    @abc.abstractmethod
    def t1(self) -> Scalar:
        """The horizon: the time at which the prior takes over."""

    @abc.abstractmethod
    def drift(self, t: Time, y: State, args: Any = None) -> State:
        """$f(t, y)$."""

    @abc.abstractmethod
    def diffusion_coefficient(
        self, t: Time, y: State, args: Any = None
    ) -> VarsOperator:
        """$g(t)$, a Lineax operator from noise `(rank, *data)` to states."""


class AbstractLinearDiffusion(AbstractDiffusion):
    r"""$\mathrm{d}y = F(t) y \,\mathrm{d}t + G(t) \,\mathrm{d}w$ with Gaussian kernels.

    $F$ and $G$ mix the `vars` axis and act alike on every data coordinate. Given the
    data $x$, the state starts with its data row at $x$ and its auxiliaries at a normal
    law of covariance `start_root @ start_root.T`, independent of $x$.

    Most new ones are a call of [`eqmdm.LinearDiffusion`][], where the diffusion has a
    Gaussian stationary law, or of [`eqmdm.TimeVaryingDiffusion`][]. To write a class,
    subclass this with `drift_matrix`, `diffusion_matrix`, `compute_transition` (for
    which [`eqmdm.composed_transition`][] serves), `start_root`, `prior`, `n_vars`,
    `t_limit` and `interval`.

    All times are arrays, and results have their dtype.
    """

    @property
    @abc.abstractmethod
    def interval(self) -> Interval:
        """The interval that it is used on, from which `t0` and `t1` follow."""

    @property
    @abc.abstractmethod
    def t_limit(self) -> Scalar:
        """The latest time at which kernels can be computed; at least `t1`."""

    @abc.abstractmethod
    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns"]:
        """A root of the covariance of $y(0)$ given the data; its row 0 is zero."""

    @abc.abstractmethod
    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        """$F(t)$."""

    @abc.abstractmethod
    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        """$G(t)$, with a column only for noise that enters."""

    @abc.abstractmethod
    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        """The law of $y(t)$ given $y(s)$ for $s < t$, without checks of the times.

        What subclasses implement, and what vector fields call; users call
        `transition`.
        """

    @property
    def t0(self) -> Scalar:
        if isinstance(self.interval, TimeInterval):
            return jnp.asarray(self.interval.t0, jnp.result_type(float))
        high = jnp.asarray(self.interval.high, jnp.result_type(float))
        return self._solve_log_snr(high)

    @property
    def t1(self) -> Scalar:
        if isinstance(self.interval, TimeInterval):
            return jnp.asarray(self.interval.t1, jnp.result_type(float))
        low = jnp.asarray(self.interval.low, jnp.result_type(float))
        return self._solve_log_snr(low)

    def drift(self, t: Time, y: State, args: Any = None) -> State:
        del args
        return apply_to_vars(self.drift_matrix(jnp.asarray(t, y.dtype)), y)

    def diffusion_coefficient(
        self, t: Time, y: State, args: Any = None
    ) -> VarsOperator:
        del args
        matrix = self.diffusion_matrix(jnp.asarray(t, y.dtype))
        return VarsOperator(matrix, y.shape[1:])

    def compute_kernel(self, t: Scalar) -> PerturbationKernel:
        """The law of $y(t)$ given the data, without checks of the time."""
        return self.compute_laws(t).kernel

    def compute_laws(self, t: Scalar) -> Laws:
        """The laws of $y(t)$ given the start and given the data, without checks."""
        step = self.compute_transition(jnp.zeros_like(t), t)
        return Laws(step, self._kernel_after(step))

    def _kernel_after(self, step: Transition) -> PerturbationKernel:
        """The law of $y(t)$ given the data, from the transition out of time 0.

        The start covariance goes in last and as a root: added to the covariance of the
        step it would cost digits from three variables on.
        """
        start = self.start_root(step.root.dtype)
        if start.shape[1] == 0:
            root = step.root
        else:
            columns = [matmul(step.mean_map, start), step.root]
            root = lq_root(jnp.concatenate(columns, axis=1))
        return PerturbationKernel(step.mean_map[:, 0], root)

    def draw_start(self, x: Data, *, key: PRNGKey) -> State:
        """A draw of $y(0)$ given the data: `x`, and the auxiliaries at random."""
        root = self.start_root(x.dtype)
        data = jnp.zeros((self.n_vars, *x.shape), x.dtype).at[0].set(x)
        noise = draw_normal(key, (root.shape[1], *x.shape), x.dtype)
        return data + apply_to_vars(root, noise) if root.shape[1] else data

    def transition(self, s: Scalar, t: Scalar) -> Transition:
        r"""The law of $y(t)$ given $y(s)$.

        **Arguments:**

        - `s`, `t`: diffusion times with $0 \le s \le t \le t_1$; arrays.

        **Raises:**

        `ValueError` for times that are out of order or outside the horizon;
        `equinox.EquinoxRuntimeError` where the times are traced.
        """
        s, t = _as_time("s", s), _as_time("t", t)
        s = _check(s, (s < 0) | ~(s <= t), "`s` must lie between 0 and `t`", s)
        return self.compute_transition(s, self._check_horizon(t))

    def perturbation_kernel(self, t: Scalar) -> PerturbationKernel:
        r"""The law of $y(t)$ given the data $x$, auxiliaries integrated out.

        **Raises:**

        `ValueError`, or `equinox.EquinoxRuntimeError` where `t` is traced, unless
        $0 < t \le t_1$.
        """
        t = _as_time("t", t)
        t = _check(
            t,
            ~(t > 0),
            "`t` must be positive: at t = 0 the kernel is a point mass. Raise the "
            "lower limit of the times",
            t,
        )
        return self.compute_kernel(self._check_horizon(t))

    def log_snr(self, t: Scalar) -> Scalar:
        r"""$\log a^\top \Sigma^{-1} a$ at time `t`, natural logarithm.

        The signal-to-noise ratio of the data in the whole state; weakly decreasing.
        """
        return self.perturbation_kernel(t).log_snr

    def log_snr_rate(self, t: Scalar, kernel: PerturbationKernel) -> Scalar:
        r"""$\mathrm{d} \log \mathrm{SNR} / \mathrm{d}t = -\|G^\top \Sigma^{-1} a\|^2 /
        \mathrm{SNR}$."""
        b = kernel.whitened_mean_map
        b = b / jnp.linalg.norm(b)
        noise = solve_lower(kernel.root, self.diffusion_matrix(t))
        return -jnp.sum(jnp.sum(noise * b[:, None], axis=0) ** 2)

    def time_at_log_snr(self, log_snr: Scalar) -> Scalar:
        """The time at which the log signal-to-noise ratio has a given value.

        Found by bisection in the logarithm of time; differentiable, by the implicit
        function theorem, in `log_snr` and in the parameters of the diffusion.

        **Raises:**

        `ValueError`, or `equinox.EquinoxRuntimeError` where the value is traced, if
        the diffusion does not reach it by `t_limit`, or has fallen below it before
        the first time at which kernels resolve it.
        """
        log_snr = _as_time("log_snr", log_snr)
        t = self._check_reached(self._solve_log_snr(log_snr), log_snr)
        found = self.compute_kernel(jax.lax.stop_gradient(t)).log_snr
        return _check_resolved(t, found, log_snr)

    def _check_reached(self, t: Scalar, log_snr: Scalar) -> Scalar:
        limit = jax.lax.stop_gradient(self.t_limit).astype(t.dtype)
        # The search ends there where the value is not reached.
        beyond = ~(t < limit * (1 - 8 * jnp.finfo(t.dtype).eps))
        return _check(
            t,
            beyond,
            "`log_snr` must be reached by this diffusion before its kernels end "
            f"at t = {concrete(limit)}. Lengthen the horizon by a wider "
            "`interval`",
            log_snr,
        )

    def _check_horizon(self, t: Scalar) -> Scalar:
        t1 = jax.lax.stop_gradient(self.t1).astype(t.dtype)
        # A time may come from the horizon by a few roundings.
        beyond = ~(t <= t1 * (1 + 8 * jnp.finfo(t.dtype).eps))
        what = f"`t` must lie within the horizon t1 = {concrete(t1)}"
        return _check(t, beyond, what + ". Build the diffusion with a later end", t)

    def _solve_log_snr(self, log_snr: Scalar) -> Scalar:
        return _solve_log_snr(_without_floats(self, log_snr.dtype), log_snr)

    def _excess(self, log_snr: Scalar) -> Callable[[Scalar], Scalar]:
        return lambda log_t: self.compute_kernel(jnp.exp(log_t)).log_snr - log_snr

    def _log_limit(self, dtype: jnp.dtype) -> Scalar:
        return jnp.log(jax.lax.stop_gradient(self.t_limit)).astype(dtype)


def _without_floats(
    diffusion: AbstractLinearDiffusion, dtype: jnp.dtype
) -> AbstractLinearDiffusion:
    """With arrays for floats, so that all diffusions of a kind share a compilation."""
    as_array = lambda x: jnp.asarray(x, dtype) if isinstance(x, float) else x
    return jax.tree.map(as_array, diffusion)


# Compiled by itself: outside of `jax.jit` the root of a new function would be compiled
# at every call, and what was compiled before kept.
@eqx.filter_jit
def _solve_log_snr(diffusion: AbstractLinearDiffusion, log_snr: Scalar) -> Scalar:
    def tangent_solve(linear, value):
        return value / linear(jnp.ones_like(value))

    excess, log_limit = diffusion._excess(log_snr), diffusion._log_limit(log_snr.dtype)
    return jnp.exp(jax.lax.custom_root(excess, log_limit, _bisect, tangent_solve))


def _bisect(excess: Callable[[Scalar], Scalar], log_limit: Scalar) -> Scalar:
    """The logarithm of the time at which a falling function crosses 0, or `log_limit`
    if it does not by then."""

    def halve(step, bracket):
        low, high = bracket
        middle = jnp.where(step == 0, high, 0.5 * (low + high))
        # Where the kernel underflows the ratio is not a number: too early.
        below = excess(middle) < 0
        return jnp.where(below, low, middle), jnp.where(below, middle, high)

    # 30 nats of bracket down to the spacing of the dtype.
    n_steps = jnp.finfo(log_limit.dtype).nmant + 7
    earliest = jnp.log(jnp.asarray(_EARLIEST_TIME, log_limit.dtype))
    low, high = jax.lax.fori_loop(0, n_steps, halve, (earliest, log_limit))
    return 0.5 * (low + high)


def find_times(diffusion: AbstractLinearDiffusion) -> tuple[float, float] | None:
    """The times of an interval given in log-SNR, or `None` where they are traced.

    **Raises:**

    `ValueError` if the diffusion does not reach the lower one by `t_limit`, or the
    upper one is before its kernels can be computed.
    """
    interval = diffusion.interval
    assert isinstance(interval, LogSNRInterval)
    with jax.ensure_compile_time_eval():
        log_limit = diffusion._log_limit(jnp.result_type(float))
        diffusion_ = _without_floats(diffusion, log_limit.dtype)
        t0, t1, found = _find_times(diffusion_, log_limit)
        if concrete(t0) is None or concrete(t1) is None:
            return None
        low, high = (jnp.asarray(e, t1.dtype) for e in (interval.low, interval.high))
        t1 = diffusion._check_reached(t1, low)
        t0 = _check_resolved(t0, found, high)
    return float(t0), float(t1)


def interval_in_time(diffusion: AbstractLinearDiffusion) -> Interval:
    """The ends, refused unless reached, and found once where they cannot move."""
    interval = diffusion.interval
    if isinstance(interval, TimeInterval):
        t1, limit = concrete(interval.t1), concrete(diffusion.t_limit)
        if t1 is not None and limit is not None and t1 > limit * (1 + 1e-6):
            raise ValueError(
                f"`interval` must end where kernels are still numbers, by t = {limit}; "
                f"got t1 = {t1}."
            )
        return interval
    times = find_times(diffusion)
    if times is None or jax.tree.leaves(eqx.filter(diffusion, eqx.is_array)):
        return interval
    return TimeInterval(*times)


@eqx.filter_jit
def _find_times(
    diffusion: AbstractLinearDiffusion, log_limit: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """The times of the ends, and the log-SNR that the first of them has."""
    interval, dtype = diffusion.interval, log_limit.dtype
    assert isinstance(interval, LogSNRInterval)
    log_snrs = jnp.stack([jnp.asarray(e, dtype) for e in (interval.low, interval.high)])
    find = lambda log_snr: jnp.exp(_bisect(diffusion._excess(log_snr), log_limit))
    t1, t0 = jax.vmap(find)(log_snrs)
    return t0, t1, diffusion.compute_kernel(t0).log_snr


def _check_resolved(t: Scalar, found: Scalar, log_snr: Scalar) -> Scalar:
    # The search may have ended without a crossing, or where the kernel underflows.
    tolerance = 1e-3 * jnp.maximum(jnp.abs(log_snr), 1)
    what = f"`log_snr` must be one that this diffusion has where {t.dtype} resolves its"
    return _check(
        t,
        ~((jnp.abs(found - log_snr) <= tolerance) & jnp.isfinite(log_snr)),
        f"{what} kernels, which begins at t = {concrete(t)}. Ask for a lower one",
        log_snr,
    )


def _as_time(name: str, value: Any) -> Scalar:
    value = jnp.asarray(value)
    if value.ndim != 0 or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be a scalar floating-point array; got shape {value.shape} "
            f"and dtype {value.dtype}. Batch with `jax.vmap`."
        )
    check_precision(name, value.dtype)
    return value


def _check(value: Scalar, wrong: Array, message: str, got: Scalar) -> Scalar:
    got_value = concrete(got)
    try:
        is_wrong = bool(wrong)
    except jax.errors.ConcretizationTypeError:
        return eqx.error_if(value, wrong, message + ".")
    if is_wrong:
        raise ValueError(f"{message}; got {got_value}.")
    return value
