"""The tracker that records to Weights & Biases."""

# The package is optional, and may be missing where types are checked.
# pyright: reportMissingImports=false

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from .extras import naming_extra
from .ledger import Ledger


@final
class WandBTracker:
    """A tracker that records to Weights & Biases, by default without a network: upload
    a run with `wandb sync DIRECTORY/wandb/offline-run-*`.

    It needs the extra `wandb`. Close it with a `with` statement, so that its last
    values are written.
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
        self._pending: tuple[int, list[str]] = -1, []

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
            self._note()
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
        # A step is written when the next one begins, so only then is it noted.
        last, names = self._pending
        if step != last:
            self._note()
            names = []
        run.log(values, step=step)
        self._pending = step, [*names, *values]

    def _note(self) -> None:
        step, names = self._pending
        if names:
            _, ledger = self._open
            ledger.add(step, names)
