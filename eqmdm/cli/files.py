"""Files of results: written all at once, with their settings and names."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


SETTINGS = "settings.json"
# The names in files, and the units in text, of minus a log-likelihood or its bound.
LOSS_UNITS = {"bits_per_dim": "bits/dim", "nats": "nats"}


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


def plain(value: Any) -> Any:
    """With null for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(value: float | None) -> float:
    """A number that `plain` has made of another: NaN for null."""
    return math.nan if value is None else value


def error_as_text(error: float, n_examples: int) -> str:
    """A standard error over examples in a table; one example has none."""
    if math.isnan(error):
        return f"not known for {'one' if n_examples == 1 else 'no'} example"
    return f"{error:.4f}"


def loss_name(columns: Iterable[str]) -> str:
    """The name of the negative log-likelihood among others: `nats` for points."""
    return "bits_per_dim" if "bits_per_dim" in columns else "nats"
