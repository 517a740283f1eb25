"""Diffusions, schedules and intervals as text: the calls that would build them."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from wadler_lindig import AbstractDoc, TextDoc, pformat


def call_text(module: Any, *values: Any, **options: Any) -> AbstractDoc:
    """The document of `Name(value, option=value)`, for a module's `__pdoc__`.

    Equinox prints a module by it, and so it does every module that holds this one.
    Strings are taken for text already.
    """
    parts = [_text(value) for value in values]
    parts += [f"{name}={_text(value)}" for name, value in options.items()]
    return TextDoc(f"{type(module).__name__}({', '.join(parts)})")


def is_shown(module: Any) -> bool:
    """Whether every number of a module is known: none is traced or a mere shape."""
    unknown = Tracer | jax.ShapeDtypeStruct
    return not any(isinstance(leaf, unknown) for leaf in jax.tree.leaves(module))


def matrix_text(matrix: np.ndarray, digits: int) -> str:
    """A matrix as nested lists, its entries rounded to so many digits."""
    # No sign for a zero that a product has made negative.
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
