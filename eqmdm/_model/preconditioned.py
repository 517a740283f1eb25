"""Denoisers: their interface, and a network with its preconditioning."""

import abc
import math
from collections.abc import Sequence
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._basis import AbstractBasis
from .._core.types import Data, LogSNR, Scalar
from .base import NoiseNetwork
from .coefficient_levels import CoefficientLevels
from .networks import bind_condition, call_network


class AbstractDenoiser(eqx.Module):
    r"""A denoiser $\hat x(\lambda, z)$ that knows the scale and range of its data.

    Any callable `(log_snr, z) -> x_hat` on one example serves as a denoiser. This class
    is more accurate than a plain callable where $\hat x$ and $z$ nearly agree.
    """

    # The standard deviation of the data, or 1 if unknown.
    data_std: eqx.AbstractVar[float]
    # The log-SNR range (low, high) of its training; `None` if unknown.
    log_snr_range: eqx.AbstractVar[tuple[float, float] | None]

    @property
    @abc.abstractmethod
    def takes_snr_vector(self) -> bool:
        """Whether `log_snr` may also be an array of the shape of `z`, with a log-SNR
        for each coordinate, which may be infinite."""

    @abc.abstractmethod
    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        r"""$\hat x(\lambda, z)$."""

    @abc.abstractmethod
    def with_condition(self, condition: PyTree) -> "AbstractDenoiser":
        """The denoiser of the data given a condition; see
        [`eqmdm.AbstractModel`][]."""

    @abc.abstractmethod
    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        r"""$\hat x - z$."""

    @abc.abstractmethod
    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        r"""$\hat x - c^2 z / (c^2 + \sigma^2)$, where $c$ is `data_std`: the difference
        from the posterior mean of normal data."""


@final
class PreconditionedDenoiser(AbstractDenoiser):
    r"""A denoiser $\hat x(\lambda, z)$ from a network, with EDM's preconditioning.

    With $\sigma = e^{-\lambda / 2}$, $\lambda$ the log signal-to-noise ratio:

    $$\hat x = c_\text{skip} z + c_\text{out} \, \text{net}(c, c_\text{in} z), \quad
    c_\text{skip} = \frac{s^2}{\sigma^2 + s^2}, \;
    c_\text{out} = \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}, \;
    c_\text{in} = \frac{1}{\sqrt{\sigma^2 + s^2}}$$

    The network takes the noise level as its relative position $c$ in `log_snr_range`,
    from 0 at `high` to 1 at `low`, like the time of a noise model (EDM uses
    $\frac14 \log \sigma$). Above the range the denoiser is $c_\text{skip} z$, the
    posterior mean of normal data. Below the range it is undefined, and bounds, samplers
    and likelihoods raise an error.

    With a basis the denoiser takes the log-SNR of every coefficient $z_i$, which may be
    infinite: $x_i$ is then known, or $z_i$ is ignored. The formulas hold for every
    coefficient with its own $\sigma_i$, and the network, which sees and returns pixels,
    is told all $c_i$, clipped to $[0, 1]$:

    $$\hat x = c_\text{skip} z + c_\text{out} \, U \text{net}(\bar c, U^\top a z; c,
    U^\top c_\text{skip} z / s), \quad
    a_i = c_{\text{in}, i} \min(1, c_{\text{in}, i} / \bar c_\text{in})$$

    Here $\bar c$ is the mean of $c$ weighted by $\sqrt{c_\text{skip} (1 -
    c_\text{skip})}$, and $\bar c_\text{in}$ the factor at that level. Coefficients that
    are known or missing have no weight, and $a$ shows the network what it sees at one
    level, with less noise where a coefficient is known better, and nothing where it is
    missing. It therefore acts much as it does at one level, where $a$ is $c_\text{in}$.
    Its last argument is the example without the noise of the noisier coefficients. The
    data have the same scale $s$ in every coefficient, since a scale for each makes the
    network worse.

    **Arguments:**

    - `network`: a callable `(c, z[None]) -> output[None]`, that is, a network with one
        variable. If the model has a condition, it is the keyword `condition`. With a
        basis, it is called with the weighted mean of the noise levels and the keywords
        `noise_levels`, in the order of the coefficients, and `filtered`, in pixels.
    - `data_std`: $s$, the standard deviation of the training data, in their units.
    - `log_snr_range`: the range `(low, high)` that the network is trained on.
    - `basis`: $U$, such as [`eqmdm.PixelBasis`][]`(shape)`. The data of the model are
        coefficients in this basis.

    !!! Example

        ```python
        basis = eqmdm.HaarBasis((28, 28, 1))
        levels = basis.noise_levels
        network = eqmdm.nn.UNet(basis.shape, 1, noise_levels=levels, key=key)
        denoiser = eqmdm.PreconditionedDenoiser(network, 0.6, (-9.0, 13.3), basis)
        ```

    **Source:** Karras et al. (2022), table 1, for one noise level.
    """

    network: NoiseNetwork
    data_std: float
    log_snr_range: tuple[float, float] | None
    basis: AbstractBasis | None

    def __init__(
        self,
        network: NoiseNetwork,
        data_std: float,
        log_snr_range: Sequence[float],
        basis: AbstractBasis | None = None,
    ):
        self.network = network
        self.data_std = checked_std(data_std)
        self.log_snr_range = checked_range(log_snr_range)
        self.basis = basis

    @property
    def takes_snr_vector(self) -> bool:
        return self.basis is not None

    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        if self.basis is None:
            return z + self.correction(log_snr, z)
        levels = CoefficientLevels.of(log_snr, z, self.data_std)
        return levels.share * levels.z + self.residual(log_snr, z)

    def with_condition(self, condition: PyTree) -> "PreconditionedDenoiser":
        assert self.log_snr_range is not None
        network = bind_condition(self.network, condition)
        return PreconditionedDenoiser(
            network, self.data_std, self.log_snr_range, self.basis
        )

    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        if self.basis is not None:
            levels = CoefficientLevels.of(log_snr, z, self.data_std)
            return self.residual(log_snr, z) - levels.rest * z
        sigma, total = self._scales(log_snr, z)
        return self.residual(log_snr, z) - (sigma / total) ** 2 * z

    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        assert self.log_snr_range is not None
        if self.basis is not None:
            return self._residual_by_coefficient(self.basis, log_snr, z)
        low, high = self.log_snr_range
        sigma, total = self._scales(log_snr, z)
        log_snr = jnp.asarray(log_snr, z.dtype)
        inputs = (z / total)[None]
        level = (high - log_snr) / (high - low)
        output = call_network("network", self.network, level, inputs)[0]
        residual = (sigma * self.data_std / total) * output
        return jnp.where(log_snr <= high, residual, jnp.zeros_like(residual))

    def _residual_by_coefficient(
        self, basis: AbstractBasis, log_snr: LogSNR, z: Data
    ) -> Data:
        assert self.log_snr_range is not None
        _, high = self.log_snr_range
        levels = CoefficientLevels.of(log_snr, basis.check(z), self.data_std)
        noise_levels, mean = levels.noise_levels(self.log_snr_range)
        inputs = levels.inputs(mean, self.log_snr_range) / self.data_std
        filtered = levels.share * levels.z / self.data_std
        [output] = call_network(
            "network",
            self.network,
            mean,
            basis.inverse(inputs)[None],
            noise_levels=noise_levels,
            filtered=basis.inverse(filtered),
        )
        residual = self.data_std * levels.root_rest * basis.forward(output)
        return jnp.where(levels.log_snr <= high, residual, jnp.zeros_like(residual))

    def _scales(self, log_snr: Scalar, z: Data) -> tuple[Scalar, Scalar]:
        sigma = jnp.exp(-0.5 * jnp.asarray(log_snr, z.dtype))
        return sigma, jnp.sqrt(sigma**2 + self.data_std**2)


def residual_of(x_hat: Data, log_snr: LogSNR, z: Data, data_std: float) -> Data:
    """`AbstractDenoiser.residual`, from an estimate of the data."""
    # At high log-SNR the estimate is close to z, and at low log-SNR the correction is
    # close to -z: take the difference that does not cancel.
    relative = jnp.asarray(log_snr, z.dtype) + 2 * math.log(data_std)
    near = (x_hat - z) + jax.nn.sigmoid(-relative) * z
    return jnp.where(relative > 0, near, x_hat - jax.nn.sigmoid(relative) * z)


def checked_std(data_std: float) -> float:
    data_std = float(data_std)
    if not (math.isfinite(data_std) and data_std > 0):
        raise ValueError(
            f"`data_std` must be positive and finite; got {data_std}. It is the "
            "standard deviation of the training data."
        )
    return data_std


def checked_range(log_snr_range: Sequence[float]) -> tuple[float, float]:
    low, high = (float(log_snr) for log_snr in log_snr_range)
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            "`log_snr_range` must be (low, high), increasing and finite; got "
            f"{(low, high)}."
        )
    return low, high
