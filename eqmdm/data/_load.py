"""Loading a data set by its name."""

import difflib
import os

import numpy as np
from jaxtyping import Shaped

from ._dataset import Dataset, Labels
from ._images import IMAGE_NAMES, load_images, split_off
from ._points import POINT_NAMES, load_points


NAMES = ("digits", *IMAGE_NAMES, *POINT_NAMES)
_DIGITS_HELD_OUT = 180


def load(
    name: str, *, data_dir: str | os.PathLike | None = None, in_memory: bool = True
) -> Dataset:
    r"""The data set called `name`.

    | `name` | examples | train, validation, test |
    | --- | --- | --- |
    | `digits` | 8x8x1, 17 levels; bundled with scikit-learn | 1,437, 180, 180 |
    | `mnist`, `fashion_mnist` | 28x28x1, 256 levels | 50,000, 10,000, 10,000 |
    | `cifar10` | 32x32x3, 256 levels | 45,000, 5,000, 10,000 |
    | `imagenet32` | 32x32x3, 256 levels | 1,271,167, 10,000, 50,000 |
    | `mixture` | 8 Gaussians of standard deviation 0.1 on a circle | see below |
    | `rings` | 3 circles, blurred by a Gaussian of standard deviation 0.08 | |
    | `checkerboard` | uniform on 8 of 4 by 4 squares; $-\infty$ outside | |

    Images come with the Hub's test split (for `imagenet32`, its validation split). The
    validation images are a fixed random choice from the train split, never from test;
    of a train split smaller than the original, a proportionate part. Points come in
    100,000, 10,000 and 10,000 fixed draws, at unit variance, with their exact density.
    Images have labels, but for files without a column `label`.

    `imagenet32` on the Hub is a resizing of ImageNet of its own. The releases that the
    literature uses differ from it and among themselves, by 0.26 bits per dimension:
    name the release beside a figure, and load others by `data_dir`.

    **Arguments:**

    - `name`: one of `eqmdm.data.NAMES`.
    - `data_dir`: a folder of the image files `train-*.parquet` and `test-*.parquet`
        (`imagenet32`: `validation-*.parquet`, or test) in the Hub's schema, or one with
        such a folder of the data set's name. Then the network is not used. `None` to
        get images from the Hub, or from what was fetched from there before.
    - `in_memory`: whether the training images are decoded into memory, rather than on
        every access; see [`eqmdm.data.ImageFiles`][] and
        [`eqmdm.BatchStream`][]. The bundled data sets, and all validation and test
        examples, are in memory always.

    **Raises:**

    `ValueError` if there is no such data set, if `data_dir` is given for one that is
    not loaded from files, or if a file is truncated or has another schema.
    `FileNotFoundError` if `data_dir` or a split in it is missing. `ConnectionError` if
    the Hub cannot be reached or denies access. `OSError` if images that are not to be
    in memory cannot be copied to the cache of `datasets`.
    """
    if name not in NAMES:
        nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(
            f"`name` must be one of {', '.join(NAMES)}; got '{name}'.{hint}"
        )
    if name in IMAGE_NAMES:
        return load_images(name, data_dir=data_dir, in_memory=in_memory)
    if data_dir is not None:
        raise ValueError(
            f"`data_dir` must not be given for {name}, which is not loaded from files; "
            f"got '{data_dir}'."
        )
    return _load_digits() if name == "digits" else load_points(name)


def _load_digits() -> Dataset:
    # Imported late: only this data set needs it, and it takes a second.
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise ModuleNotFoundError(
            "The data set digits is scikit-learn's, which comes with the extra "
            "`programs`: pip install 'eqmdm[programs]'",
            name="sklearn",
        ) from error

    rows, classes = load_digits(return_X_y=True)
    images = np.asarray(rows, np.uint8).reshape(-1, 8, 8, 1)
    train, validation, test = _split_digits(images)
    return Dataset(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        n_levels=17,
        labels=Labels(*_split_digits(np.asarray(classes, np.int64))),
    )


def _split_digits(
    examples: Shaped[np.ndarray, "_ ..."],
) -> tuple[Shaped[np.ndarray, "_ ..."], ...]:
    train, held_out = split_off(examples, 2 * _DIGITS_HELD_OUT)
    return train, *split_off(held_out, _DIGITS_HELD_OUT)
