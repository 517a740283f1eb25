"""The kernels of a diffusion at its two ends, computed once for all callers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._core.blocks import matmul
from .._core.checks import as_scalar, now_if_known
from .._core.gaussian import PerturbationKernel
from .._core.types import Scalar
from .._diffusion import AbstractLinearDiffusion
from .._diffusion.base import without_gradient
from .._diffusion.stationary import known_kernels, known_log_snrs


def final_log_snr(diffusion: AbstractLinearDiffusion) -> Scalar:
    """The log-SNR at the final time, the lowest of all coordinates, without a
    gradient."""
    # Here and not of the result, so that the search for the times is not
    # differentiated.
    diffusion = without_gradient(diffusion)
    known = known_log_snrs(diffusion, diffusion.t1)
    if known is not None:
        return as_scalar(known[0], jnp.result_type(float))
    _, last = kernel_at_ends(diffusion)
    with now_if_known(last.sigma):
        log_snr = last.log_snr
        return log_snr if log_snr.ndim == 0 else jnp.min(log_snr)


def log_snr_range(diffusion: AbstractLinearDiffusion) -> tuple[float, float]:
    """The lowest and the highest log-SNR of any coordinate on the interval of a known
    diffusion."""
    low, high = (diffusion.log_snr(t) for t in (diffusion.t1, diffusion.t0))
    return float(np.asarray(low).min()), float(np.asarray(high).max())


def kernel_at_ends(
    diffusion: AbstractLinearDiffusion,
) -> tuple[PerturbationKernel, PerturbationKernel]:
    """The kernels at t0 and t1, from the host if they are known there, and otherwise
    from one compiled program that all callers share."""
    t0, t1 = diffusion.t0, diffusion.t1
    known = known_kernels(diffusion, t0, t1)
    if known is not None:
        first, last = known
        return first, last
    if jax.tree.leaves(eqx.filter(diffusion, eqx.is_array)):
        return _first_and_last(diffusion, t0, t1)
    # A diffusion of constants has known kernels even inside a trace. The times are
    # passed as arguments, so that this compiles to one program instead of being
    # evaluated operation by operation.
    with eval_context():
        return _first_and_last(diffusion, diffusion.t0, diffusion.t1)


@eqx.filter_jit
def _first_and_last(
    diffusion: AbstractLinearDiffusion, t0: Scalar, t1: Scalar
) -> tuple[PerturbationKernel, PerturbationKernel]:
    kernels = jax.vmap(diffusion.compute_kernel)(jnp.stack([t0, t1]))
    first, last = (jax.tree.map(lambda leaf, i=i: leaf[i], kernels) for i in (0, 1))
    return first, last


def statistic_at_ends(
    diffusion: AbstractLinearDiffusion, dtype: DTypeLike
) -> tuple[Float[Array, "2 *coordinates"], Float[Array, "*coordinates"]]:
    """The log-SNRs at t0 and t1, and the standard deviation of the sufficient statistic
    at t1 under the prior."""
    first, last = kernel_at_ends(diffusion)
    log_snrs = jnp.stack([first.log_snr, last.log_snr])
    weights = matmul(last.data_weights[None], diffusion.prior.root)
    return log_snrs.astype(dtype), jnp.linalg.norm(weights, axis=(0, 1)).astype(dtype)
