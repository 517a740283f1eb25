"""The output of a sampler beside the samples: states on the way, counts, outcomes."""

from collections.abc import Sequence
from typing import final

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from .._core.checks import concrete, now_if_known, raise_or_error_if
from .._core.types import Data
from .._diffusion import AbstractLinearDiffusion
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
    """The times, or the log-SNRs, at which the states of samples are kept.

    Steps go through these times exactly: on a grid the nearest times of it move there.

    **Arguments:**

    - `times`: diffusion times within the diffusion's interval, in any order.
    - `log_snrs`: log signal-to-noise ratios instead.

    **Raises:**

    `ValueError` unless one of the two is given, a vector.
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

    def resolve(
        self, diffusion: AbstractLinearDiffusion, dtype: np.dtype
    ) -> SavedTimes:
        """The times, decreasing.

        **Raises:**

        `ValueError` unless they are distinct and within the interval;
        `equinox.EquinoxRuntimeError` where that is traced.
        """
        with now_if_known(self, diffusion):
            times = self.times
            if times is None:
                assert self.log_snrs is not None
                times = times_at(diffusion, self.log_snrs)
            times = -jnp.sort(-times)
            t0, t1 = diffusion.t0, diffusion.t1
            # t0 and t1 themselves may have been rounded, or found by another search.
            outside = jnp.any(~((times >= 0.999 * t0) & (times <= 1.001 * t1)))
            times = jnp.clip(times, t0, t1)
            repeated = jnp.any(jnp.diff(times) >= 0)
            message = (
                "`save_at` must be within the diffusion's interval, of times "
                f"[{concrete(t0)}, {concrete(t1)}], each time once."
            )
            return raise_or_error_if(times.astype(dtype), outside | repeated, message)


@final
class Trajectory(eqx.Module):
    r"""The states of a sample on its way, from noise to data.

    - `times`, `log_snrs`: where, decreasing in time.
    - `states`: of the diffusion; or of the data's sufficient statistic $z$, with one
        row, where the sampler follows that alone.
    - `estimates`: $E[x \mid y]$ at each of the states, according to the model.
    """

    times: Float[Array, " saves"]
    log_snrs: Float[Array, " saves"]
    states: Float[Array, "saves rows *data"]
    estimates: Float[Array, "saves *data"]


@final
class SampleResult(eqx.Module):
    """A sample, and the account of it.

    - `x`: the sample; NaN where `result` is no success.
    - `trajectory`: the states on the way, if they were asked for.
    - `n_evaluations`: the evaluations of the network; `None` where a solver takes as
        many as it needs, as implicit ones do.
    - `result`: a `diffrax.RESULTS`: whether the sample succeeded, or the reason why it
        did not.

    From [`eqmdm.sample`][] each has a leading axis for the samples, but for the times
    and log-SNRs of the trajectory, which are those of all.
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
    """The result of a sample, NaN where it failed."""
    is_finite = jnp.all(jnp.isfinite(x))
    successful = result == dfx.RESULTS.successful
    nonfinite = dfx.RESULTS.nonfinite
    nonfinite = dfx.RESULTS.where(is_finite, result, nonfinite)  # pyright: ignore[reportArgumentType]
    result = dfx.RESULTS.where(successful, nonfinite, result)
    x = jnp.where(successful, x, jnp.nan)
    if n_evaluations is not None:
        n_evaluations = jnp.asarray(n_evaluations, jnp.int32)
    return SampleResult(x, trajectory, n_evaluations, result)
