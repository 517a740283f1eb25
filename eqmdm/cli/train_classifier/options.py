"""The options of `eqmdm train-classifier`."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
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
