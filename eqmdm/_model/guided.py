"""Classifier-free guidance."""

from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._core.checks import as_array, check_finite, constant
from .._core.conditions import as_condition, missing_like
from .._core.gaussian import PerturbationKernel
from .._core.types import Data, LogSNR, Scalar, State
from .._diffusion import (
    AbstractLinearDiffusion,
    AbstractProcess,
    LogSNRInterval,
)
from .base import AbstractModel, check_model, conditioned


@final
class GuidedModel(AbstractModel):
    r"""A conditional model with classifier-free guidance.

    $$s(y \mid c) + (w - 1) (s(y \mid c) - s(y \mid \varnothing))$$

    where $\varnothing$ is the missing condition and $w$ the scale. It is a model like
    any other: give it to [`eqmdm.sample`][] with a condition, and with any sampler. At
    a scale of 1 it is the conditional model to the bit, and at 0 the unconditional one.
    Larger scales give samples that are more typical of the condition, and less diverse:
    the guided score is not that of the noisy data of any distribution, so a bound or
    likelihood of a guided model is one of its own samples' law, not of the data.

    The score, the noise and the data estimate are all guided by this one formula,
    because each is affine in what the network returns.

    !!! Example

        ```python
        guided = eqmdm.GuidedModel(model, 2.0, eqmdm.LogSNRInterval(-4, 4))
        x = eqmdm.sample(guided, (8, 8, 1), condition=3, key=key)
        ```

    **Arguments:**

    - `model`: a conditional model, trained with random dropping of its condition.
    - `scale`: $w$.
    - `interval`: the interval in log-SNR in which guidance acts; the whole of it for
        `None`. A log-SNR that differs by coordinate counts by its lowest. Outside, the
        model is the conditional one, which needs half the network evaluations.

    **Raises:** `TypeError` unless `model` is a model and `interval` an
    [`eqmdm.LogSNRInterval`][]; `ValueError` for a scale that is not a finite number;
    when it is used, `ValueError` without a condition.

    **Source:** Ho & Salimans (2022), equation 6, whose $w$ is this one less 1;
    Kynkäänniemi et al. (2024) for the interval.
    """

    model: AbstractModel
    scale: Scalar
    interval: LogSNRInterval | None
    condition: PyTree

    def __init__(
        self,
        model: AbstractModel,
        scale: Any,
        interval: LogSNRInterval | None = None,
        *,
        condition: PyTree = None,
    ):
        self.model = check_model(model)
        if interval is not None and not isinstance(interval, LogSNRInterval):
            raise TypeError(
                "`interval` must be an `eqmdm.LogSNRInterval`, in which guidance acts, "
                f"or `None`; got {interval!r}."
            )
        scale = as_array("scale", scale)
        if scale.shape != ():
            raise ValueError(
                f"`scale` must be a number; got shape {scale.shape}. Batch models with "
                "`jax.vmap`."
            )
        check_finite("scale", scale)
        # JAX arrays, so that another scale or class does not compile another program.
        dtype = jnp.result_type(float)
        is_known = isinstance(scale, np.ndarray)
        self.scale = constant(scale.astype(dtype)) if is_known else scale.astype(dtype)
        self.interval = interval
        self.condition = jax.tree.map(as_condition, condition)

    @property
    def diffusion(self) -> AbstractProcess:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.diffusion

    @property
    def data_std(self) -> float:
        return self.model.data_std

    @property
    def log_snr_range(self) -> tuple[float, float] | None:
        return self.model.log_snr_range

    @property
    def has_denoiser(self) -> bool:
        return self.model.has_denoiser

    @property
    def takes_snr_vector(self) -> bool:
        return self.model.takes_snr_vector

    def under(self, diffusion: AbstractLinearDiffusion) -> "GuidedModel":
        return self._like(self.model.under(diffusion), self.condition)

    def with_condition(self, condition: PyTree) -> "GuidedModel":
        # Checked here, and not at the first evaluation.
        self.model.with_condition(condition)
        return self._like(self.model, condition)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Data | None:
        """That of the conditional model, whose prior guidance does not change."""
        return conditioned(self.model, self.condition).prior_estimate(shape, dtype)

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        return self._guided(log_snr, lambda model: model.denoise(log_snr, z))

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        return self._guided(log_snr, lambda model: model.denoiser_residual(log_snr, z))

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        return self._guided(kernel.log_snr, lambda model: model.score_at(kernel, y))

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        return self._guided(
            kernel.log_snr, lambda model: model.whitened_error(kernel, x, noise, y)
        )

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        return self._guided(
            kernel.log_snr, lambda model: model.data_estimate(kernel, y)
        )

    def _like(self, model: AbstractModel, condition: PyTree) -> "GuidedModel":
        return GuidedModel(model, self.scale, self.interval, condition=condition)

    def _guided(
        self, log_snr: LogSNR, value: Callable[[AbstractModel], Array]
    ) -> Array:
        """An affine function of the network's output, guided."""
        if self.condition is None:
            raise ValueError(
                "`condition` must be given to a `GuidedModel`, as in `eqmdm.sample("
                "model, shape, condition=3, key=key)`."
            )
        conditional = self.model.with_condition(self.condition)

        def guided() -> Array:
            unconditional = self.model.with_condition(missing_like(self.condition))
            given = value(conditional)
            # In this form, a scale of 1 leaves `given` unchanged.
            extra = self.scale.astype(given.dtype) - 1
            return given + extra * (given - value(unconditional))

        acts = self.scale != 1
        if self.interval is not None:
            low, high = self.interval.low, self.interval.high
            # Of coordinates at several levels, those known least decide.
            least = log_snr if log_snr.ndim == 0 else jnp.min(log_snr)
            acts = acts & (low <= least) & (least <= high)
        # In samplers, where all samples share their times, this skips the second
        # evaluation. Under `jax.vmap` over times both are evaluated.
        return jax.lax.cond(acts, guided, lambda: value(conditional))
