"""The full output of a sampler: samples, trajectories, counts and outcomes."""

from collections.abc import Sequence
from typing import final

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .._core.checks import concrete, now_if_known, raise_or_error_if
from .._core.types import Data
from .._diffusion import AbstractProcess
from .._diffusion.base import check_linear
from .grids import SavedTimes, times_at


def _as_vector(
    values: ArrayLike | Sequence[float] | None,
) -> Float[Array, " saves"] | None:
    if values is None:
        return None
    values = jnp.atleast_1d(jnp.asarray(values, jnp.result_type(float)))
    if values.ndim != 1:
        raise ValueError(
            f"`SaveAt` must have a vector of values; got shape {values.shape}."
        )
    return values


@final
class SaveAt(eqx.Module):
    """The times, or the log-SNRs, at which the states of samples are saved.

    Steps end exactly at these times; the nearest times of a grid move there.

    **Arguments:**

    - `times`: times within the diffusion's interval, in any order.
    - `log_snrs`: log signal-to-noise ratios instead of times.

    **Raises:**

    `ValueError` unless exactly one of the two is given and is a vector.
    """

    times: Float[Array, " saves"] | None = eqx.field(default=None, converter=_as_vector)
    log_snrs: Float[Array, " saves"] | None = eqx.field(
        default=None, converter=_as_vector
    )

    def __check_init__(self):
        if (self.times is None) == (self.log_snrs is None):
            raise ValueError(
                "`SaveAt` must have either `times` or `log_snrs`; got "
                f"times={self.times} and log_snrs={self.log_snrs}."
            )

    def resolve(self, diffusion: AbstractProcess, dtype: np.dtype) -> SavedTimes:
        """The times, decreasing.

        **Raises:**

        `ValueError` (`equinox.EquinoxRuntimeError` for a traced interval) unless the
        times are distinct and within the interval.
        """
        linear = check_linear(diffusion)
        with now_if_known(self, diffusion):
            times = self.times
            if times is None:
                assert self.log_snrs is not None
                times = times_at(linear, self.log_snrs)
            times = -jnp.sort(-times)
            t0, t1 = diffusion.t0, diffusion.t1
            # The tolerance is for given t0 and t1 that were rounded or found by another
            # search.
            outside = jnp.any(~((times >= 0.999 * t0) & (times <= 1.001 * t1)))
            times = jnp.clip(times, t0, t1)
            repeated = jnp.any(jnp.diff(times) >= 0)
            message = (
                "`save_at` must hold distinct times within the diffusion's interval, "
                f"[{concrete(t0)}, {concrete(t1)}]."
            )
            return raise_or_error_if(times.astype(dtype), outside | repeated, message)


@final
class Trajectory(eqx.Module):
    r"""The states of a sample on the way from noise to data.

    - `times`, `log_snrs`: the times and log-SNRs of the states, decreasing in time. A
        log-SNR that differs by coordinate is the mean. With Student-t noise they are
        those of a precision of 1.
    - `states`: the states of the diffusion, or of the data's sufficient statistic $z$,
        with one row, if the sampler only follows that.
    - `estimates`: $E[x \mid y]$ at each of the states, according to the model.
    """

    times: Float[Array, " saves"]
    log_snrs: Float[Array, " saves"]
    states: Float[Array, "saves rows *data"]
    estimates: Float[Array, "saves *data"]


@final
class SampleResult(eqx.Module):
    """A sample with its full output.

    - `x`: the sample; NaN if it failed.
    - `trajectory`: the states on the way, if `save_at` was given.
    - `n_evaluations`: the number of network evaluations; `None` if it is not known, as
        for implicit solvers.
    - `result`: a `diffrax.RESULTS`: success, or the reason of a failure.

    As returned by [`eqmdm.sample`][], each field has a leading axis for the samples.
    The times and log-SNRs of the trajectory have none, because all samples share them.
    """

    x: Data
    trajectory: Trajectory | None = None
    n_evaluations: int | Int[Array, ""] | None = None
    result: dfx.RESULTS = eqx.field(default_factory=lambda: dfx.RESULTS.successful)


def finish(
    x: Data,
    trajectory: Trajectory | None,
    n_evaluations: int | Int[Array, ""] | None,
    result: dfx.RESULTS,
) -> SampleResult:
    """The result of a sample, with NaN in place of a failed one."""
    is_finite = jnp.all(jnp.isfinite(x))
    successful = result == dfx.RESULTS.successful
    nonfinite = dfx.RESULTS.nonfinite
    nonfinite = dfx.RESULTS.where(is_finite, result, nonfinite)  # pyright: ignore[reportArgumentType]
    result = dfx.RESULTS.where(successful, nonfinite, result)
    x = jnp.where(successful, x, jnp.nan)
    if n_evaluations is not None:
        n_evaluations = jnp.asarray(n_evaluations, jnp.int32)
    return SampleResult(x, trajectory, n_evaluations, result)
