"""Files of named arrays in the safetensors format, in which nothing can be executed."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from .files import write_atomically
from .sharding import on_host


# The kinds of dtypes that the format stores.
_KINDS = jnp.floating, jnp.integer, jnp.bool_
_DIGEST = "eqmdm.digest"


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays and a digest of them, completely or not at all.

    **Raises:** `TypeError` for a dtype that the format lacks; `OSError` if the file
    cannot be written.
    """
    for name, array in arrays.items():
        if not any(jnp.issubdtype(array.dtype, kind) for kind in _KINDS):
            raise TypeError(
                f"`model` must have arrays of real numbers; {name} is {array.dtype}. "
                "Convert it, such as a key with `jax.random.key_data`."
            )
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # `ascontiguousarray` gives numbers an axis.
    contiguous = {k: v.reshape(arrays[k].shape) for k, v in contiguous.items()}
    metadata = {_DIGEST: arrays_digest(arrays)}
    content = safetensors.numpy.save(contiguous, metadata)
    write_atomically(path, lambda file: file.write(content))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file, which may be of another program.

    **Raises:** `ValueError` if it is damaged, or in another format.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    # The package raises `TypeError` and `KeyError` for dtypes that NumPy lacks.
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise _damaged(path, str(error)) from error
    # Files of other programs have no digest.
    if _DIGEST in metadata and metadata[_DIGEST] != arrays_digest(arrays):
        raise _damaged(path, "its values differ from those that were saved")
    return arrays


def arrays_digest(arrays: Mapping[str, Any]) -> str:
    """A digest of the names, dtypes, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        # One array at a time, because all sharded arrays gathered together may exceed
        # the memory of a host.
        array = on_host(array)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"`{path.name}` must be a complete safetensors file of numbers; {path} is not: "
        f"{reason}. Copy or download it again."
    )
