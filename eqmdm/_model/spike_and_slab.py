"""Denoisers of dequantised grey levels, some of which are frequent."""

import math
from collections.abc import Sequence
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._basis import AbstractBasis, PixelBasis
from .._core.types import Data, LogSNR
from .base import NoiseNetwork
from .coefficient_levels import CoefficientLevels
from .networks import bind_condition, call_network
from .pixel_law import Components, SpikeAndSlab, noise_std
from .preconditioned import AbstractDenoiser, checked_range


@final
class SpikeAndSlabDenoiser(AbstractDenoiser):
    r"""A denoiser of dequantised grey levels, some of which are frequent.

    The preconditioning of [`eqmdm.PreconditionedDenoiser`][] is the posterior mean of
    normal data, to which the network adds a correction. Where most pixels have one
    level, such as the background of drawings, that network has to reproduce the noise
    of its input in order to remove it, to within a small part of the width of a level.
    Here the posterior mean is that of a [`eqmdm.SpikeAndSlab`][] distribution, and the
    network corrects the odds of its components as well as the mean of the slab:

    $$\hat x = \sum_k r_k \, \mathrm{E}[x \mid z, k] + r_0 \left(\mu + \frac{s^2 (z -
    \mu)}{s^2 + \sigma^2} + \frac{\sigma s}{\sqrt{s^2 + \sigma^2}} o_0\right), \qquad
    r = \operatorname{softmax}_k(\log \pi_k p(z \mid k) + o_k)$$

    Here $o$ is the output of the network, with $o_k$ added to the logit of spike $k$.
    The network sees $z$ scaled to the variance of the slab, and the $r_k$ without its
    correction. If it returns zero, the denoiser is exact for independent pixels.

    The density within a spike is uniform, so that the denoiser knows the shape of a
    dequantised level. With a normal posterior mean, a pixel of known level that is
    dequantised uniformly costs $\frac12 \log_2 \frac{2 \pi e}{12} = 0.25$ bits more.

    The noise must be narrow at the start time, because the normal decoder does not know
    that shape. For 256 levels of data scaled to [-1, 1], it costs 0.22 bits for each
    such pixel at a log-SNR of 13.3, and 0.008 at 20. Exact likelihoods are therefore
    solved in log-SNR by default: with [`eqmdm.AngleClock`][] and a tolerance of 1e-5
    steps pass over the edges of the level, and the pixel is 0.01 bits too likely.

    The bound without the network is known, so that only what the network changes in it
    is estimated: see [`eqmdm.LowVariance`][].

    **Arguments:**

    - `network`: a callable `(c, y) -> output` on states of `1 + n_spikes` variables,
        the slab first, that is, a network with that many variables. $c$ is as in
        [`eqmdm.PreconditionedDenoiser`][]. If the model has a condition, it is the
        keyword `condition`.
    - `pixel`: the distribution of a single pixel.
    - `log_snr_range`: the range `(low, high)` that the network is trained on. Above it
        the output of the network is taken to be zero.
    - `basis`: an [`eqmdm.PixelBasis`][] for a denoiser that is told the log-SNR of
        every pixel, as in [`eqmdm.PreconditionedDenoiser`][]; `None` for one log-SNR.

    **Raises:** `ValueError` for a range that is not increasing, or another basis, whose
    coefficients have no levels.

    !!! Example

        ```python
        pixel = eqmdm.SpikeAndSlab.of(images, eqmdm.GreyLevels(256))
        network = eqmdm.nn.UNet((28, 28, 1), 1 + pixel.n_spikes, key=key)
        denoiser = eqmdm.SpikeAndSlabDenoiser(network, pixel, (-9.0, 14.0))
        interval = eqmdm.LogSNRInterval(-9.0, 20.0)
        model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD(interval=interval))
        ```
    """

    network: NoiseNetwork
    pixel: SpikeAndSlab
    data_std: float
    log_snr_range: tuple[float, float] | None
    basis: AbstractBasis | None

    def __init__(
        self,
        network: NoiseNetwork,
        pixel: SpikeAndSlab,
        log_snr_range: Sequence[float],
        basis: AbstractBasis | None = None,
    ):
        self.network = network
        self.pixel = pixel
        self.data_std = pixel.root_mean_square
        self.log_snr_range = checked_range(log_snr_range)
        if not isinstance(basis, PixelBasis | None):
            raise ValueError(
                "`basis` must be an `eqmdm.PixelBasis`, because only pixels have "
                f"levels; got {type(basis).__name__}. Use a `PreconditionedDenoiser`."
            )
        self.basis = basis

    @property
    def takes_snr_vector(self) -> bool:
        return self.basis is not None

    def with_condition(self, condition: PyTree) -> "SpikeAndSlabDenoiser":
        assert self.log_snr_range is not None
        network = bind_condition(self.network, condition)
        return SpikeAndSlabDenoiser(network, self.pixel, self.log_snr_range, self.basis)

    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        # Not the mean of the components: at high log-SNR they nearly agree, and the
        # derivatives of their shares are large.
        levels = self._levels(log_snr, z)
        return levels.share * levels.z + self._residual(levels)

    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        levels = self._levels(log_snr, z)
        return self._residual(levels) - levels.rest * levels.z

    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        return self._residual(self._levels(log_snr, z))

    def _levels(self, log_snr: LogSNR, z: Data) -> CoefficientLevels:
        if self.basis is not None:
            z = self.basis.check(z)
        return CoefficientLevels.of(log_snr, z, self.data_std)

    def _residual(self, levels: CoefficientLevels) -> Data:
        assert self.log_snr_range is not None
        z, pixel = levels.z, self.pixel
        # A pixel that is known has no residual, and one that is missing has that of its
        # limit.
        known = levels.log_snr == math.inf
        sigma = noise_std(levels.log_snr)
        components = Components.of(pixel, sigma, z)
        output = self._output(levels, components)
        _, high = self.log_snr_range
        output = jnp.where(levels.log_snr <= high, output, jnp.zeros_like(output))
        shares = jax.nn.softmax(components.logits.at[1:].add(output[1:]), axis=0)
        total = jnp.sqrt(sigma**2 + pixel.std**2)
        components = components.with_slab_moved_by(
            sigma * pixel.std / total * output[0]
        )
        # At high log-SNR the estimate is close to z, and at low log-SNR the correction
        # is close to -z: take the difference that does not cancel.
        near = jnp.sum(shares * components.corrections, axis=0) + levels.rest * z
        far = jnp.sum(shares * components.means, axis=0) - levels.share * z
        residual = jnp.where(levels.share > 0.5, near, far)
        return jnp.where(known, jnp.zeros_like(residual), residual)

    def _output(
        self, levels: CoefficientLevels, components: Components
    ) -> Float[Array, "components *data"]:
        """The output of the network, told the noise level of all pixels or of each."""
        assert self.log_snr_range is not None
        shares = jax.nn.softmax(components.logits, axis=0)
        from_mean = levels.z - self.pixel.mean
        of_slab = CoefficientLevels.of(levels.log_snr, from_mean, self.pixel.std)
        noise_levels, mean = levels.noise_levels(self.log_snr_range)
        told = {}
        if self.basis is not None:
            filtered = jnp.sum(shares * components.means, axis=0) / self.data_std
            told = {"noise_levels": noise_levels, "filtered": filtered}
        scaled = of_slab.inputs(mean, self.log_snr_range) / self.pixel.std
        inputs = jnp.concatenate([scaled[None], shares[1:]])
        return call_network("network", self.network, mean, inputs, **told)
