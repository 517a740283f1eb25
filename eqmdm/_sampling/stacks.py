"""Stacked kernels and states at several times, and estimates from them."""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .._core.gaussian import PerturbationKernel, Transition
from .._core.types import Data, LogSNR, Scalar, State
from .._diffusion import AbstractLinearDiffusion
from .._model.base import AbstractModel
from .._model.start import check_start_independent
from .grids import Times
from .trajectory import Trajectory


Clip: TypeAlias = tuple[float, float] | None
# The state of a sampler: the diffusion's state, or a statistic of it with one row.
SamplerState: TypeAlias = Float[Array, "rows *data"]


def make_trajectory(
    model: AbstractModel,
    kernels: PerturbationKernel,
    states: Float[Array, "saves rows *data"],
    clip: Clip = None,
) -> Trajectory:
    """The trajectory made of states and the kernels at their times."""

    # One at a time, so that the network is not compiled for another batch size.
    def estimate(at: tuple[PerturbationKernel, SamplerState]) -> Data:
        return data_estimate(model, *at, clip)

    estimates = jax.lax.map(estimate, (kernels, states))
    log_snrs = jax.vmap(lambda kernel: kernel.mean_log_snr)(kernels)
    return Trajectory(kernels.t, log_snrs, states, estimates)


def part(tree: PyTree, index: int | slice | Array | None) -> PyTree:
    """The part of every leaf of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def as_dtype(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """A tree with its floating-point arrays in a dtype."""
    cast = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(cast, tree)


def data_estimate(
    model: AbstractModel, kernel: PerturbationKernel, y: SamplerState, clip: Clip
) -> Data:
    r"""$E[x \mid y]$ according to the model, within `clip`."""
    if model.has_denoiser:
        # This also holds for the statistic, whose kernel is not the diffusion's.
        x = model.denoise(kernel.log_snr.astype(y.dtype), kernel.project(y))
    else:
        x = model.data_estimate(kernel, y)
    return x if clip is None else jnp.clip(x, *clip)


def clipped_score(
    model: AbstractModel, kernel: PerturbationKernel, y: State, clip: Clip
) -> State:
    """The score; for a denoiser, the score of its data estimate within `clip`."""
    if clip is None or not model.has_denoiser:
        return model.score_at(kernel, y)
    residual = kernel.mean(data_estimate(model, kernel, y, clip)) - y
    return kernel.unwhiten_score(kernel.whiten(residual))


@eqx.filter_jit
def kernels_at(diffusion: AbstractLinearDiffusion, times: Times) -> PerturbationKernel:
    """The diffusion's kernels at several times, stacked, so that steps compute none."""
    return jax.vmap(diffusion.compute_kernel)(times)


def log_snrs_of(kernels: PerturbationKernel) -> Float[Array, "times *coordinates"]:
    """The log-SNRs of stacked kernels."""
    return jax.vmap(lambda kernel: kernel.log_snr)(kernels)


def collapse(
    sampler: Any, model: AbstractModel, times: Times, y: State
) -> tuple[SamplerState, PerturbationKernel]:
    """The sufficient statistic of `y` as a state of one variable, and its kernels.

    **Raises:** `TypeError` for a model without a denoiser.
    """
    if not model.has_denoiser:
        raise TypeError(
            f"`model` must be a `DenoiserModel` for `{type(sampler).__name__}`, which "
            "only follows the sufficient statistic of the data; got "
            f"`{type(model).__name__}`. Use `DPMSolver`, which follows the whole state "
            "of any other model."
        )
    kernels = kernels_at(model.linear_diffusion, times)
    z = part(kernels, 0).project(y)
    return z[None], jax.vmap(_statistic_kernel)(kernels.t, kernels.sigma)


def check_follows_data(model: AbstractModel, sampler: Any) -> None:
    """**Raises:** `TypeError` for a model with a conditioned start, whose states a
    sampler that follows an estimate of the data does not follow."""
    instead = "`eqmdm.SSCS()` or a Diffrax solver, such as `diffrax.SEA()`"
    check_start_independent(model, type(sampler).__name__, instead)


def _statistic_kernel(t: Scalar, sigma: LogSNR) -> PerturbationKernel:
    """The kernel of the sufficient statistic, the data plus noise of std sigma."""
    one, root = jnp.ones((1, *sigma.shape), sigma.dtype), sigma[None, None]
    step = Transition(one[None], root)
    return PerturbationKernel(t, step, one, root, 1 / root, one, sigma, one)
