"""Step grids: the times that a sampler visits, from the horizon down to the cut."""

import abc
import math
from collections.abc import Sequence
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from .._core.checks import check_count, check_finite, check_precision, concrete
from .._core.types import Scalar
from .._diffusion import AbstractLinearDiffusion


Times: TypeAlias = Float[Array, " times"]


class AbstractGrid(eqx.Module):
    """A way to divide the interval between the ends of a diffusion into steps."""

    @abc.abstractmethod
    def compute_times(self, diffusion: AbstractLinearDiffusion, n_steps: int) -> Times:
        """The `n_steps + 1` times, without checks, in JAX's default dtype.

        What subclasses implement; users call the grid. The first and the last are
        replaced by the diffusion's own ends.
        """

    def __call__(
        self, diffusion: AbstractLinearDiffusion, n_steps: int, dtype: DTypeLike
    ) -> Times:
        """Diffusion times that decrease from the horizon `t1` to the cut `t0`.

        **Arguments:**

        - `diffusion`: whose ends they run between.
        - `n_steps`: the number of steps, one less than that of the times.
        - `dtype`: of the times returned.

        **Raises:**

        `ValueError` if `n_steps` is below 1, or the times do not strictly decrease in
        `dtype`; `equinox.EquinoxRuntimeError` for the latter where they are traced.
        """
        check_count("n_steps", n_steps)
        dtype = check_precision("dtype", dtype)
        times = self.compute_times(diffusion, n_steps)
        times = times.at[0].set(diffusion.t1.astype(times.dtype))
        times = times.at[-1].set(diffusion.t0.astype(times.dtype))
        return _check_decreasing(times.astype(dtype))


@final
class UniformGrid(AbstractGrid):
    """Times uniform between the ends."""

    def compute_times(self, diffusion: AbstractLinearDiffusion, n_steps: int) -> Times:
        return diffusion.t0 + (diffusion.t1 - diffusion.t0) * _falling(n_steps)


@final
class QuadraticGrid(AbstractGrid):
    r"""$t_0 + (t_1 - t_0) r^2$ with $r$ uniform on $[0, 1]$: fine towards the data.

    **Source:** Dockhorn, Vahdat & Kreis (2022), appendix, as quadratic striding.
    """

    def compute_times(self, diffusion: AbstractLinearDiffusion, n_steps: int) -> Times:
        return diffusion.t0 + (diffusion.t1 - diffusion.t0) * _falling(n_steps) ** 2


@final
class LogSNRGrid(AbstractGrid):
    """Times uniform in log-SNR between the ends, found by bisection.

    The ratio never increases with time, so each value has a time; where it is
    stationary (ALDA, some learned diffusions) a step is long in time, and only there.

    **Source:** Lu et al. (2022), section 3.4.
    """

    def compute_times(self, diffusion: AbstractLinearDiffusion, n_steps: int) -> Times:
        low, high = _log_snr_ends(diffusion)
        return _times_at(diffusion, high + (low - high) * _falling(n_steps))


@final
class RhoGrid(AbstractGrid):
    r"""Times uniform in $\sigma^{1 / \rho}$, with $\sigma = \mathrm{SNR}^{-1/2}$ the
    noise level of the data's sufficient statistic.

    **Arguments:**

    - `rho`: $\rho$. The larger, the more steps at low noise; uniform in log-SNR as it
        goes to infinity.

    **Source:** Karras et al. (2022), equation 5.
    """

    rho: float = 7.0

    def __check_init__(self):
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"`rho` must be positive and finite; got {self.rho}.")

    def compute_times(self, diffusion: AbstractLinearDiffusion, n_steps: int) -> Times:
        low, high = (jnp.exp(-0.5 * l / self.rho) for l in _log_snr_ends(diffusion))
        root = high + (low - high) * _falling(n_steps)
        return _times_at(diffusion, -2 * self.rho * jnp.log(root))


@final
class CustomGrid(AbstractGrid):
    """The times that are given.

    **Arguments:**

    - `times`: decreasing, from the diffusion's `t1` to its `t0`.
    """

    times: Times

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
        self.times = times

    def compute_times(self, diffusion: AbstractLinearDiffusion, n_steps: int) -> Times:
        if n_steps != len(self.times) - 1:
            raise ValueError(
                f"`n_steps` must be {len(self.times) - 1}, one less than the number of "
                f"`times`; got {n_steps}."
            )
        times = self.times
        for place, name, end in ((0, "t1", diffusion.t1), (-1, "t0", diffusion.t0)):
            # They may have been rounded to float32.
            wrong = ~(jnp.abs(times[place] - end) <= 1e-6 * end)
            message = (
                f"`times` must run from the diffusion's t1 to its t0; the "
                f"{'first' if place == 0 else 'last'} is {concrete(times[place])} and "
                f"{name} is {concrete(end)}. Begin with `float(diffusion.t1)`, end "
                "with `float(diffusion.t0)`, or move the diffusion's ends"
            )
            times = _refuse(times, wrong, message)
        return times


def _falling(n_steps: int) -> Times:
    return jnp.linspace(1, 0, n_steps + 1, dtype=jnp.result_type(float))


@eqx.filter_jit
def _log_snr_ends(diffusion: AbstractLinearDiffusion) -> tuple[Scalar, Scalar]:
    """The log-SNR at the horizon and at the cut."""
    ends = jnp.stack([diffusion.t1, diffusion.t0])
    low, high = jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr)(ends)
    return low, high


@eqx.filter_jit
def _times_at(diffusion: AbstractLinearDiffusion, log_snrs: Times) -> Times:
    return jax.vmap(diffusion._solve_log_snr)(log_snrs)


def _check_decreasing(times: Times) -> Times:
    falls = jnp.diff(times) < 0
    first = concrete(times[1:][jnp.argmax(~falls)])
    message = (
        "`times` must strictly decrease from the diffusion's t1 to its t0; "
        f"they do not at t = {first}. Take fewer steps, a wider dtype or another grid"
    )
    return _refuse(times, ~jnp.all(falls), message)


def _refuse(times: Times, wrong: Bool[Array, ""], message: str) -> Times:
    is_wrong = concrete(wrong)
    if is_wrong is None:
        return eqx.error_if(times, wrong, message + ".")
    if is_wrong:
        raise ValueError(message + ".")
    return times
