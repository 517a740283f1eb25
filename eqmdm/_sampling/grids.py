"""Step grids: the times that a sampler visits, from t1 down to t0."""

import abc
import math
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._core.checks import (
    check_count,
    check_finite,
    check_precision,
    concrete,
    constant,
    is_known,
    namespace,
    now_if_known,
    raise_or_error_if,
)
from .._core.types import Scalar
from .._diffusion import AbstractLinearDiffusion, AbstractProcess
from .._diffusion.base import check_linear
from .._diffusion.stationary import known_log_snrs, known_times_at


Times: TypeAlias = Float[Array, " times"]
# The times at which states are saved.
SavedTimes: TypeAlias = Float[Array, " saves"]

# The default of every grid. With the default sampler, finer grids do not reduce the
# distance of samples to the data (benchmarks/RESULTS.md).
DEFAULT_N_STEPS = 50


class AbstractGrid(eqx.Module):
    """A division of a diffusion's interval into steps.

    A new kind of grid implements `compute_times` and has a field `n_steps`.
    """

    # The number of steps if the caller gives none.
    n_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def compute_times(self, diffusion: AbstractProcess, n_steps: int) -> Times:
        """The `n_steps + 1` times, without checks, in JAX's default dtype.

        Subclasses implement this method; users call the grid, which replaces the first
        and the last time by the diffusion's t1 and t0.
        """

    def __call__(
        self,
        diffusion: AbstractProcess,
        n_steps: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        through: SavedTimes | None = None,
    ) -> Times:
        """Diffusion times that decrease from `t1` to `t0`.

        **Arguments:**

        - `diffusion`: the diffusion whose interval is divided.
        - `n_steps`: the number of steps, one less than the number of times; by default
            the grid's own.
        - `dtype`: the dtype of the times; JAX's default float if `None`.
        - `through`: decreasing times within the interval that the grid must contain.
            The nearest times of the grid move there, so the number of steps is
            unchanged.

        **Raises:**

        `ValueError` if `n_steps` is below 1 or too low for `through`, or if the times
        do not strictly decrease in `dtype` (`equinox.EquinoxRuntimeError` for traced
        times).
        """
        n_steps = self.n_steps if n_steps is None else n_steps
        check_count("n_steps", n_steps)
        dtype = jnp.result_type(float) if dtype is None else dtype
        dtype = check_precision("dtype", dtype)
        with now_if_known(self, diffusion, through):
            times = self.compute_times(diffusion, n_steps)
            times = _with_ends(times, diffusion.t1, diffusion.t0, dtype)
            if through is not None:
                times = _move_through(times, through)
            return _check_decreasing(times)


@final
class UniformGrid(AbstractGrid):
    """Times uniform in the interval."""

    n_steps: int = eqx.field(default=DEFAULT_N_STEPS, kw_only=True)

    def compute_times(self, diffusion: AbstractProcess, n_steps: int) -> Times:
        return _between(diffusion.t1, diffusion.t0, _falling(n_steps))


@final
class QuadraticGrid(AbstractGrid):
    r"""$t_0 + (t_1 - t_0) r^2$ with $r$ uniform on $[0, 1]$: finer towards the data.

    **Source:** Dockhorn, Vahdat & Kreis (2022), appendix, where it is called quadratic
    striding.
    """

    n_steps: int = eqx.field(default=DEFAULT_N_STEPS, kw_only=True)

    def compute_times(self, diffusion: AbstractProcess, n_steps: int) -> Times:
        return _between(diffusion.t1, diffusion.t0, _falling(n_steps) ** 2)


@final
class LogSNRGrid(AbstractGrid):
    """Times uniform in log-SNR, found by bisection.

    Log-SNR never increases with time, so each value has a time. Steps are long in time
    only where log-SNR is stationary (ALDA, some learned diffusions).

    **Source:** Lu et al. (2022), section 3.4.
    """

    n_steps: int = eqx.field(default=DEFAULT_N_STEPS, kw_only=True)

    def compute_times(self, diffusion: AbstractProcess, n_steps: int) -> Times:
        linear = check_linear(diffusion)
        low, high = _log_snr_ends(linear)
        return times_at(linear, high + (low - high) * _falling(n_steps))


@final
class RhoGrid(AbstractGrid):
    r"""Times uniform in $\sigma^{1 / \rho}$, with $\sigma = \mathrm{SNR}^{-1/2}$ the
    noise level of the data's sufficient statistic.

    **Arguments:**

    - `rho`: $\rho$. A larger value puts more steps at low noise. In the limit of
        infinity the grid is uniform in log-SNR.

    **Source:** Karras et al. (2022), equation 5.
    """

    rho: float = 7.0
    n_steps: int = eqx.field(default=DEFAULT_N_STEPS, kw_only=True)

    def __check_init__(self):
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"`rho` must be positive and finite; got {self.rho}.")

    def compute_times(self, diffusion: AbstractProcess, n_steps: int) -> Times:
        # In logarithms, because with a small rho the roots overflow in float32.
        linear = check_linear(diffusion)
        low, high = (-0.5 * l / self.rho for l in _log_snr_ends(linear))
        share = _falling(n_steps)
        with np.errstate(divide="ignore"):
            log_share, log_rest = np.log(share), np.log1p(-share)
        xp = namespace(low, high)
        log_roots = xp.logaddexp(low + log_share, high + log_rest)
        return times_at(linear, -2 * self.rho * log_roots)


@final
class CustomGrid(AbstractGrid):
    """Times given by the user.

    **Arguments:**

    - `times`: decreasing times from the diffusion's `t1` to its `t0`.
    """

    times: Times
    n_steps: int

    def __init__(self, times: ArrayLike | Sequence[float]):
        if not isinstance(times, jax.Array):
            times = np.asarray(times, float)
        times = jnp.asarray(times, jnp.result_type(float))
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(
                "`times` must be a vector of two times or more; got shape "
                f"{times.shape}."
            )
        times = _check_decreasing(times)
        check_finite("times", times)
        self.times, self.n_steps = times, len(times) - 1

    def compute_times(self, diffusion: AbstractProcess, n_steps: int) -> Times:
        if n_steps != self.n_steps:
            raise ValueError(
                f"`n_steps` must be {self.n_steps} or left out, one less than the "
                f"number of `times`; got {n_steps}."
            )
        times = self.times
        for place, name, end in ((0, "t1", diffusion.t1), (-1, "t0", diffusion.t0)):
            # The tolerance allows for times that were rounded to float32.
            wrong = ~(jnp.abs(times[place] - end) <= 1e-6 * end)
            message = (
                f"`times` must run from the diffusion's t1 to its t0; the "
                f"{'first' if place == 0 else 'last'} is {concrete(times[place])} and "
                f"{name} is {concrete(end)}. Begin with `float(diffusion.t1)`, end "
                "with `float(diffusion.t0)`, or take another `interval`."
            )
            times = raise_or_error_if(times, wrong, message)
        return times


def _falling(n_steps: int) -> np.ndarray:
    return np.linspace(1, 0, n_steps + 1, dtype=jnp.result_type(float))


def _between(start: Scalar, end: Scalar, share_of_start: np.ndarray) -> Times:
    if is_known(start, end):
        # Without a program.
        first, last = np.asarray(start), np.asarray(end)
        return constant(last + (first - last) * share_of_start)
    return end + (start - end) * share_of_start


# Exactly: the final kernel is computed at t0, and checks raise for times beyond t1.
def _with_ends(times: Times, first: Scalar, last: Scalar, dtype: np.dtype) -> Times:
    if is_known(times, first, last):
        # Without a program.
        known = np.array(times)
        known[0], known[-1] = first, last
        return constant(known.astype(dtype))
    return _replace_ends(times, first, last, dtype)


@eqx.filter_jit
def _replace_ends(times: Times, first: Scalar, last: Scalar, dtype: np.dtype) -> Times:
    times = times.at[0].set(first.astype(times.dtype))
    return times.at[-1].set(last.astype(times.dtype)).astype(dtype)


def _log_snr_ends(diffusion: AbstractLinearDiffusion) -> tuple[Any, Any]:
    """The log-SNRs at t1 and at t0, as Python floats if they are known on the host."""
    known = known_log_snrs(diffusion, diffusion.t1, diffusion.t0)
    if known is None:
        return _compute_log_snr_ends(diffusion)
    low, high = known
    return low, high


@eqx.filter_jit
def _compute_log_snr_ends(
    diffusion: AbstractLinearDiffusion,
) -> tuple[Scalar, Scalar]:
    ends = jnp.stack([diffusion.t1, diffusion.t0])
    low, high = jax.vmap(lambda t: diffusion.compute_kernel(t).mean_log_snr)(ends)
    return low, high


def times_at(diffusion: AbstractLinearDiffusion, log_snrs: Times | np.ndarray) -> Times:
    """The times of several log-SNRs, without checks."""
    dtype = jnp.result_type(float)
    if is_known(log_snrs):
        known = known_times_at(diffusion, np.asarray(log_snrs, float))
        if known is not None:
            return constant(known.astype(dtype))
    return _times_at(diffusion, jnp.asarray(log_snrs, dtype))


@eqx.filter_jit
def _times_at(diffusion: AbstractLinearDiffusion, log_snrs: Times) -> Times:
    return jax.vmap(diffusion._solve_log_snr)(log_snrs)


@jax.jit
def _place_through(times: Times, through: SavedTimes) -> Times:
    n_steps, n_through = len(times) - 1, len(through)
    gaps = jnp.abs(jnp.log(times)[None] - jnp.log(through)[:, None])
    nearest = jnp.argmin(gaps, axis=1)
    # The first and the last time stay fixed, so only these two can be placed there.
    begins, ends = through[0] >= times[0], through[-1] <= times[-1]
    lowest = jnp.where(begins, 0, 1)
    highest = jnp.where(ends, n_steps, n_steps - 1)
    order = jnp.arange(n_through)
    last_inner = jnp.where(ends & (order < n_through - 1), n_steps - 1, highest)
    first_inner = jnp.where(begins & (order > 0), 1, lowest)
    places = jnp.clip(nearest, first_inner, last_inner)
    # Place each time after the previous one, and leave places for the remaining ones.
    places = order + jax.lax.cummax(places - order)
    places = jnp.minimum(places, highest - (n_through - 1 - order))
    return times.at[places].set(jnp.clip(through, times[-1], times[0]))


def _move_through(times: Times, through: SavedTimes) -> Times:
    n_steps = len(times) - 1
    through = through.astype(times.dtype)
    if len(through) > n_steps - 1:
        raise ValueError(
            "`save_at` must have fewer times than the grid has between its first and "
            f"last; got {len(through)} for {n_steps} steps. Take more steps, or save "
            "at fewer times."
        )
    return _place_through(times, through)


def _check_decreasing(times: Times) -> Times:
    message = (
        "`times` must strictly decrease from the diffusion's t1 to its t0{}. Take "
        "fewer steps, a wider dtype or another grid."
    )
    if isinstance(times, Tracer):
        wrong = ~jnp.all(jnp.diff(times) < 0)
        return eqx.error_if(times, wrong, message.format(""))
    values = np.asarray(times)
    falls = np.diff(values) < 0
    if not falls.all():
        first = float(values[1:][np.argmin(falls)])
        raise ValueError(message.format(f"; they do not at t = {first}"))
    return times
