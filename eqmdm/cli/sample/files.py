"""The file of samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def write(
    path: Path, values: np.ndarray, numbers: np.ndarray, settings: dict[str, Any]
) -> None:
    """Write the samples, their numbers and, as JSON, the settings. The write is atomic,
    so that a reader never sees half of a file."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, samples=values, numbers=numbers, settings=json.dumps(settings)
        )
    partial.replace(path)
