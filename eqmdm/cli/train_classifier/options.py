"""The options of `eqmdm train-classifier`."""

import dataclasses
from pathlib import Path
from typing import Literal

from ..fields import chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """Train a small image classifier and save it with its held-out accuracy.

    The means and covariances of its features give a Fréchet distance for data sets that
    Inception's features do not suit.
    """

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10", "imagenet32"]
    """The data set, whose training split is used; digits needs no download."""
    data_dir: str | None = chosen("the Hugging Face Hub")
    """A directory with the image files (parquet)."""
    output: Path | None = chosen("runs/features-<dataset>.npz")
    """The file to write; `eqmdm solver-study` looks for the default."""
    steps: int | None = chosen("400 for digits, more for larger data sets")
    """Steps of Adam."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 1e-3
    """The initial learning rate of Adam, which decays to zero along a cosine."""
    width: int = 16
    """Channels of the first of the three convolutions."""
    seed: int = 0
    """The seed of the initial weights and of the order of the images."""
