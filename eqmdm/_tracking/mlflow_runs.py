"""The tracker that records to MLflow."""

# The package is optional, and may be missing where types are checked.
# pyright: reportMissingImports=false

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from .extras import naming_extra
from .ledger import Ledger


# The longest value of a parameter in MLflow.
_LONGEST = 6000


@final
class MLflowTracker:
    """A tracker that records to MLflow, by default to a database in the directory:
    `mlflow ui --backend-store-uri sqlite:///DIRECTORY/mlflow.db`.

    It needs the extra `mlflow`. Close it with a `with` statement, which marks the run
    as finished.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        project: str = "eqmdm",
        name: str | None = None,
        tracking_uri: str | None = None,
    ):
        """**Arguments:**

        - `directory`: the directory of the record, one for each run. A tracker in the
            directory of an earlier one continues its run, and leaves out steps that are
            already recorded.
        - `project`, `name`: the experiment, and the name of the run.
        - `tracking_uri`: a server or a database; by default the environment variable
            `MLFLOW_TRACKING_URI`, or else the database in the directory.

        **Raises:** `ModuleNotFoundError` without `mlflow`.
        """
        with naming_extra("mlflow"):
            import mlflow
            import mlflow.entities
        self._package = mlflow
        self._directory, self._project, self._name = Path(directory), project, name
        self._uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._open: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        client, run, _ = self._opened
        # MLflow refuses another value for a parameter, such as more steps.
        known = client.get_run(run).data.params
        make = self._package.entities.Param
        params = [
            make(key, value[:_LONGEST])
            for key, value in _flat("", values)
            if key not in known
        ]
        for start in range(0, len(params), 100):
            client.log_batch(run, params=params[start : start + 100])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        client, run, ledger = self._opened
        values = ledger.missing(step, values)
        now, make = int(1000 * time.time()), self._package.entities.Metric
        client.log_batch(run, [make(k, v, now, step) for k, v in values.items()])
        ledger.add(step, values)

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        client, run, ledger = self._opened
        values = ledger.missing(step, values)
        for name, picture in values.items():
            client.log_image(run, picture, key=name, step=step, synchronous=True)
        ledger.add(step, values)

    def __enter__(self) -> "MLflowTracker":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._open is not None:
            client, run, _ = self._open
            client.set_terminated(run, "FINISHED" if kind is None else "FAILED")
            self._open = None

    @property
    def _opened(self) -> Any:
        if self._open is None:
            ledger = Ledger(self._directory)
            place = self._directory.absolute()
            uri = self._uri or f"sqlite:///{place / 'mlflow.db'}"
            client = self._package.MlflowClient(tracking_uri=uri)
            self._open = client, self._run(client, ledger, place), ledger
        return self._open

    def _run(self, client: Any, ledger: Ledger, place: Path) -> str:
        """The id of the run, which has the name of the ledger as a tag."""
        experiment = client.get_experiment_by_name(self._project)
        if experiment is None:
            artifacts = None if self._uri else (place / "artifacts").as_uri()
            number = client.create_experiment(self._project, artifacts)
        else:
            number = experiment.experiment_id
        tag = "eqmdm.tracked"
        found = client.search_runs([number], f"tags.`{tag}` = '{ledger.run}'")
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return found[0].info.run_id
        made = client.create_run(number, tags={tag: ledger.run}, run_name=self._name)
        return made.info.run_id


def _flat(start: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of nested mappings, with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{start}{name}.", value)
        else:
            yield f"{start}{name}", str(value)
