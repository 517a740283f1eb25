"""Atomic writing of files."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(
    path: str | os.PathLike, content: bytes | str | Callable[[BinaryIO], object]
) -> None:
    """Writes a whole file or nothing.

    The content goes to `<name>.partial` beside the file, which then replaces it in one
    step: a reader never sees half of a file, and a full disk or a killed process leaves
    the previous one intact.

    **Arguments:**

    - `path`: the file; its directory must exist.
    - `content`: the bytes, text to be encoded in UTF-8, or a function that writes to
        the open binary file that it is passed, such as
        `lambda file: np.savez(file, **arrays)`.

    **Raises:**

    `OSError`, which names the file, if it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    if isinstance(content, str):
        content = content.encode()
    try:
        with partial.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            # A rename may reach the disk before the content does: after a power cut
            # the new name would stand for an empty file.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # A failed write, unlike a failed opening, does not name its file.
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}).") from error
    finally:
        partial.unlink(missing_ok=True)


def to_json(data: Any) -> str:
    """`data` as indented JSON, with null for NaN and infinity.

    JSON has no word for these two, and Python's for them stop other readers.
    """
    return json.dumps(_finite_or_none(data), indent=1, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes `to_json(data)` as `write_atomically` does."""
    write_atomically(path, to_json(data))


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite_or_none(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_none(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
