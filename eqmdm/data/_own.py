"""A data set of the user's own, from a path, the Hub or a function."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core.own import find_own
from ._arrays import array_labels, read_arrays, split_arrays
from ._choices import NO_LABELS, Choices, refuse
from ._dataset import Dataset
from ._rows import load_rows, make_dataset
from ._sources import KINDS, open_source
from ._splits import SPLITS


_ARRAY_FILES = (".npy", ".npz")
_IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def load_path(path: Path, name: str, choices: Choices) -> Dataset:
    """The data in a file or a folder."""
    is_array = path.suffix.lower() in _ARRAY_FILES
    if is_array or (path.is_dir() and any(path.glob("*.npy"))):
        return _load_arrays(path, name, choices)
    if path.suffix.lower() in _IMAGE_FILES and path.is_file():
        raise ValueError(
            f"`dataset` must be {KINDS}; `{path}` is a single image. Give the folder "
            "that it is in."
        )
    return load_rows(open_source(path, choices.configuration), name, choices)


def load_function(name: str, choices: Choices) -> Dataset:
    """What a function of the user returns: a `Dataset`, or arrays of one."""
    function = find_own(name, argument="dataset", kind="a function")
    if not callable(function):
        raise ValueError(
            "`dataset` must be a function as module:name; got "
            f"{name}, which is {type(function).__name__}."
        )
    returned = function()
    if isinstance(returned, Dataset):
        if choices.condition_columns is not None and returned.conditions is None:
            raise ValueError(
                f"`condition` must be label, or left out, for {name}, whose `Dataset` "
                f"has no conditions; got {', '.join(choices.condition_columns)}."
            )
        return returned
    examples = returned if isinstance(returned, Mapping) else {"train": returned}
    labels, conditions = {}, {}
    if isinstance(returned, tuple) and 1 <= len(returned) <= 3:
        examples = dict(zip(SPLITS, returned, strict=False))
    unknown = sorted(set(examples) - {*SPLITS, "labels", "conditions"})
    if unknown or "train" not in examples:
        raise ValueError(
            f"{name} must return a Dataset, an array of examples, a tuple of up to "
            "three arrays, or a dictionary of arrays named train, validation, test, "
            f"labels and conditions; got {', '.join(map(str, examples))}."
        )
    examples = dict(examples)
    if "labels" in examples:
        labels = {"train": examples.pop("labels")}
    if "conditions" in examples:
        conditions = {"train": examples.pop("conditions")}
    return _of_arrays(
        examples, labels, conditions, f"`{name}`", "function", name, choices
    )


def _load_arrays(path: Path, name: str, choices: Choices) -> Dataset:
    refuse(choices, "an array", "image_column", "columns", "image_size")
    refuse(choices, "an array", "configuration")
    examples, labels, conditions = read_arrays(path)
    if choices.label_column == NO_LABELS:
        labels = {}
    return _of_arrays(examples, labels, conditions, f"`{path}`", "array", name, choices)


def _of_arrays(
    examples: Mapping[str, Any],
    labels: Mapping[str, Any],
    conditions: Mapping[str, Any],
    where: str,
    kind: str,
    name: str,
    choices: Choices,
) -> Dataset:
    refuse(choices, f"an {kind}" if kind == "array" else f"a {kind}", in_memory=True)
    wanted = choices.condition_columns
    if wanted is not None and wanted != ("conditions",):
        raise ValueError(
            "`condition` must be label or conditions, the names of arrays, for "
            f"{where}; got {', '.join(wanted)}."
        )
    if wanted is not None and not conditions:
        raise ValueError(
            f"`condition` must not be conditions for {where}, which has no array of "
            "that name."
        )
    splits = split_arrays(
        examples,
        classes=array_labels(labels, examples, where),
        conditions=conditions if wanted else None,
        n_levels=choices.n_levels,
        fractions=choices.fractions,
        standardise=choices.standardise,
        where=where,
    )
    return make_dataset(splits, name, f"{kind} {where}", "")
