"""What a training run writes down: metrics.jsonl, and its bound at the end."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Records:
    """metrics.jsonl: one line for each log interval and each validation."""

    def __init__(self, path: Path, *, up_to: int, writes: bool = True):
        self._path, self._writes = path, writes
        if not writes:
            return
        # A run that was cut off has lines that its last checkpoint does not know.
        kept = [r for r in self.read() if r["step"] <= up_to]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)

    def add(self, record: dict[str, Any]) -> None:
        if not self._writes:
            return
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        # A failed write, unlike a failed opening, does not say of which file.
        except OSError as error:
            raise OSError(f"{self._path} cannot be written to ({error}).") from error

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        # The last line may have been cut off.
        return [json.loads(line) for line in lines if line.endswith("\n")]


def concatenated(window: list[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """What several calls of `train_step` have measured, on the host."""
    values = jax.device_get(window)
    return {name: np.concatenate([m[name] for m in values]) for name in values[0]}


def learned(diffusion: Any) -> dict[str, list]:
    """Of a learned diffusion: Q and D per unit of its clock, and its log-SNR ends."""
    named = {"skew_matrix": diffusion.skew_matrix}
    named |= {"dissipation_matrix": diffusion.dissipation_matrix}
    found = {name: np.asarray(value).tolist() for name, value in named.items()}
    ends = diffusion.t1, diffusion.t0
    return found | {"log_snr_range": [float(diffusion.log_snr(t)) for t in ends]}


def report(
    path: Path,
    summary: dict[str, tuple[float, float]],
    unit: str,
    how: dict[str, int],
) -> None:
    """Print a bound term by term, and write it with how it was evaluated."""
    units = {name: unit if name == "loss" else "nats" for name in summary}
    print(f"{'test bound':>16} {'mean':>12} {'std error':>10}")
    for name, (mean, error) in summary.items():
        label = "minus bound" if name == "loss" else name
        print(f"{label:>16} {mean:12.4f} {error:10.4f} {units[name]}")
    terms = {
        name: {"mean": mean, "standard_error": error, "unit": units[name]}
        for name, (mean, error) in summary.items()
    }
    path.write_text(json.dumps(how | {"terms": terms}, indent=1) + "\n")
