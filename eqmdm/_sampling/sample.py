"""Drawing samples."""

from typing import Literal, overload

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from .._core.checks import check_count, check_precision, check_shape
from .._core.conditions import as_conditions
from .._core.sharding import divide_batch, mesh_of
from .._core.types import IntScalar, PRNGKey
from .._diffusion import AbstractLinearDiffusion
from .._diffusion.banded import check_data_shape
from .._model.base import AbstractModel, check_conditions, check_model, conditioned
from .._model.student_t import draw_precision, example_model, normal_model
from .base import AbstractSampler
from .diffrax import DiffraxSampler
from .dpm_solver import DPMSolver
from .grids import SavedTimes, Times
from .stacks import kernels_at
from .trajectory import SampleResult, SaveAt


# The default of the library and the programs. At equal evaluations its samples are as
# close to the data as any in benchmarks/RESULTS.md, for every diffusion, and closer
# than those of SDE solvers at 50.
DEFAULT_SAMPLER = DPMSolver()


@overload
def sample(
    model: AbstractModel,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    condition: PyTree = None,
    conditions: PyTree = None,
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
    condition: PyTree = None,
    conditions: PyTree = None,
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
    condition: PyTree = None,
    conditions: PyTree = None,
    n_samples: int = 64,
    sampler: AbstractSampler | dfx.AbstractSolver | None = None,
    n_steps: int | None = None,
    save_at: SaveAt | None = None,
    full_output: bool = False,
    first: int = 0,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n_samples *data"] | SampleResult:
    r"""Samples of the data: a process from the prior to t0, then the posterior mean of
    the data given the state at t0.

    Sample `i` is keyed by `first + i`. It therefore does not depend on the number of
    samples, and starts from the same draw of the prior with every sampler.

    **Arguments:**

    - `model`: any of the models, or one of your own.
    - `shape`: the shape of one example of data.
    - `key`: for the initial states and the noise.
    - `condition`: the condition of all samples, for a conditional model; see
        `AbstractModel.with_condition`.
    - `conditions`: in place of `condition`, one condition for each sample, such as
        `jnp.arange(10)` for ten classes.
    - `n_samples`: the number of samples.
    - `sampler`: [`eqmdm.DPMSolver`][] by default, or `diffrax.ShARK()` for a process
        whose drift is not linear. A Diffrax solver, such as `diffrax.SEA()`, stands for
        an [`eqmdm.DiffraxSampler`][] of the reverse SDE.
    - `n_steps`: the number of steps; by default that of the sampler's grid, which is 50
        unless set otherwise.
    - `save_at`: the times at which states are saved; requires `full_output`.
    - `full_output`: whether to return an [`eqmdm.SampleResult`][].
    - `first`: the index of the first sample.
    - `dtype`: the dtype of states, times and samples; JAX's default float if `None`.

    **Returns:**

    The samples, or with `full_output` an [`eqmdm.SampleResult`][] with the samples,
    their trajectories, the number of network evaluations, and the outcomes.

    A sample that fails, for example because its adaptive solve takes too many steps, is
    NaN. The other samples are unaffected.

    **Raises:**

    `ValueError` if a count is out of range, for conditions that do not suit the network
    or the number of samples, if the diffusion ends below the range that
    a denoiser was trained on, if the clock is not monotone in time for the diffusion,
    or if `save_at` is not within its interval; `TypeError` if `model` is not a model,
    or `sampler` is not a sampler or does not support the model.

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
    # The parameters may be on several devices, but the condition is not.
    mesh = mesh_of(check_model(model))
    model = conditioned(model, condition)
    if conditions is not None:
        if condition is not None:
            raise ValueError(
                "`conditions` must be left out if there is a `condition`, which is "
                "that of all samples."
            )
        conditions = as_conditions(conditions, n_samples, name="conditions")
        check_conditions(model, conditions)
    check_count("n_samples", n_samples)
    check_count("first", first, least=0)
    shape = check_shape(shape)
    check_data_shape(model.diffusion, shape)
    dtype = jnp.result_type(float) if dtype is None else dtype
    dtype = check_precision("dtype", dtype)
    sampler = _as_sampler(sampler, model)
    if save_at is not None and not full_output:
        raise ValueError(
            "`full_output` must be True if `save_at` is given: the states are part of "
            "the full output."
        )
    saved = None if save_at is None else save_at.resolve(model.diffusion, dtype)
    times = sampler.times(model.diffusion, n_steps, dtype, through=saved)
    start = model.check_final_time(jnp.asarray(first))
    keys = _sample_keys(key, start, n_samples)
    keys, conditions = divide_batch((keys, conditions), mesh)
    if saved is not None:
        # Take t1 and t0 from the grid, so that they agree to the last digit.
        saved = jnp.clip(saved, times[-1], times[0])
    result = _draw(model, keys, conditions, shape, times, saved, sampler)
    return result if full_output else result.x


def _as_sampler(
    sampler: AbstractSampler | dfx.AbstractSolver | None, model: AbstractModel
) -> AbstractSampler:
    if sampler is None and isinstance(model.diffusion, AbstractLinearDiffusion):
        return DEFAULT_SAMPLER
    if sampler is None:
        return DiffraxSampler(dfx.ShARK())
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
    conditions: PyTree,
    shape: tuple[int, ...],
    times: Times,
    saved: SavedTimes | None,
    sampler: AbstractSampler,
) -> SampleResult:
    def one(key: PRNGKey, condition: PyTree) -> SampleResult:
        precision = draw_precision(model, key=key, dtype=times.dtype)
        given = example_model(model, condition, precision)
        key_start, key_noise = jr.split(key)
        y = given.draw_prior(shape, key=key_start, dtype=times.dtype)
        return sampler.solve(given, y, times, key=key_noise, saved=saved)

    result = jax.vmap(one)(keys, conditions)
    if result.trajectory is None:
        return result
    # They are the same for all samples, but for the precision of each.
    where = lambda r: (r.trajectory.times, r.trajectory.log_snrs)
    result = eqx.tree_at(where, result, replace_fn=lambda leaf: leaf[0])
    if normal_model(model) is model:
        return result
    shared = kernels_at(model.linear_diffusion, result.trajectory.times)
    log_snrs = jax.vmap(lambda kernel: kernel.mean_log_snr)(shared)
    return eqx.tree_at(lambda r: r.trajectory.log_snrs, result, log_snrs)
