"""Student-t noise: models whose noise has a random scale for every example."""

import functools
import math
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.core import eval_context
from jax.scipy.special import gammainc
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._core.checks import concrete
from .._core.gaussian import PerturbationKernel
from .._core.types import Data, LogSNR, PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion, ScaledDiffusion
from .base import AbstractModel, NoiseNetwork, check_model, conditioned
from .data_scale import data_scale
from .denoiser import TOP_LOG_SNR, DenoiserModel
from .ends import log_snr_range
from .noise import NoiseModel
from .preconditioned import AbstractDenoiser, PreconditionedDenoiser, residual_of


# The precision of one example in ten thousand is below this quantile. A network that is
# told the precision is trained down to it, and extrapolates for the others.
_RARE = 1e-4
# The tag of the key of a precision; the other draws of an example or sample are split
# from the same key, and are those of normal noise.
_PRECISION = 7


@final
class StudentTModel(AbstractModel):
    r"""A model with Student-t noise: every example has a precision of its own,

    $$\kappa \sim \mathrm{Gamma}(\nu / 2, \nu / 2),$$

    by which the covariances of the noise, of the start and of the prior are divided.
    Given $\kappa$ the process is the linear one of [`eqmdm.ScaledDiffusion`][]; over
    $\kappa$ the noise at every time has a multivariate t law with $\nu$ degrees of
    freedom, whose tails are heavy.

    [`eqmdm.elbo`][], [`eqmdm.sample`][], [`eqmdm.evaluate`][] and training draw a
    precision for each example or sample, and use `given_precision`, a model like any
    other; [`eqmdm.log_likelihood`][] takes the mixture over $\kappa$. Other functions
    take `given_precision(precision)`, and raise an error for this model.

    What the network is told about $\kappa$:

    - Shown: a denoiser is told the log-SNR $\log \kappa + \lambda(t)$ of its example.
      It is an ordinary denoiser of normal noise, and an existing one needs no training.
      An exact one makes the bound exact for every $\kappa$. Each $\kappa$ is a model of
      normal noise, so the tails of samples are those of such models.
    - Hidden: the network is told the time alone. A denoiser is told the ratio of the
      variances, $\lambda(t) + \log ((\nu - 2) / \nu)$; a noise model the time. For a
      given $\kappa$ such a network is one that ignores it, so every bound stays valid,
      though it is not tight even for the best network. Deterministic samplers of the
      sufficient statistic do not depend on $\kappa$ after their start, and have the
      right law for the denoiser $\mathrm{E}[x \mid z]$ over all $\kappa$. That is what
      training fits a denoiser to, with the same weight for every $\kappa$. The bound,
      which weights the error of an example by its $\kappa$, is largest for another
      denoiser, $\mathrm{E}[\kappa x \mid z] / \mathrm{E}[\kappa \mid z]$, whose
      samples have tails that are too heavy.

    The bound is that of the mean over $\kappa$ of $\log p(x \mid \kappa)$, which is a
    bound on $\log p(x)$, the mixture.

    !!! Example

        ```python
        denoiser = lambda log_snr, z: z / (1 + jnp.exp(-log_snr))
        model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD())
        model = eqmdm.StudentTModel(model, nu=4.0)
        x = eqmdm.sample(model, (8,), key=key)
        ```

    **Arguments:**

    - `model`: a model of normal noise. Shown, one with a denoiser; hidden, an
        [`eqmdm.DenoiserModel`][] or an [`eqmdm.NoiseModel`][].
    - `nu`: $\nu$, the degrees of freedom, positive. It is not trained.
    - `hidden`: whether the network is not told $\kappa$. The noise must then have a
        variance: `nu` must be above 2.

    **Raises:** `TypeError` unless `model` is a model of the right kind; `ValueError`
    for a `nu` out of range.

    **Source:** Pandey et al. (2024), t-EDM, for the hidden precision.
    """

    model: AbstractModel
    nu: float = eqx.field(static=True)
    hidden: bool = eqx.field(static=True)

    @classmethod
    def for_data(
        cls,
        network: NoiseNetwork,
        diffusion: AbstractLinearDiffusion,
        data: Any,
        nu: float,
        *,
        hidden: bool = False,
    ) -> "StudentTModel":
        """The model of a network with one variable, preconditioned with the scale of
        its training data and the log-SNR range that it is told, as by
        [`eqmdm.DenoiserModel`][]`.for_data`."""
        margin = 0.01
        low, high = log_snr_range(diffusion)
        shift = told_shift(nu, hidden=hidden)
        trained = low + shift - margin, min(high + margin, TOP_LOG_SNR)
        denoiser = PreconditionedDenoiser(network, data_scale(data), trained)
        return cls(DenoiserModel(denoiser, diffusion), nu, hidden=hidden)

    def __init__(self, model: AbstractModel, nu: float, *, hidden: bool = False):
        check_model(model)
        self.nu = _checked_nu(nu, hidden=hidden)
        if isinstance(model, StudentTModel):
            raise TypeError(
                "`model` must have normal noise, which this makes Student t; got "
                "StudentTModel."
            )
        if hidden and not isinstance(model, DenoiserModel | NoiseModel):
            raise TypeError(
                "`model` must be a `DenoiserModel` or a `NoiseModel` for a hidden "
                f"precision; got {type(model).__name__}, whose score is of one process."
            )
        if not hidden and not model.has_denoiser:
            raise TypeError(
                "`model` must have a denoiser, which can be told the precision of its "
                f"example; got {type(model).__name__}. Use a `DenoiserModel`, or for a "
                "`NoiseModel` pass `hidden=True`."
            )
        self.model, self.hidden = model, bool(hidden)

    @property
    def diffusion(self) -> AbstractLinearDiffusion:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The process with a precision of 1."""
        return self.model.linear_diffusion

    @property
    def data_std(self) -> float:
        return self.model.data_std

    @property
    def log_snr_range(self) -> tuple[float, float] | None:
        """The log-SNR range, with a precision of 1, on which all that the network is
        told, but for rare precisions, is in the range that it was trained on."""
        if self.model.log_snr_range is None:
            return None
        low, high = self.model.log_snr_range
        return low - told_shift(self.nu, hidden=self.hidden), high

    @property
    def has_denoiser(self) -> bool:
        return self.model.has_denoiser

    @property
    def takes_snr_vector(self) -> bool:
        return self.model.takes_snr_vector

    def under(self, diffusion: AbstractLinearDiffusion) -> "StudentTModel":
        return self._like(self.model.under(diffusion))

    def with_condition(self, condition: PyTree) -> "StudentTModel":
        return self._like(self.model.with_condition(condition))

    def draw_precision(self, *, key: PRNGKey, dtype: DTypeLike) -> Scalar:
        r"""A draw of $\kappa$."""
        return self._draw_gamma(self.nu / 2, key, dtype)

    def draw_training_precision(self, *, key: PRNGKey, dtype: DTypeLike) -> Scalar:
        r"""A draw of $\kappa$ for a training loss.

        If it is hidden from a denoiser, its density is proportional to $p(\kappa) /
        \kappa$, so that the loss, whose weight is $\kappa$, counts all precisions
        alike. The weight of an error of the predicted noise does not depend on it.
        """
        weighted = self.hidden and isinstance(self.model, DenoiserModel)
        shape = self.nu / 2 - 1 if weighted else self.nu / 2
        return self._draw_gamma(shape, key, dtype)

    def given_precision(self, precision: Any) -> AbstractModel:
        r"""The model of an example whose precision is known, under an
        [`eqmdm.ScaledDiffusion`][]."""
        diffusion = ScaledDiffusion(self.diffusion, precision)
        if not self.hidden:
            return self.model.under(diffusion)
        network = self.model.network  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(self.model, DenoiserModel):
            # The noise of a kernel has unit variance whatever the precision.
            return NoiseModel(network, diffusion)
        shift = jnp.log(diffusion.precision) - told_shift(self.nu, hidden=True)
        return DenoiserModel(_Unaware(self.model.denoiser, shift), diffusion)

    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Data | None:
        raise self._not_given()

    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        raise self._not_given()

    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        raise self._not_given()

    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        raise self._not_given()

    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        raise self._not_given()

    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        raise self._not_given()

    def _draw_gamma(self, shape: float, key: PRNGKey, dtype: DTypeLike) -> Scalar:
        precision = jr.gamma(key, shape, (), dtype) / (self.nu / 2)
        # For the smallest shapes it may underflow.
        return jnp.maximum(precision, jnp.finfo(dtype).tiny ** 0.5)

    def _like(self, model: AbstractModel) -> "StudentTModel":
        return StudentTModel(model, self.nu, hidden=self.hidden)

    def _not_given(self) -> TypeError:
        return TypeError(
            "`model` must have a known precision here, since the score of a "
            "`StudentTModel` is that of normal noise only given one. Use "
            "`model.given_precision(precision)`, with a number or with "
            "`model.draw_precision(key=key, dtype=x.dtype)`."
        )


@final
class _Unaware(AbstractDenoiser):
    """A denoiser that is told a log-SNR lower by `shift` than that of its example."""

    denoiser: AbstractDenoiser
    shift: Scalar
    data_std: float
    log_snr_range: tuple[float, float] | None

    def __init__(self, denoiser: AbstractDenoiser, shift: Scalar):
        self.denoiser, self.shift = denoiser, shift
        self.data_std = denoiser.data_std
        # In terms of the example's log-SNR the range depends on the precision.
        self.log_snr_range = None

    @property
    def takes_snr_vector(self) -> bool:
        return self.denoiser.takes_snr_vector

    def with_condition(self, condition: PyTree) -> "_Unaware":
        return _Unaware(self.denoiser.with_condition(condition), self.shift)

    def __call__(self, log_snr: LogSNR, z: Data) -> Data:
        return self.denoiser(self._told(log_snr, z), z)

    def correction(self, log_snr: LogSNR, z: Data) -> Data:
        return self.denoiser.correction(self._told(log_snr, z), z)

    def residual(self, log_snr: LogSNR, z: Data) -> Data:
        return residual_of(self(log_snr, z), log_snr, z, self.data_std)

    def _told(self, log_snr: LogSNR, z: Data) -> LogSNR:
        return jnp.asarray(log_snr, z.dtype) - self.shift.astype(z.dtype)


@functools.cache
def told_shift(nu: float, *, hidden: bool) -> float:
    r"""The least log-SNR that a network is told less that of a precision of 1: for a
    hidden precision $\log ((\nu - 2) / \nu)$, and otherwise the logarithm of a
    precision that few examples are below."""
    nu = _checked_nu(nu, hidden=hidden)
    if hidden:
        return math.log1p(-2 / nu)
    # By bisection, because JAX has no inverse of the incomplete gamma function.
    low, high = -1000.0, 0.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        with eval_context():
            share = float(gammainc(0.5 * nu, 0.5 * nu * math.exp(middle)))
        low, high = (low, middle) if share > _RARE else (middle, high)
    return high


def draw_precision(
    model: AbstractModel, *, key: PRNGKey, dtype: DTypeLike, training: bool = False
) -> Scalar | None:
    """A draw of the precision of an example of Student-t noise, whose other draws are
    split from `key`; `None` for a model of normal noise."""
    if not isinstance(model, StudentTModel):
        return None
    draw = model.draw_training_precision if training else model.draw_precision
    return draw(key=jr.fold_in(key, _PRECISION), dtype=dtype)


def example_model(
    model: AbstractModel, condition: PyTree, precision: Scalar | None
) -> AbstractModel:
    """The model of one example, given its condition and its precision if it has any."""
    model = conditioned(model, condition)
    if precision is None:
        return model
    assert isinstance(model, StudentTModel)
    return model.given_precision(precision)


def normal_model(model: AbstractModel) -> AbstractModel:
    """The model of normal noise of a model of Student-t noise, and any other itself."""
    return model.model if isinstance(model, StudentTModel) else model


def _checked_nu(nu: Any, *, hidden: bool) -> float:
    value = concrete(nu)
    if value is None or not 0 < value < math.inf:
        raise ValueError(
            f"`nu` must be a positive, finite number of degrees of freedom; got {nu}. "
            "4 has heavy tails, and above 100 the noise is nearly normal."
        )
    if hidden and value <= 2:
        raise ValueError(
            "`nu` must be above 2 for a hidden precision, because the network is told "
            "the variance of the noise, which is infinite for 2 and below; got "
            f"{value}. Show the precision, with `hidden=False`."
        )
    return value
