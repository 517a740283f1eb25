"""Checks of a new diffusion with time-dependent matrices."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._core.checks import concrete
from .._core.types import Scalar
from . import host
from .base import AbstractLinearDiffusion, without_floats
from .interval import Interval, LogSNRInterval, TimeInterval, with_times
from .kernel import SHORT_STEP, quadrature
from .matrices import check_controllable, known_array
from .search import bisect, check_reached, check_resolved
from .settle import check_end, has_parameters


def as_limit(t_limit: float | None, interval: Interval) -> float:
    """`t_limit`, by default the end of the interval.

    **Raises:** `ValueError` or `TypeError` unless it is a time, and not before the end
    of the interval.
    """
    in_time = isinstance(interval, TimeInterval)
    end = concrete(interval.t1) if in_time else None
    if in_time and end is None and t_limit is None:
        raise TypeError(
            "`t_limit` must be given as a number if the end of `interval` is traced."
        )
    if t_limit is None:
        return 2.0 if end is None else end
    if not (math.isfinite(t_limit) and t_limit > 0 and t_limit >= (end or 0)):
        raise ValueError(
            "`t_limit` must be finite and positive, and not before the end of "
            f"`interval`, {end}; got {t_limit}."
        )
    return t_limit


# The number of times at which the matrices are checked when a diffusion is built.
_N_TIMES = 64


class _KnownMatrices(NamedTuple):
    drift: Float[np.ndarray, "times vars vars"]
    diffusion: Float[np.ndarray, "times vars rank"]


def _known_matrices(
    diffusion: AbstractLinearDiffusion,
) -> Callable[[np.ndarray], _KnownMatrices | None]:
    """A function that returns the matrices at `_N_TIMES` times, or `None` if any is
    traced."""

    @jax.jit
    @jax.vmap
    def evaluate(t):
        return diffusion.drift_matrix(t), diffusion.diffusion_matrix(t)

    def at(times: np.ndarray) -> _KnownMatrices | None:
        with jax.ensure_compile_time_eval():
            F, G = evaluate(jnp.asarray(times, jnp.result_type(float)))
        F, G = known_array(F), known_array(G)
        return None if F is None or G is None else _KnownMatrices(F, G)

    return at


def settled_composed(
    diffusion: AbstractLinearDiffusion, *, t_limit: float, n_steps: int
) -> Interval:
    """The interval of a new diffusion, with solved times unless it has parameters.

    Warns if the law at the final time is not the prior.

    **Raises:**

    `ValueError` for matrices that do not have the size of the prior's, a variable that
    no noise reaches, steps too long for their series, or an interval that is not
    reached.
    """
    _check_shapes(diffusion)
    matrices = _known_matrices(diffusion)
    _check_steps(matrices, diffusion.n_vars, t_limit, n_steps)
    interval = diffusion.interval
    if isinstance(interval, TimeInterval):
        check_end(interval, t_limit)
        end = concrete(interval.t1)
    else:
        times = _find_times(diffusion)
        end = None if times is None else times[1]
        if times is not None and not has_parameters(diffusion):
            interval = with_times(interval, *times)
    if end is not None:
        _warn_unless_mixed(diffusion, matrices, end)
    return interval


def _check_shapes(diffusion: AbstractLinearDiffusion) -> None:
    n_vars = diffusion.n_vars
    time = jax.ShapeDtypeStruct((), jnp.result_type(float))
    for name in ("drift_matrix", "diffusion_matrix"):
        shape = jax.eval_shape(getattr(diffusion, name), time).shape
        square = name == "drift_matrix"
        fits = len(shape) == 2 and shape[0] == n_vars
        if not fits or (square and shape[1] != n_vars):
            raise ValueError(
                f"`{name}` must return a matrix with {n_vars} rows, as many as the "
                f"prior has{', and columns' if square else ''}; got shape {shape}."
            )


def _check_steps(
    matrices: Callable[[np.ndarray], _KnownMatrices | None],
    n_vars: int,
    limit: float,
    n_steps: int,
) -> None:
    times = limit * np.linspace(0, 1, _N_TIMES)
    values = matrices(times)
    if values is None:
        return
    named = ("drift_matrix", values.drift), ("diffusion_matrix", values.diffusion)
    for name, at_times in named:
        for t, matrix in zip(times, at_times, strict=True):
            if not np.all(np.isfinite(matrix)):
                raise ValueError(
                    f"`{name}` must be finite up to t = {limit}; at t = {t} it is "
                    f"{matrix.tolist()}. Choose an earlier `t_limit`."
                )
    check_controllable(list(zip(values.drift, values.diffusion, strict=True)))
    n_nodes = len(quadrature(n_vars, jnp.result_type(float))[0])
    largest = float(host.operator_norm_bound(values.drift).max())
    # The widest part of a step is up to twice as wide as the mean.
    longest = 2 * largest * limit / (n_steps * (n_nodes + 1))
    if longest > SHORT_STEP:
        factor = 2 ** int(np.ceil(np.log2(longest / SHORT_STEP)))
        raise ValueError(
            f"`n_steps` must be larger: with {n_steps} steps up to t = {limit}, the "
            f"norm of the drift over one part of a step is {longest:.3g}, and accurate "
            f"kernels need at most {SHORT_STEP}. Try n_steps={n_steps * factor}."
        )


def _find_times(diffusion: AbstractLinearDiffusion) -> tuple[float, float] | None:
    """The times of an interval given in log-SNR, or `None` if they are traced.

    **Raises:** `ValueError` if the interval is not reached or not resolved.
    """
    interval = diffusion.interval
    assert isinstance(interval, LogSNRInterval)
    with jax.ensure_compile_time_eval():
        dtype = jnp.dtype(jnp.result_type(float))
        t0, t1, actual = _search(without_floats(diffusion, dtype), dtype)
        if concrete(t0) is None or concrete(t1) is None:
            return None
        low, high = (jnp.asarray(e, dtype) for e in (interval.low, interval.high))
        t1 = check_reached(t1, low, diffusion.t_limit)
        t0 = check_resolved(t0, actual, high)
    return float(t0), float(t1)


@eqx.filter_jit
def _search(
    diffusion: AbstractLinearDiffusion, dtype: jnp.dtype
) -> tuple[Scalar, Scalar, Scalar]:
    """The times t0 and t1, and the log-SNR of the kernel at t0."""
    interval, log_limit = diffusion.interval, diffusion._log_limit(dtype)
    assert isinstance(interval, LogSNRInterval)
    log_snrs = jnp.stack([jnp.asarray(e, dtype) for e in (interval.low, interval.high)])
    time = lambda log_snr: jnp.exp(bisect(diffusion._excess(log_snr), log_limit))
    t1, t0 = jax.vmap(time)(log_snrs)
    return t0, t1, diffusion.compute_kernel(t0).log_snr


def _warn_unless_mixed(
    diffusion: AbstractLinearDiffusion,
    matrices: Callable[[np.ndarray], _KnownMatrices | None],
    t1: float,
) -> None:
    with jax.ensure_compile_time_eval():
        dtype = jnp.result_type(float)
        start, prior = (
            known_array(root)
            for root in (diffusion.start_root(dtype), diffusion.prior.root)
        )
    # Matrices that are constant over each part are accurate enough: the error is of
    # second order, and 1e-4 nats compared to the threshold of 0.05.
    values = matrices(t1 * (np.arange(_N_TIMES) + 0.5) / _N_TIMES)
    if values is None or start is None or prior is None:
        return
    widths = np.full(_N_TIMES, t1 / _N_TIMES)
    step = host.composed_transition(values.drift, values.diffusion, widths)
    host.warn_unless_mixed(host.prior_divergence(prior, host.kernel_after(step, start)))
