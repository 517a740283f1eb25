"""Samplers of the times at which a bound's integrand is estimated."""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import eval_context
from jaxtyping import Array, Float

from .._core.checks import check_count, concrete
from .._core.gaussian import log_det
from .._core.types import PRNGKey, Scalar
from .._diffusion import AbstractLinearDiffusion, BandedDiffusion
from .._diffusion.base import without_gradient
from .._diffusion.host import Path as KnownPath
from .._diffusion.interval import known_times
from .._diffusion.stationary import known_path


def low_discrepancy(n: int, *, key: PRNGKey) -> Float[Array, " n"]:
    """`n` evenly spaced quantiles with one random shift, each uniform on [0, 1).

    **Source:** Kingma et al. (2021), appendix I.1.
    """
    check_count("n", n)
    dtype = jnp.result_type(float)
    spaced = jnp.arange(n, dtype=dtype) / n
    return (jr.uniform(key, (), dtype) + spaced) % 1


def stratified(
    n: int, *, key: PRNGKey, shift: Scalar | float = 0.0
) -> Float[Array, " n"]:
    """`n` quantiles, each uniform within its stratum of [0, 1).

    The width of a stratum is proportional to its number of draws: two, or three in the
    last stratum if `n` is odd. The variance of a mean over the draws can therefore be
    estimated without bias: see `stratified_standard_error`.

    **Arguments:**

    - `shift`: added to every draw within its stratum, modulo the width of the stratum
        and as a fraction of it. Shifts spread evenly over examples also spread their
        times.
    """
    check_count("n", n)
    dtype = jnp.result_type(float)
    within = (jr.uniform(key, (n,), dtype) + shift) % 1
    low, width = (jnp.asarray(part, dtype) for part in strata_of_draws(n))
    # The sum may round up to 1.
    return jnp.minimum(low + width * within, 1 - float(jnp.finfo(dtype).epsneg))


def stratified_standard_error(
    values: Float[Array | np.ndarray, "*batch n"],
) -> Float[Array | np.ndarray, "*batch"]:
    """The standard error of the mean of values at quantiles drawn by `stratified`.

    NaN for one value.
    """
    n = values.shape[-1]
    if n == 1:
        return values[..., 0] * math.nan
    # All strata but the last have two draws. One operation for each stratum would take
    # minutes to compile for thousands of draws.
    n_last = 2 + n % 2
    pairs, last = values[..., : n - n_last], values[..., n - n_last :]
    pairs = pairs.reshape(*values.shape[:-1], -1, 2)
    variance = 2 * pairs.var(axis=-1, ddof=1).sum(axis=-1)
    variance = variance + n_last * last.var(axis=-1, ddof=1)
    return variance**0.5 / n


def strata_of_draws(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower end and the width of the stratum of each of `n` draws."""
    strata, sizes = _strata(n)
    starts = np.cumsum([0, *sizes[:-1]])
    return starts[strata] / n, sizes[strata] / n


def _strata(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The stratum of each draw, and the number of draws in each stratum."""
    n_strata = max(n // 2, 1)
    strata = np.minimum(np.arange(n) // 2, n_strata - 1)
    return strata, np.bincount(strata)


# Log-SNRs that are computed in the program, or on the host.
_LogSNRs: TypeAlias = Float[Array | np.ndarray, "..."]


class AbstractTimeSampler(eqx.Module):
    """A density of times on the interval [t0, t1] of a diffusion."""

    @abc.abstractmethod
    def __call__(
        self, diffusion: AbstractLinearDiffusion, u: Scalar
    ) -> tuple[Scalar, Scalar]:
        """The time at the quantile `u`, and the density of times at that time.

        Neither carries a gradient: a density that depends on the parameters of the
        diffusion must not be trained through.
        """


@final
class UniformTimeSampler(AbstractTimeSampler):
    """Times uniform on the interval [t0, t1]."""

    def __call__(
        self, diffusion: AbstractLinearDiffusion, u: Scalar
    ) -> tuple[Scalar, Scalar]:
        t0, t1 = (
            jax.lax.stop_gradient(end).astype(u.dtype)
            for end in (diffusion.t0, diffusion.t1)
        )
        return t0 + u * (t1 - t0), 1 / (t1 - t0)


@final
class ImportanceTimeSampler(AbstractTimeSampler):
    r"""Times with a density proportional to the expected size of the bound's integrand,
    $\mathrm{tr}(G^\top \Sigma^{-1} G)$, which is $\beta / \sigma^2$ for VPSDE.

    Its integral is $\log \det \Sigma - 2 \log |\det \Psi|$, where $\log |\det \Psi|$ is
    the integral of $\mathrm{tr} F$. Its quantiles are tabulated on a grid that is
    geometric in time and interpolated linearly. The density returned is that of the
    interpolant, so the weights are exact.

    **Arguments:**

    - `n_grid`: the number of cells of the table.

    **Source:** Song et al. (2021b), section 5.1, for VPSDE.
    """

    n_grid: int = 256

    def __call__(
        self, diffusion: AbstractLinearDiffusion, u: Scalar
    ) -> tuple[Scalar, Scalar]:
        return _tabulated(diffusion, _INTEGRAND, u, self.n_grid)


@final
class LogSNRTimeSampler(AbstractTimeSampler):
    r"""Times uniform in log-SNR on the interval [t0, t1].

    The natural choice for a denoiser, whose diffusion term is an integral over log-SNR.
    Where log-SNR is stationary in time (ALDA, some learned diffusions) draws are rare
    and their weights large: for models without a denoiser, choose another sampler
    there. Tabulated like [`eqmdm.ImportanceTimeSampler`][], with exact weights.

    **Arguments:**

    - `n_grid`: the number of cells of the table.
    - `density`: a positive function of an array of log-SNRs, to which their density is
        proportional; `None` for a uniform one. It is evaluated at the middle of every
        cell. It changes the variance of a bound and its gradients, but not their mean.
    """

    n_grid: int = 256
    density: Callable[[_LogSNRs], _LogSNRs] | None = None

    def __call__(
        self, diffusion: AbstractLinearDiffusion, u: Scalar
    ) -> tuple[Scalar, Scalar]:
        rises = _LOG_SNR if self.density is None else _weighted(self.density)
        return _tabulated(diffusion, rises, u, self.n_grid)


@final
class Focus(eqx.Module):
    """A density of log-SNR, ten times as large between two values as elsewhere."""

    low: float
    high: float

    def __call__(self, log_snr: _LogSNRs) -> _LogSNRs:
        inside = (self.low <= log_snr) & (log_snr <= self.high)
        return 0.1 + 0.9 * inside.astype(log_snr.dtype)


class _Rises(NamedTuple):
    """The increments over the cells of the table of a monotone function of time.

    `traced` computes them from kernels in the program, and `known` from kernels that
    are known on the host."""

    traced: Callable[
        [AbstractLinearDiffusion, Float[Array, " edges"]], Float[Array, " cells"]
    ]
    known: Callable[[KnownPath], Float[np.ndarray, " cells"]]


def _integrand_rises(
    diffusion: AbstractLinearDiffusion, times: Float[Array, " edges"]
) -> Float[Array, " cells"]:
    # log |det Psi| by Liouville's formula, with the trace of the drift integrated by
    # Simpson's rule: the determinant of a Psi that has decayed is lost to rounding.
    # Means over the coordinates, if the matrices differ.
    mean_log_det = lambda t: jnp.mean(log_det(diffusion.compute_kernel(t).root))
    volume = jax.vmap(mean_log_det)(times)
    trace = jax.vmap(lambda t: jnp.mean(jnp.trace(diffusion.drift_matrix(t))))
    at_edges, at_middles = trace(times), trace(0.5 * (times[:-1] + times[1:]))
    mean = (at_edges[:-1] + 4 * at_middles + at_edges[1:]) / 6
    return 2 * (jnp.diff(volume) - jnp.diff(times) * mean)


def _log_snrs(
    diffusion: AbstractLinearDiffusion, times: Float[Array, " edges"]
) -> Float[Array, " edges"]:
    return jax.vmap(lambda t: diffusion.compute_kernel(t).mean_log_snr)(times)


def _weighted(density: Callable[[_LogSNRs], _LogSNRs]) -> _Rises:
    """The falls of log-SNR, each times a density at its middle."""

    def falls(log_snr: Any) -> Any:
        middles = 0.5 * (log_snr[:-1] + log_snr[1:])
        return density(middles) * (log_snr[:-1] - log_snr[1:])

    def known(path: KnownPath) -> np.ndarray:
        # The density may be a function of JAX, called while a program is traced.
        with eval_context():
            return np.asarray(falls(path.log_snr))

    return _Rises(lambda diffusion, times: falls(_log_snrs(diffusion, times)), known)


_INTEGRAND = _Rises(
    _integrand_rises,
    lambda path: 2 * np.diff(path.log_det_root - path.log_det_mean_map),
)
_LOG_SNR = _Rises(
    lambda diffusion, times: -jnp.diff(_log_snrs(diffusion, times)),
    lambda path: -np.diff(path.log_snr),
)


def _tabulated(
    diffusion: AbstractLinearDiffusion, rises: _Rises, u: Scalar, n_grid: int
) -> tuple[Scalar, Scalar]:
    diffusion = without_gradient(diffusion)
    # The table does not depend on `u`, so under `jax.vmap` it is computed once.
    table = _known_table(diffusion, rises, n_grid, u.dtype)
    if table is None and _is_constant(diffusion):
        with eval_context():
            table = _table(diffusion, rises, n_grid, u.dtype)
    if table is None:
        table = jax.lax.stop_gradient(_table(diffusion, rises, n_grid, u.dtype))
    times, share, cumulative = table
    cell = jnp.clip(jnp.searchsorted(cumulative, u, side="right") - 1, 0, n_grid - 1)
    width = times[cell + 1] - times[cell]
    within = jnp.clip((u - cumulative[cell]) / share[cell], 0, 1)
    return times[cell] + within * width, share[cell] / width


# The edges of the cells in time, the probability of each cell, and their running sums.
_Table: TypeAlias = tuple[
    Float[Array, " edges"], Float[Array, " cells"], Float[Array, " edges"]
]


def _known_table(
    diffusion: AbstractLinearDiffusion, rises: _Rises, n_grid: int, dtype: jnp.dtype
) -> _Table | None:
    """The table of a diffusion of constants, computed on the host, or `None`.

    In the program, its kernels would take as long to compile as a small network.
    """
    interval = known_times(diffusion.interval)
    t0, t1 = (
        (None, None)
        if interval is None
        else (concrete(interval.t0), concrete(interval.t1))
    )
    if t0 is None or t1 is None:
        return None
    times = np.geomspace(t0, t1, n_grid + 1)
    path = known_path(diffusion, times)
    rise = None if path is None else rises.known(path)
    # If the host's numbers overflow, leave the error message to the program.
    if rise is None or not np.all(np.isfinite(rise)):
        return None
    share, cumulative = _shares(rise, np)
    as_array = lambda part: jnp.asarray(part, dtype)
    return as_array(times), as_array(share), as_array(cumulative)


def _is_constant(diffusion: AbstractLinearDiffusion) -> bool:
    """Whether the table can be computed once, when a program is traced. With a band
    for every coordinate, it would take as long as the training step."""
    is_banded = isinstance(diffusion, BandedDiffusion) and diffusion.is_stationary
    return is_banded and not jax.tree.leaves(eqx.filter(diffusion, eqx.is_array))


@eqx.filter_jit
def _table(
    diffusion: AbstractLinearDiffusion, rises: _Rises, n_grid: int, dtype: jnp.dtype
) -> _Table:
    log_t = jnp.linspace(jnp.log(diffusion.t0), jnp.log(diffusion.t1), n_grid + 1)
    times = jnp.exp(log_t).astype(dtype)
    share, cumulative = _shares(rises.traced(diffusion, times), jnp)
    return times, share, cumulative


def _shares(rise: Any, xp: Any) -> tuple[Any, Any]:
    # A cell of zero density, by rounding or at a stationary point, would be left out of
    # the bound.
    rise = xp.maximum(rise, xp.sum(xp.abs(rise)) * (1e-4 / len(rise)))
    share = rise / xp.sum(rise)
    return share, xp.concatenate([xp.zeros(1, share.dtype), xp.cumsum(share)])
