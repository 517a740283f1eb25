"""The classes of examples."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The class of each example of the three splits, counted from 0.

    Iterating gives the three splits in order.

    **Arguments:**

    - `train`, `validation`, `test`: an integer for each example.
    - `names`: what the classes are called, where that is known.
    """

    # Of any shape and type until a `Dataset` has checked them.
    train: Shaped[np.ndarray, "..."]
    validation: Shaped[np.ndarray, "..."]
    test: Shaped[np.ndarray, "..."]
    names: tuple[str, ...] | None = None

    def __iter__(self) -> Iterator[Shaped[np.ndarray, "..."]]:
        return iter((self.train, self.validation, self.test))


@dataclasses.dataclass(frozen=True, eq=False)
class Conditions:
    """The condition of each example of the three splits, for conditional models.

    Iterating gives the three splits in order.

    **Arguments:**

    - `train`, `validation`, `test`: classes, or arrays of numbers, along their first
        axis.
    """

    # Of any shape and type until a `Dataset` has checked them.
    train: Shaped[np.ndarray, "..."]
    validation: Shaped[np.ndarray, "..."]
    test: Shaped[np.ndarray, "..."]

    def __iter__(self) -> Iterator[Shaped[np.ndarray, "..."]]:
        return iter((self.train, self.validation, self.test))


class LabelColumn(NamedTuple):
    """A column of labels as it is stored, and the name of each of its rows."""

    values: Any
    """A chunked array of Arrow."""
    name: str
    where: Callable[[int], str]
    """The row and its file, for errors."""


class Classes(NamedTuple):
    """The classes of each split, and their names where they are known."""

    splits: dict[str, Int64[np.ndarray, " _"]]
    names: tuple[str, ...] | None


def encode_labels(
    columns: Mapping[str, LabelColumn], names: tuple[str, ...] | None = None
) -> Classes | None:
    """The classes in the columns of several splits; `None` where a split has none.

    Integers are the classes; strings become them in alphabetical order, over all
    splits. A split has no classes if all its labels are null, or -1 as on the Hub.

    **Raises:**

    `ValueError`, which names file, row and column, for labels of another type, some
    that are null, or integers that are negative.
    """
    import pyarrow as pa

    columns = {split: column for split, column in columns.items() if column.values}
    for column in columns.values():
        kind = column.values.type
        if pa.types.is_null(kind):
            continue
        if not (pa.types.is_integer(kind) or _is_text(kind)):
            raise ValueError(
                f"Column `{column.name}` of {column.where(0)} must hold labels that "
                f"are integers or strings; its type is {kind}. Convert it, name "
                "another column with `label_column`, or none."
            )
    if any(_is_without(column.values) for column in columns.values()):
        return None
    for column in columns.values():
        _check_null(column)
    texts = {split: _is_text(column.values.type) for split, column in columns.items()}
    if len(set(texts.values())) > 1:
        (split, column), *_ = ((s, c) for s, c in columns.items() if texts[s])
        raise ValueError(
            f"Column `{column.name}` of {column.where(0)} must hold labels of one "
            f"type in all splits; it holds strings in {split} and integers in others."
        )
    if any(texts.values()):
        values = {split: column.values.to_pylist() for split, column in columns.items()}
        names = tuple(sorted({text for texts in values.values() for text in texts}))
        number = {name: i for i, name in enumerate(names)}
        numbered = {s: [number[text] for text in v] for s, v in values.items()}
        return Classes({s: np.asarray(v, np.int64) for s, v in numbered.items()}, names)
    splits = {s: c.values.to_numpy().astype(np.int64) for s, c in columns.items()}
    for split, classes in splits.items():
        if classes.min() < 0:
            row, column = int(np.argmin(classes)), columns[split]
            raise ValueError(
                f"Column `{column.name}` of {column.where(row)} must hold labels of at "
                f"least 0; got {classes[row]}. Leave out the examples without a class, "
                "or name none with `label_column`."
            )
    return Classes(splits, names)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_without(values: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if values.null_count == len(values):
        return True
    return pa.types.is_integer(values.type) and bool(
        pc.call_function("all", [pc.call_function("equal", [values, -1])]).as_py()
        and not values.null_count
    )


def _check_null(column: LabelColumn) -> None:
    if not column.values.null_count:
        return
    row = int(np.argmax(np.asarray(column.values.is_null())))
    raise ValueError(
        f"Column `{column.name}` of {column.where(row)} must hold a label; it is null. "
        "Leave the row out, or give it a class."
    )
