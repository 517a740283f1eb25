"""The tracker that records to Trackio."""

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
class TrackioTracker:
    """A tracker that records to the local database of Trackio, for `trackio show`.

    It needs the extra `trackio`. The database is where Trackio keeps all projects:
    `TRACKIO_DIR`, or else the cache of the Hugging Face Hub. Close it with a `with`
    statement, so that its last values are written. A process can have one at a time.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        project: str = "eqmdm",
        name: str | None = None,
    ):
        """**Arguments:**

        - `directory`: the directory of the record, one for each run. A tracker in the
            directory of an earlier one continues its run, and leaves out steps that are
            already recorded.
        - `project`, `name`: the project, and what the name of the run starts with.

        **Raises:** `ModuleNotFoundError` without `trackio`.
        """
        with naming_extra("trackio"):
            import trackio
            from trackio.sqlite_storage import SQLiteStorage
        self._package, self._storage = trackio, SQLiteStorage
        self._directory, self._project, self._name = Path(directory), project, name
        self._open: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        # Trackio takes the options when it starts a run.
        if self._open is None:
            self._start(values)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self._log(step, {k: self._package.Image(v) for k, v in values.items()})

    def __enter__(self) -> "TrackioTracker":
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            run, _ = self._open
            run.finish()
            self._open = None

    def _start(self, values: Mapping[str, Any]) -> Any:
        ledger = Ledger(self._directory)
        # Names of runs need not differ, so the record has its own part of the name.
        name = f"{self._name}-{ledger.run}" if self._name else ledger.run
        run = self._package.init(
            self._project,
            name,
            config=dict(values),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        if not ledger.is_new:
            # A killed process may have lost the last values that it noted.
            ledger.replace(self._last_steps(name))
        self._open = run, ledger
        return self._open

    def _last_steps(self, name: str) -> dict[str, int]:
        """The last step of each quantity in the database."""
        last: dict[str, int] = {}
        for row in self._storage.get_logs(self._project, name):
            names = row.keys() - {"step", "timestamp"}
            last |= {n: max(row["step"], last.get(n, -1)) for n in names}
        return last

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        run, ledger = self._open or self._start({})
        values = ledger.missing(step, values)
        if values:
            run.log(values, step=step)
            ledger.add(step, values)
