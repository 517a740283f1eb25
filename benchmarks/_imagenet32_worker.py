"""One measurement of `imagenet32.py`, in a process of its own.

Takes a `Task` as JSON, and prints its results as JSON in the last line.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import nn


_SOURCE_SIZE = 1000


@dataclasses.dataclass(frozen=True)
class Task:
    """A measurement: `make` writes the shards, and all others load them first."""

    kind: Literal["make", "open", "rates", "digests"]
    folder: str
    """The folder of the shards."""
    seed: int = 0
    cifar10: str | None = None
    """The folder of the images to crop; for noise, an empty string."""
    images: int = 0
    held_out: int = 0
    shards: int = 0
    in_memory: bool = False
    batch_size: int = 128
    n_ahead: int = 4
    n_threads: int = 2
    network: Literal["unet", "mlp"] = "mlp"
    window: int = 0
    """The batches that are timed at once."""
    steps: int = 0
    """The training steps that are timed at once; 0 for none."""
    repeats: int = 0
    streams: tuple[tuple[int, int], ...] = ()
    """Each from its first step to before its second number."""
    n_last: int = 0
    """The batches at the end of each stream whose digests are reported."""


def make(task: Task) -> dict[str, Any]:
    """Writes the shards; see `_crops`."""
    import _crops

    if task.cifar10 == "":
        random = np.random.Generator(np.random.PCG64(task.seed))
        noise = lambda: random.integers(256, size=(_SOURCE_SIZE, 32, 32, 3), dtype="u1")
        labels = random.integers(10, size=_SOURCE_SIZE)
        train, test = (_crops.Source(noise(), labels) for _ in range(2))
    else:
        dataset = eqmdm.data.load("cifar10", data_dir=task.cifar10)
        assert dataset.labels is not None
        images, labels = (
            np.concatenate([np.asarray(part.train), part.validation])
            for part in (dataset, dataset.labels)
        )
        train = _crops.Source(images, labels)
        test = _crops.Source(dataset.test, dataset.labels.test)
    start = time.perf_counter()
    place, seed = Path(task.folder), task.seed
    n_held_out_shards = max(1, task.shards * task.held_out // max(1, task.images))
    n_written = _crops.write(
        place, "train", train, n=task.images, n_shards=task.shards, seed=seed
    ) + _crops.write(
        place,
        "validation",
        test,
        n=task.held_out,
        n_shards=n_held_out_shards,
        seed=seed,
    )
    return {
        "seconds": time.perf_counter() - start,
        "shards_written": n_written,
        "shards": task.shards + n_held_out_shards,
        "bytes": sum(file.stat().st_size for file in place.glob("*.parquet")),
    }


def load(task: Task) -> tuple[eqmdm.data.Dataset, dict[str, Any]]:
    start = time.perf_counter(), time.process_time()
    dataset = eqmdm.data.load(
        "imagenet32", data_dir=task.folder, in_memory=task.in_memory
    )
    seconds = time.perf_counter() - start[0]
    processor_seconds = time.process_time() - start[1]
    splits = ("train", "validation", "test")
    sizes = {name: len(getattr(dataset, name)) for name in splits}
    return dataset, {
        "seconds_to_open": seconds,
        "processor_seconds_to_open": processor_seconds,
        "sizes": sizes,
    }


class Trainer:
    """A stream of batches, and a small network that may be trained on them."""

    def __init__(self, dataset: eqmdm.data.Dataset, task: Task, start: int = 0):
        key = jr.key(task.seed)
        if task.network == "unet":
            counts = {"width": 8, "multipliers": (1, 2), "n_blocks": 1}
            network = nn.UNet(dataset.shape, 1, **counts, key=key)
        else:
            network = nn.MLP(dataset.shape, 1, width=8, depth=1, key=key)
        model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
        self._batch_size = task.batch_size
        self._optimiser = eqmdm.make_optimiser()
        self._objective = eqmdm.Objective(levels=eqmdm.GreyLevels(256))
        state = eqmdm.TrainState.create(model, self._optimiser, key=jr.key(task.seed))
        step = jnp.asarray(start, state.step.dtype)
        self._state = eqx.tree_at(lambda state: state.step, state, step)
        assert dataset.labels is not None
        self.batches = eqmdm.BatchStream(
            self._state,
            dataset.train,
            self._objective,
            batch_size=task.batch_size,
            # Labels too, by which a batch says which images it has.
            condition=dataset.labels.train if task.kind == "digests" else None,
            n_ahead=task.n_ahead,
            n_threads=task.n_threads,
        )

    def train(self, batches: Any, n_steps: int) -> dict[str, float]:
        """The rate of images in some steps."""
        with Rate(n_steps * self._batch_size) as rate:
            for batch in itertools.islice(batches, n_steps):
                self._state, metrics = eqmdm.train_step(
                    self._state,
                    batch,
                    self._objective,
                    self._optimiser,
                    batch_size=self._batch_size,
                )
                # The processor time of a step that still runs would be the next one's.
                jax.block_until_ready(metrics)
        return rate.found


class Rate:
    """A context that measures how many images a second it takes."""

    def __init__(self, n_images: int):
        self._n_images = n_images
        self.found: dict[str, float] = {}

    def __enter__(self) -> "Rate":
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: Any) -> None:
        now = time.perf_counter(), time.process_time()
        for name, start, end in zip(
            ("per_second", "per_processor_second"), self._start, now, strict=True
        ):
            self.found[name] = self._n_images / (end - start)


def rates(dataset: eqmdm.data.Dataset, task: Task) -> dict[str, Any]:
    """The rates of images of the stream alone, of steps on a batch that is there
    already, and of steps on the stream."""
    trainer = Trainer(dataset, task)
    found: dict[str, list[Any]] = {"alone": [], "step": [], "step_on_stream": []}
    with trainer.batches as stream:
        for _ in range(2 * task.n_ahead):
            next(stream)
        for _ in range(task.repeats):
            with Rate(task.window * task.batch_size) as rate:
                for _ in range(task.window):
                    next(stream)
            found["alone"].append(rate.found)
        if task.steps:
            held = itertools.repeat(next(stream))
            # Compilation.
            trainer.train(held, 1)
            for _ in range(task.repeats):
                found["step"].append(trainer.train(held, task.steps))
                found["step_on_stream"].append(trainer.train(stream, task.steps))
    return found


def digests(dataset: eqmdm.data.Dataset, task: Task) -> dict[str, Any]:
    """The SHA-256 of the last batches of some streams, images with labels."""
    found: list[list[str]] = []
    for first, stop in task.streams:
        found.append([])
        with Trainer(dataset, task, first).batches as stream:
            for step in range(first, stop):
                batches = next(stream)
                if step >= stop - task.n_last:
                    digest = hashlib.sha256()
                    for leaf in jax.tree.leaves((batches.examples, batches.condition)):
                        digest.update(np.ascontiguousarray(leaf).data)
                    found[-1].append(digest.hexdigest())
    return {"digests": found}


def measured(task: Task) -> dict[str, Any]:
    """The results of a task, with versions and device."""
    if task.kind == "make":
        result = make(task)
    else:
        dataset, result = load(task)
        if task.kind != "open":
            measure = {"rates": rates, "digests": digests}[task.kind]
            result |= measure(dataset, task)
    return result | {"facts": common.facts(task.seed)}


if __name__ == "__main__":
    print(json.dumps(measured(Task(**json.loads(sys.argv[1])))))
