"""The tracker that records to Weights & Biases."""

# The package is optional, and may be missing where types are checked.
# pyright: reportMissingImports=false

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from .extras import naming_extra
from .ledger import Ledger


# Seconds after which a value is taken to be in the file of W&B.
_WRITTEN_AFTER = 5.0


@final
class WandBTracker:
    """A tracker that records to Weights & Biases, by default without a network: upload
    a run with `wandb sync DIRECTORY/wandb/offline-run-*`.

    It needs the extra `wandb`. Close it with a `with` statement, so that its last
    values are written. W&B writes values a moment later: a process that is killed loses
    those of its last second or so, and those of its last few seconds may be recorded
    twice when the run is resumed.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        project: str = "eqmdm",
        name: str | None = None,
        mode: str | None = None,
    ):
        """**Arguments:**

        - `directory`: the directory of the files, one for each run. A tracker in the
            directory of an earlier one continues its run, under the same id, and leaves
            out steps that are already recorded.
        - `project`, `name`: the project, and the name of the run.
        - `mode`: the mode of `wandb.init`; by default the environment variable
            `WANDB_MODE`, or else `"offline"`.

        **Raises:** `ModuleNotFoundError` without `wandb`.
        """
        with naming_extra("wandb"):
            import wandb
        self._package = wandb
        self._directory, self._project, self._name = Path(directory), project, name
        self._mode = mode or os.environ.get("WANDB_MODE", "offline")
        self._open: Any = None
        # The time, the step and the names of what may not be in the file yet.
        self._pending: list[tuple[float, int, list[str]]] = []

    def config(self, values: Mapping[str, Any]) -> None:
        run, _ = self._opened
        run.config.update(dict(values), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self._log(step, {k: self._package.Image(v) for k, v in values.items()})

    def __enter__(self) -> "WandBTracker":
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            run, _ = self._open
            run.finish()
            self._note(math.inf)
            self._open = None

    @property
    def _opened(self) -> Any:
        if self._open is None:
            ledger = Ledger(self._directory)
            run = self._package.init(
                project=self._project,
                name=self._name,
                id=ledger.run,
                resume=None if self._mode == "offline" else "allow",
                reinit="create_new",
                dir=str(self._directory),
                mode=self._mode,
                settings=self._package.Settings(console="off", silent=True),
            )
            self._open = run, ledger
        return self._open

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        run, ledger = self._opened
        values = ledger.missing(step, values)
        if not values:
            return
        now = time.monotonic()
        self._note(now - _WRITTEN_AFTER)
        run.log(values, step=step)
        self._pending.append((now, step, list(values)))

    def _note(self, before: float) -> None:
        """Note what was logged before a time, and so is in the file."""
        _, ledger = self._open
        while self._pending and self._pending[0][0] <= before:
            _, step, names = self._pending.pop(0)
            ledger.add(step, names)
