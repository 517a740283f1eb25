"""Files that are written all at once, and the settings of a directory of results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


SETTINGS = "settings.json"


def check_settings(
    directory: Path, settings: Mapping[str, Any], kind: str, *, otherwise: str = ""
) -> None:
    """Keep the settings of what a directory is to hold, or compare them with those of
    what it holds already.

    `otherwise` is what else to try than another directory.

    **Raises:**

    `ValueError`, naming the first setting that differs, or if other files are there.
    """
    given, path = json.loads(json.dumps(settings)), directory / SETTINGS
    if not path.exists():
        # A kill may have left these half-written.
        files = directory.glob("*") if directory.exists() else ()
        if any(file.suffix != ".partial" for file in files):
            raise ValueError(
                f"`output_dir` must be new, empty or hold the {kind} to continue; "
                f"{directory} is none of these. Choose another --output-dir."
            )
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(given, indent=1) + "\n")
    stored = json.loads(path.read_text())
    for name in given | stored:
        old, new = stored.get(name), given.get(name)
        if old != new:
            hint = f", {otherwise}" if otherwise else ""
            raise ValueError(
                f"`{name}` must be {old}, as for the {kind} in {directory}; got {new}. "
                f"Choose another --output-dir{hint}."
            )


def write_text(path: Path, text: str) -> None:
    """Write a file all at once, so that a reader never sees half of one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
