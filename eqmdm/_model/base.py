"""The model: a network together with the diffusion that it is trained with."""

import abc
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._core.checks import concrete, is_deleted, raise_or_error_if
from .._core.gaussian import PerturbationKernel
from .._core.types import Data, LogSNR, PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion, AbstractProcess
from .._diffusion.base import check_linear
from .ends import final_log_snr as final_log_snr, kernel_at_ends as kernel_at_ends
from .observation import AbstractObservation


# Those of a conditional model also take the keyword `condition`.
ScoreFunction: TypeAlias = Callable[..., State]
NoiseNetwork: TypeAlias = Callable[..., State]
DenoiserFunction: TypeAlias = Callable[..., Data]


class AbstractModel(eqx.Module):
    r"""A model of $\nabla_y \log p_t(y)$, which is trained, sampled and evaluated.

    It holds a network and its diffusion, and stores each parameter once. The rest of
    the library uses it through the methods below. Most of them take the perturbation
    kernel at their time, so that its factors are computed once for all of them. Methods
    act on one example.

    A new kind of model implements the abstract members. To change how an existing one
    behaves, wrap it in a model of your own.
    """

    diffusion: eqx.AbstractVar[AbstractProcess]

    @property
    @abc.abstractmethod
    def data_std(self) -> float:
        """The standard deviation of the data, or 1 if the model does not know it."""

    @property
    @abc.abstractmethod
    def log_snr_range(self) -> tuple[float, float] | None:
        """The log-SNR range `(low, high)` that the model was trained on, if known.

        The model must not be evaluated below `low`."""

    @property
    @abc.abstractmethod
    def has_denoiser(self) -> bool:
        """Whether the score is assembled from a denoiser of the sufficient statistic.

        If so, the probability flow reduces to that of the statistic, for any diffusion,
        and the diffusion term of the bound is an integral over log-SNR."""

    @property
    @abc.abstractmethod
    def takes_snr_vector(self) -> bool:
        """Whether the denoiser can be told the log-SNR of each coordinate.

        If so, it also serves diffusions whose matrices differ by coordinate, and
        conditions exactly on observations of single coordinates."""

    @abc.abstractmethod
    def under(self, diffusion: AbstractLinearDiffusion) -> "AbstractModel":
        """The same network under another diffusion.

        **Raises:** `ValueError` if the network is tied to the diffusion it was trained
        on.
        """

    @abc.abstractmethod
    def with_condition(self, condition: PyTree) -> "AbstractModel":
        """The model of the data given a condition, which replaces an earlier one.

        It is a model like any other. Functions with an argument `condition` call this
        method for you.

        **Arguments:**

        - `condition`: the condition of one example: what the network takes as its
            keyword `condition`, an array or a tree of arrays.

        **Raises:** `TypeError` or `ValueError` for a condition that does not suit the
        network.
        """

    @abc.abstractmethod
    def prior_estimate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Data | None:
        r"""$\hat x$ before any state is seen, about which the prior is centred: the
        state at t1 is drawn about $a(t_1) \hat x$. `None` for the origin.

        A deterministic sampler remembers where it starts. About the origin it gives the
        modes of a posterior wrong weights.
        """

    @abc.abstractmethod
    def denoise(self, log_snr: LogSNR, z: Data) -> Data:
        r"""$\hat x(\lambda, z)$, the denoiser of the sufficient statistic.

        `log_snr` has the shape of `z` if it differs by coordinate.

        **Raises:** `TypeError` unless `has_denoiser`, and for a log-SNR by coordinate
        unless `takes_snr_vector`.
        """

    @abc.abstractmethod
    def denoiser_residual(self, log_snr: LogSNR, z: Data) -> Data:
        r"""$\hat x - c^2 z / (c^2 + \sigma^2)$, where $c$ is `data_std`: the difference
        from the posterior mean of normal data, in its most accurate form.

        **Raises:** as for `denoise`.
        """

    @abc.abstractmethod
    def score_at(self, kernel: PerturbationKernel, y: State) -> State:
        """The score of the whole state at the kernel's time."""

    @abc.abstractmethod
    def whitened_error(
        self, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        r"""$L^\top (s_\theta(y) - \nabla_y \log q(y \mid x))$ at $y = a x + L
        \epsilon$."""

    @abc.abstractmethod
    def data_estimate(self, kernel: PerturbationKernel, y: State) -> Data:
        r"""$\hat x = E[x \mid y]$ according to the model."""

    @property
    def linear_diffusion(self) -> AbstractLinearDiffusion:
        """The diffusion, for code that needs its kernels.

        **Raises:** `TypeError` for a process that is not linear.
        """
        return check_linear(self.diffusion)

    def given(
        self, observation: AbstractObservation, method: Any = None
    ) -> "AbstractModel":
        """The model of the data given an observation, such as a part of an image.

        It is a model like any other, for every diffusion, sampler and likelihood.

            observation = eqmdm.LinearObservation(eqmdm.observe.mask(seen), values, 0.1)
            x = eqmdm.sample(model.given(observation), shape, key=key)

        **Arguments:**

        - `observation`: an [`eqmdm.LinearObservation`][].
        - `method`: [`eqmdm.Exact`][] or [`eqmdm.MomentMatching`][], which is
            approximate; for `None`, the exact one where it applies.

        **Raises:** `TypeError` for an observation of another type, for a method that
        does not support the model, and for a model without a denoiser; `ValueError` for
        a method that does not support the observation.
        """
        check_not_donated(self)
        if not isinstance(observation, AbstractObservation):
            raise TypeError(
                "`observation` must be an observation of the data, such as "
                "`eqmdm.LinearObservation(operator, value, noise_std)`; got "
                f"{type(observation).__name__}. A condition that the network was "
                "trained with is given by `model.with_condition(condition)`."
            )
        return observation.condition(self, method)

    def prior_mean(self, shape: tuple[int, ...], dtype: DTypeLike) -> State | None:
        r"""$a(t_1) \hat x$, the mean of the state at t1 in the model's prior; `None`
        for the origin. The covariance is that of `diffusion.prior`."""
        estimate = self.prior_estimate(shape, dtype)
        if estimate is None:
            return None
        _, last = kernel_at_ends(self.linear_diffusion)
        return last.mean(estimate)

    def draw_prior(
        self, shape: tuple[int, ...], *, key: PRNGKey, dtype: DTypeLike
    ) -> State:
        """A draw of the state at t1 from the model's prior."""
        y = self.diffusion.prior.sample(shape, key=key).astype(dtype)
        mean = self.prior_mean(shape, dtype)
        return y if mean is None else y + mean

    def score(self, t: Scalar, y: State) -> State:
        r"""$s_\theta(t, y)$, the score of the whole state.

        **Arguments:**

        - `t`: the diffusion's time, which must be positive.
        - `y`: one state, of shape `(n_vars, *data)`.

        **Raises:**

        `ValueError` unless `t` is positive and finite and `y` has a row for each
        variable. A traced `t` is not checked: the score at 0 is then not finite.
        """
        check_not_donated(self)
        y = self.check_state(y)
        t = jnp.asarray(t, y.dtype)
        value = concrete(t)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(
                "`t` must be positive and finite: at t = 0 the data and the initial "
                f"auxiliaries are known exactly, and there is no score. Got {value}. "
                "Choose a time between the diffusion's `t0` and `t1`."
            )
        return self.score_at(self.diffusion.network_kernel(t), y)

    def check_state(self, y: State) -> State:
        """Returns `y` if it is one state of the diffusion.

        **Raises:** `ValueError` unless `y` has a row for each variable.
        """
        n_vars = self.diffusion.n_vars
        if y.ndim < 1 or len(y) != n_vars:
            raise ValueError(
                f"`y` must have a row for each of the {n_vars} variables of "
                f"{type(self.diffusion).__name__}; got shape {y.shape}. Batch with "
                "`jax.vmap`."
            )
        return y

    def check_takes_snr_vector(self) -> None:
        """**Raises:** `TypeError` unless `takes_snr_vector`."""
        if not self.takes_snr_vector:
            raise TypeError(
                "`model` must have a denoiser that is told the log-SNR of every "
                f"coordinate; that of this {type(self).__name__} takes one number. "
                "Train one with `--snr vector`, or wrap a callable `(log_snr, z)` that "
                "takes an array in an `eqmdm.VectorDenoiser`."
            )

    def check_log_snr(self, log_snr: LogSNR, z: Data) -> None:
        """**Raises:** `TypeError` for a log-SNR by coordinate unless
        `takes_snr_vector`; `ValueError` unless it has the shape of `z`."""
        shape = jnp.shape(log_snr)
        if shape == ():
            return
        self.check_takes_snr_vector()
        if shape != z.shape:
            raise ValueError(
                "`log_snr` must be a number or have the shape of `z`, "
                f"{z.shape}; got {shape}."
            )

    def check_final_time(self, value: Array, final: Scalar | None = None) -> Array:
        """Returns `value` if the diffusion ends within the log-SNR range of the model.

        Use the returned value: for a traced diffusion it carries the check. `final` is
        the log-SNR at the final time, if the caller has computed it already.

        **Raises:** `ValueError`, or `equinox.EquinoxRuntimeError` for a traced
        diffusion, if the diffusion ends at a lower log-SNR than the model was trained
        on.
        """
        if self.log_snr_range is None:
            return value
        low, high = self.log_snr_range
        if final is None:
            final = final_log_snr(self.linear_diffusion)
        known = concrete(final)
        message = (
            "`model` must have a diffusion that ends within the log-SNR range of its "
            f"network, {(low, high)}; {type(self.diffusion).__name__} ends below it"
            f"{'' if known is None else f', at log-SNR {known:.6g}'}. Give the "
            f"diffusion the `interval=eqmdm.LogSNRInterval({low:.6g}, ...)`, or train "
            "on a wider range."
        )
        # The tolerance is for ranges that were read from the diffusion's own interval,
        # which is solved for in float32.
        least = low - 1e-3
        wrong = final < least if known is None else known < least
        return raise_or_error_if(value, wrong, message)


def check_model(model: Any) -> AbstractModel:
    """Returns `model` if it is an eqmdm model that can be used.

    **Raises:**

    `TypeError` unless it is a model; the message lists the three constructors.
    `ValueError` if its arrays were donated to a training step.
    """
    if isinstance(model, AbstractModel):
        check_not_donated(model)
        return model
    raise TypeError(
        f"`model` must be an eqmdm model; got {type(model).__name__}. Say what your "
        "network computes: `eqmdm.DenoiserModel(network, diffusion)` if it maps "
        "(log_snr, z) to an estimate of the data, `eqmdm.NoiseModel(network, "
        "diffusion)` if it maps (t, y) to the noise of every variable, "
        "`eqmdm.FunctionModel(score, diffusion)` if it maps (t, y) to the score."
    )


def conditioned(model: Any, condition: PyTree) -> AbstractModel:
    """Returns the model given a condition, or the model itself for `None`.

    **Raises:** as for `check_model` and `AbstractModel.with_condition`.
    """
    model = check_model(model)
    return model if condition is None else model.with_condition(condition)


def check_conditions(model: AbstractModel, condition: PyTree) -> None:
    """**Raises:** `TypeError` or `ValueError` unless conditions, one for each example,
    suit the network of the model."""
    if condition is None:
        return
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(condition)]
    rows = {0}
    for leaf in leaves:
        if np.issubdtype(leaf.dtype, np.integer) and leaf.ndim == 1:
            # If these classes exist, all do.
            rows |= {int(leaf.argmin()), int(leaf.argmax())}
        elif np.isinf(leaf).any():
            rows |= {int(np.argwhere(np.isinf(leaf))[0][0])}
    for row in sorted(rows):
        model.with_condition(jax.tree.map(lambda leaf, row=row: leaf[row], condition))


def check_not_donated(model: AbstractModel) -> None:
    """**Raises:** `ValueError` if buffers of `model` were donated."""
    if is_deleted(model):
        raise ValueError(
            "`model` must not have been donated; the arrays of this one were, as "
            "`train_step` donates those of its state to the state that it returns. Use "
            "the model of that state: `state, metrics = train_step(state, ...)`, then "
            "`state.model` or `state.ema_model`. To keep an earlier model, copy its "
            "arrays before the step."
        )


def check_diffusion(diffusion: Any) -> None:
    """**Raises:** `TypeError` unless `diffusion` is a diffusion process."""
    if not isinstance(diffusion, AbstractProcess):
        raise TypeError(
            "`diffusion` must be a linear diffusion, such as `eqmdm.CLD()`, or another "
            f"diffusion process; got {type(diffusion).__name__}."
        )
