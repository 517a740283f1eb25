"""Models whose score is assembled from a denoiser of the data."""

from collections.abc import Sequence
from typing import Any, final

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._basis import AbstractBasis
from .._core.gaussian import PerturbationKernel, outer_with_data
from .._core.types import Data, LogSNR, State
from .._diffusion import AbstractLinearDiffusion
from .._diffusion.base import check_linear
from .base import AbstractModel, DenoiserFunction, NoiseNetwork
from .data_scale import data_scale
from .ends import log_snr_range
from .networks import bind_condition, call_network
from .pixel_law import SpikeAndSlab
from .preconditioned import (
    AbstractDenoiser as AbstractDenoiser,
    PreconditionedDenoiser as PreconditionedDenoiser,
    checked_range,
    checked_std,
    residual_of,
)
from .spike_and_slab import SpikeAndSlabDenoiser


# Above this log-SNR a network cannot improve on a Gaussian posterior: the noise is a
# thousandth of the data's range.
TOP_LOG_SNR = 14.0
# Added to the range of a diffusion's interval, whose times are found by a search.
_MARGIN = 0.01


@final
class VectorDenoiser(AbstractDenoiser):
    r"""A callable that is told the log-SNR of every coordinate, as a denoiser.

    $$\hat x(\lambda, z) = \mathrm{E}[x \mid z], \qquad z_i = x_i + e^{-\lambda_i / 2}
    \epsilon_i$$

    It serves diffusions whose matrices differ by coordinate, and conditions exactly on
    noisy observations of single coordinates.

    **Arguments:**

    - `function`: a callable `(log_snr, z) -> x_hat` on one example, with `log_snr` of
        the shape of `z`. Its entries may be infinite, for coordinates that are known
        exactly ($\lambda_i = \infty$) or not at all. If the model has a condition, it
        is the keyword `condition`.

    !!! Example

        ```python
        # The exact denoiser of standard normal data.
        denoiser = eqmdm.VectorDenoiser(lambda log_snr, z: z * jax.nn.sigmoid(log_snr))
        model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD())
        ```
    """

    function: DenoiserFunction
    data_std: float
    log_snr_range: tuple[float, float] | None

    def __init__(
        self,
        function: DenoiserFunction,
        data_std: float = 1.0,
        log_snr_range: Sequence[float] | None = None,
    ):
        self.function = function
        self.data_std = checked_std(data_std)
        known = log_snr_range is not None
        self.log_snr_range = checked_range(log_snr_range) if known else None

    @property
    def takes_snr_vector(self) -> bool:
        return True

    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        log_snr = jnp.broadcast_to(jnp.asarray(log_snr, z.dtype), z.shape)
        return call_network("network", self.function, log_snr, z)

    def with_condition(self, condition: PyTree) -> "VectorDenoiser":
        function = bind_condition(self.function, condition)
        return VectorDenoiser(function, self.data_std, self.log_snr_range)

    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        return self(log_snr, z) - z

    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        return residual_of(self(log_snr, z), log_snr, z, self.data_std)


@final
class _PlainDenoiser(AbstractDenoiser):
    """A callable `(log_snr, z) -> x_hat` for data of unknown scale."""

    function: DenoiserFunction
    data_std: float = 1.0
    log_snr_range: tuple[float, float] | None = None

    @property
    def takes_snr_vector(self) -> bool:
        return False

    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        return call_network("network", self.function, log_snr, z)

    def with_condition(self, condition: PyTree) -> "_PlainDenoiser":
        return _PlainDenoiser(function=bind_condition(self.function, condition))

    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        return self(log_snr, z) - z

    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        return residual_of(self(log_snr, z), log_snr, z, self.data_std)


@final
class DenoiserModel(AbstractModel):
    r"""The model whose score is assembled from a denoiser of the data.

    $$s(t, y) = \Sigma^{-1} (a \, \hat x(\lambda, z) - y), \qquad
    z = \frac{a^\top \Sigma^{-1} y}{a^\top \Sigma^{-1} a}$$

    The score is exact if the denoiser is, for every linear diffusion whose auxiliaries
    are independent of the data at time 0: $z = x + \sigma \epsilon$, with $\sigma =
    e^{-\lambda / 2}$, is then a sufficient statistic for the data. One denoiser
    therefore serves every such diffusion.

    **Arguments:**

    - `network`: a callable `(log_snr, z) -> x_hat` on one example;
        [`eqmdm.PreconditionedDenoiser`][] turns a network into one. If the model has a
        condition, it is the keyword `condition`.
    - `diffusion`: any linear diffusion.

    !!! Example

        ```python
        # The exact denoiser of standard normal data.
        denoiser = lambda log_snr, z: z / (1 + jnp.exp(-log_snr))
        model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD())
        ```
    """

    network: DenoiserFunction
    diffusion: AbstractLinearDiffusion

    @classmethod
    def for_data(
        cls, network: NoiseNetwork, diffusion: AbstractLinearDiffusion, data: Any
    ) -> "DenoiserModel":
        """The model of a network with one variable, preconditioned with the scale of
        its training data and the log-SNR range of the diffusion.

        !!! Example

            ```python
            network = eqmdm.nn.MLP((2,), 1, key=key)
            model = eqmdm.DenoiserModel.for_data(network, eqmdm.CLD(), x)
            ```

        **Arguments:**

        - `network`, `diffusion`: as for [`eqmdm.PreconditionedDenoiser`][] and
            [`eqmdm.DenoiserModel`][].
        - `data`: an array of points, or an [`eqmdm.data.Dataset`][].

        **Raises:** `TypeError` for an array of integers, because only a `Dataset` knows
        their levels.
        """
        check_linear(diffusion)
        low, high = log_snr_range(diffusion)
        trained = low - _MARGIN, min(high + _MARGIN, TOP_LOG_SNR)
        denoiser = PreconditionedDenoiser(network, data_scale(data), trained)
        return cls(denoiser, diffusion)

    def __init__(self, network: DenoiserFunction, diffusion: AbstractLinearDiffusion):
        check_linear(diffusion)
        self.network = network
        # A narrower type than in the base class, which is safe in a frozen class.
        self.diffusion = diffusion  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def denoiser(self) -> AbstractDenoiser:
        """The network, as a denoiser that knows its data if it does."""
        network = self.network
        known = isinstance(network, AbstractDenoiser)
        return network if known else _PlainDenoiser(function=network)

    @property
    def data_std(self) -> float:
        return self.denoiser.data_std

    @property
    def log_snr_range(self) -> tuple[float, float] | None:
        return self.denoiser.log_snr_range

    @property
    def has_denoiser(self) -> bool:
        return True

    @property
    def takes_snr_vector(self) -> bool:
        return self.denoiser.takes_snr_vector

    def under(self, diffusion: AbstractLinearDiffusion) -> "DenoiserModel":
        """The same denoiser under another diffusion."""
        return DenoiserModel(self.network, diffusion)

    def with_condition(self, condition: PyTree) -> "DenoiserModel":
        denoiser = self.denoiser.with_condition(condition)
        plain = isinstance(denoiser, _PlainDenoiser)
        return DenoiserModel(denoiser.function if plain else denoiser, self.diffusion)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        return None

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        self.check_log_snr(log_snr, z)
        return self.denoiser(log_snr, z)

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        self.check_log_snr(log_snr, z)
        return self.denoiser.residual(log_snr, z)

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        # One projection gives z with an error of more than one rounding of y, which in
        # float32 at a log-SNR of 13.3 is a noticeable part of the noise. A second
        # projection, of the residual y - a z, removes that error.
        z = kernel.project(y)
        rest = y - kernel.mean(z)
        missed = kernel.project(rest)
        log_snr = kernel.log_snr.astype(y.dtype)
        self.check_log_snr(log_snr, z)
        correction = self.denoiser.correction(log_snr, z + missed)
        residual = kernel.mean(missed + correction) - rest
        return kernel.unwhiten_score(kernel.whiten(residual))

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        # Computed from y, the noise of z would be a difference of two nearly equal
        # numbers, with no correct digit in float32 at a log-SNR of 30. Computed from
        # the noise it is exact.
        del y
        sigma = kernel.sigma.astype(x.dtype)
        along = kernel.along_data(noise)
        log_snr = kernel.log_snr.astype(x.dtype)
        self.check_log_snr(log_snr, x)
        correction = self.denoiser.correction(log_snr, x + sigma * along)
        return outer_with_data(kernel.direction, along + correction / sigma)

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        return self.denoise(kernel.log_snr.astype(y.dtype), kernel.project(y))


def basis_of(model: AbstractModel) -> AbstractBasis | None:
    """The basis whose coefficients are the data of a model; `None` for one that has the
    data themselves, or a denoiser of its own."""
    # A model with Student-t noise, for example, has the basis of the one that it wraps.
    model = getattr(model, "model", model)
    network = getattr(model, "network", None)
    known = (PreconditionedDenoiser, SpikeAndSlabDenoiser)
    return network.basis if isinstance(network, known) else None


def pixel_law(model: AbstractModel) -> SpikeAndSlab | None:
    """The law of a single pixel that the model's denoiser starts from; `None` for a
    model without one."""
    if not isinstance(model, DenoiserModel):
        return None
    network = model.network
    return network.pixel if isinstance(network, SpikeAndSlabDenoiser) else None
