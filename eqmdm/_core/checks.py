"""Validation of the counts and arrays that public functions are given."""

import contextlib
import operator
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_context
from jax.typing import DTypeLike
from jaxtyping import Array


def check_count(name: str, value: Any, *, least: int = 1, hint: str = "") -> None:
    """**Raises:** `TypeError` unless `value` is an integer, `ValueError` unless it is
    at least `least`."""
    try:
        operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer; got {value!r}.{hint}") from None
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}.{hint}")


def check_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape of one example, as a tuple.

    **Raises:**

    `TypeError` unless `shape` is a sequence; `ValueError` unless every size is an
    integer of at least 1.
    """
    if not isinstance(shape, Iterable):
        raise TypeError(
            "`shape` must be the sizes of one example of data, such as (28, 28, 1); "
            f"got {shape!r}. For vectors it is ({shape!r},)."
        )
    shape = tuple(shape)
    if not all(isinstance(size, int | np.integer) and size >= 1 for size in shape):
        raise ValueError(
            "`shape` must be the sizes of one example of data, integers of at least "
            f"1; got {shape}."
        )
    return shape


def check_precision(name: str, dtype: DTypeLike) -> np.dtype:
    """`dtype` as a NumPy dtype.

    A 16-bit kernel has two or three digits, and its roots underflow near the data:
    bounds computed with it can be 4 nats above the likelihood.

    **Raises:** `TypeError` unless it is float32 or float64.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"`{name}` must be float32 or float64, because kernels and solvers are "
            f"inaccurate in lower precision; got {dtype}. A network may compute in "
            "lower precision: see `compute_dtype` of `eqmdm.nn.UNet`."
        )
    return dtype


def concrete(value: float | Array | np.ndarray) -> float | None:
    """The value of a number as a Python float, or `None` under a JAX transform."""
    try:
        return float(value)
    except TypeError:  # JAX's ConcretizationTypeError: the value is traced.
        return None


def is_known(*trees: Any) -> bool:
    """Whether no array in `trees` is traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def is_deleted(*trees: Any) -> bool:
    """Whether the buffer of any array in `trees` was deleted, for example by a call
    that it was donated to."""
    leaves = (leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array))
    return any(leaf.is_deleted() for leaf in leaves if not isinstance(leaf, Tracer))


def now_if_known(*trees: Any) -> contextlib.AbstractContextManager[None]:
    """A context that evaluates computations on `trees` eagerly, even inside a trace, if
    the trees are known.

    Checks then run while a program is traced. At run time a check is a callback to the
    host, and JAX's persistent cache does not store programs with callbacks.
    """
    if not is_known(*trees):
        return contextlib.nullcontext()
    return eval_context()


def raise_or_error_if(value: Array, wrong: Any, message: str) -> Array:
    """Returns `value` unless `wrong`.

    Use the returned value: if `wrong` is traced, it carries the check.

    **Raises:** `ValueError` if `wrong` is known to be true;
    `equinox.EquinoxRuntimeError` at run time if it is traced.
    """
    try:
        is_wrong = bool(wrong)
    except jax.errors.ConcretizationTypeError:
        return eqx.error_if(value, wrong, message)
    if is_wrong:
        raise ValueError(message)
    return value


def as_number(value: int | float | Array | np.ndarray | np.generic) -> float | Array:
    """A traced number unchanged, or any other number, a constant, as a float.

    Equinox would treat an array, including NumPy's, as trainable.
    """
    return value if isinstance(value, Tracer) else float(value)


def constant(values: np.ndarray) -> Array:
    """Known values on the device, which stay known inside a trace."""
    with eval_context():
        # `jnp.asarray` would compile a program for every shape.
        return jax.device_put(values)


def as_scalar(value: float | Array, dtype: DTypeLike) -> Array:
    """A number as a JAX array, without compiling anything if it is known."""
    if isinstance(value, jax.Array):
        return jnp.asarray(value, dtype)
    return constant(np.asarray(value, dtype))


def namespace(*values: Any) -> ModuleType:
    """`jax.numpy` if any of the values is a JAX array, and `numpy` otherwise.

    Formulas written with it work for traced numbers, and for known constants on the
    host, where they compile nothing.
    """
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def as_array(name: str, value: Any) -> jax.Array | np.ndarray:
    """`value` as an array of real numbers in this machine's byte order.

    JAX arrays, including traced ones, and NumPy arrays in native byte order are
    returned unchanged. Lists of numbers, data frames and anything else with `__array__`
    become NumPy arrays. Foreign byte order, as in FITS files, is converted, because XLA
    would misread the bytes.

    **Raises:** `TypeError`, with the name of the argument, for anything else.
    """
    array = value if isinstance(value, jax.Array) else _converted(name, value)
    if not _is_real(array.dtype):
        # The dtype of JAX's random keys has no kind.
        remedy = _REMEDIES.get(getattr(array.dtype, "kind", ""), _REMEDY)
        raise TypeError(
            f"`{name}` must be an array of real numbers; got type "
            f"{type(value).__name__} of dtype {array.dtype}. {remedy}"
        )
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def as_examples(name: str, value: Any) -> jax.Array | np.ndarray:
    """`value` as an array of examples along its first axis, converted by `as_array`.

    **Raises:** `TypeError` as for `as_array`; `ValueError` if there is no example.
    """
    examples = as_array(name, value)
    if examples.ndim == 0 or len(examples) == 0:
        raise ValueError(
            f"`{name}` must hold one example or more along its first axis; got shape "
            f"{examples.shape}."
        )
    return examples


def check_finite(name: str, array: jax.Array | np.ndarray) -> None:
    """**Raises:** `ValueError` if known floats are NaN, or infinite in JAX's dtype.

    Traced arrays are not checked: their NaN shows in the result. The whole array is
    read, so call this once when data are passed in, and not in every step.
    """
    if isinstance(array, Tracer) or not jnp.issubdtype(array.dtype, jnp.floating):
        return
    if isinstance(array, np.ndarray) or _in_host_memory(array):
        is_finite = _fits(np.asarray(array))
    else:
        # A traced function may close over the array, which is still known.
        with jax.ensure_compile_time_eval():
            is_finite = bool(_all_finite(array))
    if not is_finite:
        raise ValueError(
            f"`{name}` must be finite; some of its values are NaN, infinite or too "
            "large for the dtype. Look for them where the data are read or transformed."
        )


def check_points(name: str, array: jax.Array | np.ndarray, levels: str) -> None:
    """**Raises:** `TypeError` unless the dtype is a floating-point one. `levels` is the
    name of the argument that declares grey levels."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be floating-point data if there are no `{levels}`; got "
            f"{array.dtype}. Integers have no density: give `{levels}` to dequantise "
            "them."
        )


def check_integers(name: str, array: jax.Array | np.ndarray, n_levels: int) -> None:
    """**Raises:** `TypeError` unless the dtype is an integer one."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"`{name}` must be integers, from 0 to {n_levels - 1}; got {array.dtype}. "
            "Continuous data need no encoding."
        )


def check_levels(
    name: str, array: jax.Array | np.ndarray, n_levels: int
) -> jax.Array | np.ndarray:
    """Returns `array` if its integers are from 0 to `n_levels - 1`.

    The whole array is read, unless its dtype has no other integers. For a traced array
    the check is part of the program, and only runs if the result is used.

    **Raises:** `TypeError` unless the dtype is an integer one; `ValueError`, or
    `equinox.EquinoxRuntimeError` for a traced array, if any integer is out of range.
    """
    check_integers(name, array, n_levels)
    limits = jnp.iinfo(array.dtype)
    if (limits.min >= 0 and limits.max < n_levels) or array.size == 0:
        return array
    must = f"`{name}` must be from 0 to {n_levels - 1}"
    advice = "Is `n_levels` right for these data?"
    if isinstance(array, Tracer):
        # A comparison with 256 would overflow uint8.
        wide = array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)
        wrong = jnp.any((wide < 0) | (wide >= n_levels))
        return eqx.error_if(array, wrong, f"{must}. {advice}")
    if isinstance(array, np.ndarray) or _in_host_memory(array):
        values = np.asarray(array)
        low, high = int(values.min()), int(values.max())
    else:
        with jax.ensure_compile_time_eval():
            low, high = (int(value) for value in _extremes(array))
    if low < 0 or high >= n_levels:
        raise ValueError(f"{must}; got {low} to {high}. {advice}")
    return array


_REMEDY = "Pass an array of floats, or of integers for grey levels."
_REMEDIES = {
    "c": "Pass the real and imaginary parts as separate coordinates.",
    "O": "Give its entries one numeric type, for instance by `to_numpy(float)` on the "
    "numeric columns of a data frame.",
}


def _converted(name: str, value: Any) -> jax.Array | np.ndarray:
    if np.ma.is_masked(value):
        raise TypeError(
            f"`{name}` must be an array of real numbers without masked values; got one "
            "with some. Fill them in, or leave out the examples that have any."
        )
    # The scalars in a list may be traced.
    entries = jax.tree.leaves(value) if isinstance(value, list | tuple) else []
    library = jnp if any(isinstance(entry, jax.Array) for entry in entries) else np
    try:
        return library.asarray(value)
    # NumPy raises for nested lists of different lengths, and so may the `__array__` of
    # other classes.
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be an array of real numbers; got type "
            f"{type(value).__name__}, which cannot be converted ({error}). {_REMEDY}"
        ) from error


def _is_real(dtype: Any) -> bool:
    # JAX's own test, which knows bfloat16 and similar dtypes.
    kinds = jnp.floating, jnp.integer, jnp.bool_
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _fits(array: np.ndarray) -> bool:
    # With NumPy, which compiles nothing, and with reductions, which allocate no array
    # of the same size. Both reductions propagate NaN, which compares as false. By
    # default JAX converts float64 to float32.
    largest = float(jnp.finfo(jax.dtypes.canonicalize_dtype(array.dtype)).max)
    with np.errstate(invalid="ignore"):
        return array.size == 0 or bool(
            -largest <= float(array.min()) and float(array.max()) <= largest
        )


def _in_host_memory(array: jax.Array) -> bool:
    # If so, NumPy reads it without a copy.
    [*devices] = array.devices()
    return len(devices) == 1 and devices[0].platform == "cpu"


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.isfinite(array).all()


@jax.jit
def _extremes(array: Array) -> tuple[Array, Array]:
    return array.min(), array.max()
