"""Models whose score is a function, such as a closed form."""

from typing import final

from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._core.blocks import transpose
from .._core.gaussian import PerturbationKernel, apply_to_vars
from .._core.types import Data, LogSNR, State
from .._diffusion import AbstractLinearDiffusion, AbstractProcess
from .base import AbstractModel, ScoreFunction, check_diffusion
from .networks import bind_condition, call_network
from .noise import no_denoiser


@final
class FunctionModel(AbstractModel):
    r"""The model whose score is any function of time and state.

    **Arguments:**

    - `score`: a callable `(t, y) -> score` on one example, such as a closed form. If
        the model has a condition, it is the keyword `condition`.
    - `diffusion`: the process whose score it is.
    """

    network: ScoreFunction
    diffusion: AbstractProcess

    def __init__(self, score: ScoreFunction, diffusion: AbstractProcess):
        check_diffusion(diffusion)
        self.network, self.diffusion = score, diffusion

    @property
    def data_std(self) -> float:
        return 1.0

    @property
    def log_snr_range(self) -> tuple[float, float] | None:
        return None

    @property
    def has_denoiser(self) -> bool:
        return False

    @property
    def takes_snr_vector(self) -> bool:
        return False

    def under(self, diffusion: AbstractLinearDiffusion) -> "FunctionModel":
        raise ValueError(
            "`diffusion` must be the one whose score this `FunctionModel` has, "
            f"{type(self.diffusion).__name__}; got {type(diffusion).__name__}. Build a "
            "`FunctionModel` with the score of that process, or a `DenoiserModel`, "
            "which serves every linear diffusion."
        )

    def with_condition(self, condition: PyTree) -> "FunctionModel":
        return FunctionModel(bind_condition(self.network, condition), self.diffusion)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        return None

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        raise no_denoiser(self)

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        raise no_denoiser(self)

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        return call_network("score", self.network, kernel.t.astype(y.dtype), y)

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        del x
        return noise + apply_to_vars(transpose(kernel.root), self.score_at(kernel, y))

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        # Tweedie's formula for the sufficient statistic, z + a^T s / SNR. It is
        # computed from the whitened score, because 1 / SNR may underflow.
        whitened = apply_to_vars(transpose(kernel.root), self.score_at(kernel, y))
        sigma = kernel.sigma.astype(y.dtype)
        return kernel.project(y) + sigma * kernel.along_data(whitened)
