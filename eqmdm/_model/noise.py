"""Models whose network predicts the noise of every variable."""

from typing import final

from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._core.gaussian import PerturbationKernel
from .._core.types import Data, LogSNR, State
from .._diffusion import AbstractLinearDiffusion, AbstractProcess
from .base import AbstractModel, NoiseNetwork, check_diffusion
from .networks import bind_condition, call_network


@final
class NoiseModel(AbstractModel):
    r"""The model whose network predicts the noise of every variable.

    $$s_\theta(t, y) = -L_t^{-\top} \epsilon_\theta(t, y)$$

    where $L_t$ is the root of the perturbation kernel. The network takes and returns
    all $K$ variables, so it is valid only for the diffusion that it was trained on.

    **Arguments:**

    - `network`: $\epsilon_\theta$, a callable `(t, y) -> noise` on one example. If the
        model has a condition, it is the keyword `condition`.
    - `diffusion`: the process that the network is trained on.

    **Source:** Singhal et al. (2023), section 5.
    """

    network: NoiseNetwork
    diffusion: AbstractProcess

    def __init__(self, network: NoiseNetwork, diffusion: AbstractProcess):
        check_diffusion(diffusion)
        self.network, self.diffusion = network, diffusion

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

    def under(self, diffusion: AbstractLinearDiffusion) -> "NoiseModel":
        raise ValueError(
            "`diffusion` must be the one that a `NoiseModel` was trained on, "
            f"{type(self.diffusion).__name__}, because its network only predicts the "
            f"noise of that process; got {type(diffusion).__name__}. Train a "
            "`DenoiserModel`, which serves every linear diffusion."
        )

    def with_condition(self, condition: PyTree) -> "NoiseModel":
        return NoiseModel(bind_condition(self.network, condition), self.diffusion)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        return None

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        raise no_denoiser(self)

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        raise no_denoiser(self)

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        return -kernel.unwhiten_score(self._noise(kernel, y))

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        del x
        return noise - self._noise(kernel, y)

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        # Tweedie's formula for the sufficient statistic, z + a^T s / SNR.
        sigma = kernel.sigma.astype(y.dtype)
        return kernel.project(y) - sigma * kernel.along_data(self._noise(kernel, y))

    def _noise(self, kernel: PerturbationKernel, y: State) -> State:
        return call_network("network", self.network, kernel.t.astype(y.dtype), y)


def no_denoiser(model: AbstractModel) -> TypeError:
    """The error for a model without a denoiser where one is required."""
    return TypeError(
        "`model` must be a `DenoiserModel`, whose flow reduces to that of the data's "
        f"sufficient statistic; got {type(model).__name__}, which only has a score of "
        "the whole state."
    )
