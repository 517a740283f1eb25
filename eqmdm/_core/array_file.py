"""Arrays in the safetensors format: a header of JSON, then the values.

The format is read and written here, because it is smaller than a dependency would be:
eight bytes with the length of the header; a JSON object with the dtype, the shape and
the place of each array; and the values, in little-endian order without gaps. Nothing in
it can be executed, and a reader that checks the places reads nothing else.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import jax.numpy as jnp
import numpy as np

from .files import write_atomically
from .sharding import on_host


_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The largest header that other readers accept.
_LARGEST_HEADER = 100_000_000
_METADATA, _DIGEST = "__metadata__", "eqmdm.digest"

_Refuse: TypeAlias = Callable[[str], NoReturn]


def write_arrays(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes named arrays and a digest of them, completely or not at all.

    **Raises:** `TypeError` for a dtype that the format lacks; `OSError` if the file
    cannot be written.
    """
    assert sys.byteorder == "little"
    # Large items first, as other writers do, so that each array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {_METADATA: {_DIGEST: arrays_digest(arrays)}}
    end = 0
    for name in names:
        array = arrays[name]
        if array.dtype not in _NAMES:
            raise TypeError(
                f"`model` must have arrays of real numbers; {name} is {array.dtype}. "
                "Convert it, such as a key with `jax.random.key_data`."
            )
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: Any) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).tobytes())

    write_atomically(path, write)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file, which may be of another program.

    **Raises:** `ValueError` if it is damaged, or in another format.
    """

    def refuse(reason: str) -> NoReturn:
        raise ValueError(
            f"`{path.name}` must be a complete safetensors file; {path} is not: "
            f"{reason}. Copy or download it again."
        )

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            refuse("it has no header, or ends within it")
        header = _header(file.read(length), refuse)
        values = file.read()
    metadata = header.pop(_METADATA, None)
    arrays, end = {}, 0
    entries = sorted(header.items(), key=lambda entry: _place(*entry, refuse)[0])
    for name, entry in entries:
        start, stop = _place(name, entry, refuse)
        if start != end:
            refuse(f"{name} overlaps another array, or leaves a gap")
        dtype, shape = _form(name, entry, refuse)
        if stop > len(values) or stop - start != dtype.itemsize * math.prod(shape):
            refuse(f"{name} has another size than its shape, or the file ends early")
        flat = np.frombuffer(values, dtype, math.prod(shape), start)
        arrays[name], end = flat.reshape(shape), stop
    if end != len(values):
        refuse("it has bytes that belong to no array")
    # Files of other programs have no digest.
    if isinstance(metadata, dict) and _DIGEST in metadata:
        if metadata[_DIGEST] != arrays_digest(arrays):
            refuse("its values differ from those that were saved")
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


def _header(text: bytes, refuse: _Refuse) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            refuse("an array is in its header twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
    # Deeply nested brackets raise `RecursionError`.
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        refuse("its header is not JSON")
    if not isinstance(header, dict):
        refuse("its header is not an object")
    return header


def _place(name: str, entry: Any, refuse: _Refuse) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int(start), int(stop)]} if 0 <= start <= stop:
            return start, stop
    refuse(f"its header has no place for {name}")


def _form(name: str, entry: Any, refuse: _Refuse) -> tuple[np.dtype, tuple[int, ...]]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape]} if dtype in _DTYPES:
            if all(type(size) is int and size >= 0 for size in shape):
                return _DTYPES[dtype], tuple(shape)
    refuse(f"its header has no dtype and shape of real numbers for {name}")
