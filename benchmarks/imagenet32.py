"""Does the loader of `imagenet32` hold at its real size, in 4 GiB of memory?

    python benchmarks/imagenet32.py --data-dir CIFAR10 --directory D --output FILE.json

Writes 1,281,167 random crops of CIFAR-10's images, and 50,000 more, as Parquet shards
in the schema of the Hub, unless they are there already. Then, each in a fresh process
whose peak of memory it takes from the operating system:

- opens them, with and without an earlier copy in the cache of `datasets`, and in
  memory;
- reads batches, alone and under the steps of a small network, with several sizes of
  batches, numbers of batches read in advance and reading threads. Shuffling needs no
  buffer: the order is computed, and images are read where they lie;
- compares batches after restarts in mid-epoch, and at the end of an epoch, with those
  of a process that was not stopped;
- trains by `eqmdm train --stream`, once uninterrupted, and once stopped by SIGTERM and
  resumed, and compares all arrays of the final checkpoints.

Memory is the peak of resident memory, printed as what is not of files plus the rest:
mapped files, whose pages the system drops when it needs memory. Rates are also given by
the processor time that they take, which other programs change less. Fails if a process
that streams has more than `--limit-gib`, or if anything differs. Takes 6 GB of disk:
the shards, and as much again for the copy in the cache. Linux only. `--quick` takes all
measurements but those of the training program in one process.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import _common as common
import numpy as np
import tyro
from _imagenet32_worker import Task, measured
from _watched import Process, memory

import eqmdm


_WORKER = Path(__file__).parent / "_imagenet32_worker.py"
# Batches in one of `--batch-size`, batches read in advance, and threads; the first are
# the defaults of `eqmdm train`.
_SETTINGS = (
    (1, 4, 2),
    (1, 1, 1),
    (8, 64, 2),
    (1, 64, 2),
    (1, 4, 4),
)
Part: TypeAlias = Literal["opening", "restarts", "training", "throughput", "in_memory"]
_PARTS: tuple[Part, ...] = get_args(Part)
_PEAKS = ("resident_bytes", "anonymous_bytes")
# As the loader divides the training files of `imagenet32`.
_N_IMAGES, _HELD_OUT = 1_281_167, 10_000


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Measures memory, speed and exactness of the loader at the size of ImageNet."""

    data_dir: str | None = None
    """A directory with the image files of CIFAR-10; by default those of the Hub."""
    directory: Path = Path("runs/imagenet32")
    """Where the shards, the cache and the runs go."""
    images: int = 1_281_167
    """Training images, a hundred and twenty-eighth of which the loader holds out."""
    held_out: int = 50_000
    """Images of the validation files."""
    shards: int = 50
    """Files of training images."""
    batch_size: int = 128
    """Images in a batch of the comparisons and of training."""
    network: Literal["unet", "mlp"] = "unet"
    """The network, of width 8, that is trained."""
    window: int = 12_800
    """Images that are timed at once."""
    steps: int = 4
    """Training steps that are timed at once."""
    repeats: int = 3
    """Times that each is timed."""
    restart_at: int = 1000
    """The step of the first restart, before which an uninterrupted process comes to it
    from step 0."""
    compared: int = 100
    """Batches that are compared after each restart."""
    train_steps: int = 60
    """Steps of the training program."""
    limit_gib: float = 4.0
    """The memory that a process that streams may take."""
    seed: int = 0
    """The seed of the crops, the network and the order of images."""
    parts: tuple[Part, ...] = _PARTS
    """What to measure. Other parts are kept from the existing output."""
    quick: bool = False
    """Few images, of noise unless --data-dir is given, in a temporary directory."""


class Measurements:
    """Measurements in fresh processes, of the shards in a directory."""

    def __init__(self, settings: Settings, directory: Path):
        self._settings, self.directory = settings, directory
        self.folder = directory / "data"
        self.environment = {"HF_DATASETS_CACHE": str(directory / "cache")}
        self.facts: dict[str, Any] = {}

    def run(self, kind: Any, **values: Any) -> dict[str, Any]:
        """The results of a task, with the peaks of its memory."""
        task = Task(kind, str(self.folder), seed=self._settings.seed, **values)
        as_text = json.dumps(dataclasses.asdict(task))
        if self._settings.quick:
            # As a process would have it.
            task = Task(**json.loads(as_text))
            found, peaks = json.loads(json.dumps(measured(task))), memory()
        else:
            command = [sys.executable, str(_WORKER), as_text]
            output, peaks = Process(command, self.environment).finish()
            found = json.loads(output.splitlines()[-1])
        self.facts = found.pop("facts")
        return found | peaks

    def forget(self) -> None:
        """Empties the cache of `datasets`."""
        shutil.rmtree(self.directory / "cache", ignore_errors=True)


def shards(
    measure: Measurements, settings: Settings, cifar10: str | None
) -> dict[str, Any]:
    """Makes the shards that are not there yet."""
    found = measure.run(
        "make",
        cifar10=cifar10,
        images=settings.images,
        held_out=settings.held_out,
        shards=settings.shards,
    )
    print(
        f"{found['shards']} shards of {found['bytes'] / 2**30:.2f} GiB, of which "
        f"{found['shards_written']} made in {found['seconds']:.1f} s; {_memory(found)}",
        flush=True,
    )
    return found


def opening(measure: Measurements) -> dict[str, Any]:
    """Seconds and memory of the first opening, later ones, and one in memory."""
    measure.forget()
    found = {name: measure.run("open") for name in ("first", "again")}
    for name, row in found.items():
        print(
            f"open, {name}: {row['seconds_to_open']:.1f} s, of the processor "
            f"{row['processor_seconds_to_open']:.1f} s; {_memory(row)}",
            flush=True,
        )
    return found


def throughput(
    measure: Measurements,
    settings: Settings,
    save: Callable[[Any], None],
    *,
    in_memory: bool,
) -> list[dict[str, Any]]:
    """Images per second against memory; of images in memory with the defaults alone."""
    choices = _SETTINGS[: 1 if in_memory or settings.quick else None]
    rows = []
    for n_batches, n_ahead, n_threads in choices:
        batch_size = n_batches * settings.batch_size
        counts = {"batch_size": batch_size, "n_ahead": n_ahead, "n_threads": n_threads}
        found = measure.run(
            "rates",
            in_memory=in_memory,
            window=max(1, settings.window // batch_size),
            # A step of a larger batch would only take longer.
            steps=settings.steps if n_batches == 1 else 0,
            repeats=settings.repeats,
            network=settings.network,
            **counts,
        )
        rows.append(counts | found)
        save(rows)
        alone = {
            name: statistics.median(rate[name] for rate in found["alone"])
            for name in ("per_second", "per_processor_second")
        }
        ratios = [
            on_stream["per_processor_second"] / step["per_processor_second"]
            for on_stream, step in zip(
                found["step_on_stream"], found["step"], strict=True
            )
        ]
        steps = f", steps {statistics.median(ratios):.3f}" if ratios else ""
        print(
            f"{'in memory' if in_memory else 'streamed'}, batch {batch_size}, ahead "
            f"{n_ahead}, threads {n_threads}: {alone['per_second']:.0f} images per "
            f"second, {alone['per_processor_second']:.0f} per processor second"
            f"{steps}; {_memory(found)}",
            flush=True,
        )
    return rows


def restarts(measure: Measurements, settings: Settings) -> dict[str, Any]:
    """How many batches differ after restarts in mid-epoch and at the end of an epoch,
    from those of a process that began earlier."""
    n_train = settings.images - settings.images * _HELD_OUT // _N_IMAGES
    epoch, k = n_train // settings.batch_size, settings.compared
    # The second are across the end, from a stream that begins as many before.
    firsts, starts = (settings.restart_at, epoch - k // 2), (0, epoch - k // 2 - k)
    task = {"batch_size": settings.batch_size, "n_last": k}
    streams = lambda steps: tuple(
        (step, first + k) for step, first in zip(steps, firsts, strict=True)
    )
    whole = measure.run("digests", streams=streams(starts), **task)
    # Other numbers of threads and of batches in advance, on which nothing depends.
    again = measure.run(
        "digests", streams=streams(firsts), n_ahead=7, n_threads=3, **task
    )
    assert whole["sizes"]["train"] == n_train
    rows = []
    for first, start, one, other in zip(
        firsts, starts, whole["digests"], again["digests"], strict=True
    ):
        counts = {"started_at": start, "restarted_at": first, "batches": len(other)}
        wrong = sum(a != b for a, b in zip(one, other, strict=True))
        sha256 = hashlib.sha256("".join(one).encode()).hexdigest()
        rows.append(counts | {"different": wrong, "sha256": sha256})
        print(
            f"restart at step {first:,} of {epoch:,} in an epoch: {wrong} of "
            f"{len(other)} batches differ",
            flush=True,
        )
    peaks = {"uninterrupted": whole, "restarted": again}
    return {
        "steps_in_epoch": epoch,
        "distinct_batches": len({d for row in whole["digests"] for d in row}),
        "peaks": {name: _peaks(row) for name, row in peaks.items()},
        "restarts": rows,
    }


def training(measure: Measurements, settings: Settings) -> dict[str, Any]:
    """The final arrays of a run that was stopped and resumed, against another's."""
    each = max(1, settings.train_steps // 12)
    options = ["--data=imagenet32", f"--data-dir={measure.folder}", "--stream"]
    options += ["--condition=label", "--diffusion=vpsde", f"--seed={settings.seed}"]
    options += [f"--network={settings.network}", "--width=8", "--n-blocks=1"]
    if settings.network == "unet":
        options += ["--multipliers", "1", "2"]
    options += [f"--steps={12 * each}", f"--batch-size={settings.batch_size}"]
    options += [f"--log-every={each}", f"--validate-every={6 * each}"]
    options += [f"--checkpoint-every={6 * each}", "--validation-examples=64"]
    # The training alone is compared.
    options += ["--test-examples=0", "--n-samples=0"]
    command = [sys.executable, "-m", "eqmdm.cli", "train", *options]
    places = [measure.directory / name for name in ("uninterrupted", "stopped")]

    def start(place: Path, *more: str) -> Process:
        return Process([*command, f"--run-dir={place}", *more], measure.environment)

    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    _, whole = start(places[0]).finish()
    process = start(places[1])
    lines = places[1] / "metrics.jsonl"
    # Once it has written a line, it is among its steps.
    _wait(lambda: lines.exists() and bool(lines.read_text()), process)
    process.stop()
    output, stopped = process.finish(os.EX_TEMPFAIL)
    step = int(output.split()[-1])
    _, resumed = start(places[1], "--resume").finish()
    arrays = [eqmdm.Run(place).restore().arrays for place in places]
    different = int(arrays[0].keys() != arrays[1].keys()) + sum(
        not np.array_equal(arrays[0][name], arrays[1][name], equal_nan=True)
        for name in arrays[0].keys() & arrays[1].keys()
    )
    peaks = {"uninterrupted": whole, "stopped": stopped, "resumed": resumed}
    print(
        f"eqmdm train --stream, stopped after step {step} of {12 * each}: "
        f"{different} of {len(arrays[0])} arrays differ; "
        + "; ".join(f"{name} {_memory(peak)}" for name, peak in peaks.items()),
        flush=True,
    )
    return {
        "options": [o for o in options if not o.startswith("--data-dir")],
        "stopped_after_step": step,
        "arrays": len(arrays[0]),
        "different": different,
        "peaks": peaks,
    }


def _wait(done: Callable[[], bool], process: Process) -> None:
    while not done():
        if not process.runs:
            process.finish()
            raise RuntimeError("the run ended before it could be stopped")
        time.sleep(0.005)


def _memory(row: dict[str, Any]) -> str:
    return " + ".join(
        [
            f"{row['anonymous_bytes'] / 2**30:.2f}",
            f"{(row['resident_bytes'] - row['anonymous_bytes']) / 2**30:.2f} GiB",
        ]
    )


def main(settings: Settings) -> None:
    cifar10 = settings.data_dir
    with tempfile.TemporaryDirectory() as temporary:
        directory = settings.directory
        if settings.quick:
            few = {"images": 800, "held_out": 40, "shards": 3, "repeats": 1}
            few |= {"batch_size": 32, "window": 200, "steps": 1, "compared": 6}
            few |= {"restart_at": 8, "train_steps": 12, "network": "mlp"}
            settings = dataclasses.replace(settings, **few)
            directory = Path(temporary)
            # Read when `datasets` is imported, which none of our imports does.
            os.environ["HF_DATASETS_CACHE"] = str(directory / "cache")
            os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
            cifar10 = "" if cifar10 is None else cifar10
        measure = Measurements(settings, directory.absolute())
        run(measure, settings, cifar10)


def run(measure: Measurements, settings: Settings, cifar10: str | None) -> None:
    parts: dict[str, Any] = {}
    if settings.output is not None and settings.output.exists():
        parts = json.loads(settings.output.read_text())
        parts.pop("settings")

    # Each result at once, so that an interruption loses only one.
    def save(name: str, part: Any) -> None:
        parts.update({name: part} | measure.facts)
        common.write(settings, {}, **parts)

    rates = lambda name, in_memory: throughput(
        measure, settings, lambda rows: save(name, rows), in_memory=in_memory
    )
    known: dict[str, Callable[[], Any]] = {
        "shards": lambda: shards(measure, settings, cifar10),
        "opening": lambda: opening(measure),
        "restarts": lambda: restarts(measure, settings),
        "training": lambda: training(measure, settings),
        "throughput": lambda: rates("throughput", False),
        "in_memory": lambda: rates("in_memory", True),
    }
    common.show(common.facts(settings.seed))
    for name in ("shards", *settings.parts):
        save(name, known[name]())
    streamed = [parts.get(n) for n in known if n not in ("shards", "in_memory")]
    most = max(_found("resident_bytes", streamed), default=0) / 2**30
    parts |= {"most_resident_gib": most, "within_limit": most <= settings.limit_gib}
    parts["different"] = sum(_found("different", streamed))
    common.write(settings, {}, **parts)
    print(
        f"at most {most:.2f} GiB of resident memory while streaming; the limit is "
        f"{settings.limit_gib:g}. {parts['different']} results differ after a restart"
    )
    if parts["different"] or not parts["within_limit"]:
        sys.exit("error: memory above the limit, or another result after a restart")


def _found(name: str, part: Any) -> list[Any]:
    """All the values with a name, wherever they are in the results."""
    if isinstance(part, list):
        return [value for item in part for value in _found(name, item)]
    if not isinstance(part, dict):
        return []
    own = [part[name]] if name in part else []
    return own + _found(name, list(part.values()))


def _peaks(row: dict[str, Any]) -> dict[str, int]:
    return {name: row[name] for name in _PEAKS}


if __name__ == "__main__":
    main(tyro.cli(Settings))
