"""Clocks that follow the noise in the data rather than the diffusion's time."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.checks import concrete
from .._core.gaussian import solve_lower
from .._core.types import Scalar
from .._diffusion import AbstractLinearDiffusion


# Times uniform in their logarithm at which log-SNR is tabulated, to start the search
# for a time: between two of them it is close to a line.
_N_TIMES = 257
# Each squares the relative error that interpolation leaves, of about 1e-4.
_N_NEWTON_STEPS = 4


class AbstractNoiseClock(eqx.Module):
    r"""A clock that follows the log-SNR $\lambda$, against which it increases.

    With $\sigma = e^{-\lambda / 2}$, the noise in the sufficient statistic, and $c$ the
    standard deviation of the data.
    """

    @abc.abstractmethod
    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        """The clock's reading at a log-SNR."""

    @abc.abstractmethod
    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        """The log-SNR at a reading of the clock."""


@final
class AngleClock(AbstractNoiseClock):
    r"""$\theta = \arctan(\sigma / c)$, from 0 at data to $\pi / 2$ at noise.

    **Source:** Lu & Song (2025), section 3.1.
    """

    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        return jnp.arctan(jnp.exp(-0.5 * log_snr) / data_std)

    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        return -2 * jnp.log(data_std * jnp.tan(reading))


@final
class LogSNRClock(AbstractNoiseClock):
    r"""$-\lambda$."""

    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        del data_std
        return -log_snr

    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        del data_std
        return -reading


class AbstractTiming(eqx.Module):
    """The diffusion's time as a function of what a clock reads, between its ends.

    Readings increase with time: `start` is at the cut, or at time 0, and `end` at the
    horizon.
    """

    start: eqx.AbstractVar[Scalar]
    end: eqx.AbstractVar[Scalar]

    @abc.abstractmethod
    def time(self, reading: Scalar) -> tuple[Scalar, Scalar]:
        r"""The time $t$, and $\mathrm{d}t$ by the change of the reading."""

    @abc.abstractmethod
    def reading(self, t: Scalar) -> Scalar:
        """The reading at a time between the ends."""


@final
class _OwnTiming(AbstractTiming):
    """That of the diffusion's own time."""

    start: Scalar
    end: Scalar

    def time(self, reading: Scalar) -> tuple[Scalar, Scalar]:
        return reading, jnp.ones_like(reading)

    def reading(self, t: Scalar) -> Scalar:
        return t


@final
class _NoiseTiming(AbstractTiming):
    """That of a clock of the noise."""

    diffusion: AbstractLinearDiffusion
    clock: AbstractNoiseClock
    log_times: Float[Array, " times"]
    log_snrs: Float[Array, " times"]
    start: Scalar
    end: Scalar

    def time(self, reading: Scalar) -> tuple[Scalar, Scalar]:
        at = lambda reading: self.clock.log_snr(reading, 1.0)
        log_snr, change = jax.jvp(at, (reading,), (jnp.ones_like(reading),))
        low, high = self.log_times[0], self.log_times[-1]
        log_t = jnp.interp(-log_snr, -self.log_snrs, self.log_times)

        def improve(_, found: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            log_t, _ = found
            t = jnp.exp(log_t)
            kernel = self.diffusion.compute_kernel(t)
            slope = t * self.diffusion.log_snr_rate(t, kernel)
            log_t = log_t - (kernel.log_snr - log_snr) / slope
            return jnp.clip(log_t, low, high), slope

        # A loop, because compiling it once rather than for each step saves seconds.
        # The last slope is that of the step before, which is exact by then.
        start = log_t, jnp.ones_like(log_t)
        log_t, slope = jax.lax.fori_loop(0, _N_NEWTON_STEPS, improve, start)
        t = jnp.exp(log_t)
        return t, change * t / slope

    def reading(self, t: Scalar) -> Scalar:
        return self.clock.reading(self.diffusion.compute_kernel(t).log_snr, 1.0)


def make_timing(
    diffusion: AbstractLinearDiffusion,
    clock: AbstractNoiseClock | None,
    dtype: jnp.dtype,
    *,
    from_zero: bool = False,
) -> AbstractTiming:
    """The diffusion's time by a clock; by `None`, its own.

    `from_zero` begins the diffusion's own time at 0 instead of at the cut.

    **Raises:**

    `ValueError`, or `equinox.EquinoxRuntimeError` where the diffusion is traced, if its
    log-SNR is stationary at a time between its ends.
    """
    t0, t1 = diffusion.t0.astype(dtype), diffusion.t1.astype(dtype)
    if clock is None:
        return _OwnTiming(jnp.zeros((), dtype) if from_zero else t0, t1)
    log_times, log_snrs = _log_snr_table(diffusion, t0, t1)
    start, end = clock.reading(log_snrs[0], 1.0), clock.reading(log_snrs[-1], 1.0)
    return _NoiseTiming(
        start=start,
        end=end,
        diffusion=diffusion,
        clock=clock,
        log_times=log_times,
        log_snrs=log_snrs,
    )


@eqx.filter_jit
def _read_table(diffusion: AbstractLinearDiffusion, t0: Scalar, t1: Scalar):
    log_times = jnp.linspace(jnp.log(t0), jnp.log(t1), _N_TIMES, dtype=t0.dtype)

    def read(log_t: Scalar):
        t = jnp.exp(log_t)
        kernel = diffusion.compute_kernel(t)
        # G^T Sigma^-1 a, whose norm is the speed of the signal-to-noise ratio, scaled
        # to a norm of about 1.
        scale = jnp.exp(0.5 * kernel.log_snr)
        G = diffusion.diffusion_matrix(t) * jnp.sqrt(t)
        noise = solve_lower(kernel.root, G)
        b = kernel.whitened_mean_map / scale
        return kernel.log_snr, jnp.sum(noise * b[:, None], axis=0)

    log_snrs, speeds = jax.vmap(read)(log_times)
    # A speed that turns round between two times has been near 0 on the way.
    turned = jnp.sum(speeds[1:] * speeds[:-1], axis=1) <= 0
    stationary = turned | ~(jnp.diff(log_snrs) < 0)
    return log_times, log_snrs, stationary


def _log_snr_table(
    diffusion: AbstractLinearDiffusion, t0: Scalar, t1: Scalar
) -> tuple[Float[Array, " times"], Float[Array, " times"]]:
    log_times, log_snrs, stationary = _read_table(diffusion, t0, t1)
    first = concrete(jnp.exp(log_times[jnp.argmax(stationary)]))
    where = "" if first is None else f" at t = {first:.4g}"
    message = (
        "`clock` must be left out for this diffusion: its log signal-to-noise ratio "
        f"stands still near a time between its ends{where}, so no clock of the noise "
        "tells the time there. Use the diffusion's own time, `clock=None`, or ends "
        "that leave this time out."
    )
    wrong = jnp.any(stationary)
    if concrete(wrong) is None:
        log_times = eqx.error_if(log_times, wrong, message)
    elif concrete(wrong):
        raise ValueError(message)
    return log_times, log_snrs
