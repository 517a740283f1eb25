"""Snapshots of the averages of a run, one file for each checkpoint."""

import re
from pathlib import Path

import jax
import numpy as np

from .._core.array_file import read_arrays, write_arrays
from .._core.sharding import on_host
from .checkpoint import named_arrays
from .profiles import PowerAverages


_DIRECTORY = "averages"


def write_snapshot(run_dir: Path, step: int, profiles: PowerAverages) -> None:
    """Writes the averages after a step; every process must call this.

    A run that is resumed from an earlier checkpoint writes the same file again.

    **Raises:** `OSError` if it cannot be written.
    """
    arrays = named_arrays(profiles.averages)
    arrays = {name: np.asarray(on_host(array)) for name, array in arrays.items()}
    if jax.process_index() == 0:
        path = _path(run_dir, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays)


def read_snapshot(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """The averages after a step by the key paths of the parameters; the first axis
    numbers the lengths.

    **Raises:** `ValueError` if the file is damaged.
    """
    return read_arrays(_path(run_dir, step))


def snapshot_steps(run_dir: Path) -> list[int]:
    """The steps of the snapshots, oldest first."""
    directory = run_dir / _DIRECTORY
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    found = [re.fullmatch(r"(\d+)\.safetensors", name) for name in names]
    return sorted(int(match[1]) for match in found if match is not None)


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / _DIRECTORY / f"{step}.safetensors"
