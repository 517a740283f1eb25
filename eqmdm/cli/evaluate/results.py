"""The results of an evaluation on disk, saved after every batch."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import SETTINGS, check_settings, plain, write_text
from ..outputs import PICTURE_FORMATS, TABLE_FORMATS


TABLE, REPORT, TEXT = "examples.parquet", "report.json", "report.txt"
HISTOGRAM, TERMS, BY_LABEL = "histogram", "terms", "by_label"
_PARTS = "parts.jsonl"
# Everything that is derived from the table and the report, in all formats.
_SHOWN = (TEXT, *(f"{HISTOGRAM}.{name}" for name in PICTURE_FORMATS))
_SHOWN += tuple(n + end for n in (TERMS, BY_LABEL) for end in TABLE_FORMATS.values())


class EvaluationResults:
    """A results directory: its settings, and a row of numbers for each example.

    Each finished batch is appended at once as a line of parts.jsonl. When all batches
    are there, they become a table in the order of the examples, and parts.jsonl is
    removed last, so a process killed at any moment can be continued by the next.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, anew: bool):
        """**Arguments:**

        - `directory`: made if it does not exist.
        - `settings`: what the results depend on.
        - `anew`: whether to delete existing results.

        **Raises:**

        `ValueError` naming the first setting that differs from those of existing
        results, or if the directory holds other files.
        """
        self.directory = directory
        if anew and (directory / SETTINGS).exists():
            # The settings go last, so that new settings never meet old results.
            for name in (REPORT, TABLE, *_SHOWN, _PARTS, SETTINGS):
                (directory / name).unlink(missing_ok=True)
        check_settings(
            directory,
            settings,
            "evaluation",
            otherwise="or start again with --overwrite",
        )
        self.rows: dict[int, dict[str, Any]] = {}
        self._times: list[tuple[int, float, bool]] = []
        if self.is_complete:
            (directory / _PARTS).unlink(missing_ok=True)
        else:
            self._read_parts()

    @property
    def is_complete(self) -> bool:
        """Whether the report exists, which is the last file to be written."""
        return (self.directory / REPORT).exists()

    def add(self, rows: list[dict[str, Any]], seconds: float, compiled: bool) -> None:
        """Save the rows of a batch, all of them or none.

        **Arguments:**

        - `seconds`, `compiled`: the time they took, and whether most of it was
            compilation.
        """
        part = {"rows": rows, "seconds": seconds, "compiled": compiled}
        with (self.directory / _PARTS).open("a") as file:
            file.write(json.dumps(part) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(part)

    @property
    def timing(self) -> tuple[float, bool]:
        """Seconds per example, and whether these include compilation, which they do
        only if no batch ran without it."""
        without = [time for time in self._times if not time[2]]
        counts, seconds, _ = zip(*(without or self._times), strict=True)
        return sum(seconds) / sum(counts), not without

    def mean(self, name: str) -> float:
        """The mean of a column over the finished examples with a finite value."""
        values = np.array([row[name] for row in self.rows.values()])
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else math.nan

    def write_table(self) -> dict[str, np.ndarray]:
        """Write the table, and return its columns."""
        rows = [self.rows[number] for number in sorted(self.rows)]
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        partial = self.directory / (TABLE + ".partial")
        pq.write_table(pa.table(columns), partial)
        partial.replace(self.directory / TABLE)
        return columns

    def read_table(self) -> dict[str, np.ndarray]:
        """The columns of the table of a complete evaluation."""
        table = pq.read_table(self.directory / TABLE)
        return {name: table[name].to_numpy() for name in table.column_names}

    def read_report(self) -> dict[str, Any]:
        """The report of a complete evaluation, with null for non-finite numbers."""
        return json.loads((self.directory / REPORT).read_text())

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report, and remove the parts."""
        write_text(self.directory / REPORT, json.dumps(plain(report), indent=1) + "\n")
        (self.directory / _PARTS).unlink(missing_ok=True)

    def _read_parts(self) -> None:
        path = self.directory / _PARTS
        if not path.exists():
            return
        text = path.read_text()
        # Drop a line that a kill cut off: the next one would be appended to it.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(path, whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, part: dict[str, Any]) -> None:
        for row in part["rows"]:
            self.rows.setdefault(row["example"], row)
        self._times.append((len(part["rows"]), part["seconds"], part["compiled"]))
