"""The interval that a diffusion is used on, in time or in log-SNR."""

import math
from typing import TypeAlias, final

import equinox as eqx
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.checks import as_number, concrete
from .._core.types import Scalar
from .text import call_text


@final
class TimeInterval(eqx.Module):
    """The interval of diffusion times [t0, t1].

    **Arguments:**

    - `t0`: the start time, at which sampling ends and bounds begin.
    - `t1`: the final time, at which sampling starts from the prior.

    **Raises:**

    `ValueError` unless 0 < t0 < t1 and both are finite, if they are known.
    """

    t0: float | Float[Array, ""] = eqx.field(default=1e-3, converter=as_number)
    t1: float | Float[Array, ""] = eqx.field(default=1.0, converter=as_number)

    def __check_init__(self):
        t0, t1 = concrete(self.t0), concrete(self.t1)
        if t0 is None or t1 is None:
            return
        if not 0 < t0 < t1 < math.inf:
            raise ValueError(
                "`interval` must have finite times with 0 < t0 < t1; at t = 0 the "
                f"kernel is a point mass. Got t0 = {t0} and t1 = {t1}."
            )

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, self.t0, self.t1)


@final
class LogSNRInterval(eqx.Module):
    """The interval of times between two log signal-to-noise ratios (natural logarithm).

    **Arguments:**

    - `low`: the log-SNR at the final time t1.
    - `high`: the log-SNR at the start time t0. About 13.3 resolves 256 grey levels of
        data scaled to [-1, 1], and about 20 their edges, which matter for an
        [`eqmdm.SpikeAndSlabDenoiser`][].

    **Raises:**

    `ValueError` unless low < high and both are finite, if they are known.
    """

    low: float | Float[Array, ""] = eqx.field(converter=as_number)
    high: float | Float[Array, ""] = eqx.field(converter=as_number)
    # A diffusion of constants solves for its times once; with parameters they move.
    _times: TimeInterval | None = eqx.field(init=False, default=None)

    def __check_init__(self):
        low, high = concrete(self.low), concrete(self.high)
        if low is None or high is None:
            return
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                "`interval` must have finite log signal-to-noise ratios with low < "
                f"high; got low = {low} and high = {high}."
            )

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, self.low, self.high)


Interval: TypeAlias = TimeInterval | LogSNRInterval


def as_interval(interval: Interval | None) -> Interval:
    """The given interval, or `TimeInterval()` by default.

    **Raises:** `TypeError` unless it is an interval.
    """
    if interval is None:
        return TimeInterval()
    if isinstance(interval, TimeInterval):
        return interval
    if isinstance(interval, LogSNRInterval):
        # Drop the times that another diffusion has at these log-SNRs.
        return LogSNRInterval(interval.low, interval.high)
    raise TypeError(
        "`interval` must be an `eqmdm.TimeInterval` or an `eqmdm.LogSNRInterval`; got "
        f"{interval!r}. Write, for instance, `interval=eqmdm.TimeInterval(1e-3, 1.0)`."
    )


def with_times(
    interval: LogSNRInterval, t0: float | Scalar, t1: float | Scalar
) -> LogSNRInterval:
    """The interval with the times that a diffusion has at its log-SNRs: numbers for a
    diffusion of constants, and traced ones for use inside one program."""
    new = LogSNRInterval(interval.low, interval.high)
    # Not a constructor argument, because the times belong to a single diffusion.
    object.__setattr__(new, "_times", TimeInterval(t0, t1))
    return new


def known_times(interval: Interval) -> TimeInterval | None:
    """The interval in time, or `None` if its times have not been solved for."""
    return interval if isinstance(interval, TimeInterval) else interval._times
