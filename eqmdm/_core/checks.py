"""What public functions check of counts and arrays where they enter."""

import operator
import weakref
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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
    """The shape of one example, refused unless every size is an integer of at least 1.

    **Raises:** `ValueError`.
    """
    shape = tuple(shape)
    if not all(isinstance(size, int | np.integer) and size >= 1 for size in shape):
        raise ValueError(
            "`shape` must be the sizes of one example of data, integers of at least "
            f"1; got {shape}."
        )
    return shape


def check_precision(name: str, dtype: DTypeLike) -> np.dtype:
    """The dtype, refused unless kernels, bounds and solvers keep their digits in it.

    In 16 bits a kernel has two or three, its roots underflow near the data, and a
    "bound" was found 4 nats above the likelihood.

    **Raises:** `TypeError` unless it is float32 or float64.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"`{name}` must be float32 or float64, for kernels and solvers lose their "
            f"digits in less; got {dtype}. A network may compute in less: see the "
            "`compute_dtype` of `eqmdm.nn.UNet`."
        )
    return dtype


def concrete(value: float | Array | np.ndarray) -> float | None:
    """The value of a number as a Python float, or `None` under a JAX transform."""
    try:
        return float(value)
    except TypeError:  # JAX's ConcretizationTypeError: the value is being traced.
        return None


def as_number(value: float | Array | np.ndarray | np.generic) -> float | Array:
    """A JAX array, which is a parameter, as it is; any other number as a float.

    Equinox would count a NumPy scalar as something to train.
    """
    return value if isinstance(value, jax.Array) else float(value)


# What `check_finite` has found in order, by identity, as long as it lives.
_finite: weakref.WeakValueDictionary[int, jax.Array] = weakref.WeakValueDictionary()


def check_finite(name: str, array: jax.Array | np.ndarray) -> None:
    """Refuses floats that are NaN or infinite, where they are known.

    A JAX array, which cannot change, is looked at only once; traced ones give NaN.
    """
    if isinstance(array, Tracer) or not jnp.issubdtype(array.dtype, jnp.floating):
        return
    if _finite.get(id(array)) is array:
        return
    library = jnp if isinstance(array, jax.Array) else np
    # What a traced function closes over is known, and looked at while it is traced.
    with jax.ensure_compile_time_eval():
        is_finite = bool(library.isfinite(array).all())
    if not is_finite:
        raise ValueError(
            f"`{name}` must be finite; some of its values are NaN or infinite. Look "
            "for them where the data are read or transformed."
        )
    if isinstance(array, jax.Array):
        _finite[id(array)] = array
