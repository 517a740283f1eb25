"""How does eqmdm compare with the libraries that a user would pick instead?

    python benchmarks/peers/run.py --output FILE.json --table FILE.md

Compares with GenSBI, sbgm, diffusionjax, and PyTorch with diffusers: a training step of
a VP diffusion with the loss of each, its samplers at equal numbers of network
evaluations, and its likelihood with an exact score. Each runs in its own environment,
which is made from the package registry the first time (some need Python 3.12), as a
process that runs one repeat on request, so that all see the same load in turn. Times
are processor times on `cores` cores, which other programs hardly change; ratios are
medians over the repeats of the ratio to eqmdm's first variant in the same repeat.
"""

import dataclasses
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import environments
import numpy as np
import table
import tyro
from protocol import Worker


HERE = Path(__file__).parent
# The worker of each peer; the environment has the name of the peer.
WORKERS = {
    "eqmdm": "worker_eqmdm.py",
    "eqmdm-3.12": "worker_eqmdm.py",
    "gensbi": "worker_gensbi.py",
    "sbgm": "worker_sbgm.py",
    "diffusionjax": "worker_diffusionjax.py",
    "diffusers": "worker_diffusers.py",
}
TASKS = (
    "train images",
    "train points",
    "sample images",
    "sample points",
    "likelihood mixture",
    "likelihood correlated",
    "likelihood correlated, one probe",
)
# The fewest repeats of a case, however slow it is.
_FEWEST_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Times eqmdm and its peers."""

    peers: tuple[str, ...] = tuple(WORKERS)
    """The peers to run, including eqmdm, with which they are compared."""
    tasks: tuple[str, ...] = TASKS
    """The tasks to run."""
    repeats: int = 15
    """Repeats of each case."""
    cores: int = 1
    """The number of cores that all use, the first of the machine."""
    images: int = 32
    """Images in a training step."""
    points: int = 512
    """Points in a training step."""
    sampled_images: int = 8
    """Images drawn at once."""
    sampled_points: int = 4096
    """Points drawn at once."""
    evaluations: int = 25
    """Network evaluations per sample."""
    likelihood_points: int = 512
    """Points of the mixture whose likelihoods are evaluated at once."""
    likelihood_correlated: int = 64
    """Points in 64 dimensions whose likelihoods are evaluated at once."""
    repeat_seconds: float = 0.5
    """The approximate duration of a repeat, in which calls are made."""
    case_seconds: float = 100.0
    """The duration after which a case is not repeated any more."""
    interpreters: dict[str, str] = dataclasses.field(default_factory=dict)
    """Interpreters by version, such as 3.12 /usr/bin/python3.12; found by default."""
    output: Path | None = None
    """A JSON file for the results."""
    table: Path | None = None
    """A Markdown file for the tables."""
    quick: bool = False
    """Run eqmdm alone, on few points, with two repeats."""


QUICK: dict[str, Any] = {
    "peers": ("eqmdm",),
    "tasks": ("train points", "sample points", "likelihood mixture"),
    "repeats": 2,
    "points": 32,
    "sampled_points": 64,
    "evaluations": 7,
    "likelihood_points": 16,
    "repeat_seconds": 0.05,
}


def start(settings: Settings) -> dict[str, Worker]:
    pythons = {
        name: sys.executable
        if name == "eqmdm"
        else environments.make(name, settings.interpreters)
        for name in settings.peers
    }
    cores = sorted(os.sched_getaffinity(0))[: settings.cores]
    # Workers inherit the affinity, and XLA and OpenMP make as many threads.
    os.sched_setaffinity(0, cores)
    # Threads that spin while waiting would stall if other programs use the cores.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    environment |= {"OMP_NUM_THREADS": str(len(cores)), "EQX_ON_ERROR": "raise"}
    workers = {}
    for name, python in pythons.items():
        worker = Worker([python, str(HERE / WORKERS[name])], environment)
        if "error" in worker.facts:
            raise RuntimeError(f"{name} did not start: {worker.facts['error']}")
        workers[name] = worker
    return workers


def run_task(
    task: str, workers: dict[str, Worker], settings: Settings
) -> list[dict[str, Any]]:
    """A row for each variant of the task that a worker has."""
    asked = dataclasses.asdict(settings)
    asked = {
        name: asked[name] for name in asked if isinstance(asked[name], int | float)
    }
    rows = []
    for peer, worker in workers.items():
        for of_task, variant in worker.cases:
            if of_task != task:
                continue
            row = {"task": task, "peer": peer, "variant": variant}
            answer = worker.ask("prepare", task, variant, settings=asked)
            rows.append(row | answer | {"times": []})
            print(f"{task:34}{peer:14}{variant:40}{_first(answer)}", flush=True)
    for repeat in range(settings.repeats):
        # Each is first in turn.
        for row in rows[repeat % len(rows) :] + rows[: repeat % len(rows)]:
            spent = sum(times["cpu_seconds"] for times in row["times"])
            spent *= row.get("n_calls", 1)
            enough = len(row["times"]) >= _FEWEST_REPEATS
            if "error" in row or (enough and spent > settings.case_seconds):
                continue
            answer = workers[row["peer"]].ask("repeat", task, row["variant"])
            if "error" in answer:
                row |= answer
            else:
                row["times"].append({"repeat": repeat} | answer)
    for row in rows:
        worker = workers[row["peer"]]
        if "error" not in row:
            answer = worker.ask("check", task, row["variant"])
            row |= answer if "error" in answer else {"check": answer}
        worker.ask("forget", task, row["variant"])
    return rows


def _first(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return answer["error"].strip().splitlines()[-1]
    return f"first call {answer['first_call']['cpu_seconds']:.1f} s"


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, **QUICK)
    if "eqmdm" not in settings.peers:
        raise ValueError(
            "`peers` must include eqmdm, with which the others are compared; got "
            f"{settings.peers}."
        )
    workers = start(settings)
    used = dataclasses.asdict(settings)
    for name in ("interpreters", "output", "table"):
        used.pop(name)
    record: dict[str, Any] = {
        "settings": used,
        "peers": {name: worker.facts for name, worker in workers.items()},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "rows": [],
    }
    for task in settings.tasks:
        record["rows"] += run_task(task, workers, settings)
        table.add_ratios(record["rows"])
        if settings.output is not None:
            settings.output.write_text(json.dumps(record, indent=1) + "\n")
        if settings.table is not None:
            settings.table.write_text(table.render(record))
    for worker in workers.values():
        worker.close()
    print(table.render(record))
    loads = [len(row["times"]) for row in record["rows"]]
    print(f"{len(loads)} cases, {int(np.sum(loads))} repeats")


if __name__ == "__main__":
    main(tyro.cli(Settings))
