"""Models whose auxiliaries start at a function of the data."""

from collections.abc import Callable
from typing import Any, final

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .._core.blocks import by_coordinate, transpose
from .._core.gaussian import PerturbationKernel, apply_to_vars, contract
from .._core.types import Data, LogSNR, State, VarsMatrix, VarsVector
from .._diffusion import AbstractLinearDiffusion
from .base import AbstractModel, check_model
from .noise import no_denoiser


@final
class ConditionedStartModel(AbstractModel):
    r"""A model whose auxiliaries start at a function of the data:

    $$v_0 \mid x \sim \mathcal{N}(\mu(x), S_v), \qquad q(y_t \mid x) =
    \mathcal{N}(\Psi (x, \mu(x)), \Sigma)$$

    where $S_v$ is the start covariance of the diffusion, and $\Sigma$ includes it.
    $\mu$ is trained together with the score. It enters bounds and training alone:
    samples start from the prior and need no start law.

    - Bounds: every form, with every decoder. The data decoder is $p(x \mid y) =
      \mathcal{N}(\hat x(y), 1 / \mathrm{SNR})$, where $\hat x$ is the first variable of
      $\Psi^{-1} (y + \Sigma s)$ and SNR that of $\mu = 0$; its bound has no auxiliary
      term. The entropies of a decoder of the whole start do not depend on $\mu$.
    - Samples: by what follows the score, that is [`eqmdm.SSCS`][] and every Diffrax
      solver. `DPMSolver`, `AncestralSampler`, `LangevinCorrector` and `discrete_elbo`
      assume that the data alone determine the mean of the state, and raise an error.
    - Likelihoods: [`eqmdm.AugmentedRoute`][], which draws the auxiliaries about
      $\mu(x)$. It gives a bound, or its importance-weighted estimate, of the same
      density of $x$ as without $\mu$.

    The score must be free: a denoiser estimates the data alone, and the score is then
    $\Sigma^{-1} (\Psi (\hat x, \hat \mu) - y)$, with an estimate of $\mu$ too. A linear
    mean is the exception: see [`eqmdm.LinearStart`][].

    !!! Example

        ```python
        diffusion = eqmdm.CLD()
        score = eqmdm.NoiseModel(eqmdm.nn.MLP((2,), 2, key=key), diffusion)
        mean = eqmdm.nn.StartMean(eqmdm.nn.MLP((2,), 1, key=key))
        model = eqmdm.ConditionedStartModel(score, mean)
        ```

    **Arguments:**

    - `model`: an [`eqmdm.NoiseModel`][] or an [`eqmdm.FunctionModel`][] under a
        diffusion with auxiliary variables.
    - `mean`: $\mu$, a callable of one example `x` that returns the auxiliaries, of
        shape `(n_vars - 1, *x.shape)`. [`eqmdm.nn.StartMean`][] makes one of a network.

    **Raises:** `TypeError` for a model with a denoiser, or a `mean` that is no
    callable; `ValueError` for a diffusion without auxiliary variables, and when it is
    used for a `mean` of another shape.
    """

    model: AbstractModel
    mean: Callable[[Data], Float[Array, "aux *data"]]

    def __init__(self, model: AbstractModel, mean: Callable[[Data], Array]):
        check_model(model)
        if model.has_denoiser:
            raise TypeError(
                "`model` must have a free score, such as a `NoiseModel`, because a "
                "denoiser does not estimate the auxiliaries that start at a function "
                f"of the data; got {type(model).__name__}. For a linear mean use "
                "`eqmdm.LinearStart(diffusion, slopes)`, which denoisers serve."
            )
        if conditioned_start(model) is not None:
            raise TypeError("`model` must not have a conditioned start already.")
        if model.diffusion.n_vars == 1:
            raise ValueError(
                "`model` must have a diffusion with auxiliary variables, whose start "
                f"is that given the data; {type(model.diffusion).__name__} has none. "
                "Use `eqmdm.CLD()`."
            )
        if not callable(mean):
            raise TypeError(
                "`mean` must be a callable of one example that returns its "
                f"auxiliaries; got {type(mean).__name__}."
            )
        self.model, self.mean = model, mean

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
        return False

    @property
    def takes_snr_vector(self) -> bool:
        return False

    def under(self, diffusion: AbstractLinearDiffusion) -> "ConditionedStartModel":
        return ConditionedStartModel(self.model.under(diffusion), self.mean)

    def with_condition(self, condition: PyTree) -> "ConditionedStartModel":
        return ConditionedStartModel(self.model.with_condition(condition), self.mean)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Data | None:
        return self.model.prior_estimate(shape, dtype)

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        raise no_denoiser(self)

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        raise no_denoiser(self)

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        return self.model.score_at(kernel, y)

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        # That of a free score depends on the data through the noise and the state only.
        return self.model.whitened_error(kernel, x, noise, y)

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        # Tweedie's formula for the mean of the state, of which the start is a map.
        nothing = jnp.zeros_like(y)
        whitened = self.model.whitened_error(kernel, nothing[0], nothing, y)
        mean = y + apply_to_vars(kernel.root, whitened)
        return contract(data_row(kernel).astype(y.dtype), mean)

    def mean_start(self, x: Data) -> State:
        r"""$(x, \mu(x))$, the mean of the start.

        **Raises:** `ValueError` for a `mean` of another shape.
        """
        aux = self.mean(x)
        expected = (self.diffusion.n_vars - 1, *x.shape)
        if jnp.shape(aux) != expected:
            raise ValueError(
                "`mean` must return the auxiliaries of one example, of shape "
                f"{expected} for data of shape {x.shape}; got {jnp.shape(aux)}."
            )
        return jnp.concatenate([x[None], aux.astype(x.dtype)])


def data_row(kernel: PerturbationKernel) -> VarsVector:
    r"""The first row of $\Psi^{-1}$, which takes the mean of a state to the data."""

    def first_row(mean_map: VarsMatrix) -> VarsVector:
        first = jnp.zeros(len(mean_map), mean_map.dtype).at[0].set(1)
        # By LU, because the mean map is not triangular.
        return jnp.linalg.solve(transpose(mean_map), first)

    return by_coordinate(first_row, kernel.step.mean_map)


def conditioned_start(model: AbstractModel) -> ConditionedStartModel | None:
    """The part of a model that holds its conditioned start, if it has one."""
    inner: Any = model
    while isinstance(inner, AbstractModel):
        if isinstance(inner, ConditionedStartModel):
            return inner
        # A model that wraps another, such as one with guidance, has it as `model`.
        inner = getattr(inner, "model", None)
    return None


def mean_start(model: AbstractModel, x: Data) -> State | None:
    """The mean of the start given the data; `None` for one whose auxiliaries have mean
    0."""
    start = conditioned_start(model)
    return None if start is None else start.mean_start(x)


def check_start_independent(model: AbstractModel, user: str, instead: str) -> None:
    """**Raises:** `TypeError` for a model with a conditioned start, which the function
    or sampler `user` does not take."""
    if conditioned_start(model) is not None:
        raise TypeError(
            f"`model` must have auxiliaries that start independent of the data for "
            f"`{user}`, which assumes that the data alone determine the mean of the "
            f"state; got a `ConditionedStartModel`. Use {instead}."
        )
