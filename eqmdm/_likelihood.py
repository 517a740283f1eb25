"""Exact likelihood, by the probability-flow ODE."""

import abc
import math
from collections.abc import Callable
from typing import Any, TypeAlias, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from ._clock import concrete
from ._custom_types import (
    Data,
    IntScalar,
    PRNGKey,
    RankMatrix,
    Scalar,
    State,
    Time,
    VarsMatrix,
)
from ._diffusion import AbstractLinearDiffusion
from ._form import AbstractDivergence, ExactDivergence, HutchinsonDivergence
from ._gaussian import (
    PerturbationKernel,
    apply_to_vars,
    log_det,
    matmul,
    n_coordinates,
    standard_log_density,
)
from ._score import (
    AbstractScore,
    DenoiserScore,
    PreconditionedDenoiser,
    as_score,
    check_trained_range,
)


ScoreFunction: TypeAlias = Callable[[Scalar, State], State]
# A(s), G(s) and f(s, .) of dy/ds = A y + G G^T f(y).
Flow: TypeAlias = Callable[
    [Scalar], tuple[VarsMatrix, RankMatrix, Callable[[State], State]]
]


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


@final
class FlowEnd(eqx.Module):
    r"""Where a flow ends, and $\int \nabla \cdot f$ along it by each probe, in nats."""

    y: State
    divergences: Float[Array, " probes"]
    n_evaluations: IntScalar
    converged: Bool[Array, ""]


@final
class FlowSolver(eqx.Module):
    """How a flow is solved together with its divergence."""

    divergence: AbstractDivergence
    solver: dfx.AbstractSolver
    stepsize_controller: dfx.AbstractStepSizeController
    max_steps: int = eqx.field(static=True)

    def __call__(
        self, flow: Flow, start: Scalar, end: Scalar, y: State, *, key: PRNGKey
    ) -> FlowEnd:
        """The end of `flow` from `y`, on a clock that increases from `start` to `end`.

        The key fixes the probes for the whole of the solve.
        """
        probe, keys = self._probes(key)
        # A mean over coordinates, so that one tolerance serves any number of them.
        size = n_coordinates(y)

        def field(s: Time, state: tuple[State, Array], args: Any):
            del args
            y, _ = state
            # After a state that is not a number the next time is none either, and a
            # kernel there would raise an error for the whole of a batch.
            s = jnp.asarray(s, start.dtype)
            A, G, function = flow(jnp.where(s <= end, s, end))
            value, linear = jax.linearize(function, y)
            trace = lambda key: probe(linear, G, y, key=key)
            velocity = apply_to_vars(A, y)
            velocity = velocity + apply_to_vars(G, apply_to_vars(G.T, value))
            return velocity, jax.vmap(trace)(keys) / size + jnp.trace(A).astype(y.dtype)

        adaptive = dfx.AbstractAdaptiveStepSizeController
        is_adaptive = isinstance(self.stepsize_controller, adaptive)
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            self.solver,
            start,
            end,
            # Given, so that finding one costs no evaluations.
            0.01 * (end - start) if is_adaptive else None,
            (y, jnp.zeros(len(keys), y.dtype)),
            stepsize_controller=self.stepsize_controller,
            # A loop without a bound: the cheapest, and it has forward derivatives.
            adjoint=dfx.ForwardMode(),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        y, means = jax.tree.map(lambda saved: saved[-1], solution.ys)
        return FlowEnd(
            y,
            size * means,
            self._count(solution.stats["num_steps"]),
            solution.result == dfx.RESULTS.successful,
        )

    def _probes(self, key: PRNGKey) -> tuple[AbstractDivergence, Array]:
        """A divergence, and a key for each of the estimates that it is to make."""
        if isinstance(self.divergence, HutchinsonDivergence):
            return HutchinsonDivergence(1), jr.split(key, self.divergence.n_probes)
        return self.divergence, key[None]

    def _count(self, n_steps: IntScalar) -> IntScalar:
        tableau = getattr(self.solver, "tableau", None)
        if isinstance(self.solver, dfx.Euler):
            n_stages, n_first = 1, 0
        elif isinstance(self.solver, dfx.AbstractERK) and tableau is not None:
            # The last stage of a step may be the first of the next one.
            n_first = int(tableau.fsal)
            n_stages = tableau.num_stages - n_first
        else:
            return jnp.full_like(n_steps, -1)
        return n_first + n_stages * n_steps

    def standard_error(self, estimates: Float[Array, " probes"]) -> Scalar:
        """That of the mean over probes; 0 where the divergence is exact."""
        if isinstance(self.divergence, ExactDivergence):
            return jnp.zeros((), estimates.dtype)
        return _standard_error(estimates)


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


class AbstractNoiseClock(eqx.Module):
    r"""A clock for flows that follow the log-SNR $\lambda$, against which it increases.

    With $\sigma = e^{-\lambda / 2}$, the noise in the sufficient statistic, and $c$ the
    standard deviation of the data.
    """

    @abc.abstractmethod
    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        """The clock's reading at a log-SNR."""

    @abc.abstractmethod
    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        """The log-SNR at a reading of the clock."""


@final
class AngleClock(AbstractNoiseClock):
    r"""$\theta = \arctan(\sigma / c)$, from 0 at data to $\pi / 2$ at noise.

    **Source:** Lu & Song (2025), section 3.1.
    """

    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        return jnp.arctan(jnp.exp(-0.5 * log_snr) / data_std)

    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        return -2 * jnp.log(data_std * jnp.tan(reading))


@final
class LogSNRClock(AbstractNoiseClock):
    r"""$-\lambda$."""

    def reading(self, log_snr: Scalar, data_std: float) -> Scalar:
        del data_std
        return -log_snr

    def log_snr(self, reading: Scalar, data_std: float) -> Scalar:
        del data_std
        return -reading


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
        return score.denoiser.correction(log_snr, z) + (noise / total) * z
    x_hat = score.denoiser(log_snr, z)
    near = (x_hat - z) + (noise / total) * z
    return jnp.where(noise < data_std**2, near, x_hat - (data_std**2 / total) * z)


def _correction(score: DenoiserScore, log_snr: Scalar, z: Data) -> Data:
    r"""$\hat x - z$, in the form that keeps its digits where there is one."""
    if isinstance(score.denoiser, PreconditionedDenoiser):
        return score.denoiser.correction(log_snr, z)
    return score.denoiser(log_snr, z) - z


@final
class AugmentedRoute(AbstractRoute):
    r"""The probability-flow ODE of the whole state, for any score, in time.

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

    **Source:** Burda et al. (2016), equation 8, for the importance weights; their
    standard error is that of the mean weight, relative to it.
    """

    n_draws: int = 1
    importance_weighted: bool = False

    def __check_init__(self):
        if self.n_draws < 1:
            raise ValueError(f"`n_draws` must be at least 1; got {self.n_draws}.")

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
        start, end = diffusion.t0.astype(x.dtype), diffusion.t1.astype(x.dtype)

        def flow(t: Scalar):
            G = diffusion.diffusion_matrix(t) / math.sqrt(2)
            return diffusion.drift_matrix(t), G, lambda y: -_evaluate(score, t, y)

        def solve_one(key: PRNGKey):
            key_aux, key_probe = jr.split(key)
            aux = jr.normal(key_aux, (diffusion.n_vars - 1, *x.shape), x.dtype)
            y = kernel.mean(x) + apply_to_vars(across, aux)
            solved = solve(flow, start, end, y, key=key_probe)
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
            error = _standard_error(weights) / jnp.mean(weights)
        else:
            value, error = jnp.mean(estimates), _standard_error(estimates)
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
    correction = _correction(score, kernel.log_snr.astype(y.dtype), z + missed)
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


def _standard_error(values: Float[Array, " draws"]) -> Scalar:
    """That of the mean; NaN for one value."""
    if len(values) == 1:
        return jnp.full((), jnp.nan, values.dtype)
    return jnp.std(values, ddof=1) / math.sqrt(len(values))


def log_likelihood(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    x: Data,
    *,
    key: PRNGKey,
    route: AbstractRoute | None = None,
    divergence: AbstractDivergence | None = None,
    solver: dfx.AbstractSolver | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
) -> Likelihood:
    r"""The log-density of one example under the probability-flow ODE, in nats.

    With $z$ the statistic of the state that is sufficient for the data, it is the
    density of $z$ at the cut that is evaluated, at $z = x$: that of the data with noise
    of variance $1 / \mathrm{SNR}$ added. At a log-SNR of 13.3 and data no narrower than
    0.15 this costs below 1e-4 nats a dimension; at VPSDE's default cut, 9.2, up to
    1e-2.

    Batch with `jax.vmap`. Every example then has steps of its own, and its result does
    not depend on the others. A batch lasts as long as its slowest example, 1.6 times
    the mean for 64 draws of a mixture; steps in common would take 1.3 times the mean
    for all to meet the tolerance, but tie every result to its batch.

    **Arguments:**

    - `score`: a callable `(t, y) -> score` on one example.
    - `diffusion`: the process; its ends are those of the ODE.
    - `x`: one example, in the units that the model sees.
    - `key`: for probes and auxiliaries; unused by an exact divergence on the collapsed
        route.
    - `route`: [`eqmdm.CollapsedRoute`][] by default for a [`eqmdm.DenoiserScore`][],
        and [`eqmdm.AugmentedRoute`][] for other scores.
    - `divergence`: [`eqmdm.ExactDivergence`][] by default, one forward derivative for
        every data coordinate (and noise, on the augmented route); or
        [`eqmdm.HutchinsonDivergence`][], whose probes are drawn once per solve and
        whose `n_probes`, if above one, give a standard error.
    - `solver`: any Diffrax ODE solver; `Tsit5` by default.
    - `stepsize_controller`: any of Diffrax's, `PIDController(rtol=1e-5, atol=1e-5)` by
        default; for fixed steps a `StepTo` between the ends of the route's clock.
        The log-density is a part of what it controls, as a mean over coordinates.
    - `max_steps`: of a solve, those that are rejected included.

    **Returns:**

    An [`eqmdm.Likelihood`][]. A solve that fails does not raise, so that a batch keeps
    its other results: `converged` says which, and these are NaN. There are forward
    derivatives only.

    **Raises:**

    `TypeError` for integers, and for the collapsed route without a denoiser;
    `ValueError` for `max_steps` below 1 or a relative tolerance that the dtype of `x`
    cannot meet; where a denoiser states the range it was trained on, `ValueError`, or
    `equinox.EquinoxRuntimeError` under a JAX transform, if the diffusion ends below it.

    **Source:** Song et al. (2021), section 4.3 and appendix D.2.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`x` must be floating-point data; got {x.dtype}. Integers have no "
            "density: dequantise them with `eqmdm.GreyLevels(...).encode`, and add the "
            "correction that it returns to the log-likelihood."
        )
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1; got {max_steps}.")
    score = as_score(score)
    if route is None:
        by_data = isinstance(score, DenoiserScore)
        route = CollapsedRoute() if by_data else AugmentedRoute()
    if stepsize_controller is None:
        stepsize_controller = dfx.PIDController(rtol=1e-5, atol=1e-5)
    _check_tolerance(stepsize_controller, x.dtype)
    solve = FlowSolver(
        ExactDivergence() if divergence is None else divergence,
        dfx.Tsit5() if solver is None else solver,
        stepsize_controller,
        max_steps,
    )
    x = check_trained_range(score, diffusion, x)
    return _solve(route, score, diffusion, x, solve, key)


# Compiled by itself, so that calls outside of `jax.jit` share a compilation.
@eqx.filter_jit
def _solve(route, score, diffusion, x, solve, key) -> Likelihood:
    result = route(score, diffusion, x, solve, key=key)
    # Where the drift is not a number the solver may not notice.
    converged = result.converged & jnp.isfinite(result.log_likelihood)
    return Likelihood(
        jnp.where(converged, result.log_likelihood, jnp.nan),
        jnp.where(converged, result.standard_error, jnp.nan),
        result.n_evaluations,
        converged,
    )


def _check_tolerance(
    stepsize_controller: dfx.AbstractStepSizeController, dtype: jnp.dtype
) -> None:
    if not isinstance(stepsize_controller, dfx.PIDController):
        return
    rtol = concrete(jnp.asarray(stepsize_controller.rtol))
    reach = 4 * float(jnp.finfo(dtype).eps)
    if rtol is not None and rtol < reach:
        raise ValueError(
            f"`stepsize_controller` must have a relative tolerance of at least {reach} "
            f"for {dtype}; got {rtol}. Raise it, or pass `x` in float64."
        )
