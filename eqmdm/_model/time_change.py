"""Clocks that follow the noise in the data rather than the diffusion's time."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.blocks import matmul
from .._core.checks import concrete, now_if_known, raise_or_error_if
from .._core.gaussian import PerturbationKernel
from .._core.types import Scalar
from .._diffusion import AbstractLinearDiffusion, AbstractProcess
from .._diffusion.base import check_linear


# Times in the table of log-SNR from which the search for a time starts. They are
# geometrically spaced, and log-SNR is nearly linear between two of them.
_N_TIMES = 257
# Interpolation leaves a relative error of about 1e-4, which each step squares. Two
# would suffice in float64; the third is for times where log-SNR is nearly stationary.
_N_NEWTON_STEPS = 3


class AbstractNoiseClock(eqx.Module):
    r"""A clock that is a decreasing function of the log-SNR $\lambda$, which for
    matrices that differ by coordinate is the mean over the coordinates.

    Below, $\sigma = e^{-\lambda / 2}$ is the noise level of the sufficient statistic
    and $c$ is the standard deviation of the data.
    """

    @abc.abstractmethod
    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        """The clock's reading at a log-SNR."""

    @abc.abstractmethod
    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        """The log-SNR at a reading of the clock."""


@final
class AngleClock(AbstractNoiseClock):
    r"""$\theta = \arctan(\sigma / c)$, from 0 for clean data to $\pi / 2$ for noise.

    **Source:** Lu & Song (2025), section 3.1.
    """

    # Bounded on both sides, unlike log-SNR and the noise level, with most of its range
    # where the noise is about as large as the data.
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
    """The diffusion's time as an increasing function of a clock's reading.

    `start` is the reading at t0, or at time 0, and `end` is the reading at t1.
    """

    start: eqx.AbstractVar[Scalar]
    end: eqx.AbstractVar[Scalar]

    @abc.abstractmethod
    def kernel(self, reading: Scalar) -> tuple[PerturbationKernel, Scalar]:
        r"""The kernel at a reading $s$, and $\mathrm{d}t / \mathrm{d}s$.

        A noise clock computes the kernel to find the time, so this method returns it
        for reuse.
        """

    @abc.abstractmethod
    def time(self, reading: Scalar) -> tuple[Scalar, Scalar]:
        r"""The time $t$ at a reading $s$, and $\mathrm{d}t / \mathrm{d}s$."""

    @abc.abstractmethod
    def reading(self, t: Scalar) -> Scalar:
        """The reading at a time in the interval."""


@final
class _OwnTiming(AbstractTiming):
    """The diffusion's own time."""

    diffusion: AbstractProcess
    start: Scalar
    end: Scalar

    def kernel(self, reading: Scalar) -> tuple[PerturbationKernel, Scalar]:
        return self.diffusion.network_kernel(reading), jnp.ones_like(reading)

    def time(self, reading: Scalar) -> tuple[Scalar, Scalar]:
        return reading, jnp.ones_like(reading)

    def reading(self, t: Scalar) -> Scalar:
        return t


@final
class _NoiseTiming(AbstractTiming):
    """The time as a function of the reading of a noise clock."""

    diffusion: AbstractLinearDiffusion
    clock: AbstractNoiseClock
    log_times: Float[Array, " times"]
    log_snrs: Float[Array, " times"]
    start: Scalar
    end: Scalar

    def kernel(self, reading: Scalar) -> tuple[PerturbationKernel, Scalar]:
        at = lambda reading: self.clock.log_snr(reading, 1.0)
        log_snr, change = jax.jvp(at, (reading,), (jnp.ones_like(reading),))
        low, high = self.log_times[0], self.log_times[-1]

        def kernel_and_slope(log_t: Scalar) -> tuple[PerturbationKernel, Scalar]:
            t = jnp.exp(log_t)
            kernel = self.diffusion.compute_kernel(t)
            rate = jnp.mean(self.diffusion.log_snr_rate(t, kernel))
            return kernel, t * rate

        def improve(_, log_t: Scalar) -> Scalar:
            kernel, slope = kernel_and_slope(log_t)
            log_t = log_t - (kernel.mean_log_snr - log_snr) / slope
            return jnp.clip(log_t, low, high)

        # A loop is compiled once; unrolled steps would take seconds more to compile.
        log_t = jnp.interp(-log_snr, -self.log_snrs, self.log_times)
        log_t = jax.lax.fori_loop(0, _N_NEWTON_STEPS, improve, log_t)
        kernel, slope = kernel_and_slope(log_t)
        return kernel, change * kernel.t / slope

    def time(self, reading: Scalar) -> tuple[Scalar, Scalar]:
        kernel, rate = self.kernel(reading)
        return kernel.t, rate

    def reading(self, t: Scalar) -> Scalar:
        return self.clock.reading(self.diffusion.compute_kernel(t).mean_log_snr, 1.0)


def make_timing(
    diffusion: AbstractProcess,
    clock: AbstractNoiseClock | None,
    dtype: jnp.dtype,
    *,
    from_zero: bool = False,
) -> AbstractTiming:
    """The diffusion's time as a function of `clock`; `None` stands for its own time.

    `from_zero` starts the diffusion's own time at 0 instead of t0.

    **Raises:**

    `ValueError` (`equinox.EquinoxRuntimeError` if the diffusion is traced) if `clock`
    is a noise clock and log-SNR is not strictly monotone within the interval;
    `TypeError` for a noise clock with a process that is not linear.
    """
    with now_if_known(diffusion, clock):
        t0, t1 = diffusion.t0.astype(dtype), diffusion.t1.astype(dtype)
        if clock is None:
            start = jnp.zeros((), dtype) if from_zero else t0
            return _OwnTiming(diffusion=diffusion, start=start, end=t1)
        linear = check_linear(diffusion)
        log_times, log_snrs = _log_snr_table(linear, t0, t1)
        start, end = (clock.reading(log_snrs[i], 1.0) for i in (0, -1))
        return _NoiseTiming(
            diffusion=linear,
            clock=clock,
            log_times=log_times,
            log_snrs=log_snrs,
            start=start,
            end=end,
        )


@eqx.filter_jit
def _read_table(diffusion: AbstractLinearDiffusion, t0: Scalar, t1: Scalar):
    log_times = jnp.linspace(jnp.log(t0), jnp.log(t1), _N_TIMES, dtype=t0.dtype)

    def read(log_t: Scalar):
        t = jnp.exp(log_t)
        kernel = diffusion.compute_kernel(t)
        # G^T Sigma^-1 a, whose squared norm is minus the rate of change of the
        # signal-to-noise ratio, scaled to a norm of about 1.
        noise = matmul(kernel.whitening, diffusion.diffusion_matrix(t) * jnp.sqrt(t))
        return kernel.mean_log_snr, matmul(kernel.direction[None], noise)[0]

    log_snrs, speeds = jax.vmap(read)(log_times)
    # If the vector turns round between two times, it is close to 0 in between.
    turned = jnp.sum(speeds[1:] * speeds[:-1], axis=1) <= 0
    # The mean log-SNR is stationary only if that of every coordinate is.
    turned = jnp.all(turned.reshape(len(turned), -1), axis=1)
    stationary = turned | ~(jnp.diff(log_snrs) < 0)
    return log_times, log_snrs, stationary


def _log_snr_table(
    diffusion: AbstractLinearDiffusion, t0: Scalar, t1: Scalar
) -> tuple[Float[Array, " times"], Float[Array, " times"]]:
    log_times, log_snrs, stationary = _read_table(diffusion, t0, t1)
    first = concrete(jnp.exp(log_times[jnp.argmax(stationary)]))
    where = "" if first is None else f" near t = {first:.4g}"
    message = (
        "`clock` must be None, for the diffusion's own time, because its log-SNR is "
        f"not strictly monotone{where}, and a noise clock does not determine the time "
        "there. Or choose an `interval` without that time."
    )
    return raise_or_error_if(log_times, jnp.any(stationary), message), log_snrs
