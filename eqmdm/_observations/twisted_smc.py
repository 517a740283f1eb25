"""Twisted sequential Monte Carlo: weighted posterior samples with their evidence."""

from collections.abc import Iterable
from typing import NoReturn, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from .._core.checks import check_count, check_precision, check_shape
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar
from .._model.base import AbstractModel, check_model
from .._model.ends import statistic_at_ends
from .base import (
    AbstractLinearObservation,
    AbstractObservationMethod,
    check_has_denoiser,
)
from .moment_matching import Matrices, Moments
from .noise import normal_log_density
from .particles import (
    ParticleResult,
    effective_size,
    log_mean,
    standard_error,
    systematic,
)


# Resample if the weights are worth fewer than this fraction of the particles.
_LEAST_EFFECTIVE = 0.5


@final
class TwistedSMC(AbstractObservationMethod):
    r"""Samples of the posterior by twisted sequential Monte Carlo, for any denoiser.

    Particles follow the reverse process from noise to data, proposed by the approximate
    denoiser of [`eqmdm.MomentMatching`][] and weighted so that the approximation
    cancels: the weighted particles tend to draws of the posterior, and their mean
    weight to $p(o)$, as their number grows. The error falls like its square root.

    With noise levels $\sigma_k > \sigma_j$, $c = \sigma_j^2 / \sigma_k^2$, $D$ the
    denoiser and $D_o$ the approximate one, a step draws $z_j \sim \mathcal{N}(D_o + c
    (z_k - D_o), \sigma_j^2 (1 - c))$ where the process would draw about $D + c (z_k -
    D)$. The weight is multiplied by the ratio of the two densities, and by $\psi_j(z_j)
    / \psi_k(z_k)$, where

    $$\psi(z) = \mathcal{N}(o; A D, R + A V A^\top), \qquad V = \sigma^2 \, \partial D /
    \partial z,$$

    and at the last level $\mathcal{N}(o; A D, R)$. Particles are resampled, in a
    systematic way, when they are worth fewer than half their number.

    It is not a model, so it is called, and not passed to `model.given`:

        result = eqmdm.TwistedSMC(4096)(model, observation, shape, key=key)
        x = result.draw(64, key=key)

    The evidence is that of a chain of `n_steps` steps, uniform in log-SNR, whose law of
    the data is the model's as the steps get short. Each step takes one evaluation and,
    for each observed number, one derivative in forward mode, per particle.

    **Arguments:**

    - `n_particles`: the number of particles.
    - `n_steps`: the number of steps.

    **Raises:** `TypeError` or `ValueError` for counts below 2 and 1; when called, for a
    model without a denoiser, for data of another shape than the observation's, and for
    an observation of numbers without noise.

    **Source:** Wu et al. (2023), algorithm 1, with the variance of moment matching;
    Chan & Lai (2013) for the standard error.
    """

    n_particles: int = 1024
    n_steps: int = 100

    def __check_init__(self):
        check_count("n_particles", self.n_particles, least=2)
        check_count("n_steps", self.n_steps)

    def condition(
        self, model: AbstractModel, observation: AbstractLinearObservation
    ) -> NoReturn:
        raise TypeError(
            "`method` must make a model of the data given the observation; "
            "`TwistedSMC` draws weighted particles instead. Call it: "
            "`eqmdm.TwistedSMC(n_particles)(model, observation, shape, key=key)`."
        )

    def __call__(
        self,
        model: AbstractModel,
        observation: AbstractLinearObservation,
        shape: Iterable[int],
        *,
        key: PRNGKey,
        dtype: DTypeLike | None = None,
    ) -> ParticleResult:
        """Weighted particles of the posterior.

        **Arguments:**

        - `model`: a model with a denoiser.
        - `observation`: an [`eqmdm.LinearObservation`][].
        - `shape`: the shape of one example of data.
        - `key`: for the particles.
        - `dtype`: that of the particles; JAX's default float if `None`.
        """
        check_has_denoiser(check_model(model))
        shape = check_shape(shape)
        if not isinstance(observation, AbstractLinearObservation):
            raise TypeError(
                "`observation` must be an `eqmdm.LinearObservation`; got "
                f"{type(observation).__name__}."
            )
        observation.check_data_shape(shape)
        if observation.noise.has_exact:
            raise ValueError(
                "`observation` must have noise for `TwistedSMC`: without any, no "
                "particle has a positive likelihood. Give a `noise_std` that is small "
                "beside the spread of the data, or use `eqmdm.Exact()` where it "
                "applies."
            )
        dtype = check_precision(
            "dtype", jnp.result_type(float) if dtype is None else dtype
        )
        zero = model.check_final_time(jnp.zeros((), dtype))
        return _run(self, model, observation, shape, zero, key)


@final
class _Estimates(eqx.Module):
    r"""$D$, the approximate $D_o$, and $\log \psi$ of each particle."""

    mean: Float[Array, "particles *data"]
    proposed: Float[Array, "particles *data"]
    log_twist: Float[Array, " particles"]


@final
class _Particles(eqx.Module):
    """Particles at one noise level.

    `eve` is the index of each particle's first ancestor, and `log_evidence` that of the
    weights before the last resampling.
    """

    z: Float[Array, "particles *data"]
    estimates: _Estimates
    log_weights: Float[Array, " particles"]
    eve: Int[Array, " particles"]
    log_evidence: Scalar

    def resampled(self, *, key: PRNGKey) -> "_Particles":
        places = systematic(self.log_weights, len(self.log_weights), key=key)
        z, estimates, eve = jax.tree.map(
            lambda leaf: leaf[places], (self.z, self.estimates, self.eve)
        )
        log_evidence = self.log_evidence + log_mean(self.log_weights)
        log_weights = jnp.zeros_like(self.log_weights)
        return _Particles(z, estimates, log_weights, eve, log_evidence)


@final
class _Twist(eqx.Module):
    """The estimates of particles, with what they share."""

    model: AbstractModel
    matrices: Matrices
    noise_root: Float[Array, "size size"]

    @classmethod
    def of(
        cls,
        model: AbstractModel,
        observation: AbstractLinearObservation,
        dtype: jnp.dtype,
    ) -> "_Twist":
        matrices = Matrices.of(observation, dtype)
        return cls(model, matrices, jnp.linalg.cholesky(matrices.noise))

    def __call__(
        self,
        log_snr: Scalar,
        z: Float[Array, "particles *data"],
        is_last: Bool[Array, ""],
    ) -> _Estimates:
        return _Estimates(*jax.vmap(lambda z: self._one(log_snr, z, is_last))(z))

    def _one(
        self, log_snr: Scalar, z: Data, is_last: Bool[Array, ""]
    ) -> tuple[Data, Data, Scalar]:
        moments = Moments.of(self.model, log_snr, z, self.matrices.observation)
        # Any positive function will do as a twist, so that changes of the matrix of a
        # trained network leave the weights right.
        shift, gap, root = self.matrices.update(moments)
        root = jnp.where(is_last, self.noise_root, root)
        return moments.mean, moments.mean + shift, normal_log_density(gap, root)


def _moved(
    particles: _Particles,
    twist: _Twist,
    levels: tuple[Scalar, Scalar],
    is_last: Bool[Array, ""],
    *,
    key: PRNGKey,
) -> _Particles:
    """The particles after a step from one log-SNR to the next."""
    before, after = levels
    now = particles.estimates
    kept, new = jnp.exp(before - after), -jnp.expm1(before - after)
    std = jnp.exp(-0.5 * after) * jnp.sqrt(new)
    noise = draw_normal(key, particles.z.shape, particles.z.dtype)
    z = now.proposed + kept * (particles.z - now.proposed) + std * noise
    # The density of the process over that of the proposal, from the shift of the mean
    # in units of the noise.
    shift = (new / std) * (now.proposed - now.mean)
    log_ratio = -jnp.sum(shift * (noise + 0.5 * shift), axis=tuple(range(1, z.ndim)))
    then = twist(after, z, is_last)
    log_weights = particles.log_weights + log_ratio + then.log_twist - now.log_twist
    return _Particles(z, then, log_weights, particles.eve, particles.log_evidence)


@eqx.filter_jit
def _run(
    smc: TwistedSMC,
    model: AbstractModel,
    observation: AbstractLinearObservation,
    shape: tuple[int, ...],
    zero: Scalar,
    key: PRNGKey,
) -> ParticleResult:
    n, dtype = smc.n_particles, zero.dtype
    (high, low), std = statistic_at_ends(model.linear_diffusion, dtype)
    log_snrs = jnp.linspace(low, high, smc.n_steps + 1, dtype=dtype)
    twist = _Twist.of(model, observation, dtype)
    key_start, key_steps = jr.split(key)
    z = std * draw_normal(key_start, (n, *shape), dtype)
    centre = model.prior_estimate(shape, dtype)
    z = z if centre is None else z + centre[None]
    estimates = twist(log_snrs[0], z, jnp.asarray(False))
    start = _Particles(z, estimates, estimates.log_twist, jnp.arange(n), zero)

    def step(particles: _Particles, inputs) -> tuple[_Particles, Scalar]:
        before, after, is_last, key = inputs
        key_resample, key_move = jr.split(key)
        effective = effective_size(particles.log_weights)
        particles = jax.lax.cond(
            effective < _LEAST_EFFECTIVE * n,
            lambda: particles.resampled(key=key_resample),
            lambda: particles,
        )
        moved = _moved(particles, twist, (before, after), is_last, key=key_move)
        return moved, effective

    is_last = jnp.arange(smc.n_steps) == smc.n_steps - 1
    inputs = log_snrs[:-1], log_snrs[1:], is_last, jr.split(key_steps, smc.n_steps)
    end, effective = jax.lax.scan(step, start, inputs)
    log_weights = jax.nn.log_softmax(end.log_weights)
    return ParticleResult(
        end.estimates.mean,
        log_weights,
        end.log_evidence + log_mean(end.log_weights),
        standard_error(end.log_weights, end.eve),
        jnp.concatenate([effective, effective_size(end.log_weights)[None]]),
    )
