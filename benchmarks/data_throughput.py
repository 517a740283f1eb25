"""Does training wait for its data?

    python benchmarks/data_throughput.py --output FILE.json

Writes grey images of 28x28 with labels to a folder of PNG files and to a Parquet file,
and takes training steps of an MNIST-sized U-Net from each source in turn: from an
array, from the folder, which `eqmdm.data.load` decodes into memory, and from the
Parquet file, whose images stay on disk and are decoded in the background. Prints the
images per second of each, as a ratio to those from the array in the same repeat.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import _common as common
import datasets
import jax
import jax.random as jr
import numpy as np
import tyro
from PIL import Image

import eqmdm
from eqmdm import nn


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times training from several sources of the same images."""

    images: int = 6000
    """The number of images."""
    batch_size: int = 64
    """Images in a step."""
    width: int = 32
    """The width of the U-Net."""
    steps: int = 8
    """The steps of a repeat."""
    repeats: int = 7
    """The repeats; the sources alternate in each."""
    seed: int = 0
    """The seed of the images."""
    quick: bool = False
    """A narrow network, and few images and repeats."""


def sources(directory: Path, settings: Settings) -> dict[str, Any]:
    """The data set from each source."""
    random = np.random.default_rng(settings.seed)
    images = random.integers(0, 256, (settings.images, 28, 28, 1), np.uint8)
    labels = random.integers(0, 10, settings.images)
    folder = directory / "folder"
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(folder / str(label) / f"{i}.png")
    rows = {"image": [Image.fromarray(image[..., 0]) for image in images]}
    made = datasets.Dataset.from_dict(
        rows | {"label": labels},
        features=datasets.Features(
            image=datasets.Image(), label=datasets.Value("int64")
        ),
    )
    made.to_parquet(str(directory / "images.parquet"))
    load = eqmdm.data.load
    return {
        "array": eqmdm.data.Dataset.from_arrays(images, labels=labels),
        "folder": load(folder),
        "Parquet, streamed": load(directory / "images.parquet", in_memory=False),
    }


class Trainer:
    """Training from one source, which continues with every call."""

    def __init__(self, dataset: Any, settings: Settings):
        self._settings = settings
        network = nn.UNet(dataset.shape, 1, width=settings.width, key=jr.key(0))
        diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
        denoiser = eqmdm.PreconditionedDenoiser(network, 0.6, (-9.01, 13.31))
        model = eqmdm.DenoiserModel(denoiser, diffusion)
        self._optimiser = eqmdm.make_optimiser()
        self._objective = eqmdm.Objective(levels=eqmdm.GreyLevels(256))
        state = eqmdm.TrainState.create(model, self._optimiser, key=jr.key(1))
        if isinstance(dataset.train, np.ndarray):
            data = eqmdm.TrainingSet(dataset.train, self._objective)
            self._batches = iter(lambda: data, None)
        else:
            self._batches = eqmdm.BatchStream(
                state, dataset.train, self._objective, batch_size=settings.batch_size
            )
        self._state = state

    def __call__(self) -> None:
        metrics = {}
        for _ in range(self._settings.steps):
            self._state, metrics = eqmdm.train_step(
                self._state,
                next(self._batches),
                self._objective,
                self._optimiser,
                batch_size=self._settings.batch_size,
            )
        jax.block_until_ready(metrics)


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, images=300, width=8, steps=2, repeats=2, batch_size=16
        )
    facts = common.facts(settings.seed)
    common.show(facts)
    with tempfile.TemporaryDirectory() as directory:
        trainers = {
            name: Trainer(dataset, settings)
            for name, dataset in sources(Path(directory), settings).items()
        }
        for trainer in trainers.values():
            # Compilation, and the first batches of the stream.
            trainer()
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(settings.repeats):
            for name, trainer in trainers.items():
                start = time.perf_counter()
                trainer()
                seconds[name].append(time.perf_counter() - start)
    base = np.asarray(seconds["array"])
    rows = {}
    for name, values in seconds.items():
        ratios = base / np.asarray(values)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows[name] = {"ratio": middle, "quartiles": [low, high], "seconds": values}
        print(f"{name:18} {middle:.3f} of the array ({low:.3f} to {high:.3f})")
    common.write(settings, facts, throughput=rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
