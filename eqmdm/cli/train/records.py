"""The records of a training run: metrics.jsonl and the final bound."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..._model.ends import log_snr_range
from ..files import LOSS_UNITS, error_as_text, plain, write_text


# The terms of a bound, in the order of their sum.
_TERMS = ("reconstruction", "prior", "diffusion", "auxiliary", "dequantisation")
_TERMS += ("data_transform", "total", *LOSS_UNITS)


class Records:
    """metrics.jsonl: one line for each log interval and each validation."""

    def __init__(self, path: Path, *, up_to: int, writes: bool = True):
        self._path, self._writes = path, writes
        if not writes:
            return
        # An interrupted run has lines from after its last checkpoint.
        kept = [r for r in self.read() if r["step"] <= up_to]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)

    def add(self, record: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(plain(record)) + "\n")
        # Unlike a failed `open`, a failed write does not name the file.
        except OSError as error:
            raise OSError(f"{self._path} cannot be written to ({error}).") from error

    def processor_seconds(self) -> float:
        """The processor time of the run so far, in all its sittings."""
        return max((r.get("processor_seconds", 0.0) for r in self.read()), default=0.0)

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        # The last line may be incomplete after a kill.
        return [json.loads(line) for line in lines if line.endswith("\n")]


def learned(diffusion: Any) -> dict[str, list]:
    """Q and D of a learned diffusion, per unit of its clock, and its log-SNR range."""
    named = {"skew_matrix": diffusion.skew_matrix}
    named |= {"dissipation_matrix": diffusion.dissipation_matrix}
    record = {name: np.asarray(value).tolist() for name, value in named.items()}
    return record | {"log_snr_range": list(log_snr_range(diffusion))}


def report(
    path: Path,
    summary: dict[str, tuple[float, float]],
    settings: dict[str, int],
) -> None:
    """Print a bound term by term, and write it with the settings of its evaluation."""
    summary = {name: summary[name] for name in _TERMS if name in summary}
    units = {name: LOSS_UNITS.get(name, "nats") for name in summary}
    print(f"{'test bound':>16} {'mean':>12} {'std error':>10}")
    for name, (mean, error) in summary.items():
        error = error_as_text(error, settings["examples"])
        print(f"{name:>16} {mean:12.4f} {error:>10} {units[name]}")
    terms = {
        name: {"mean": mean, "standard_error": error, "unit": units[name]}
        for name, (mean, error) in summary.items()
    }
    write_text(path, json.dumps(plain(settings | {"terms": terms}), indent=1) + "\n")
