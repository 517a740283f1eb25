"""The tracker that writes JSON lines and PNG files."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from .._core.files import write_json
from .ledger import Ledger


@final
class JSONLinesTracker:
    """A tracker that needs no other package: `metrics.jsonl` has one line for each
    call, with its step, `config.json` the options, and pictures are PNG files."""

    def __init__(self, directory: str | os.PathLike):
        """**Arguments:**

        - `directory`: the directory of the files, one for each run. A tracker in the
            directory of an earlier one continues it, and leaves out steps that are
            already recorded.
        """
        self._directory = Path(directory)
        self._open: Ledger | None = None

    def config(self, values: Mapping[str, Any]) -> None:
        _ = self._ledger
        write_json(self._directory / "config.json", values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        values = self._ledger.missing(step, values)
        if values:
            with (self._directory / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            self._ledger.add(step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for name, picture in self._ledger.missing(step, values).items():
            name = re.sub(r"[^\w-]+", "-", name)
            path = self._directory / f"{name}-{step:08}.png"
            path.write_bytes(png(picture))
        self._ledger.add(step, values)

    @property
    def _ledger(self) -> Ledger:
        if self._open is None:
            self._open = Ledger(self._directory)
        return self._open


def png(picture: np.ndarray) -> bytes:
    """The PNG file of a uint8 array of shape (height, width, 3)."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return file.getvalue()
