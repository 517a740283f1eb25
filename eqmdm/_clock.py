"""Clocks: the rate of noise in time, and its integral."""

import abc
import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._custom_types import Scalar


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


def concrete(value: float | Array | np.ndarray) -> float | None:
    """The value of a number as a Python float, or `None` under a JAX transform."""
    try:
        return float(value)
    except TypeError:  # JAX's ConcretizationTypeError: the value is being traced.
        return None


class AbstractClock(eqx.Module):
    r"""A rate $\beta(t) \ge 0$ and its integral $B$; diffusions run in $\tau = B(t)$.

    Any clock serves any (Q, D) diffusion. Times are arrays, and results have their
    dtype.
    """

    @property
    @abc.abstractmethod
    def t_limit(self) -> float:
        """The time up to which the clock is defined, possibly infinite."""

    @abc.abstractmethod
    def rate(self, t: Scalar) -> Scalar:
        r"""$\beta(t)$."""

    @abc.abstractmethod
    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        r"""$\int_s^t \beta$, without subtracting two integrals from 0."""

    @abc.abstractmethod
    def inverse(self, integral: Scalar) -> Scalar:
        r"""The time $t$ at which $B(t) = \int_0^t \beta$ reaches `integral`."""


@final
class ConstantClock(AbstractClock):
    r"""$\beta(t) = \beta$."""

    value: float | Float[Array, ""] = 1.0

    def __check_init__(self):
        _check_positive("value", self.value)

    @property
    def t_limit(self) -> float:
        return math.inf

    def rate(self, t: Scalar) -> Scalar:
        return jnp.asarray(self.value, t.dtype)

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        return jnp.asarray(self.value, t.dtype) * (t - s)

    def inverse(self, integral: Scalar) -> Scalar:
        return integral / jnp.asarray(self.value, integral.dtype)


@final
class LinearClock(AbstractClock):
    r"""$\beta(t) = \beta_0 + (\beta_1 - \beta_0) t$, by default from 0.1 to 10.

    **Source:** Song et al. (2021), equation 32; the default of Singhal et al. (2023).
    """

    rate0: float | Float[Array, ""] = 0.1
    rate1: float | Float[Array, ""] = 10.0

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
        rate0, slope = self._rates(t.dtype)
        return rate0 + slope * t

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        rate0, slope = self._rates(t.dtype)
        return (t - s) * (rate0 + slope * (0.5 * (s + t)))

    def inverse(self, integral: Scalar) -> Scalar:
        rate0, slope = self._rates(integral.dtype)
        # The root of a quadratic, in the form that does not cancel.
        return 2 * integral / (rate0 + jnp.sqrt(rate0**2 + 2 * slope * integral))


@final
class CosineClock(AbstractClock):
    r"""$B(t) = -2 \log \cos(\theta t)$ with $\theta$ such that $B(1)$ is `end`.

    For the variance-preserving diffusion the mean map is then $\cos(\theta t)$. The
    usual cosine schedule has $\theta = \pi / 2$, where the integral diverges at 1.

    **Source:** Nichol & Dhariwal (2021), equation 17, without its offset.
    """

    end: float | Float[Array, ""] = 10.0

    def __check_init__(self):
        _check_positive("end", self.end)

    def _theta(self, dtype) -> Scalar:
        end = jnp.asarray(self.end, dtype)
        return jnp.arctan2(jnp.sqrt(-jnp.expm1(-end)), jnp.exp(-0.5 * end))

    @property
    def t_limit(self) -> float:
        end = concrete(self.end)
        if end is None:
            return 1.0
        sine, cosine = math.sqrt(-math.expm1(-end)), math.exp(-0.5 * end)
        return 0.5 * math.pi / math.atan2(sine, cosine)

    def rate(self, t: Scalar) -> Scalar:
        theta = self._theta(t.dtype)
        return 2 * theta * jnp.tan(theta * t)

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        theta = self._theta(t.dtype)
        # cos(b) - cos(a) = -2 sin((a + b) / 2) sin((b - a) / 2).
        product = jnp.sin(0.5 * theta * (s + t)) * jnp.sin(0.5 * theta * (t - s))
        return -2 * jnp.log1p(-2 * product / jnp.cos(theta * s))

    def inverse(self, integral: Scalar) -> Scalar:
        sine = jnp.sqrt(-jnp.expm1(-integral))
        return jnp.arctan2(sine, jnp.exp(-0.5 * integral)) / self._theta(integral.dtype)
