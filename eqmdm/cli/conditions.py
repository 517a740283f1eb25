"""The conditions that programs give to a conditional model."""

from typing import Any

import numpy as np

import eqmdm
from eqmdm import nn


# The most classes that a picture shows in columns.
MOST_COLUMNS = 20


def describe(dataset: eqmdm.data.Dataset) -> dict[str, Any] | None:
    """The kind of condition of a data set as plain data, which a run records."""
    if dataset.conditions is None:
        return None
    kind = nn.condition_for(dataset.conditions.train)
    if isinstance(kind, nn.ArrayCondition):
        return {"shape": kind.shape, "mean": kind.mean, "std": kind.std}
    # A class may be absent from the training split.
    n_classes = 1 + max(int(split.max()) for split in dataset.conditions)
    labels = dataset.labels
    names = labels.names if labels is not None else None
    return {"n_classes": max(n_classes, len(names or ())), "names": names}


def kind_of(description: dict[str, Any] | None) -> Any:
    """The kind of condition that `describe` described."""
    if description is None:
        return None
    if "n_classes" in description:
        return nn.ClassCondition(description["n_classes"])
    return nn.ArrayCondition(
        description["shape"], mean=description["mean"], std=description["std"]
    )


def n_columns(kind: Any) -> int | None:
    """The number of columns of a picture of samples that has a class in each."""
    is_class = isinstance(kind, nn.ClassCondition)
    return kind.n_classes if is_class and kind.n_classes <= MOST_COLUMNS else None


def in_turn(
    kind: Any, dataset: eqmdm.data.Dataset, first: int, n: int
) -> np.ndarray | None:
    """The conditions of samples `first` to `first + n`: the classes in turn, or those
    of the test examples in turn. `None` for an unconditional model."""
    if kind is None:
        return None
    numbers = np.arange(first, first + n)
    if isinstance(kind, nn.ClassCondition):
        return numbers % kind.n_classes
    assert dataset.conditions is not None
    test = dataset.conditions.test
    return test[numbers % len(test)]


def parse_condition(
    text: str, kind: Any, labels: eqmdm.data.Labels | None
) -> np.ndarray:
    """The condition that a user wrote: the name or the number of a class, numbers
    separated by commas, or none for the missing condition.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(kind, nn.ClassCondition):
        names = (labels.names if labels is not None else None) or ()
        if text in names:
            return np.asarray(names.index(text))
        if text == "none":
            return np.asarray(-1)
        try:
            given = int(text)
        except ValueError:
            given = -1
        if not 0 <= given < kind.n_classes:
            shown = ", ".join(names[:MOST_COLUMNS]) or f"0 to {kind.n_classes - 1}"
            raise ValueError(
                f"`condition` must be a class of this run, {shown}, or none; got "
                f"{text}."
            )
        return np.asarray(given)
    if text == "none":
        return np.full(kind.shape, np.nan, np.float32)
    try:
        values = np.asarray([float(part) for part in text.split(",")], np.float32)
        return values.reshape(kind.shape)
    except ValueError as error:
        raise ValueError(
            f"`condition` must be {int(np.prod(kind.shape))} numbers separated by "
            f"commas, nan for a missing one, or none; got {text}."
        ) from error
