"""The learned schedule, whose rate is linear between knots."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.checks import check_count, concrete
from .._core.types import Scalar
from .interval import TimeInterval
from .schedule import AbstractSchedule, LinearSchedule, check_in_domain, known_value
from .text import call_text


@final
class LearnedSchedule(AbstractSchedule):
    r"""A schedule whose rate is a parameter: positive, and linear between knots.

    The integrals over $[0, t_0]$ and $[t_0, t_1]$ are those of another schedule for
    every value of the parameters, so that the law at both times stays, and only the way
    between them is learned. Up to $t_0$ and from $t_1$ on the rate is constant. The
    integral and its inverse are closed forms.

    With an exact score the bound does not depend on the way. What training can gain is
    a lower error of the network, and a lower variance of the bound.

    **Arguments:**

    - `n_knots`: the number of knots, geometrically spaced from $t_0$ to $t_1$.
    - `start`: the schedule whose rates at the knots are the initial ones, and whose
        integrals are kept.
    - `interval`: $t_0$ and $t_1$, those of the diffusion.

    **Raises:** `ValueError` for fewer than two knots, or for a `start` whose rate is
    not positive at every knot: the integral would not be strictly monotone.
    """

    raw_rates: Float[Array, " knots"]
    knots: tuple[float, ...] = eqx.field(static=True)
    # The integrals up to t0, and from t0 to t1.
    integrals: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        n_knots: int = 8,
        *,
        start: AbstractSchedule | None = None,
        interval: TimeInterval | None = None,
    ):
        check_count("n_knots", n_knots, least=2)
        interval = TimeInterval() if interval is None else interval
        start = LinearSchedule() if start is None else start
        t0, t1 = concrete(interval.t0), concrete(interval.t1)
        if t0 is None or t1 is None:
            raise ValueError("`interval` must have known times; got traced ones.")
        knots = np.geomspace(t0, t1, n_knots)
        rates = np.array([known_value(start, start.rate, t) for t in knots], float)
        before = known_value(start, start.integrated_rate, 0.0, t0)
        within = known_value(start, start.integrated_rate, t0, t1)
        if before is None or within is None:
            raise ValueError("`start` must have known rates; got traced ones.")
        if not (np.isfinite(rates) & (rates > 0)).all():
            raise ValueError(
                "`start` must have a positive and finite rate at every knot, or the "
                f"integral would not be strictly monotone; got {rates.tolist()}."
            )
        # The inverse of softplus, rearranged so that it does not overflow.
        raw = rates + np.log(-np.expm1(-rates))
        self.raw_rates = jnp.asarray(raw, jnp.float32)
        self.knots = tuple(knots.tolist())
        self.integrals = before, within

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, len(self.knots))

    @property
    def t_limit(self) -> float:
        return math.inf

    def rate(self, t: Scalar) -> Scalar:
        check_in_domain(self.t_limit, t=t)
        left, _, rates, slopes = self._cells(t.dtype)
        cell = jnp.searchsorted(left, t, side="right") - 1
        return rates[cell] + slopes[cell] * (t - left[cell])

    def integrated_rate(self, s: Scalar, t: Scalar) -> Scalar:
        check_in_domain(self.t_limit, s=s, t=t)
        left, right, rates, slopes = self._cells(t.dtype)
        # The overlap with every cell, so that nothing is subtracted but times.
        start, end = jnp.clip(s, left, right), jnp.clip(t, left, right)
        middle = rates + slopes * (0.5 * (start + end) - left)
        return jnp.sum((end - start) * middle)

    def inverse(self, integral: Scalar) -> Scalar:
        check_in_domain(math.inf, integral=integral)
        left, right, rates, slopes = self._cells(integral.dtype)
        width = right[:-1] - left[:-1]
        parts = width * (rates[:-1] + 0.5 * slopes[:-1] * width)
        at_left = jnp.concatenate([jnp.zeros(1, parts.dtype), jnp.cumsum(parts)])
        cell = jnp.searchsorted(at_left, integral, side="right") - 1
        rest, rate, slope = integral - at_left[cell], rates[cell], slopes[cell]
        # The root of a quadratic, in the form without cancellation. Within the cell its
        # discriminant is the square of a rate; rounding can make it negative at the end
        # of a cell in which the rate falls steeply.
        discriminant = jnp.maximum(rate**2 + 2 * slope * rest, 0)
        return left[cell] + 2 * rest / (rate + jnp.sqrt(discriminant))

    def _cells(self, dtype: jnp.dtype) -> tuple[Array, Array, Array, Array]:
        """The ends of the cells on which the rate is linear, the first from 0 and the
        last without an end, their rates at the left, and their slopes."""
        knots = np.array(self.knots)
        width = np.diff(knots)
        raw = jax.nn.softplus(self.raw_rates.astype(dtype))
        shape = 0.5 * (raw[:-1] + raw[1:]) * jnp.asarray(width, dtype)
        before, within = self.integrals
        rates = raw * (within / jnp.sum(shape))
        first = jnp.full(1, before / knots[0], dtype)
        slopes = jnp.diff(rates) / jnp.asarray(width, dtype)
        flat = jnp.zeros(1, dtype)
        return (
            jnp.asarray(np.concatenate([[0.0], knots]), dtype),
            jnp.asarray(np.concatenate([knots, [np.inf]]), dtype),
            jnp.concatenate([first, rates]),
            jnp.concatenate([flat, slopes, flat]),
        )
