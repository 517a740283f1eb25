"""The models of log p(x) that a score defines through an ODE."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from .._core.checks import check_count
from .._core.gaussian import (
    PerturbationKernel,
    apply_to_vars,
    log_det,
    matmul,
    standard_log_density,
)
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion
from .._model.score import AbstractScore, DenoiserScore, PreconditionedDenoiser
from .._model.time_change import AbstractNoiseClock, AngleClock, make_timing
from .flow import FlowSolver, standard_error


@final
class Likelihood(eqx.Module):
    r"""$\log p(x)$ of one example, or of each of a batch under `jax.vmap`.

    - `log_likelihood`: in nats, summed over the data coordinates; NaN unless
        `converged`.
    - `standard_error`: of `log_likelihood`, in nats, from the draws or probes that it
        is a mean over. 0 where nothing is random, NaN where there is only one of them.
    - `n_evaluations`: of the drift, each of which takes one of the network, over all
        solves; derivatives along probes are not counted beside it. -1 for a solver
        that is not an explicit Runge-Kutta method: its evaluations are not known.
    - `converged`: whether every solve reached the end within `max_steps`.
    """

    log_likelihood: Float[Array, "*batch"]
    standard_error: Float[Array, "*batch"]
    n_evaluations: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


class AbstractRoute(eqx.Module):
    r"""A model of $\log p(x)$ that a score defines through an ODE.

    All routes give the same for an exact score whose diffusion ends in its prior.
    Otherwise they are different models, and no order between them is guaranteed.
    """

    @abc.abstractmethod
    def __call__(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        x: Data,
        solve: FlowSolver,
        *,
        key: PRNGKey,
    ) -> Likelihood:
        r"""The log-density at $z_{t_0} = x$; NaN is put in later where not converged.

        **Arguments:**

        - `solve`: solves an ODE with its divergence.
        - `key`: for draws and probes.
        """


@final
class CollapsedRoute(AbstractRoute):
    r"""The ODE of the sufficient statistic $z$ alone, for denoisers.

    $$\mathrm{d}z / \mathrm{d}\sigma = (z - \hat x(\lambda, z)) / \sigma, \qquad
    \sigma = e^{-\lambda / 2}$$

    from the log-SNR $\lambda$ of the cut to that of the horizon, where $z$ is normal as
    the prior has it. It has as many dimensions as the data whatever the number of
    variables, and of the diffusion it needs these ends alone, so it serves where
    log-SNR is not monotone in time.

    It is solved for $z / \sqrt{c^2 + \sigma^2}$, with $c$ the standard deviation of the
    data where the denoiser states it and 1 otherwise.

    **Arguments:**

    - `clock`: [`eqmdm.AngleClock`][] by default. For a mixture in one dimension, with
        log-SNR from 13.3 to -13.3, Tsit5 at 1e-5 takes half as many evaluations on it
        as in log-SNR, and fewer than in the time of a VPSDE, at the same error.

    **Source:** Song et al. (2021), appendix D.2, for this variance-exploding process.
    """

    clock: AbstractNoiseClock = AngleClock()

    def __call__(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        x: Data,
        solve: FlowSolver,
        *,
        key: PRNGKey,
    ) -> Likelihood:
        if not isinstance(score, DenoiserScore):
            raise TypeError(
                "`route` must be an `AugmentedRoute` for a score that is not a "
                f"`DenoiserScore`; got CollapsedRoute with {type(score).__name__}. "
                "The collapsed ODE needs a denoiser of the data."
            )
        log_snrs, prior_std = _ends_of_statistic(diffusion, x.dtype)
        data_std = _data_std(score)
        scale = lambda log_snr: jnp.sqrt(data_std**2 + jnp.exp(-log_snr))

        def flow(s: Scalar):
            at = lambda s: self.clock.log_snr(s, data_std)
            log_snr, rate = jax.jvp(at, (s,), (jnp.ones_like(s),))
            r = scale(log_snr)

            def function(u: State) -> State:
                gap = _gap_to_linear(score, log_snr, r * u[0], data_std)
                return (0.5 * rate / r) * gap[None]

            return jnp.zeros((1, 1), x.dtype), jnp.ones((1, 1), x.dtype), function

        start, end = (self.clock.reading(log_snr, data_std) for log_snr in log_snrs)
        scales = scale(log_snrs[0]), scale(log_snrs[1])
        solved = solve(flow, start, end, x[None] / scales[0], key=key)
        # A standard normal under the prior.
        noise = solved.y * (scales[1] / prior_std)
        volume = x.size * jnp.log(scales[1] / prior_std / scales[0])
        estimates = standard_log_density(noise) + volume + solved.divergences
        return Likelihood(
            jnp.mean(estimates),
            solve.standard_error(estimates),
            solved.n_evaluations,
            solved.converged,
        )


def _ends_of_statistic(
    diffusion: AbstractLinearDiffusion, dtype: jnp.dtype
) -> tuple[Float[Array, " 2"], Scalar]:
    """The log-SNRs at the cut and the horizon, and the standard deviation that the
    prior gives to the sufficient statistic."""

    @jax.vmap
    def at_end(t):
        kernel = diffusion.compute_kernel(t)
        return kernel.log_snr, kernel.data_weights

    log_snrs, weights = at_end(jnp.stack([diffusion.t0, diffusion.t1]))
    prior_std = jnp.linalg.norm(matmul(weights[1][None], diffusion.prior.root))
    return log_snrs.astype(dtype), prior_std.astype(dtype)


def _data_std(score: DenoiserScore) -> float:
    if isinstance(score.denoiser, PreconditionedDenoiser):
        return score.denoiser.data_std
    return 1.0


def _gap_to_linear(
    score: DenoiserScore, log_snr: Scalar, z: Data, data_std: float
) -> Data:
    r"""$\hat x - c^2 z / (c^2 + \sigma^2)$, the gap to the mean given normal data.

    In the form that rounds less: at one end $\hat x$ and $z$ nearly agree, at the other
    $\hat x - z$ and $-z$ do, and the angle clock multiplies what rounding leaves.
    """
    noise = jnp.exp(-log_snr)
    total = data_std**2 + noise
    if isinstance(score.denoiser, PreconditionedDenoiser):
        return score.correction(log_snr, z) + (noise / total) * z
    x_hat = score.estimate(log_snr, z)
    near = (x_hat - z) + (noise / total) * z
    return jnp.where(noise < data_std**2, near, x_hat - (data_std**2 / total) * z)


@final
class AugmentedRoute(AbstractRoute):
    r"""The probability-flow ODE of the whole state, for any score.

    $$\mathrm{d}y / \mathrm{d}t = F y - \tfrac12 G G^\top s_\theta(t, y)$$

    gives the joint density of the state at the cut, $p(y)$. With $a$ and $L$ the mean
    map and root of the perturbation kernel at the cut, $z = w \cdot y$ the statistic
    that is sufficient for the data and $N$ an orthonormal basis across $L^{-1} a$, the
    states with $z = x$ are $y = a x + L N \eta$. So

    $$p(x, \eta) = p(a x + L N \eta) \, (|L| \sqrt{\mathrm{SNR}})^d$$

    is a joint density of $z$ at $x$ and of $K - 1$ auxiliaries $\eta$. Under the true
    process these are standard normal, $q(\eta)$, independent of $z$ and of the data.
    `n_draws` of them give either a lower bound of $\log p(x)$,

    $$\mathrm{E}_q \log p(x, \eta) + \mathrm{H}(q),$$

    or its importance-weighted estimate, $\log \frac1n \sum_i p(x, \eta_i) / q(\eta_i)$,
    which is on average a bound too, tighter with every draw. Both are tight for an
    exact score whose diffusion ends in its prior. With one variable nothing is drawn,
    and there is one solve.

    **Arguments:**

    - `n_draws`: of the auxiliaries, solved together. One has no standard error.
    - `importance_weighted`: which of the two. Use it with an exact divergence: the
        noise of Hutchinson's, through the exponential, biases the estimate upwards.
    - `clock`: `None` for the diffusion's own time; or a clock of the noise, where
        log-SNR stands still at no time between the ends.

    **Source:** Burda et al. (2016), equation 8, for the importance weights; their
    standard error is that of the mean weight, relative to it.
    """

    n_draws: int = 1
    importance_weighted: bool = False
    clock: AbstractNoiseClock | None = None

    def __check_init__(self):
        check_count("n_draws", self.n_draws)

    def __call__(
        self,
        score: AbstractScore,
        diffusion: AbstractLinearDiffusion,
        x: Data,
        solve: FlowSolver,
        *,
        key: PRNGKey,
    ) -> Likelihood:
        kernel = diffusion.compute_kernel(diffusion.t0)
        across = _across_data(kernel)
        volume = log_det(kernel.root) + 0.5 * kernel.log_snr
        volume = x.size * volume.astype(x.dtype)
        timing = make_timing(diffusion, self.clock, x.dtype)

        def flow(s: Scalar):
            t, rate = timing.time(s)
            A = rate * diffusion.drift_matrix(t)
            G = jnp.sqrt(0.5 * rate) * diffusion.diffusion_matrix(t)
            return A, G, lambda y: -_evaluate(score, t, y)

        def solve_one(key: PRNGKey):
            key_aux, key_probe = jr.split(key)
            aux = draw_normal(key_aux, (diffusion.n_vars - 1, *x.shape), x.dtype)
            y = kernel.mean(x) + apply_to_vars(across, aux)
            solved = solve(flow, timing.start, timing.end, y, key=key_probe)
            prior = diffusion.prior.log_density(solved.y).astype(x.dtype)
            weights = prior + volume - standard_log_density(aux) + solved.divergences
            return weights, solved

        if diffusion.n_vars == 1:
            estimates, solved = solve_one(key)
            value, error = jnp.mean(estimates), solve.standard_error(estimates)
            return Likelihood(value, error, solved.n_evaluations, solved.converged)
        estimates, solved = jax.vmap(solve_one)(jr.split(key, self.n_draws))
        estimates = jnp.mean(estimates, axis=1)
        if self.importance_weighted:
            largest = jax.lax.stop_gradient(jnp.max(estimates))
            weights = jnp.exp(estimates - largest)
            value = largest + jnp.log(jnp.mean(weights))
            error = standard_error(weights) / jnp.mean(weights)
        else:
            value, error = jnp.mean(estimates), standard_error(estimates)
        known = jnp.all(solved.n_evaluations >= 0)
        n_evaluations = jnp.where(known, jnp.sum(solved.n_evaluations), -1)
        return Likelihood(value, error, n_evaluations, jnp.all(solved.converged))


def _evaluate(score: AbstractScore, t: Scalar, y: State) -> State:
    """The score; a denoiser's in the form that rounds least.

    Computed at once, $z$ misses $y$ by more than one rounding of it, which at a log-SNR
    of 13.3 is a part of the noise that matters in float32. A second look at what is
    left of $y$ beside $a z$ removes that.
    """
    if not isinstance(score, DenoiserScore):
        return score(t, y)
    kernel = score.diffusion.compute_kernel(t)
    z = kernel.project(y)
    rest = y - kernel.mean(z)
    missed = kernel.project(rest)
    correction = score.correction(kernel.log_snr.astype(y.dtype), z + missed)
    residual = kernel.mean(missed + correction) - rest
    whitening = kernel.whitening
    return apply_to_vars(whitening.T, apply_to_vars(whitening, residual))


def _across_data(kernel: PerturbationKernel) -> Float[Array, "vars aux"]:
    r"""$L N$, for an orthonormal basis $N$ across $L^{-1} a$."""
    b = kernel.whitened_mean_map / jnp.exp(0.5 * kernel.log_snr)
    # All columns but the first of the reflection that sends b to that axis: there is
    # nothing to cancel, as there is in I - b b^T.
    normal = b.at[0].add(jnp.where(b[0] < 0, -1, 1).astype(b.dtype))
    outer = normal[:, None] * normal[None]
    reflection = jnp.eye(len(b), dtype=b.dtype) - 2 * outer / jnp.sum(normal**2)
    return matmul(kernel.root, reflection[:, 1:])
