"""The noise levels of all coefficients, and how a network is shown them."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._core.types import Data, LogSNR, Scalar


@final
class CoefficientLevels(eqx.Module):
    r"""The log-SNR of every coefficient, and the coefficients where it is not
    $-\infty$, for data of standard deviation $s$."""

    log_snr: Data
    z: Data
    data_std: float

    @classmethod
    def of(cls, log_snr: LogSNR, z: Data, data_std: float) -> "CoefficientLevels":
        log_snr = jnp.broadcast_to(jnp.asarray(log_snr, z.dtype), z.shape)
        # Zero times an infinite coefficient would be NaN, and so would derivatives.
        z = jnp.where(log_snr == -math.inf, 0, z)
        return cls(log_snr, z, data_std)

    @property
    def share(self) -> Data:
        r"""$s^2 / (\sigma^2 + s^2)$, the share of the data in the variance of $z$."""
        return jnp.exp(self._log_share(1))

    @property
    def rest(self) -> Data:
        return jnp.exp(self._log_share(-1))

    @property
    def root_share(self) -> Data:
        # The derivative of a square root would be infinite at 0.
        return jnp.exp(0.5 * self._log_share(1))

    @property
    def root_rest(self) -> Data:
        return jnp.exp(0.5 * self._log_share(-1))

    def noise_levels(self, log_snr_range: tuple[float, float]) -> tuple[Data, Scalar]:
        r"""The noise level of every coefficient in $[0, 1]$, and their mean, weighted
        by $\sqrt{c_\text{skip} (1 - c_\text{skip})}$."""
        low, high = log_snr_range
        noise_levels = jnp.clip((high - self.log_snr) / (high - low), 0, 1)
        # The last number is for coefficients that are all known or missing.
        weight = self.root_share * self.root_rest + 1e-12
        return noise_levels, jnp.sum(weight * noise_levels) / jnp.sum(weight)

    def inputs(self, mean: Scalar, log_snr_range: tuple[float, float]) -> Data:
        r"""$a z$ times $s$, for the `mean` noise level."""
        low, high = log_snr_range
        log_snr = high - (high - low) * mean
        mean = jax.nn.log_sigmoid(log_snr + 2 * math.log(self.data_std))
        log_share = self._log_share(1)
        smaller = jnp.minimum(log_share - mean, 0)
        return jnp.exp(0.5 * (log_share + smaller)) * self.z

    def _log_share(self, sign: int) -> Data:
        relative = self.log_snr + 2 * math.log(self.data_std)
        return jax.nn.log_sigmoid(sign * relative)
