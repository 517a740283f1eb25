"""Processes on the Haar coefficients of 8x8 images, for processes.toml.

Each scale has a VPSDE of its own. At both ends of the interval all have the log-SNRs of
one with the default schedule, and differ between them.
"""

import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

import eqmdm


BASIS = eqmdm.HaarBasis((8, 8, 1))
# How far the schedule of each scale bends, from the means to the finest differences,
# which are noised first: they have the least power, and the means are known longest.
BENDS = (-0.4, -0.2, 0.2, 0.4)


@final
class BentSchedule(eqmdm.AbstractSchedule):
    r"""$\log B(t)$ is quadratic in $w$, from 0 at the first time to 1 at the last.

    $$w = \frac{\log (t / t_0)}{\log (t_1 / t_0)}, \qquad
    \log B = \log B_0 + (w + c w (1 - w)) \log (B_1 / B_0)$$

    Up to the first time the rate is constant.
    """

    times: tuple[float, float] = eqx.field(static=True)
    integrals: tuple[float, float] = eqx.field(static=True)
    bend: float = eqx.field(static=True)

    @property
    def t_limit(self) -> float:
        return math.inf

    def rate(self, t: Float[Array, ""]) -> Float[Array, ""]:
        place = self._place(t)
        slope = 1 + self.bend * (1 - 2 * place)
        later = self._integral(t) * slope * self._ratio / t
        return jnp.where(t < self.times[0], self.integrals[0] / self.times[0], later)

    def integrated_rate(
        self, s: Float[Array, ""], t: Float[Array, ""]
    ) -> Float[Array, ""]:
        return self._integral(t) - self._integral(s)

    def inverse(self, integral: Float[Array, ""]) -> Float[Array, ""]:
        first, last = self.integrals
        rise = jnp.log(jnp.maximum(integral, first) / first) / math.log(last / first)
        # The root of c w^2 - (1 + c) w + rise = 0, without cancellation.
        c = self.bend
        place = 2 * rise / (1 + c + jnp.sqrt((1 + c) ** 2 - 4 * c * rise))
        t0, t1 = self.times
        later = t0 * jnp.exp(place * math.log(t1 / t0))
        return jnp.where(integral < first, integral * (t0 / first), later)

    @property
    def _ratio(self) -> float:
        (t0, t1), (first, last) = self.times, self.integrals
        return math.log(last / first) / math.log(t1 / t0)

    def _place(self, t: Float[Array, ""]) -> Float[Array, ""]:
        t0, t1 = self.times
        return jnp.log(jnp.maximum(t, t0) / t0) / math.log(t1 / t0)

    def _integral(self, t: Float[Array, ""]) -> Float[Array, ""]:
        first, last = self.integrals
        place = self._place(t)
        rise = place + self.bend * place * (1 - place)
        later = first * jnp.exp(rise * math.log(last / first))
        return jnp.where(t < self.times[0], t * (first / self.times[0]), later)


def fixed(*, interval: eqmdm.TimeInterval) -> eqmdm.BandedDiffusion:
    """The scales with fixed schedules, staggered from coarse to fine."""
    times = float(interval.t0), float(interval.t1)
    shared = eqmdm.LinearSchedule()
    integral = lambda t: float(shared.integrated_rate(0.0, t))
    ends = integral(times[0]), integral(times[1])
    schedules = [BentSchedule(times, ends, bend) for bend in BENDS]
    return _banded(schedules, interval)


def learned(*, interval: eqmdm.TimeInterval) -> eqmdm.BandedDiffusion:
    """The scales with learned schedules, which start as the default one."""
    make = lambda: eqmdm.LearnedSchedule(interval=interval)
    return _banded([make() for _ in BENDS], interval)


def _banded(schedules: list, interval: eqmdm.TimeInterval) -> eqmdm.BandedDiffusion:
    scales = [eqmdm.VPSDE(schedule=s, interval=interval) for s in schedules]
    return eqmdm.BandedDiffusion(scales, BASIS.bands)
