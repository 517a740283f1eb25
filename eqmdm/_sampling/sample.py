"""Drawing samples."""

from typing import Literal, overload

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from .._core.checks import check_count, check_precision, check_shape
from .._core.sharding import divide_batch, mesh_of
from .._core.types import IntScalar, PRNGKey
from .._model.base import AbstractModel, check_model
from .base import AbstractSampler
from .diffrax import DiffraxSampler
from .dpm_solver import DPMSolver
from .grids import SavedTimes, Times
from .trajectory import SampleResult, SaveAt


# Of library and programs. With as many evaluations it is as close to the data as any
# in benchmarks/RESULTS.md, for every diffusion, and closer than SDE solvers at 50.
DEFAULT_SAMPLER = DPMSolver()


@overload
def sample(
    model: AbstractModel,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    n_samples: int = 64,
    sampler: AbstractSampler | dfx.AbstractSolver | None = None,
    n_steps: int | None = None,
    save_at: None = None,
    full_output: Literal[False] = False,
    first: int = 0,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n_samples *data"]: ...


@overload
def sample(
    model: AbstractModel,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    n_samples: int = 64,
    sampler: AbstractSampler | dfx.AbstractSolver | None = None,
    n_steps: int | None = None,
    save_at: SaveAt | None = None,
    full_output: Literal[True],
    first: int = 0,
    dtype: DTypeLike | None = None,
) -> SampleResult: ...


def sample(
    model: AbstractModel,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    n_samples: int = 64,
    sampler: AbstractSampler | dfx.AbstractSolver | None = None,
    n_steps: int | None = None,
    save_at: SaveAt | None = None,
    full_output: bool = False,
    first: int = 0,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n_samples *data"] | SampleResult:
    r"""Samples of the data: a process from the prior to t0, then the exact posterior
    mean there.

    Sample `i` is keyed by `first + i`, so it does not depend on how many are drawn, and
    starts from the same draw of the prior with every sampler.

    **Arguments:**

    - `model`: any of the models, or one of your own.
    - `shape`: of one example of data.
    - `key`: of starts and noises.
    - `n_samples`: how many.
    - `sampler`: [`eqmdm.DPMSolver`][] by default. Of a Diffrax solver, such as
        `diffrax.SEA()`, a [`eqmdm.DiffraxSampler`][] of the reverse SDE is made.
    - `n_steps`: the number of steps; by default that of the sampler's grid, which is 50
        unless it has another.
    - `save_at`: the times at which states are kept, for `full_output`.
    - `full_output`: whether to return the account of the samples with them.
    - `first`: the number of the first sample.
    - `dtype`: of states, times and samples; JAX's default by default.

    **Returns:**

    The samples. With `full_output`, an [`eqmdm.SampleResult`][] with the samples, their
    trajectories, evaluations of the network and outcomes.

    A sample that fails, such as one whose adaptive solve takes too many steps, is NaN,
    and the others are kept.

    **Raises:**

    `ValueError` if a count is out of range, the diffusion ends below the range that a
    denoiser was trained on, the clock is not monotone in time for the diffusion, or
    `save_at` is not within its interval; `TypeError` if the model is none, or the
    sampler is none or does not suit the model.

    !!! Example

        ```python
        denoiser = lambda log_snr, z: z / (1 + jnp.exp(-log_snr))
        model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD())
        x = eqmdm.sample(model, (8,), key=jax.random.key(0))
        result = eqmdm.sample(
            model,
            (8,),
            key=jax.random.key(0),
            save_at=eqmdm.SaveAt(log_snrs=[-2.0, 0.0, 2.0]),
            full_output=True,
        )
        result.trajectory.estimates  # of shape (64, 3, 8)
        ```
    """
    check_model(model)
    check_count("n_samples", n_samples)
    check_count("first", first, least=0)
    shape = check_shape(shape)
    dtype = jnp.result_type(float) if dtype is None else dtype
    dtype = check_precision("dtype", dtype)
    sampler = _as_sampler(sampler)
    if save_at is not None and not full_output:
        raise ValueError(
            "`full_output` must be True where `save_at` is given: the states are part "
            "of the full output."
        )
    saved = None if save_at is None else save_at.resolve(model.diffusion, dtype)
    times = sampler.times(model.diffusion, n_steps, dtype, through=saved)
    start = model.check_final_time(jnp.asarray(first))
    keys = divide_batch(_sample_keys(key, start, n_samples), mesh_of(model))
    if saved is not None:
        # The ends as the grid has them, to the last digit.
        saved = jnp.clip(saved, times[-1], times[0])
    result = _draw(model, keys, shape, times, saved, sampler)
    return result if full_output else result.x


def _as_sampler(
    sampler: AbstractSampler | dfx.AbstractSolver | None,
) -> AbstractSampler:
    if sampler is None:
        return DEFAULT_SAMPLER
    if isinstance(sampler, dfx.AbstractSolver):
        return DiffraxSampler(sampler)
    if not isinstance(sampler, AbstractSampler):
        raise TypeError(
            "`sampler` must be a sampler, such as `eqmdm.DPMSolver()`, or a Diffrax "
            f"solver, such as `diffrax.SEA()`; got {sampler!r}."
        )
    return sampler


@eqx.filter_jit
def _sample_keys(
    key: PRNGKey, first: IntScalar, n_samples: int
) -> Key[Array, " n_samples"]:
    return jax.vmap(lambda i: jr.fold_in(key, i))(first + jnp.arange(n_samples))


@eqx.filter_jit
def _draw(
    model: AbstractModel,
    keys: Key[Array, " n_samples"],
    shape: tuple[int, ...],
    times: Times,
    saved: SavedTimes | None,
    sampler: AbstractSampler,
) -> SampleResult:
    def one(key: PRNGKey) -> SampleResult:
        key_start, key_noise = jr.split(key)
        y = model.diffusion.prior.sample(shape, key=key_start).astype(times.dtype)
        return sampler.solve(model, y, times, key=key_noise, saved=saved)

    result = jax.vmap(one)(keys)
    if result.trajectory is None:
        return result
    # Those of the first sample are those of all.
    where = lambda r: (r.trajectory.times, r.trajectory.log_snrs)
    return eqx.tree_at(where, result, replace_fn=lambda of_each: of_each[0])
