"""The interval of a new diffusion: its checks, and its times for constants."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .._core.checks import concrete
from . import host
from .interval import Interval, LogSNRInterval, TimeInterval, with_times
from .schedule import AbstractSchedule, known_integral, known_inverse
from .search import EARLIEST_TIME, not_reached, not_resolved, tolerance


class KnownLaws(NamedTuple):
    """The laws of a diffusion of known values, as functions of the integral of its
    rate, or of time itself if it has no schedule.

    `integral` and `time` convert between the two, and return `None` if the schedule is
    traced. The search for a log-SNR therefore does not call the schedule, which may be
    a user's.
    """

    integral: Callable[[float], float | None]
    time: Callable[[float], float | None]
    log_snr: Callable[[host.Numbers, np.dtype], host.Numbers]
    divergence: Callable[[float], float]
    t_limit: float

    def integrals_at(
        self, log_snrs: host.Numbers, first: float, last: float
    ) -> host.Numbers:
        """The integrals in [first, last] at some log-SNRs; `last` for those that are
        not reached."""
        exact = lambda integral: self.log_snr(integral, np.dtype(np.float64))
        return host.first_below(exact, log_snrs, first, last)

    def times_at(self, log_snrs: host.Numbers) -> host.Numbers | None:
        """The times of some log-SNRs, or `None` if the schedule is traced."""
        first, last = self.integral(EARLIEST_TIME), self.integral(self.t_limit)
        if first is None or last is None:
            return None
        times = [self.time(x) for x in self.integrals_at(log_snrs, first, last)]
        return None if None in times else np.array(times, float)


def scheduled_laws(
    schedule: AbstractSchedule,
    log_snr: Callable[[host.Numbers, np.dtype], host.Numbers],
    divergence: Callable[[float], float],
    t_limit: float,
) -> KnownLaws:
    """The laws of a diffusion that is a function of the integral of its rate."""
    return KnownLaws(
        integral=lambda t: known_integral(schedule, t),
        time=lambda integral: known_inverse(schedule, integral),
        log_snr=log_snr,
        divergence=divergence,
        t_limit=t_limit,
    )


def has_parameters(tree: PyTree) -> bool:
    """Whether any part of a diffusion changes in training."""
    return any(eqx.is_array(leaf) for leaf in jax.tree.leaves(tree))


def check_schedule_reaches(schedule: AbstractSchedule, interval: Interval) -> None:
    """**Raises:** `ValueError` if the interval ends after the schedule, when both are
    known."""
    t1 = concrete(interval.t1) if isinstance(interval, TimeInterval) else None
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(schedule))
    # The limit of a traced schedule is unknown.
    if t1 is None or traced or t1 < schedule.t_limit:
        return
    raise ValueError(
        "`interval` must end before the schedule does, at "
        f"t = {schedule.t_limit}; got t1 = {t1}."
    )


def check_end(interval: TimeInterval, t_limit: float) -> None:
    """**Raises:** `ValueError` if a known interval ends after the last kernel."""
    t1 = concrete(interval.t1)
    if t1 is not None and t1 > t_limit * (1 + 1e-6):
        raise ValueError(
            f"`interval` must end where kernels are still finite, by t = {t_limit}; "
            f"got t1 = {t1}."
        )


def settled(interval: Interval, laws: KnownLaws, *, moves: bool) -> Interval:
    """The interval, with solved times unless it `moves` with parameters.

    Warns if the law at the final time is not the prior.

    **Raises:**

    `ValueError` if the interval ends after the last kernel, if the diffusion does not
    reach its lower log-SNR, or if the upper one is reached before kernels can be
    computed.
    """
    if isinstance(interval, TimeInterval):
        end = concrete(interval.t1)
        if end is None:
            return interval
        check_end(interval, laws.t_limit)
        integral = laws.integral(end)
        if integral is None:
            return interval
        if not math.isfinite(integral):
            raise ValueError(
                "`interval` must end where the integral of the schedule's rate is "
                f"finite; got {integral} at t1 = {end}."
            )
        host.warn_unless_mixed(laws.divergence(integral))
        return interval
    low, high = concrete(interval.low), concrete(interval.high)
    first, last = laws.integral(EARLIEST_TIME), laws.integral(laws.t_limit)
    if low is None or high is None or first is None or last is None:
        return interval
    end = _search(laws, low, first, last)
    host.warn_unless_mixed(laws.divergence(end))
    t0 = laws.time(_search(laws, high, first, last))
    t1 = laws.time(end)
    if moves or t0 is None or t1 is None:
        return interval
    assert isinstance(interval, LogSNRInterval)
    return with_times(interval, t0, t1)


def _search(laws: KnownLaws, log_snr: float, first: float, last: float) -> float:
    """The integral at a log-SNR, which a kernel of the default dtype must resolve."""
    integral = float(laws.integrals_at(np.array([log_snr]), first, last)[0])
    if not integral < last * (1 - 1e-12):
        raise ValueError(f"{not_reached(laws.t_limit)}; got {log_snr}.")
    dtype = np.dtype(jnp.result_type(float))
    actual = laws.log_snr(np.array([integral]), dtype)[0]
    if not abs(actual - log_snr) <= tolerance(log_snr):
        rounded = lambda integral: laws.log_snr(integral, dtype)
        level = np.array([log_snr])
        begin = laws.time(float(host.first_below(rounded, level, first, last)[0]))
        raise ValueError(f"{not_resolved(dtype, begin)}; got {log_snr}.")
    return integral
