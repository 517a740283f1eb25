"""Train a small classifier of images, whose features `solver_study.py` compares by.

    python scripts/train_classifier.py --dataset digits

See `--help` for the options.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import _classifier
import tyro
from _compilation import keep_compiled
from _errors import clean_errors
from tqdm import tqdm

import eqmdm


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a small classifier of images and save it with its held-out accuracy.

    The distance between the means and covariances of its features is a Fréchet distance
    for data sets that Inception's features were not made for.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10", "imagenet32"]
    """The data, whose training split is used; digits needs no network."""
    data_dir: str | None = None
    """A directory with the image files (parquet), instead of the Hugging Face Hub."""
    output: Path | None = None
    """The file to write; by default runs/features-<dataset>.npz, where solver_study.py
    looks for it."""
    steps: int | None = None
    """Steps of Adam; by default enough for the data set."""
    batch_size: int = 128
    """Images in a step."""
    learning_rate: float = 1e-3
    """Adam's, at the start; it falls to zero along a cosine."""
    width: int = 16
    """Channels of the first of three convolutions."""
    seed: int = 0
    """Fixes the initial weights and the order of the images."""


def main(options: Options) -> None:
    # ----- Every wrong option or file fails here, before any work.
    path = options.output or _classifier.default_file(options.dataset)
    with clean_errors():
        if path.exists():
            raise ValueError(
                f"`output` must be a new file; {path} exists. Delete it, or choose "
                "another --output."
            )
        dataset = eqmdm.data.load(options.dataset, data_dir=options.data_dir)
        # ----- Training, and the accuracy on the test split.
        model, facts = _classifier.train(
            dataset,
            seed=options.seed,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            width=options.width,
            progress=lambda steps: tqdm(steps, desc="training", unit="step"),
        )
        _classifier.save(path, model, facts)
    print(
        f"held-out accuracy {facts['accuracy']:.4f} +- {facts['standard_error']:.4f} "
        f"on {facts['examples']} test images\nwritten: {path}"
    )


if __name__ == "__main__":
    keep_compiled()
    main(tyro.cli(Options))
