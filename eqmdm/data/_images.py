"""Image data sets, from the Hugging Face Hub or from a local folder."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from ._dataset import Dataset, Examples, freeze
from ._files import ImageFiles
from ._hub import fetch
from ._labels import Labels
from ._parquet import find_split, read_images, read_labels
from ._splits import split_off


class _Source(NamedTuple):
    """The place of a data set on the Hub, and the format of its files there."""

    repository: str
    folder: str
    column: str
    shape: tuple[int, int, int]
    n_train: int
    n_validation: int
    flip: bool = False
    test_splits: tuple[str, ...] = ("test",)


_SOURCES = {
    "mnist": _Source("ylecun/mnist", "mnist", "image", (28, 28, 1), 60_000, 10_000),
    "fashion_mnist": _Source(
        "zalando-datasets/fashion_mnist",
        "fashion_mnist",
        "image",
        (28, 28, 1),
        60_000,
        10_000,
    ),
    "cifar10": _Source(
        "uoft-cs/cifar10", "plain_text", "img", (32, 32, 3), 50_000, 5_000, flip=True
    ),
    # Likelihoods are reported on its validation split; its test split, which has no
    # labels, is used only where there is no other.
    "imagenet32": _Source(
        "benjamin-paine/imagenet-1k-32x32",
        "data",
        "image",
        (32, 32, 3),
        1_281_167,
        10_000,
        flip=True,
        test_splits=("validation", "test"),
    ),
}
IMAGE_NAMES = tuple(_SOURCES)
_MOVED_AT_ONCE = 1000


def load_images(
    name: str, *, data_dir: str | os.PathLike | None = None, in_memory: bool = True
) -> Dataset:
    """The image data set `name`; arguments and errors as for `load`."""
    source = _SOURCES[name]
    root = _download(name, source) if data_dir is None else Path(data_dir)
    folder = _find_folder(root, name, source)
    train_files = _find_files(folder, ("train",), name, source)
    test_files = _find_files(folder, source.test_splits, name, source)
    if in_memory:
        images = _read(train_files, source)
    else:
        images = ImageFiles(train_files, column=source.column, image_shape=source.shape)
    _check_number(len(images), train_files)
    n_validation = max(1, len(images) * source.n_validation // source.n_train)
    rows, validation_rows = split_off(np.arange(len(images)), n_validation)
    test = _read(test_files, source)
    _check_number(len(test), test_files)
    classes = read_labels({"train": train_files, "test": test_files})
    labels = None
    if classes is not None:
        by_split = (
            *split_off(classes.splits["train"], n_validation),
            classes.splits["test"],
        )
        labels = Labels(*by_split, names=classes.names)
    validation = freeze(images[validation_rows], own=True)
    if isinstance(images, ImageFiles):
        train = images.take(rows)
    else:
        train = _moved_to_front(images, rows)
    return Dataset(
        name=name,
        train=train,
        validation=validation,
        test=test,
        n_levels=256,
        flip=source.flip,
        labels=labels,
    )


def _download(name: str, source: _Source) -> Path:
    patterns = [f"*{split}-*.parquet" for split in ("train", source.test_splits[0])]
    try:
        return fetch(source.repository, patterns)
    except ConnectionError as error:
        raise ConnectionError(
            f"{name} could not be fetched from the Hugging Face Hub, where it is "
            f"'{source.repository}' ({error}). {_remedy(name, source)}"
        ) from error


def _find_folder(root: Path, name: str, source: _Source) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be an existing folder; got '{root}'. "
            f"{_remedy(name, source)}"
        )
    # One of: the files themselves, a folder of several data sets, a clone of the Hub's.
    for folder in (root, root / name, root / source.folder):
        if find_split(folder, "train"):
            return folder
    raise FileNotFoundError(
        f"`data_dir` must hold the train split of {name}; '{root}' has no "
        f"train-*.parquet, and neither has '{root / name}'. {_remedy(name, source)}"
    )


def _find_files(
    folder: Path, splits: tuple[str, ...], name: str, source: _Source
) -> list[Path]:
    for split in splits:
        files = find_split(folder, split)
        if files:
            return files
    raise FileNotFoundError(
        f"`data_dir` must hold the test split of {name} beside the train split; "
        f"'{folder}' has no {splits[0]}-*.parquet. {_remedy(name, source)}"
    )


def _read(files: list[Path], source: _Source) -> Examples:
    return read_images(files, column=source.column, shape=source.shape)


def _moved_to_front(images: Examples, rows: Int64[np.ndarray, " n"]) -> Examples:
    """`images[rows]` for ascending `rows`, read-only and in the memory of `images`: a
    copy of ImageNet would take another 4 GB."""
    for start in range(0, len(rows), _MOVED_AT_ONCE):
        moved = rows[start : start + _MOVED_AT_ONCE]
        # No row is before its new place: all that this overwrites has been moved.
        images[start : start + len(moved)] = images[moved]
    # Of the array itself too, so that `Dataset` needs no copy.
    return freeze(images, own=True)[: len(rows)]


def _check_number(n_images: int, files: list[Path]) -> None:
    if n_images < 2:
        raise ValueError(
            f"`{files[0]}` must hold at least 2 images; it has {n_images}."
        )


def _remedy(name: str, source: _Source) -> str:
    return (
        "Pass `data_dir` (--data-dir) with a folder that holds train-*.parquet and "
        f"{source.test_splits[0]}-*.parquet, as in the Hub's '{source.repository}': "
        f"images in a column `{source.column}` of type struct<bytes, path>. The "
        "data set `digits` needs neither network nor files."
    )
