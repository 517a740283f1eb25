"""Score models, in two parameterisations: callables `(t, y) -> score`."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._core.checks import concrete
from .._core.gaussian import PerturbationKernel, apply_to_vars, matmul, outer_with_data
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar, State, VarsMatrix
from .._diffusion import AbstractLinearDiffusion, Laws


ScoreFunction: TypeAlias = Callable[[Scalar, State], State]
Network: TypeAlias = Callable[[Scalar, State], State]
Denoiser: TypeAlias = Callable[[Scalar, Data], Data]


class AbstractScore(eqx.Module):
    r"""A model of $\nabla_y \log p_t(y)$ that knows its diffusion.

    A view for the length of a computation: a training state holds the network and the
    diffusion, and builds the score inside its loss. Any callable `(t, y) -> score`
    serves wherever a score is asked for; what these add is the error of a score in
    the form that rounds least.
    """

    @abc.abstractmethod
    def __call__(self, t: Scalar, y: State) -> State:
        """The score at `(t, y)`, of the whole state.

        **Raises:**

        `ValueError` unless `t` is positive. Where `t` is traced, the score at 0 is not
        a finite number instead.
        """

    @abc.abstractmethod
    def whitened_error(
        self, t: Scalar, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        r"""$L^\top (s_\theta(y) - \nabla_y \log q(y \mid x))$ at $y = a x + L
        \epsilon$."""

    @abc.abstractmethod
    def data_estimate(self, t: Scalar, kernel: PerturbationKernel, y: State) -> Data:
        r"""$\hat x = E[x \mid y]$ according to this score."""


def _positive(t: Scalar) -> Scalar:
    value = concrete(t)
    if value is not None and not 0 < value < math.inf:
        raise ValueError(
            "`t` must be positive: at t = 0 the auxiliaries' start and the data are "
            f"known exactly, and there is no score. It must be finite; got {value}. "
            "Take a time between the diffusion's `t0` and `t1`."
        )
    return t


def _like(name: str, value: Array, like: Array) -> Array:
    """`value`, refused unless it has the shape of `like`: it would broadcast."""
    shape = jnp.shape(value)
    if shape != like.shape:
        raise ValueError(
            f"`{name}` must return an array of the shape of what it is given, "
            f"{like.shape}; got {shape}. It is called on one example, without a batch "
            "axis."
        )
    return value


@final
class FreeScore(AbstractScore):
    r"""The score that a noise-predicting network over all variables stands for.

    $$s_\theta(t, y) = -L_t^{-\top} \epsilon_\theta(t, y)$$

    with $L_t$ the root of the perturbation kernel: the network sees and returns all
    $K$ variables.

    **Arguments:**

    - `network`: $\epsilon_\theta$, a callable `(t, y) -> noise` on one example.
    - `diffusion`: the process that it was trained on.

    **Source:** Singhal et al. (2023), section 5.
    """

    network: Network
    diffusion: AbstractLinearDiffusion

    def __call__(self, t: Scalar, y: State) -> State:
        t = _positive(jnp.asarray(t, y.dtype))
        whitening = self.diffusion.compute_kernel(t).whitening
        return -apply_to_vars(whitening.T, self.noise(t, y))

    def noise(self, t: Scalar, y: State) -> State:
        r"""$\epsilon_\theta(t, y)$."""
        return _like("network", self.network(t, y), y)

    def whitened_error(
        self, t: Scalar, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        del kernel, x
        return noise - self.noise(t, y)

    def data_estimate(self, t: Scalar, kernel: PerturbationKernel, y: State) -> Data:
        return tweedie(kernel, y, -apply_to_vars(kernel.whitening.T, self.noise(t, y)))


def _as_range(ends: Sequence[float]) -> tuple[float, float]:
    low, high = ends
    return float(low), float(high)


@final
class PreconditionedDenoiser(eqx.Module):
    r"""A denoiser $\hat x(\lambda, z)$ from a network, with EDM's preconditioning.

    With $\sigma = e^{-\lambda / 2}$, $\lambda$ the log signal-to-noise ratio:

    $$\hat x = c_\text{skip} z + c_\text{out} \, \text{net}(c, c_\text{in} z), \quad
    c_\text{skip} = \frac{s^2}{\sigma^2 + s^2}, \;
    c_\text{out} = \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}, \;
    c_\text{in} = \frac{1}{\sqrt{\sigma^2 + s^2}}$$

    The network is told the noise level as its place $c$ in `log_snr_range`, from 0 at
    the clean end to 1, like the time of a free score (EDM has $\frac14 \log \sigma$).
    Above the range the posterior mean of normal data, $c_\text{skip} z$, serves.
    Below it nothing does, and [`eqmdm.elbo`][] and the samplers refuse.

    **Arguments:**

    - `network`: a callable `(c, z[None]) -> output[None]`, so a network with one
        variable.
    - `data_std`: $s$, of the training data, in their units.
    - `log_snr_range`: `(low, high)` that the network is trained on.

    **Source:** Karras et al. (2022), table 1.
    """

    network: Network
    data_std: float = eqx.field(converter=float)
    log_snr_range: tuple[float, float] = eqx.field(converter=_as_range)

    def __check_init__(self):
        if not (math.isfinite(self.data_std) and self.data_std > 0):
            raise ValueError(
                f"`data_std` must be positive and finite; got {self.data_std}. It is "
                "the standard deviation of the training data."
            )
        low, high = self.log_snr_range
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                "`log_snr_range` must be (low, high), increasing and finite; got "
                f"{(low, high)}."
            )

    def __call__(self, log_snr: Scalar, z: Data) -> Data:
        return z + self.correction(log_snr, z)

    def correction(self, log_snr: Scalar, z: Data) -> Data:
        r"""$\hat x - z$, which at high signal-to-noise ratios their difference has no
        digits of."""
        low, high = self.log_snr_range
        log_snr = jnp.asarray(log_snr, z.dtype)
        sigma = jnp.exp(-0.5 * log_snr)
        total = jnp.sqrt(sigma**2 + self.data_std**2)
        level = (high - log_snr) / (high - low)
        inputs = (z / total)[None]
        output = _like("network", self.network(level, inputs), inputs)[0]
        residual = (sigma * self.data_std / total) * output
        residual = jnp.where(log_snr <= high, residual, jnp.zeros_like(residual))
        return residual - (sigma / total) ** 2 * z


@final
class DenoiserScore(AbstractScore):
    r"""The score of the whole state, assembled from a denoiser of the data.

    $$s(t, y) = \Sigma^{-1} (a \, \hat x(\lambda, z) - y), \qquad
    z = \frac{a^\top \Sigma^{-1} y}{a^\top \Sigma^{-1} a}$$

    Exact for the exact denoiser, for every linear diffusion whose auxiliaries start
    independent of the data: $z$ is sufficient for the data. One denoiser serves all.

    **Arguments:**

    - `denoiser`: a callable `(log_snr, z) -> x_hat` on one example.
    - `diffusion`: any linear diffusion.
    """

    denoiser: Denoiser
    diffusion: AbstractLinearDiffusion

    def __call__(self, t: Scalar, y: State) -> State:
        t = _positive(jnp.asarray(t, y.dtype))
        kernel = self.diffusion.compute_kernel(t)
        residual = kernel.mean(self.data_estimate(t, kernel, y)) - y
        whitening = kernel.whitening
        return apply_to_vars(whitening.T, apply_to_vars(whitening, residual))

    def whitened_error(
        self, t: Scalar, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        # Through y, the noise of z would be a difference of two nearly equal numbers;
        # at a log-SNR of 30 float32 has no digit of it. From the noise it is exact.
        del t, y
        b, log_snr = kernel.whitened_mean_map, kernel.log_snr.astype(x.dtype)
        weights = (b / jnp.exp(kernel.log_snr))[None].astype(x.dtype)
        z_noise = apply_to_vars(weights, noise)[0]
        return outer_with_data(b, z_noise + self.correction(log_snr, x + z_noise))

    def data_estimate(self, t: Scalar, kernel: PerturbationKernel, y: State) -> Data:
        del t
        return self.estimate(kernel.log_snr.astype(y.dtype), kernel.project(y))

    def estimate(self, log_snr: Scalar, z: Data) -> Data:
        r"""$\hat x(\lambda, z)$."""
        return _like("denoiser", self.denoiser(log_snr, z), z)

    def correction(self, log_snr: Scalar, z: Data) -> Data:
        r"""$\hat x - z$, in the form of the denoiser that keeps its digits."""
        if isinstance(self.denoiser, PreconditionedDenoiser):
            return self.denoiser.correction(log_snr, z)
        return self.estimate(log_snr, z) - z


@final
class CallableScore(AbstractScore):
    """Any function `(t, y) -> score`, a closed-form one for instance."""

    function: ScoreFunction

    def __call__(self, t: Scalar, y: State) -> State:
        return _like("score", self.function(t, y), y)

    def whitened_error(
        self, t: Scalar, kernel: PerturbationKernel, x: Data, noise: State, y: State
    ) -> State:
        del x
        return apply_to_vars(kernel.root.T, self(t, y)) + noise

    def data_estimate(self, t: Scalar, kernel: PerturbationKernel, y: State) -> Data:
        return tweedie(kernel, y, self(t, y))


def as_score(score: ScoreFunction, diffusion: AbstractLinearDiffusion) -> AbstractScore:
    """A score object for any callable, of this diffusion.

    A denoiser serves every diffusion, so its score becomes that of the one that is
    asked about.

    **Raises:** `ValueError` for the free score of another process, where that is known.
    """
    if isinstance(score, DenoiserScore):
        return DenoiserScore(score.denoiser, diffusion)
    if isinstance(score, FreeScore):
        _check_same_process(score.diffusion, diffusion)
        return FreeScore(score.network, diffusion)
    return score if isinstance(score, AbstractScore) else CallableScore(score)


def _check_same_process(
    own: AbstractLinearDiffusion, given: AbstractLinearDiffusion
) -> None:
    if own is given:
        return
    same = own.n_vars == given.n_vars
    if same:
        with jax.ensure_compile_time_eval():
            # Of one process with two pairs of ends, the kernels are the same.
            t = jnp.minimum(own.t1, given.t1)
            pairs = [(_rates(own, 0.5 * t), _rates(given, 0.5 * t))]
            pairs.append((_rates(own, t), _rates(given, t)))
            gaps = [jnp.max(jnp.abs(a - b) - 1e-3 * jnp.abs(a)) for a, b in pairs]
            gap = concrete(jnp.max(jnp.stack(gaps)))
        same = gap is None or gap < 1e-3
    if not same:
        raise ValueError(
            f"`score` must be of `diffusion`, {type(given).__name__} with "
            f"{given.n_vars} variables; got a free score of another process, "
            f"{type(own).__name__} with {own.n_vars}. Give the diffusion that its "
            "network was trained with; a denoiser serves them all."
        )


def _rates(diffusion: AbstractLinearDiffusion, t: Scalar) -> Array:
    """The drift matrix and the noise covariance in a unit of time."""
    G = diffusion.diffusion_matrix(t)
    return jnp.stack([diffusion.drift_matrix(t), matmul(G, G.T)])


@final
class Point(eqx.Module):
    r"""A state drawn at a time from the law given the data, or given the whole start.

    $y = \mathrm{mean} + L \epsilon$, with $L$ the root of that law. Scores know the
    first of the two laws only; what is drawn from the second is translated.
    """

    t: Scalar
    laws: Laws
    start: State
    noise: State
    y: State
    given_start: bool = eqx.field(static=True)

    @classmethod
    def draw(
        cls, t: Scalar, laws: Laws, start: State, *, given_start: bool, key: PRNGKey
    ) -> "Point":
        noise = draw_normal(key, start.shape, start.dtype)
        if given_start:
            y = laws.step.perturb(start, noise)
        else:
            y = laws.kernel.perturb(start[0], noise)
        return cls(t, laws, start, noise, y, given_start)

    @property
    def root(self) -> VarsMatrix:
        """$L$."""
        return self.laws.step.root if self.given_start else self.laws.kernel.root

    @property
    def kernel_noise(self) -> State:
        """The noise that leads from the data to `y` in the perturbation kernel."""
        if not self.given_start:
            return self.noise
        aux_only = self.start.at[0].set(jnp.zeros_like(self.start[0]))
        deviation = self.laws.step.perturb(aux_only, self.noise)
        return apply_to_vars(self.laws.kernel.whitening, deviation)

    @property
    def arguments(self) -> tuple[Scalar, PerturbationKernel, Data, State, State]:
        """What `AbstractScore.whitened_error` takes, for its error at `y`."""
        return self.t, self.laws.kernel, self.start[0], self.kernel_noise, self.y

    def error(self, kernel_error: State) -> State:
        r"""$L^\top (s_\theta - \nabla \log q)$ for this point's own law $q$, from that
        for the perturbation kernel."""
        if not self.given_start:
            return kernel_error
        ratio = matmul(self.laws.kernel.whitening, self.root)
        return self.noise + apply_to_vars(ratio.T, kernel_error - self.kernel_noise)


def tweedie(kernel: PerturbationKernel, y: State, score: State) -> Data:
    r"""$z + a^\top s / \mathrm{SNR}$: the posterior mean of the data that a score
    implies, by Tweedie's formula for the sufficient statistic $z$."""
    snr = jnp.exp(kernel.log_snr)
    weights = (kernel.mean_map / snr)[None].astype(y.dtype)
    return kernel.project(y) + apply_to_vars(weights, score)[0]


def trained_range(score: AbstractScore) -> tuple[float, float] | None:
    """The log-SNR range that a score's denoiser was trained on, if it states one."""
    if isinstance(score, DenoiserScore) and isinstance(
        score.denoiser, PreconditionedDenoiser
    ):
        return score.denoiser.log_snr_range
    return None


def check_trained_range(
    score: AbstractScore, diffusion: AbstractLinearDiffusion, value: Array
) -> Array:
    """`value`, refused where `diffusion` ends below the range of the denoiser.

    Only a `value` that is used carries the refusal where the diffusion is traced.
    """
    trained = trained_range(score)
    if trained is None:
        return value
    end = _lowest_log_snr(diffusion)
    known = concrete(end)
    # The range itself is often the diffusion's own end, found in float32.
    least = trained[0] - 1e-3
    message = (
        f"`diffusion` must end within the denoiser's `log_snr_range` {trained}; it "
        f"ends below{'' if known is None else f', at log-SNR {known}'}. Give it an "
        f"earlier end by `log_snr_range=({trained[0]}, ...)`, or train on a wider "
        "range."
    )
    if known is None:
        return eqx.error_if(value, end < least, message)
    if known < least:
        raise ValueError(message)
    return value


def _lowest_log_snr(diffusion: AbstractLinearDiffusion) -> Scalar:
    read = lambda: jax.lax.stop_gradient(diffusion.compute_kernel(diffusion.t1).log_snr)
    if jax.tree.leaves(eqx.filter(diffusion, eqx.is_array)):
        return read()
    # Of a constant it is known inside a trace too.
    with jax.ensure_compile_time_eval():
        return read()
