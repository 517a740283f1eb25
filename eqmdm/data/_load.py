"""Loading a data set by its name or its path."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ._choices import LABEL, Choices, as_names
from ._dataset import Dataset
from ._hub import DATA_FILES, fetch
from ._images import IMAGE_NAMES, load_images
from ._labels import Labels
from ._names import is_function, is_on_hub
from ._own import load_function, load_path
from ._points import POINT_NAMES, load_points
from ._sources import KINDS
from ._splits import SPLITS, Fractions, check_fractions, split_off


NAMES = ("digits", *IMAGE_NAMES, *POINT_NAMES)
_DIGITS_HELD_OUT = 180


def load(
    dataset: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    in_memory: bool = True,
    configuration: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    columns: Sequence[str] | None = None,
    condition: str | Sequence[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    n_levels: int | None = None,
    standardise: bool = True,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
) -> Dataset:
    r"""A data set: one that is known by name, or your own.

    | `dataset` | examples | train, validation, test |
    | --- | --- | --- |
    | `digits` | 8x8x1, 17 levels; bundled with scikit-learn | 1,437, 180, 180 |
    | `mnist`, `fashion_mnist` | 28x28x1, 256 levels | 50,000, 10,000, 10,000 |
    | `cifar10` | 32x32x3, 256 levels | 45,000, 5,000, 10,000 |
    | `imagenet32` | 32x32x3, 256 levels | 1,271,167, 10,000, 50,000 |
    | `mixture` | 8 Gaussians of standard deviation 0.1 on a circle | see below |
    | `rings` | 3 circles, blurred by a Gaussian of standard deviation 0.08 | |
    | `checkerboard` | uniform on 8 of 4 by 4 squares; $-\infty$ outside | |
    | a folder | images, whose folders are their classes | see below |
    | a folder, or a file | Parquet, CSV, JSON lines, Arrow, what `datasets` saved | |
    | a file | an array: `.npy`, or `.npz` with `train` and maybe others | |
    | `org/name` | a data set of the Hugging Face Hub | |
    | `module:function` | what the function returns: arrays or a `Dataset` | |

    Images come with the Hub's test split (for `imagenet32`, its validation split). The
    validation images are a fixed random choice from the train split, never from test;
    of a train split smaller than the original, a proportionate part. Points come in
    100,000, 10,000 and 10,000 fixed draws, at unit variance, with their exact density.
    Images have labels, but for files without a column `label`.

    `imagenet32` on the Hub is a resizing of ImageNet of its own. The releases that the
    literature uses differ from it and among themselves, by 0.26 bits per dimension:
    name the release beside a figure, and load others by `data_dir`.

    **Your own data.** Splits are those that `datasets` finds, by the names of files and
    folders; one that is absent is cut from the training split by a fixed random choice.
    What was found is in the `description` of the data set.

    Images have any size, one for all. They are turned upright by their EXIF
    orientation. A palette becomes grey or RGB, by its colours; 16-bit grey has 65,536
    levels; grey images among RGB ones become RGB. What would lose something raises:
    transparency, 16-bit colour, CMYK, animations, several sizes.

    Other columns are points. Floats are standardised by the training split, and
    likelihoods are reported in the units of the data; see
    [`eqmdm.data.Standardisation`][], also for columns of integers. Values that are
    missing raise. Examples of several axes, as in an array of (n, length, channels),
    are standardised by one mean and one standard deviation.

    **Arguments:**

    - `dataset`: one of `eqmdm.data.NAMES`, a path, or one of the names above.
    - `data_dir`: for a name, a folder of the image files `train-*.parquet` and
        `test-*.parquet` (`imagenet32`: `validation-*.parquet`, or test) in the Hub's
        schema, or one with such a folder of the data set's name. Then the network is
        not used. `None` to get images from the Hub, or from what was fetched from there
        before. For data of your own, where they are now, if they have moved.
    - `in_memory`: whether the training images are decoded into memory, rather than on
        every access; see [`eqmdm.data.ImageFiles`][] and [`eqmdm.BatchStream`][]. The
        bundled data sets, and all validation and test examples, are in memory always;
        of your own data all but images in Parquet files.
    - `configuration`: the configuration of a folder or a data set of the Hub that has
        several.
    - `image_column`: the column of images, if there are several.
    - `label_column`: the column of classes, integers or strings; by default `label`,
        `labels` or `class`, or the only one of classes. `"none"` to leave it out.
    - `columns`: the columns of a table; by default all but that of the labels.
    - `condition`: what a conditional model is conditioned on: `"label"` for the labels,
        or the names of columns of numbers, which are then not among the examples. They
        become the `conditions` of the data set.
    - `image_size`: a side, or a height and a width, to which images are scaled and
        cropped about their centre.
    - `n_levels`: the number of grey levels of an array of integers; by default 256 for
        uint8 and 65,536 for uint16.
    - `standardise`: whether to standardise points.
    - `validation_fraction`, `test_fraction`: the parts of the training split that the
        other splits are where they are absent; 0.1 by default.

    **Raises:**

    `ValueError` if there is no such data set, if `data_dir` is given for one that is
    not loaded from files, if a file is truncated or has another schema, or if an image,
    a value or a label cannot be used: the message names file, row and column.
    `TypeError` for an array that is not of real numbers. `FileNotFoundError` if
    `data_dir`, a file or a split is missing. `ConnectionError` if the Hub cannot be
    reached or denies access. `OSError` if images that are not to be in memory cannot be
    copied to the cache of `datasets`.
    """
    choices = Choices(
        configuration=configuration,
        image_column=image_column,
        label_column=label_column,
        columns=as_names(columns),
        condition=as_names(condition),
        image_size=_as_size(image_size),
        n_levels=n_levels,
        fractions=Fractions(validation_fraction, test_fraction),
        standardise=standardise,
        in_memory=in_memory,
    )
    check_fractions(choices.fractions)
    name = os.fspath(dataset)
    loaded = _load(name, data_dir, choices)
    return loaded.conditioned_on_labels() if choices.condition == (LABEL,) else loaded


def _load(name: str, data_dir: str | os.PathLike | None, choices: Choices) -> Dataset:
    if name not in NAMES:
        return _load_own(name, data_dir, choices)
    _check_known(name, choices)
    if name in IMAGE_NAMES:
        return load_images(name, data_dir=data_dir, in_memory=choices.in_memory)
    if data_dir is not None:
        raise ValueError(
            f"`data_dir` must not be given for {name}, which is not loaded from files; "
            f"got '{data_dir}'."
        )
    return _load_digits() if name == "digits" else load_points(name)


def _check_known(name: str, choices: Choices) -> None:
    own = choices._asdict() | choices.fractions._asdict()
    for given in ("in_memory", "standardise", "fractions"):
        del own[given]
    own["condition"] = choices.condition_columns
    for given, value in own.items():
        if value is not None:
            option = f"{given}_fraction" if given in SPLITS else given
            raise ValueError(
                f"`{option}` must be left out for {name}, whose files are known; got "
                f"{value}."
            )


def _load_own(
    name: str, data_dir: str | os.PathLike | None, choices: Choices
) -> Dataset:
    if data_dir is not None:
        # The name stays that of the data, wherever they are.
        where = os.fspath(data_dir)
        if Path(where).exists():
            return load_path(Path(where), name, choices)
        if not is_function(where):
            raise FileNotFoundError(
                f"`data_dir` must be where the data of {name} are now; there is "
                f"nothing at '{where}'."
            )
        return load_function(where, choices)
    path = Path(name).expanduser()
    if name and path.exists():
        return load_path(path, name, choices)
    if is_function(name):
        return load_function(name, choices)
    if is_on_hub(name) and not path.suffix:
        try:
            root = fetch(name, DATA_FILES)
        except ConnectionError as error:
            raise ConnectionError(
                f"`dataset` must be a file or a folder, or be on the Hugging Face Hub: "
                f"there is nothing at '{name}' here, and it could not be fetched from "
                f"there ({error})."
            ) from error
        return load_path(root, name, choices)
    if path.suffix or os.sep in name:
        raise FileNotFoundError(
            f"`dataset` must be a file or a folder that exists; there is nothing at "
            f"'{name}'. It may be {KINDS}, or one of {', '.join(NAMES)}."
        )
    nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise ValueError(
        f"`dataset` must be one of {', '.join(NAMES)}, or {KINDS}; got '{name}', which "
        f"is no file or folder either.{hint}"
    )


def _as_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    if len(size) not in (1, 2) or min(size) < 1:
        raise ValueError(
            "`image_size` must be a side, or a height and a width, of at least 1; got "
            f"{image_size}."
        )
    return size[0], size[-1]


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
    of_train, of_validation, of_test = _split_digits(np.asarray(classes, np.int64))
    return Dataset(
        name="digits",
        train=train,
        validation=validation,
        test=test,
        n_levels=17,
        labels=Labels(of_train, of_validation, of_test),
    )


def _split_digits(
    examples: Shaped[np.ndarray, "_ ..."],
) -> tuple[Shaped[np.ndarray, "_ ..."], ...]:
    train, held_out = split_off(examples, 2 * _DIGITS_HELD_OUT)
    return train, *split_off(held_out, _DIGITS_HELD_OUT)
