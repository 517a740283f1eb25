"""The text of diffusions, schedules and intervals: the calls that would build them."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from wadler_lindig import AbstractDoc, TextDoc, pformat


def call_text(module: Any, *values: Any, **options: Any) -> AbstractDoc:
    """The document of `Name(value, option=value)`, for a module's `__pdoc__`.

    Equinox uses it to print the module and every module that contains it. Strings are
    taken as they are.
    """
    parts = [_text(value) for value in values]
    parts += [f"{name}={_text(value)}" for name, value in options.items()]
    return TextDoc(f"{type(module).__name__}({', '.join(parts)})")


def is_shown(module: Any) -> bool:
    """Whether all numbers of a module are known, not traced and not mere shapes."""
    unknown = Tracer | jax.ShapeDtypeStruct
    return not any(isinstance(leaf, unknown) for leaf in jax.tree.leaves(module))


def matrix_text(matrix: np.ndarray, digits: int) -> str:
    """A matrix as nested lists, with entries rounded to `digits` digits."""
    # Adding 0.0 removes the sign of a negative zero.
    row_text = lambda row: ", ".join(f"{entry + 0.0:.{digits}g}" for entry in row)
    return f"[{', '.join(f'[{row_text(row)}]' for row in matrix.tolist())}]"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Tracer | jax.ShapeDtypeStruct):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, jax.Array):
        return f"{float(value):.3g}"
    return pformat(value)
