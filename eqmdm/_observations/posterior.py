"""The model of the data given an observation."""

from typing import final

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._core.gaussian import PerturbationKernel
from .._core.types import Data, LogSNR, State
from .._diffusion import AbstractLinearDiffusion
from .._model.base import AbstractModel
from .._model.denoiser import AbstractDenoiser, DenoiserModel
from .._model.ends import kernel_at_ends
from .base import AbstractConditioning
from .levels import normal_shares


@final
class ObservedModel(AbstractModel):
    r"""The model of the data given an observation, made by `AbstractModel.given`.

    Given the data, the observation $o$ is independent of the state. Conditioning
    therefore changes the denoiser to $\mathrm{E}[x \mid z, o]$, and nothing else: every
    method of this model follows from that denoiser, under any diffusion.

    - `model`: the model of the data without the observation.
    - `conditioning`: the observation, prepared by a method.
    """

    model: AbstractModel
    conditioning: AbstractConditioning

    def __init__(self, model: AbstractModel, conditioning: AbstractConditioning):
        self.model, self.conditioning = model, conditioning

    @property
    def method_name(self) -> str:
        """The method in words: "exact", or one that contains "approximate"."""
        return self.conditioning.method_name

    @property
    def diffusion(self) -> AbstractLinearDiffusion:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.linear_diffusion

    @property
    def data_std(self) -> float:
        return self.model.data_std

    @property
    def log_snr_range(self) -> tuple[float, float] | None:
        return self.model.log_snr_range

    @property
    def has_denoiser(self) -> bool:
        return True

    @property
    def takes_snr_vector(self) -> bool:
        return self.model.takes_snr_vector

    def under(self, diffusion: AbstractLinearDiffusion) -> "ObservedModel":
        return ObservedModel(self.model.under(diffusion), self.conditioning)

    def with_condition(self, condition: PyTree) -> "ObservedModel":
        return ObservedModel(self.model.with_condition(condition), self.conditioning)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Data:
        r"""$\mathrm{E}[x \mid z, o]$ at t1, where $z$ says next to nothing, for $z$ at
        the centre of the model without the observation."""
        _, last = kernel_at_ends(self.linear_diffusion)
        centre = self.model.prior_estimate(shape, dtype)
        z = jnp.zeros(shape, dtype) if centre is None else centre
        return self.denoise(last.log_snr.astype(dtype), z)

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        return self._posterior.denoise(log_snr, z)

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        return self._posterior.denoiser_residual(log_snr, z)

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        return self._posterior.score_at(kernel, y)

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        return self._posterior.whitened_error(kernel, x, noise, y)

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        return self._posterior.data_estimate(kernel, y)

    @property
    def _posterior(self) -> DenoiserModel:
        # Built where it is used, because it holds the diffusion twice.
        denoiser = _PosteriorDenoiser(
            self.data_std, self.log_snr_range, self.model, self.conditioning
        )
        return DenoiserModel(denoiser, self.diffusion)


@final
class _PosteriorDenoiser(AbstractDenoiser):
    """The denoiser of the data given an observation."""

    data_std: float
    log_snr_range: tuple[float, float] | None
    model: AbstractModel
    conditioning: AbstractConditioning

    @property
    def takes_snr_vector(self) -> bool:
        return self.model.takes_snr_vector

    def with_condition(self, condition: PyTree) -> "_PosteriorDenoiser":
        model = self.model.with_condition(condition)
        return _PosteriorDenoiser(
            self.data_std, self.log_snr_range, model, self.conditioning
        )

    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        kept, _ = normal_shares(log_snr, z, self.data_std)
        return self.residual(log_snr, z) + kept * z

    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        _, lost = normal_shares(log_snr, z, self.data_std)
        return self.residual(log_snr, z) - lost * z

    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        return self.conditioning.residual(self.model, log_snr, z)
