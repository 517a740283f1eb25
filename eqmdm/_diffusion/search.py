"""The search for the time of a log-SNR, in JAX for traced or learned values."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._core.checks import check_precision, concrete
from .._core.types import Scalar


# The start of the search for a log-SNR, where float32 still resolves kernels.
EARLIEST_TIME = 1e-12


def find_root(excess: Callable[[Scalar], Scalar], log_limit: Scalar) -> Scalar:
    """The root found by `bisect`, differentiable by the implicit function theorem."""

    def tangent_solve(linear, value):
        return value / linear(jnp.ones_like(value))

    # The derivative of a bisection is 0, since its result is a sum of constants; and to
    # differentiate through a Newton iteration would cost as many kernels again.
    return jax.lax.custom_root(excess, log_limit, bisect, tangent_solve)


def bisect(excess: Callable[[Scalar], Scalar], log_limit: Scalar) -> Scalar:
    """The logarithm of the time at which a decreasing function crosses 0, or
    `log_limit` if it does not cross by then."""

    # Bisection and not Newton's method, which leaves the bracket where log-SNR is
    # nearly stationary in time, as it is for ALDA and for many learned diffusions.
    def halve(step, bracket):
        low, high = bracket
        middle = jnp.where(step == 0, high, 0.5 * (low + high))
        # If the kernel underflows, log-SNR is NaN, and the time is too early.
        below = excess(middle) < 0
        return jnp.where(below, low, middle), jnp.where(below, middle, high)

    # From a bracket of 60 nats down to the spacing of the dtype.
    n_steps = jnp.finfo(log_limit.dtype).nmant + 7
    earliest = jnp.log(jnp.asarray(EARLIEST_TIME, log_limit.dtype))
    low, high = jax.lax.fori_loop(0, n_steps, halve, (earliest, log_limit))
    return 0.5 * (low + high)


def check_reached(t: Scalar, log_snr: Scalar, limit: Scalar) -> Scalar:
    """Returns `t`, the result of a search.

    **Raises:** as for `check_value`, if `t` is `limit`, so that `log_snr` was not
    reached.
    """
    limit = jax.lax.stop_gradient(limit).astype(t.dtype)
    beyond = ~(t < limit * (1 - 8 * jnp.finfo(t.dtype).eps))
    return check_value(t, beyond, not_reached(concrete(limit)), log_snr)


def not_reached(limit: float | None) -> str:
    return (
        f"`log_snr` must be reached by this diffusion before t = {limit}, where its "
        "kernels or its schedule end. Ask for a higher value"
    )


def check_resolved(t: Scalar, actual: Scalar, log_snr: Scalar) -> Scalar:
    """Returns `t`, the result of a search.

    **Raises:** as for `check_value`, if its log-SNR, `actual`, is not `log_snr`: the
    search ended without a crossing, or where the kernel underflows.
    """
    wrong = ~(jnp.abs(actual - log_snr) <= tolerance(log_snr)) | ~jnp.isfinite(log_snr)
    return check_value(t, wrong, not_resolved(t.dtype, concrete(t)), log_snr)


def tolerance(log_snr: Any) -> Any:
    """The largest accepted error of the log-SNR at a time that was searched for."""
    return 1e-3 * (1 + abs(log_snr))


def not_resolved(dtype: Any, t: float | None) -> str:
    return (
        f"`log_snr` must be a value that {dtype} resolves for this diffusion, whose "
        f"kernels come closest to it at t = {t}. Ask for a value closer to 0"
    )


def as_time(name: str, value: Any) -> Scalar:
    """A time or log-SNR that was passed to a public method, as an array.

    **Raises:** `TypeError` unless it is a floating-point scalar.
    """
    value = jnp.asarray(value)
    if value.ndim != 0 or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be a scalar floating-point array; got shape {value.shape} "
            f"and dtype {value.dtype}. Batch with `jax.vmap`."
        )
    check_precision(name, value.dtype)
    return value


def check_value(value: Scalar, wrong: Array, message: str, given: Scalar) -> Scalar:
    """Returns `value`, with the check attached if `wrong` is traced.

    **Raises:** `ValueError` if `wrong`, or `equinox.EquinoxRuntimeError` if it is
    traced.
    """
    number = concrete(given)
    try:
        is_wrong = bool(wrong)
    except jax.errors.ConcretizationTypeError:
        return eqx.error_if(value, wrong, message + ".")
    if is_wrong:
        raise ValueError(f"{message}; got {number}.")
    return value
