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
    """Writes a file completely or not at all.

    The content goes to `<name>.partial` in the same directory, which then replaces the
    file in one step. A reader never sees half a file, and a full disk or a killed
    process leaves the previous one intact.

    **Arguments:**

    - `path`: the file; its directory must exist.
    - `content`: bytes, text to be encoded in UTF-8, or a function that writes to an
        open binary file, such as `lambda file: np.savez(file, **arrays)`.

    **Raises:**

    `OSError`, with the name of the file, if it cannot be written.
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
            # A rename may reach the disk before the content, and a power cut would
            # then leave an empty file under the new name.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # The error of a failed write, unlike that of `open`, does not name the file.
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}).") from error
    finally:
        partial.unlink(missing_ok=True)


def to_json(data: Any) -> str:
    """`data` as indented JSON, with null for NaN and infinity.

    JSON does not define these two, and other readers fail on Python's names for them.
    """
    return json.dumps(_finite_or_none(data), indent=1, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes `to_json(data)` with `write_atomically`."""
    write_atomically(path, to_json(data))


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite_or_none(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_none(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
