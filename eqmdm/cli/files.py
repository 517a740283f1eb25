"""Result files: atomic writes, recorded settings and names of quantities."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


SETTINGS = "settings.json"
# The names in files, and the units in text, of a negative log-likelihood or bound.
LOSS_UNITS = {"bits_per_dim": "bits/dim", "nats": "nats"}


def check_settings(
    directory: Path, settings: Mapping[str, Any], kind: str, *, otherwise: str = ""
) -> None:
    """Record the settings of a results directory, or compare them with those already
    recorded there.

    `otherwise` is what the error suggests besides another directory.

    **Raises:**

    `ValueError` naming the first setting that differs, or if there are other files.
    """
    given, path = json.loads(json.dumps(settings)), directory / SETTINGS
    if not path.exists():
        # A killed process may have left these half-written.
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
    """Write a file atomically, so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def plain(value: Any) -> Any:
    """A value for JSON, with null for numbers that are not finite, which JSON lacks."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(value: float | None) -> float:
    """The inverse of `plain` for a number: NaN for null."""
    return math.nan if value is None else value


def error_as_text(error: float, n_examples: int) -> str:
    """The text of a standard error over examples; a single example has none."""
    if math.isnan(error):
        return f"not known for {'one' if n_examples == 1 else 'no'} example"
    return f"{error:.4f}"


def loss_name(columns: Iterable[str]) -> str:
    """The column that holds the negative log-likelihood: `nats` for points."""
    return "bits_per_dim" if "bits_per_dim" in columns else "nats"
