"""Numeric columns of a table as points."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ._sources import Part, Source, column_of, where


_N_NAMED = 8
# What `csv` calls a column without a name, before its number.
_UNNAMED = "Unnamed: "


class Table(NamedTuple):
    """The values of each split, and which of the columns are integers."""

    columns: tuple[str, ...]
    splits: dict[str, Float[np.ndarray, "n *shape"]]
    whole: tuple[bool, ...]


def read_table(
    source: Source,
    rows: Mapping[str, list[Part]],
    chosen: Sequence[str] | None,
    label_column: str | None,
    condition: Sequence[str] | None = None,
) -> Table:
    """The columns that are named, or all but those of labels and conditions, in
    float64.

    A column of lists of one shape, if it is the only one, gives examples of that shape.
    A column is one of integers if it is in all splits; see `Standardisation`.

    **Raises:**

    `ValueError`, which names file, row and column, for a column that is not there or is
    not of numbers, and for values that are missing or not finite.
    """
    given = tuple(chosen) if chosen else None
    left_out = {label_column, *(condition or ())}
    names = {split: parts[0].table.column_names for split, parts in rows.items()}
    rest = tuple(name for name in names["train"] if name not in left_out)
    columns = given or rest
    unnamed = [name for name in columns if name.startswith(_UNNAMED)]
    if given is None and unnamed:
        raise ValueError(
            f"Columns must have names; that of number {unnamed[0].split()[-1]} of "
            f"{source.where} has none. If it is an index of pandas, write the file by "
            "to_csv(index=False), or name the columns to use with `columns`."
        )
    if len(columns) == 0:
        raise ValueError(f"{source.where} must have a column beside the labels.")
    for split, present in names.items():
        absent = [name for name in columns if name not in present]
        if absent:
            raise ValueError(
                f"`columns` must name columns of {source.where}; its {split} split has "
                f"no `{absent[0]}`. It has {_listed(present)}."
            )
    whole = {
        name: all(
            _is_integer(column_of(part, name).type)
            for parts in rows.values()
            for part in parts
        )
        for name in columns
    }
    read = lambda parts: {
        name: _numbers(parts, name, given is None) for name in columns
    }
    values = {split: read(parts) for split, parts in rows.items()}
    for i, (split, by_name) in enumerate(values.items()):
        # RandomState, because NumPy promises that its numbers never change.
        random = np.random.RandomState(i)
        for name in columns:
            if whole[name]:
                _dequantise(by_name[name], random)
        ndims = {name: column.ndim for name, column in by_name.items()}
        if len(columns) > 1 and max(ndims.values()) > 1:
            lists = [name for name, ndim in ndims.items() if ndim > 1]
            raise ValueError(
                f"`columns` must name one column of lists, or several of numbers, of "
                f"{source.where}; `{lists[0]}` holds lists, beside others in {split}."
            )
    stacked = {
        split: by_name[columns[0]]
        if by_name[columns[0]].ndim > 1
        else np.stack([by_name[name] for name in columns], axis=1)
        for split, by_name in values.items()
    }
    return Table(columns, stacked, tuple(whole[name] for name in columns))


def read_conditions(
    source: Source, rows: Mapping[str, list[Part]], names: Sequence[str] | None
) -> dict[str, Float[np.ndarray, "n columns"]] | None:
    """The columns of numbers that examples are conditioned on, in float32.

    **Raises:** `ValueError` as for `read_table`.
    """
    if names is None:
        return None
    read = {}
    for split, parts in rows.items():
        present = parts[0].table.column_names
        absent = [name for name in names if name not in present]
        if absent:
            raise ValueError(
                f"`condition` must be label, or name columns of {source.where}; its "
                f"{split} split has no `{absent[0]}`. It has {_listed(present)}."
            )
        columns = [_numbers(parts, name, False) for name in names]
        lists = [n for n, c in zip(names, columns, strict=True) if c.ndim > 1]
        if lists and len(names) > 1:
            raise ValueError(
                f"`condition` must name one column of lists, or several of numbers, of "
                f"{source.where}; `{lists[0]}` holds lists."
            )
        stacked = columns[0] if lists else np.stack(columns, axis=1)
        read[split] = stacked.astype(np.float32)
    return read


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_N_NAMED])
    more = len(names) - _N_NAMED
    return shown + (f" and {more} more" if more > 0 else "")


def _dequantise(values: Float[np.ndarray, "..."], random: Any) -> None:
    values += random.random_sample(values.shape)


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    kind = _stored(kind)
    while _is_list(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind)


def _stored(kind: Any) -> Any:
    """The type that an extension, such as an array of `datasets`, is stored as."""
    import pyarrow as pa

    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(check(kind) for check in is_list)


def _numbers(parts: list[Part], name: str, is_default: bool) -> np.ndarray:
    """The values of a column in float64."""
    found, start = [], 0
    for part in parts:
        column = column_of(part, name)
        if len(column):
            found.append(_of_part(column, parts, start, name, is_default))
        start += len(column)
    shapes = {values.shape[1:] for values in found}
    if len(shapes) > 1:
        raise ValueError(
            f"Column `{name}` of {where(parts, 0)} must hold lists of one shape in all "
            f"files; got {' and '.join(map(str, sorted(shapes)))}."
        )
    return np.concatenate(found)


def _of_part(
    column: Any, parts: list[Part], start: int, name: str, is_default: bool
) -> np.ndarray:
    import pyarrow as pa

    place = lambda row: f"Column `{name}` of {where(parts, start + int(row))}"
    kind = column.type
    if column.null_count:
        row = np.argmax(np.asarray(column.is_null()))
        raise ValueError(
            f"{place(row)} must hold a number; the value is missing. Fill it in, or "
            "leave out the row or the column."
        )
    if _is_list(_stored(kind)):
        values = _of_lists(column.to_pylist(), place)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.to_numpy().astype(np.float64)
    elif pa.types.is_decimal(kind):
        values = np.asarray(column.to_pylist(), np.float64)
    else:
        raise ValueError(_not_numbers(column, place, is_default))
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        bad = np.ravel(values[row])
        bad = bad[~np.isfinite(bad)][0]
        raise ValueError(
            f"{place(row)} must hold a finite number; it holds {bad}. Fill it in, or "
            "leave out the row or the column."
        )
    return values


def _of_lists(lists: list[Any], place: Any) -> np.ndarray:
    first = None
    rows = []
    for row, entries in enumerate(lists):
        try:
            values = np.asarray(entries, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place(row)} must hold a list of numbers, nested to one shape; "
                f"{str(error).splitlines()[0]}."
            ) from error
        first = values.shape if first is None else first
        if values.shape != first:
            raise ValueError(
                f"{place(row)} must hold a list of the shape of the first, {first}; "
                f"got {values.shape}. Pad or cut them to one shape."
            )
        rows.append(values)
    return np.stack(rows)


def _not_numbers(column: Any, place: Any, is_default: bool) -> str:
    values = column.to_pylist()
    row = next((i for i, value in enumerate(values) if not _is_number(value)), 0)
    hint = " Name the columns to use with `columns`, or mend the value."
    if not is_default:
        hint = " Mend the value, or leave the column out of `columns`."
    shown = repr(values[row])
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    what = f"{shown} of type {column.type}"
    return f"{place(row)} must hold a number; it holds {what}.{hint}"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)
