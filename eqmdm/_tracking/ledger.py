"""The record of what a tracker has recorded, so that a resumed run repeats nothing."""

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, final

from .._core.files import write_json


T = TypeVar("T")


@final
class Ledger:
    """The file `tracked.json` of a tracker's directory: the name of the run in the
    tracker, and the last step that is recorded of each quantity.

    A run that is resumed after a kill repeats the steps since its last checkpoint. Most
    trackers cannot delete values, so those that are recorded already are left out.
    """

    def __init__(self, directory: Path):
        self._path = directory / "tracked.json"
        self.is_new = not self._path.exists()
        record = {} if self.is_new else self._read()
        self.run: str = record.get("run") or uuid.uuid4().hex[:8]
        self._last: dict[str, int] = record.get("last", {})
        if self.is_new:
            directory.mkdir(parents=True, exist_ok=True)
            self._write()

    def missing(self, step: int, values: Mapping[str, T]) -> dict[str, T]:
        """The values that are not recorded for this step."""
        return {k: v for k, v in values.items() if step > self._last.get(k, -1)}

    def replace(self, last: Mapping[str, int]) -> None:
        """Corrects the record by what the tracker itself has: a last step by name."""
        self._last = dict(last)
        self._write()

    def add(self, step: int, names: Iterable[str]) -> None:
        """Notes that the tracker has recorded these quantities up to a step."""
        self._last |= dict.fromkeys(names, step)
        self._write()

    def _read(self) -> dict:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            steps = record["last"].values()
            if isinstance(record["run"], str) and all(type(s) is int for s in steps):
                return record
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise ValueError(
            f"`directory` must hold the record of a tracker; {self._path} is damaged. "
            "Choose another directory, or remove it."
        )

    def _write(self) -> None:
        write_json(self._path, {"run": self.run, "last": self._last})
