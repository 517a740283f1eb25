"""The interface of linear diffusions, and the methods that all of them share."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.blocks import matmul
from .._core.checks import as_scalar, concrete
from .._core.gaussian import Gaussian, PerturbationKernel, Transition, apply_to_vars
from .._core.random import draw_normal
from .._core.types import (
    Data,
    LogSNR,
    PRNGKey,
    Scalar,
    State,
    Time,
    VarsMatrix,
)
from .interval import LogSNRInterval, known_times, with_times
from .process import AbstractProcess, no_kernels
from .search import as_time, check_reached, check_resolved, check_value, find_root


class AbstractLinearDiffusion(AbstractProcess):
    r"""$\mathrm{d}y = F(t) y \,\mathrm{d}t + G(t) \,\mathrm{d}w$ with Gaussian kernels.

    A state has shape `(vars, *data)`: row 0 is the data, and further rows are auxiliary
    variables. $F$ and $G$ act on the `vars` axis, in the same way for every data
    coordinate, unless they have the axes of the data last, as those of an
    [`eqmdm.BandedDiffusion`][] do. Given the data $x$, the initial state has $x$ in its
    data row. Its auxiliaries are normal with covariance `start_root @ start_root.T`,
    independent of $x$.

    Most new diffusions need only a call of [`eqmdm.LinearDiffusion`][], if they have a
    Gaussian stationary law, or of [`eqmdm.TimeVaryingDiffusion`][]. To write a class,
    subclass this one and implement `drift_matrix`, `diffusion_matrix`,
    `compute_transition` (by [`eqmdm.composed_transition`][], for example),
    `start_root`, `prior`, `n_vars`, `t_limit` and `interval`.

    Methods act on one example. Times are arrays, and results have their dtype. `drift`
    and `diffusion_coefficient` take `(t, y, args)`, the arguments of Diffrax's terms.
    """

    @property
    @abc.abstractmethod
    def prior(self) -> Gaussian:
        """The law that replaces that of $y(t_1)$ in sampling and in bounds."""

    @property
    @abc.abstractmethod
    def t_limit(self) -> Scalar:
        """The latest time at which kernels can be computed; at least `t1`."""

    @abc.abstractmethod
    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns *coordinates"]:
        """A root of the covariance of $y(0)$ given the data; its row 0 is zero."""

    @abc.abstractmethod
    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        """$F(t)$."""

    @abc.abstractmethod
    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        """The law of $y(t)$ given $y(s)$ for $s < t$, without checks of the times.

        Subclasses implement this method, and vector fields call it. Users call
        `transition`, which checks the times.
        """

    @property
    def t0(self) -> Scalar:
        """The start time, at which sampling ends and bounds begin."""
        interval = self.interval
        if (times := known_times(interval)) is not None:
            return as_scalar(times.t0, jnp.result_type(float))
        assert isinstance(interval, LogSNRInterval)
        return self._solve_log_snr(interval.high)

    @property
    def t1(self) -> Scalar:
        """The final time, at which sampling starts from the prior."""
        interval = self.interval
        if (times := known_times(interval)) is not None:
            return as_scalar(times.t1, jnp.result_type(float))
        assert isinstance(interval, LogSNRInterval)
        return self._solve_log_snr(interval.low)

    def drift(self, t: Time, y: State, args: Any = None) -> State:
        """$F(t) y$."""
        del args
        return apply_to_vars(self.drift_matrix(jnp.asarray(t, y.dtype)), y)

    def compute_kernel(self, t: Scalar) -> PerturbationKernel:
        """The law of $y(t)$ given the data, without checks of the time."""
        step = self.compute_transition(jnp.zeros_like(t), t)
        return PerturbationKernel.after(t, step, self.start_root(step.root.dtype))

    def network_kernel(self, t: Scalar) -> PerturbationKernel:
        return self.compute_kernel(t)

    def draw_start(self, x: Data, *, key: PRNGKey) -> State:
        """A draw of $y(0)$ given the data: `x` with random auxiliaries."""
        n_columns = self.start_root(x.dtype).shape[1]
        return self.start_of(x, draw_normal(key, (n_columns, *x.shape), x.dtype))

    def start_of(self, x: Data, noise: Float[Array, "columns *data"]) -> State:
        """$y(0)$ given the data and standard normal noise for the start root."""
        aux = jnp.zeros((self.n_vars - 1, *x.shape), x.dtype)
        data = jnp.concatenate([x[None], aux])
        if len(noise) == 0:
            return data
        return data + apply_to_vars(self.start_root(x.dtype), noise)

    def transition(self, s: Scalar, t: Scalar) -> Transition:
        r"""The law of $y(t)$ given $y(s)$.

        **Arguments:**

        - `s`, `t`: diffusion times with $0 \le s \le t \le t_1$, as arrays.

        **Raises:**

        `ValueError` for times that are out of order or after $t_1$
        (`equinox.EquinoxRuntimeError` for traced times).
        """
        s, t = as_time("s", s), as_time("t", t)
        s = check_value(s, (s < 0) | ~(s <= t), "`s` must lie between 0 and `t`", s)
        return self.compute_transition(s, self._check_within(t))

    def perturbation_kernel(self, t: Scalar) -> PerturbationKernel:
        r"""The law of $y(t)$ given the data $x$, with the initial auxiliaries
        integrated out.

        **Raises:**

        `ValueError`, or `equinox.EquinoxRuntimeError` for a traced `t`, unless
        $0 < t \le t_1$.
        """
        t = as_time("t", t)
        t = check_value(
            t,
            ~(t > 0),
            "`t` must be positive: at t = 0 the kernel is a point mass. Raise the "
            "lower limit of the times",
            t,
        )
        return self.compute_kernel(self._check_within(t))

    def log_snr(self, t: Scalar) -> LogSNR:
        r"""$\log a^\top \Sigma^{-1} a$ at time `t`, natural logarithm.

        The signal-to-noise ratio of the data in the whole state, for each coordinate if
        the matrices differ; it never increases.
        """
        return self.perturbation_kernel(t).log_snr

    def log_snr_rate(self, t: Scalar, kernel: PerturbationKernel) -> LogSNR:
        r"""$\mathrm{d} \log \mathrm{SNR} / \mathrm{d}t = -\|G^\top \Sigma^{-1} a\|^2 /
        \mathrm{SNR}$, for each coordinate if the matrices differ."""
        noise = matmul(kernel.whitening, self.diffusion_matrix(t))
        return -jnp.sum(matmul(kernel.direction[None], noise) ** 2, axis=(0, 1))

    def time_at_log_snr(self, log_snr: Scalar) -> Scalar:
        """The time at which the log signal-to-noise ratio has a given value; for
        matrices that differ by coordinate, its mean over the coordinates.

        It is found by bisection in the logarithm of time, and is differentiable with
        respect to `log_snr` and the parameters of the diffusion, by the implicit
        function theorem.

        **Raises:**

        `ValueError`, or `equinox.EquinoxRuntimeError` for a traced value, if the
        diffusion does not reach the value by `t_limit`, or is already below it at the
        first time at which kernels resolve it.
        """
        log_snr = as_time("log_snr", log_snr)
        t = check_reached(self._solve_log_snr(log_snr), log_snr, self.t_limit)
        actual = self.compute_kernel(jax.lax.stop_gradient(t)).mean_log_snr
        return check_resolved(t, actual, log_snr)

    def _check_within(self, t: Scalar) -> Scalar:
        t1 = jax.lax.stop_gradient(self.t1).astype(t.dtype)
        # Allow for times that were computed from t1 with a few roundings.
        beyond = ~(t <= t1 * (1 + 8 * jnp.finfo(t.dtype).eps))
        message = f"`t` must lie within the interval, which ends at t1 = {concrete(t1)}"
        return check_value(
            t, beyond, message + ". Build the diffusion with a later t1", t
        )

    def _solve_log_snr(self, log_snr: float | Scalar) -> Scalar:
        if not isinstance(log_snr, jax.Array):
            log_snr = as_scalar(log_snr, jnp.result_type(float))
        return _solve_log_snr(without_floats(self, log_snr.dtype), log_snr)

    def _excess(self, log_snr: Scalar) -> Callable[[Scalar], Scalar]:
        kernel_at = lambda log_t: self.compute_kernel(jnp.exp(log_t))
        return lambda log_t: kernel_at(log_t).mean_log_snr - log_snr

    def _log_limit(self, dtype: jnp.dtype) -> Scalar:
        return jnp.log(jax.lax.stop_gradient(self.t_limit)).astype(dtype)


def check_linear(diffusion: Any) -> AbstractLinearDiffusion:
    """Returns `diffusion` if it is a linear diffusion.

    **Raises:** `TypeError` for any other process, which has no kernels.
    """
    if isinstance(diffusion, AbstractLinearDiffusion):
        return diffusion
    if isinstance(diffusion, AbstractProcess):
        raise no_kernels(diffusion)
    raise TypeError(
        "`diffusion` must be a linear diffusion, such as `eqmdm.CLD()`; got "
        f"{type(diffusion).__name__}."
    )


def with_solved_interval(diffusion: AbstractLinearDiffusion) -> AbstractLinearDiffusion:
    """The diffusion, with the times of an interval in log-SNR solved for.

    For use inside a program: every reading of `t0` or `t1` of a diffusion with
    parameters is a search of its own, and XLA does not merge them. The times keep their
    derivatives. A diffusion that has its interval from another is returned unchanged.
    """
    interval = diffusion.interval
    if known_times(interval) is not None:
        return diffusion
    assert isinstance(interval, LogSNRInterval)
    is_interval = lambda node: node is interval

    def is_leaf(node: Any) -> bool:
        # Another diffusion reaches the same log-SNRs at other times.
        is_other = isinstance(node, AbstractLinearDiffusion) and node is not diffusion
        return is_other or is_interval(node)

    if sum(map(is_interval, jax.tree.leaves(diffusion, is_leaf=is_leaf))) != 1:
        return diffusion
    dtype = jnp.result_type(float)
    ends = jnp.stack([as_scalar(end, dtype) for end in (interval.high, interval.low)])
    # As a batch, so that the search and its derivative are compiled once.
    solved = with_times(interval, *jax.vmap(diffusion._solve_log_snr)(ends))
    replace = lambda node: solved if is_interval(node) else node
    return jax.tree.map(replace, diffusion, is_leaf=is_leaf)


def without_gradient(diffusion: AbstractLinearDiffusion) -> AbstractLinearDiffusion:
    """The diffusion with parameters whose gradients are zero."""
    arrays, rest = eqx.partition(diffusion, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def without_floats(
    diffusion: AbstractLinearDiffusion, dtype: jnp.dtype
) -> AbstractLinearDiffusion:
    """The diffusion with arrays in place of floats, so that all diffusions of a kind
    share one compilation."""
    as_array = lambda x: jnp.asarray(x, dtype) if isinstance(x, float) else x
    return jax.tree.map(as_array, diffusion)


# Jitted here, because outside of `jax.jit` every call would compile the root search of
# a new function, and keep the previous programs in memory.
@eqx.filter_jit
def _solve_log_snr(diffusion: AbstractLinearDiffusion, log_snr: Scalar) -> Scalar:
    log_limit = diffusion._log_limit(log_snr.dtype)
    return jnp.exp(find_root(diffusion._excess(log_snr), log_limit))
