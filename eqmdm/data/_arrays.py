"""Examples in arrays: what they are, and their three splits."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from .._core.checks import as_examples, check_finite, check_points
from ._labels import Classes, Conditions, LabelColumn, Labels, encode_labels
from ._splits import SPLITS, Cut, Fractions, cut
from ._standardise import Standardisation, standardisation


# The levels of unsigned integers, for which no number need be given.
_LEVELS = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65_536}
_MOST_CHANNELS = 4
# The names of the arrays of an archive, after lower case; Keras has the second.
_EXAMPLES = {
    "train": ("train", "x_train", "train_images"),
    "validation": ("validation", "x_validation", "valid", "val", "x_val", "val_images"),
    "test": ("test", "x_test", "test_images"),
}
_LABELS = {
    "train": ("labels", "y", "train_labels", "y_train"),
    "validation": ("validation_labels", "y_validation", "val_labels", "y_val"),
    "test": ("test_labels", "y_test"),
}
_CONDITIONS = {
    "train": ("conditions", "train_conditions"),
    "validation": ("validation_conditions", "val_conditions"),
    "test": ("test_conditions",),
}


class Splits(NamedTuple):
    """What a `Dataset` is made of, and what was done to get it."""

    train: Any
    validation: Any
    test: Any
    n_levels: int | None
    labels: Labels | None
    conditions: Conditions | None
    standardisation: Standardisation | None
    description: str


class Arrays(NamedTuple):
    """The arrays of a file: examples, labels and conditions by split."""

    examples: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    conditions: dict[str, np.ndarray]


def read_arrays(path: Path) -> Arrays:
    """The arrays of an `.npy` or `.npz` file, or of a folder of `.npy` files that are
    called after their splits.

    **Raises:** `ValueError` for a file that is damaged, or holds pickled objects, and
    for an archive whose names say nothing.
    """
    if path.is_dir():
        found = {file.stem: _read(file) for file in sorted(path.glob("*.npy"))}
    elif path.suffix.lower() == ".npz":
        found = _read(path)
    else:
        return Arrays({"train": _read(path)}, {}, {})
    by_name = {name.lower(): name for name in found}
    pick = lambda table: {
        split: found[by_name[name]]
        for split, names in table.items()
        for name in names[::-1]
        if name in by_name
    }
    tables = _EXAMPLES, _LABELS, _CONDITIONS
    examples, labels, conditions = (pick(table) for table in tables)
    known = {name for table in tables for n in table.values() for name in n}
    unknown = [name for name in found if name.lower() not in known]
    if not examples and len(unknown) == 1:
        examples = {"train": found[unknown[0]]}
    elif "train" not in examples:
        raise ValueError(
            f"`{path}` must hold one array beside labels, or those named train, "
            f"validation and test; it holds {', '.join(found) or 'none'}. Name them "
            "so, as in np.savez(file, train=x, labels=y)."
        )
    return Arrays(examples, labels, conditions)


def _read(path: Path) -> Any:
    try:
        # Opened here: NumPy leaves an archive that it cannot read open.
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            return {name: loaded[name] for name in loaded.files}
    # What NumPy raises for a file that is cut off, empty, or of something else.
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise ValueError(
            f"`{path}` must be a complete array file of numbers (.npy, .npz); it "
            f"cannot be read ({reason}). Save it again by numpy.save, without objects."
        ) from error


def split_arrays(
    examples: Mapping[str, Any],
    *,
    classes: Classes | None,
    conditions: Mapping[str, Any] | None = None,
    n_levels: int | None,
    fractions: Fractions,
    standardise: bool,
    where: str,
    columns: tuple[str, ...] | None = None,
    whole: tuple[bool, ...] | None = None,
) -> Splits:
    """The three splits of examples: cut where they are not given, and standardised by
    the training examples where they are points.

    **Raises:** `TypeError` for what is no array of real numbers; `ValueError` for
    shapes that differ, values that are missing, and integers without a number of
    levels.
    """
    arrays = {name: as_examples(name, value) for name, value in examples.items()}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    n_levels = find_levels(arrays["train"], n_levels)
    shaped = {
        name: _shaped(name, array, n_levels is not None)
        for name, array in arrays.items()
    }
    check_shapes({name: array.shape[1:] for name, array in shaped.items()}, where)
    if n_levels is None:
        for name, array in shaped.items():
            check_points(name, array, "n_levels")
            check_finite(name, array)
    cuts = cut({name: len(array) for name, array in shaped.items()}, fractions, where)
    _check_labels(classes, shaped)
    _check_conditions(conditions, shaped, where)
    splits = {name: shaped[c.of][c.rows] for name, c in cuts.items()}
    scale = None
    if n_levels is None and standardise:
        mask = None if whole is None or not any(whole) else _as_mask(whole, splits)
        scale = standardisation(splits["train"], where, columns=columns, whole=mask)
        splits = {name: scale.forward(array) for name, array in splits.items()}
    labels = None
    if classes is not None:
        by_split = [classes.splits[cuts[name].of][cuts[name].rows] for name in SPLITS]
        labels = Labels(*by_split, names=classes.names)
    description = describe_splits({name: len(splits[name]) for name in SPLITS}, arrays)
    if scale is not None:
        description += ", standardised by the training split"
    return Splits(
        **splits,
        n_levels=n_levels,
        labels=labels,
        conditions=cut_conditions(conditions, cuts),
        standardisation=scale,
        description=description,
    )


def cut_conditions(
    conditions: Mapping[str, Any] | None, cuts: Mapping[str, Cut]
) -> Conditions | None:
    """The conditions of the three splits, from those of the splits that are given."""
    if conditions is None:
        return None
    return Conditions(
        *(np.asarray(conditions[cuts[s].of])[cuts[s].rows] for s in SPLITS)
    )


def find_levels(array: np.ndarray, n_levels: int | None) -> int | None:
    """The number of grey levels of integers; `None` for floats."""
    if n_levels is not None or not np.issubdtype(array.dtype, np.integer):
        return n_levels
    if array.dtype not in _LEVELS:
        raise TypeError(
            "`n_levels` must be given for integers, which have no density unless they "
            "are grey levels from 0 to `n_levels - 1`; only uint8 and uint16 are taken "
            f"for those of 8 and 16 bits. Got {array.dtype}. Convert what is "
            "continuous to floats."
        )
    return _LEVELS[array.dtype]


def check_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """**Raises:** `ValueError` unless examples have one shape in all splits."""
    for name, shape in shapes.items():
        if shape != shapes["train"]:
            raise ValueError(
                f"Examples must have one shape in all splits of {where}; those of "
                f"train have {shapes['train']}, those of {name} {shape}."
            )


def describe_splits(sizes: Mapping[str, int], given: Mapping[str, Any]) -> str:
    """The sizes of the splits, and which of them were cut from the training one."""
    counts = ", ".join(f"{sizes[name]:,} {name}" for name in SPLITS)
    absent = [name for name in SPLITS if name not in given]
    if not absent:
        return counts
    return f"{counts} ({' and '.join(absent)} cut from train by a fixed choice)"


def array_labels(
    labels: Mapping[str, Any], examples: Mapping[str, Any], where: str
) -> Classes | None:
    """The classes in arrays of integers or strings, one for each split of examples.

    **Raises:** `ValueError` where they do not go with the examples.
    """
    import pyarrow as pa

    if not labels:
        return None
    absent = [name for name in examples if name not in labels]
    if absent:
        raise ValueError(
            f"`labels` must be given for each split of {where}; there are none for "
            f"{absent[0]}."
        )
    columns = {}
    for name, value in labels.items():
        value = np.asarray(value)
        if value.ndim == 2 and value.shape[1] == 1:
            # As Keras has them.
            value = value[:, 0]
        if value.ndim != 1:
            raise ValueError(
                f"`labels` must have one axis, with a class for each example; those of "
                f"{name} have shape {value.shape}."
            )
        place = lambda row, name=name: f"example {row} of {name} in {where}"
        columns[name] = LabelColumn(pa.chunked_array([value.tolist()]), "labels", place)
    return encode_labels(columns)


def _check_labels(classes: Classes | None, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if classes is not None and len(classes.splits[name]) != len(array):
            raise ValueError(
                "`labels` must hold one for each example; there are "
                f"{len(classes.splits[name]):,} for the {len(array):,} of {name}."
            )


def _check_conditions(
    conditions: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray], where: str
) -> None:
    for name, array in arrays.items():
        if conditions is None:
            continue
        if name not in conditions or len(conditions[name]) != len(array):
            n = len(conditions.get(name, ()))
            raise ValueError(
                f"`conditions` must hold one for each example of {where}; there are "
                f"{n:,} for the {len(array):,} of {name}."
            )


def _shaped(
    name: str, array: Shaped[np.ndarray, "n ..."], of_levels: bool
) -> np.ndarray:
    """Numbers as points of one coordinate, and grey images with a channel."""
    if array.ndim == 1:
        return array[:, None]
    if of_levels and array.ndim == 3:
        return array[..., None]
    if (
        of_levels
        and array.ndim == 4
        and array.shape[-1] > _MOST_CHANNELS >= array.shape[1]
    ):
        raise ValueError(
            f"`{name}` must hold images of (height, width, channels), channels last; "
            f"got {array.shape[1:]}. Move the axis by numpy.moveaxis(x, 1, -1)."
        )
    return array


def _as_mask(whole: tuple[bool, ...], splits: Mapping[str, np.ndarray]) -> np.ndarray:
    shape = splits["train"].shape[1:]
    return np.broadcast_to(np.asarray(whole), shape)
