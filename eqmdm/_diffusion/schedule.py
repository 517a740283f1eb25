"""Schedules: the noise rate as a function of time, and its integral."""

import abc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.checks import as_number, as_scalar, concrete, namespace
from .._core.types import Scalar
from .text import call_text


if TYPE_CHECKING:
    Number: TypeAlias = Array
else:
    # The library's schedules also take NumPy's numbers, for building diffusions.
    Number = Float[Array | np.ndarray | np.floating, ""] | float

# The largest `end` for which exp(-end / 2) is a normal number in float32.
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


def check_in_domain(limit: float, **numbers: Number) -> None:
    """**Raises:** `ValueError` for known numbers outside [0, limit).

    Traced numbers are checked at the public entry points instead, because vector fields
    call schedules.
    """
    for name, number in numbers.items():
        value = concrete(number)
        if value is not None and not 0 <= value < limit:
            end = "and finite" if math.isinf(limit) else f"and below {limit}"
            raise ValueError(
                f"`{name}` must be non-negative {end}, where the schedule is defined; "
                f"got {value}. Stop earlier, or build a schedule that runs for longer."
            )


def _in_dtype_of(number: Number, *parameters: float | Array) -> tuple[Any, ...]:
    """The array namespace for a number and parameters, and the parameters in the dtype
    of the number."""
    xp = namespace(number, *parameters)
    dtype = number.dtype if isinstance(number, jax.Array) else np.result_type(number)
    if xp is jnp:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        return jnp, *(jnp.asarray(value, dtype) for value in parameters)
    return np, *(dtype.type(value) for value in parameters)


class AbstractSchedule(eqx.Module):
    r"""A rate $\beta(t) \ge 0$ and its integral $B$; diffusions run in $\tau = B(t)$.

    Any schedule can be used with any (Q, D) diffusion. Times are arrays, and results
    have their dtype. To write a schedule, implement the three methods with `jax.numpy`,
    and `t_limit`. The library's schedules also take NumPy's numbers, for which they
    compile nothing.

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
        r"""$\int_s^t \beta$, computed without the cancellation of $B(t) - B(s)$."""

    @abc.abstractmethod
    def inverse(self, integral: Scalar) -> Scalar:
        r"""The time $t$ at which $B(t) = \int_0^t \beta$ reaches `integral`.

        Its derivative is $1 / \beta(t)$, infinite at 0 if the rate starts at 0.
        """


@final
class ConstantSchedule(AbstractSchedule):
    r"""$\beta(t) = \beta$."""

    value: float | Float[Array, ""] = eqx.field(default=1.0, converter=as_number)

    def __check_init__(self):
        _check_positive("value", self.value)

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, self.value)

    @property
    def t_limit(self) -> float:
        return math.inf

    def rate(self, t: Number) -> Number:
        check_in_domain(self.t_limit, t=t)
        return _in_dtype_of(t, self.value)[1]

    def integrated_rate(self, s: Number, t: Number) -> Number:
        check_in_domain(self.t_limit, s=s, t=t)
        return _in_dtype_of(t, self.value)[1] * (t - s)

    def inverse(self, integral: Number) -> Number:
        check_in_domain(math.inf, integral=integral)
        return integral / _in_dtype_of(integral, self.value)[1]


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
                "`rate1` must be at least `rate0`, or the rate would become negative "
                f"at a later time; got rate0={rate0} and rate1={rate1}."
            )

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, self.rate0, self.rate1)

    @property
    def t_limit(self) -> float:
        return math.inf

    def rate(self, t: Number) -> Number:
        check_in_domain(self.t_limit, t=t)
        _, rate0, rate1 = _in_dtype_of(t, self.rate0, self.rate1)
        return rate0 + (rate1 - rate0) * t

    def integrated_rate(self, s: Number, t: Number) -> Number:
        check_in_domain(self.t_limit, s=s, t=t)
        _, rate0, rate1 = _in_dtype_of(t, self.rate0, self.rate1)
        return (t - s) * (rate0 + (rate1 - rate0) * (0.5 * (s + t)))

    def inverse(self, integral: Number) -> Number:
        check_in_domain(math.inf, integral=integral)
        xp, rate0, rate1 = _in_dtype_of(integral, self.rate0, self.rate1)
        slope = rate1 - rate0
        # The root of a quadratic, in the form without cancellation.
        square = rate0**2 + 2 * slope * integral
        at_start = square == 0
        t = 2 * integral / (rate0 + xp.sqrt(xp.where(at_start, 1, square)))
        # At a rate of 0 the time is 0 for any slope, and its derivative is infinite.
        fixed = jax.lax.stop_gradient(slope) if xp is jnp else slope
        start = xp.sqrt(
            xp.where(at_start, 2 * integral / xp.where(at_start, fixed, 1), 1)
        )
        return xp.where(at_start, start, t)


@final
class CosineSchedule(AbstractSchedule):
    r"""$B(t) = -2 \log \cos(\theta t)$ with $\theta$ such that $B(1)$ is `end`.

    For the variance-preserving diffusion the mean map is then $\cos(\theta t)$. The
    usual cosine schedule has $\theta = \pi / 2$, and its integral diverges at 1.

    Up to $t = 1$ the rate and its integral are accurate to 16 units in the last place
    of their dtype, and so is the inverse everywhere. Beyond, towards `t_limit`, the
    error of the rate is larger by a factor of up to $1 + 2 \kappa (t - 1) / t$, where
    $\kappa = 2 \theta t / \sin(2 \theta t)$ is its condition number in $t$, and the
    error of the integral by that factor over $B$. Traced times past `t_limit` give NaN.

    **Arguments:**

    - `end`: $B(1)$, at most 170, because for larger values $\cos \theta$ underflows in
        float32.

    **Source:** Nichol & Dhariwal (2021), equation 17, without its offset.
    """

    end: float | Float[Array, ""] = eqx.field(default=10.0, converter=as_number)

    def __check_init__(self):
        _check_positive("end", self.end)
        end = concrete(self.end)
        if end is not None and end > _LARGEST_END:
            raise ValueError(
                f"`end` must be at most {_LARGEST_END}; got {end}. At 60 no trace of "
                "the data is left in float64."
            )

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, self.end)

    def _angles(self, number: Number) -> tuple[Any, Number, Number]:
        r"""The namespace, $\theta$ and its complement $\pi / 2 - \theta$."""
        xp, end = _in_dtype_of(number, self.end)
        sine, cosine = xp.sqrt(-xp.expm1(-end)), xp.exp(-0.5 * end)
        return xp, xp.arctan2(sine, cosine), xp.arctan2(cosine, sine)

    def _cosine(self, t: Number) -> Number:
        r"""$\cos(\theta t)$, as the sine of the complementary angle.

        One rounding of $\theta t$ itself could be a large part of a small cosine.
        """
        xp, theta, complement = self._angles(t)
        left = complement + theta * (1 - t)
        return xp.sin(xp.where(left > 0, left, xp.nan))

    @property
    def t_limit(self) -> float:
        end = concrete(self.end)
        if end is None:
            return 1.0
        sine, cosine = math.sqrt(-math.expm1(-end)), math.exp(-0.5 * end)
        return 0.5 * math.pi / math.atan2(sine, cosine)

    def rate(self, t: Number) -> Number:
        self._check_times(t=t)
        xp, theta, _ = self._angles(t)
        return 2 * theta * xp.sin(theta * t) / self._cosine(t)

    def integrated_rate(self, s: Number, t: Number) -> Number:
        self._check_times(s=s, t=t)
        xp, theta, _ = self._angles(t)
        start = self._cosine(s)
        # cos(b) - cos(a) = -2 sin((a + b) / 2) sin((b - a) / 2).
        product = xp.sin(0.5 * theta * (s + t)) * xp.sin(0.5 * theta * (t - s))
        change = -2 * product / start
        # Where the cosine has decreased a lot, 1 + change cancels. Between -0.45 and
        # -0.35 XLA's log1p loses two digits in float64 on a CPU.
        far = change < -0.3
        log_ratio = xp.where(
            far,
            xp.log(xp.where(far, self._cosine(t) / start, 1)),
            xp.log1p(xp.where(far, 0, change)),
        )
        return -2 * log_ratio

    def inverse(self, integral: Number) -> Number:
        check_in_domain(math.inf, integral=integral)
        xp, theta, _ = self._angles(integral)
        sine = xp.sqrt(-xp.expm1(-integral))
        return xp.arctan2(sine, xp.exp(-0.5 * integral)) / theta

    def _check_times(self, **times: Number) -> None:
        # The limit of a traced `end` is unknown.
        known = concrete(self.end) is not None
        check_in_domain(self.t_limit if known else math.inf, **times)


def as_parameters(schedule: AbstractSchedule) -> AbstractSchedule:
    """The schedule with JAX arrays for its numbers, which makes them trainable."""
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda number: as_scalar(number, dtype), schedule)


def end_of(schedule: AbstractSchedule) -> float:
    """The last time of kernels, slightly before the integral may diverge."""
    return schedule.t_limit * (1 - 1e-6)


_TAKES_NUMPY = ConstantSchedule, LinearSchedule, CosineSchedule


def computes_on_host(schedule: AbstractSchedule) -> bool:
    """Whether known values of a schedule compile nothing. It is false for users'
    schedules, which may only support `jax.numpy`."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(schedule))
    return not traced and isinstance(schedule, _TAKES_NUMPY)


def known_integral(schedule: AbstractSchedule, t: float) -> float | None:
    """$B(t)$ at a known time, or `None` if the schedule is traced."""
    return known_value(schedule, schedule.integrated_rate, 0.0, t)


def known_inverse(schedule: AbstractSchedule, integral: float) -> float | None:
    """The time at a known integral, or `None` if the schedule is traced."""
    return known_value(schedule, schedule.inverse, integral)


def known_value(
    schedule: AbstractSchedule, method: Callable[..., Any], *numbers: float
) -> float | None:
    """The value of a schedule's method at known numbers, or `None` if the schedule is
    traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(schedule)):
        return None
    if isinstance(schedule, _TAKES_NUMPY):
        return concrete(method(*(np.float64(number) for number in numbers)))
    # A user's schedule may only support `jax.numpy`.
    with jax.ensure_compile_time_eval():
        dtype = jnp.result_type(float)
        return concrete(method(*(jnp.asarray(number, dtype) for number in numbers)))
