"""Schedules: the rate of noise in time, and its integral."""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.checks import as_number, concrete
from .._core.types import Scalar


# exp(-end / 2) is then still a normal number in float32.
_LARGEST_END = 170.0


def _check_positive(name: str, value: float | Array, *, strict: bool = True) -> None:
    number = concrete(value)
    if number is None:
        return
    if not math.isfinite(number) or number < 0 or (strict and number == 0):
        kind = "positive" if strict else "non-negative"
        raise ValueError(
            f"`{name}` must be {kind} and finite; got {number}. It is a rate, or an "
            "integral of one, per unit of diffusion time."
        )


def _check_in_domain(limit: float, **numbers: Scalar) -> None:
    """Refuses numbers outside [0, limit), where they are known.

    Traced ones are checked where they enter: a schedule is called by vector fields.
    """
    for name, number in numbers.items():
        value = concrete(number)
        if value is not None and not 0 <= value < limit:
            end = "and finite" if math.isinf(limit) else f"and below {limit}"
            raise ValueError(
                f"`{name}` must be non-negative {end}, where the schedule is defined; "
                f"got {value}. Stop earlier, or build a schedule that runs for longer."
            )


class AbstractSchedule(eqx.Module):
    r"""A rate $\beta(t) \ge 0$ and its integral $B$; diffusions run in $\tau = B(t)$.

    Any schedule serves any (Q, D) diffusion. Times are arrays, and results have their
    dtype.

    **Raises:**

    The methods of the library's schedules raise `ValueError` for a time that is
    negative or not below `t_limit`, and for an integral that is negative or not
    finite, unless it is traced.
    """

    @property
    @abc.abstractmethod
    def t_limit(self) -> float:
        """The time up to which the schedule is defined, possibly infinite."""

    @abc.abstractmethod
    def rate(self, t: Scalar) -> Scalar:
        r"""$\beta(t)$."""

    @abc.abstractmethod
    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        r"""$\int_s^t \beta$, without subtracting two integrals from 0."""

    @abc.abstractmethod
    def inverse(self, integral: Scalar) -> Scalar:
        r"""The time $t$ at which $B(t) = \int_0^t \beta$ reaches `integral`.

        Its derivative is $1 / \beta(t)$, so infinite at 0 where the rate starts at 0.
        """


@final
class ConstantSchedule(AbstractSchedule):
    r"""$\beta(t) = \beta$."""

    value: float | Float[Array, ""] = eqx.field(default=1.0, converter=as_number)

    def __check_init__(self):
        _check_positive("value", self.value)

    @property
    def t_limit(self) -> float:
        return math.inf

    def rate(self, t: Scalar) -> Scalar:
        _check_in_domain(self.t_limit, t=t)
        return jnp.asarray(self.value, t.dtype)

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        _check_in_domain(self.t_limit, s=s, t=t)
        return jnp.asarray(self.value, t.dtype) * (t - s)

    def inverse(self, integral: Scalar) -> Scalar:
        _check_in_domain(math.inf, integral=integral)
        return integral / jnp.asarray(self.value, integral.dtype)


@final
class LinearSchedule(AbstractSchedule):
    r"""$\beta(t) = \beta_0 + (\beta_1 - \beta_0) t$, by default from 0.1 to 10.

    **Source:** Song et al. (2021), equation 32; the default of Singhal et al. (2023).
    """

    rate0: float | Float[Array, ""] = eqx.field(default=0.1, converter=as_number)
    rate1: float | Float[Array, ""] = eqx.field(default=10.0, converter=as_number)

    def __check_init__(self):
        _check_positive("rate0", self.rate0, strict=False)
        _check_positive("rate1", self.rate1)
        rate0, rate1 = concrete(self.rate0), concrete(self.rate1)
        if rate0 is not None and rate1 is not None and rate1 < rate0:
            raise ValueError(
                "`rate1` must be at least `rate0`, or the rate would turn negative at "
                f"some later time; got rate0={rate0} and rate1={rate1}."
            )

    @property
    def t_limit(self) -> float:
        return math.inf

    def _rates(self, dtype) -> tuple[Scalar, Scalar]:
        rate0 = jnp.asarray(self.rate0, dtype)
        return rate0, jnp.asarray(self.rate1, dtype) - rate0

    def rate(self, t: Scalar) -> Scalar:
        _check_in_domain(self.t_limit, t=t)
        rate0, slope = self._rates(t.dtype)
        return rate0 + slope * t

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        _check_in_domain(self.t_limit, s=s, t=t)
        rate0, slope = self._rates(t.dtype)
        return (t - s) * (rate0 + slope * (0.5 * (s + t)))

    def inverse(self, integral: Scalar) -> Scalar:
        _check_in_domain(math.inf, integral=integral)
        rate0, slope = self._rates(integral.dtype)
        # The root of a quadratic, in the form that does not cancel.
        square = rate0**2 + 2 * slope * integral
        at_start = square == 0
        t = 2 * integral / (rate0 + jnp.sqrt(jnp.where(at_start, 1, square)))
        # From a rate of 0 the time is 0 whatever the slope, and its change infinite.
        slope = jnp.where(at_start, jax.lax.stop_gradient(slope), 1)
        start = jnp.sqrt(jnp.where(at_start, 2 * integral / slope, 1))
        return jnp.where(at_start, start, t)


@final
class CosineSchedule(AbstractSchedule):
    r"""$B(t) = -2 \log \cos(\theta t)$ with $\theta$ such that $B(1)$ is `end`.

    For the variance-preserving diffusion the mean map is then $\cos(\theta t)$. The
    usual cosine schedule has $\theta = \pi / 2$, where the integral diverges at 1.

    Up to $t = 1$ the rate and its integral are accurate to 16 units in the last place
    of their dtype, and so is the inverse everywhere. Beyond, towards `t_limit`, the
    rate loses up to $1 + 2 \kappa (t - 1) / t$ times as much, where $\kappa = 2 \theta
    t / \sin(2 \theta t)$ is its condition number in $t$, and the integral as much as
    that over $B$. Traced times past `t_limit` give NaN.

    **Arguments:**

    - `end`: $B(1)$, at most 170, as beyond no float32 holds $\cos \theta$.

    **Source:** Nichol & Dhariwal (2021), equation 17, without its offset.
    """

    end: float | Float[Array, ""] = eqx.field(default=10.0, converter=as_number)

    def __check_init__(self):
        _check_positive("end", self.end)
        end = concrete(self.end)
        if end is not None and end > _LARGEST_END:
            raise ValueError(
                f"`end` must be at most {_LARGEST_END}; got {end}. At 60 nothing of "
                "the data is left in float64."
            )

    def _angles(self, dtype) -> tuple[Scalar, Scalar]:
        r"""$\theta$ and its complement $\pi / 2 - \theta$."""
        end = jnp.asarray(self.end, dtype)
        sine, cosine = jnp.sqrt(-jnp.expm1(-end)), jnp.exp(-0.5 * end)
        return jnp.arctan2(sine, cosine), jnp.arctan2(cosine, sine)

    def _cosine(self, t: Scalar) -> Scalar:
        r"""$\cos(\theta t)$ as the sine of the angle that is left.

        Of $\theta t$ itself, one rounding would be a large part of a small cosine.
        """
        theta, complement = self._angles(t.dtype)
        left = complement + theta * (1 - t)
        return jnp.sin(jnp.where(left > 0, left, jnp.nan))

    @property
    def t_limit(self) -> float:
        end = concrete(self.end)
        if end is None:
            return 1.0
        sine, cosine = math.sqrt(-math.expm1(-end)), math.exp(-0.5 * end)
        return 0.5 * math.pi / math.atan2(sine, cosine)

    def rate(self, t: Scalar) -> Scalar:
        self._check_times(t=t)
        theta, _ = self._angles(t.dtype)
        return 2 * theta * jnp.sin(theta * t) / self._cosine(t)

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        self._check_times(s=s, t=t)
        theta, _ = self._angles(t.dtype)
        start = self._cosine(s)
        # cos(b) - cos(a) = -2 sin((a + b) / 2) sin((b - a) / 2).
        product = jnp.sin(0.5 * theta * (s + t)) * jnp.sin(0.5 * theta * (t - s))
        change = -2 * product / start
        # Where the cosine has fallen far, 1 + change cancels. From -0.45 to -0.35 XLA's
        # log1p loses two digits in float64 on a CPU.
        far = change < -0.3
        log_ratio = jnp.where(
            far,
            jnp.log(jnp.where(far, self._cosine(t) / start, 1)),
            jnp.log1p(jnp.where(far, 0, change)),
        )
        return -2 * log_ratio

    def inverse(self, integral: Scalar) -> Scalar:
        _check_in_domain(math.inf, integral=integral)
        sine = jnp.sqrt(-jnp.expm1(-integral))
        theta, _ = self._angles(integral.dtype)
        return jnp.arctan2(sine, jnp.exp(-0.5 * integral)) / theta

    def _check_times(self, **times: Scalar) -> None:
        # Of a traced `end` the limit is not known.
        known = concrete(self.end) is not None
        _check_in_domain(self.t_limit if known else math.inf, **times)
