"""The table of a solver study on disk, saved after every row."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import SETTINGS, check_settings, write_text


TABLE, PICTURE = "study.csv", "study"
# In the order of the rows and panels of the picture.
FIGURES = ("sliced_wasserstein", "squared_mmd", "frechet", "reference_rms")
_KEY = ("diffusion", "solver", "allowed")
COLUMNS = (*_KEY, "steps", "evaluations", "seconds")
COLUMNS += tuple(f"{name}{end}" for name in FIGURES for end in ("", "_error"))
COLUMNS += ("failure",)
# The key of the row of real data, which has no solver.
REAL_DATA = ("", "real data", 0)

Key = tuple[str, str, int]
Row = dict[str, Any]


class SolverTable:
    """A directory with a study's settings, and one line of study.csv per row.

    Each line is written as soon as it is known, and a line that a kill cut off is
    dropped. All rows were computed with the recorded settings.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]):
        """**Raises:**

        `ValueError` naming the first setting that differs from those of an existing
        study, or if the directory holds other files.
        """
        self.directory = directory
        self._path = directory / TABLE
        check_settings(directory, settings, "study")
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1] or _line(COLUMNS)
        if whole != text:
            write_text(self._path, whole)
        self.rows = _rows(whole)

    def add(self, key: Key, row: Row) -> None:
        row = dict.fromkeys(COLUMNS) | dict(zip(_KEY, key, strict=True)) | row
        with self._path.open("a") as file:
            file.write(_line(["" if row[n] is None else row[n] for n in COLUMNS]))
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = row


def read_study(directory: Path) -> tuple[dict[Key, Row], dict[str, Any]]:
    """The rows and the settings of a study.

    **Raises:** `ValueError` if the directory holds none.
    """
    for name in (TABLE, SETTINGS):
        if not (directory / name).is_file():
            raise ValueError(
                "`output_dir` must hold the study to redraw; "
                f"{directory} has no {name}."
            )
    settings = json.loads((directory / SETTINGS).read_text())
    return _rows((directory / TABLE).read_text()), settings


def _rows(text: str) -> dict[Key, Row]:
    rows: dict[Key, Row] = {}
    for row in csv.DictReader(io.StringIO(text)):
        row = {name: _value(name, text) for name, text in row.items()}
        rows[row["diffusion"], row["solver"], row["allowed"]] = row
    return rows


def _line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _value(name: str, text: str) -> Any:
    if name in ("diffusion", "solver"):
        return text
    if not text:
        return None
    if name == "failure":
        return text
    return int(text) if name in ("allowed", "steps", "evaluations") else float(text)
