"""Data sets from rows: images, images that stay in their files, and tables."""

from collections.abc import Mapping

from ._arrays import Splits, cut_conditions, describe_splits, split_arrays
from ._choices import Choices, refuse
from ._columns import image_column, label_column, read_classes
from ._dataset import Dataset
from ._files import ImageFiles
from ._labels import Classes, Labels
from ._names import title
from ._pictures import encoded, name_of, read_pictures
from ._pixels import decode_pixels
from ._sources import Part, Source
from ._splits import SPLITS, cut
from ._table import read_conditions, read_table


def load_rows(source: Source, name: str, choices: Choices) -> Dataset:
    if choices.n_levels is not None:
        raise ValueError(
            f"`n_levels` must be left out for {source.where}, which is no array; got "
            f"{choices.n_levels}."
        )
    splits, left_out = _splits(source)
    first = _first(source, splits["train"])
    image = image_column(source, first, choices)
    label = label_column(source, first, choices, image)
    note = f"; splits left out: {', '.join(left_out)}" if left_out else ""
    if image is None:
        return _load_table(source, splits, label, name, choices, note)
    refuse(choices, "images", "columns")
    if not choices.in_memory:
        return _load_streamed(source, splits, image, label, name, choices, note)
    pictures = read_pictures(
        {split: source.parts[of] for split, of in splits.items()},
        image,
        is_folder=source.is_folder,
        size=choices.image_size,
    )
    wanted = choices.condition_columns
    rows = _without(source, splits, image) if label or wanted else {}
    classes = read_classes(rows, label)
    assembled = split_arrays(
        pictures.splits,
        classes=classes,
        conditions=read_conditions(source, rows, wanted),
        n_levels=pictures.n_levels,
        fractions=choices.fractions,
        standardise=False,
        where=source.where,
    )
    what = f"images in column `{image}`" if not source.is_folder else "images"
    found = f"{source.kind} {source.where}, {what}{_labelled(label, classes)}"
    found += _conditioned(wanted)
    return make_dataset(assembled, name, found, note)


def _load_table(
    source: Source,
    splits: Mapping[str, str],
    label: str | None,
    name: str,
    choices: Choices,
    note: str,
) -> Dataset:
    refuse(choices, "a table", "image_size", in_memory=True)
    rows = {split: _rows(source, of) for split, of in splits.items()}
    wanted = choices.condition_columns
    table = read_table(source, rows, choices.columns, label, wanted)
    classes = None if label is None else read_classes(rows, label)
    one_list = len(table.columns) == 1 and table.splits["train"].shape[1:] != (1,)
    assembled = split_arrays(
        table.splits,
        classes=classes,
        conditions=read_conditions(source, rows, wanted),
        n_levels=None,
        fractions=choices.fractions,
        standardise=choices.standardise,
        where=source.where,
        columns=None if one_list else table.columns,
        whole=table.whole,
    )
    integers = [c for c, whole in zip(table.columns, table.whole, strict=True) if whole]
    shown = ", ".join(table.columns[:8]) + (", ..." if len(table.columns) > 8 else "")
    found = f"{source.kind} {source.where}, columns {shown}"
    if integers:
        found += f" ({', '.join(integers[:8])} of integers, dequantised)"
    found += _labelled(label, classes) + _conditioned(wanted)
    return make_dataset(assembled, name, found, note)


def _load_streamed(
    source: Source,
    splits: Mapping[str, str],
    image: str,
    label: str | None,
    name: str,
    choices: Choices,
    note: str,
) -> Dataset:
    refuse(choices, "images that stay in their files", "image_size")
    if not source.files:
        raise ValueError(
            f"`in_memory` must be true (without --stream) but for Parquet files; "
            f"{source.where} is a {source.kind}. Write one by `datasets`: "
            "load_dataset(...).to_parquet(file)."
        )
    part, index, entry = next(
        (part, 0, part.table.column(image)[0].as_py())
        for part in source.parts[splits["train"]]()
        if len(part.table)
    )
    example = decode_pixels(encoded(entry, False), name_of(entry, part, index, False))
    files = {
        split: ImageFiles(source.files[of], column=image, image_shape=example.shape)
        for split, of in splits.items()
    }
    sizes = {split: len(images) for split, images in files.items()}
    cuts = cut(sizes, choices.fractions, source.where)
    wanted = choices.condition_columns
    rows = _without(source, splits, image) if label or wanted else {}
    classes = read_classes(rows, label)
    labels = None
    if classes is not None:
        by_split = [classes.splits[cuts[s].of][cuts[s].rows] for s in SPLITS]
        labels = Labels(*by_split, names=classes.names)
    held_out = {s: files[cuts[s].of][cuts[s].rows] for s in SPLITS[1:]}

    counts = {split: len(cuts[split].rows) for split in SPLITS}
    assembled = Splits(
        train=files["train"].take(cuts["train"].rows),
        **held_out,
        n_levels=256,
        labels=labels,
        conditions=cut_conditions(read_conditions(source, rows, wanted), cuts),
        standardisation=None,
        description=describe_splits(counts, splits),
    )
    found = f"{source.kind} {source.where}, images in column `{image}`, not in memory"
    found += _labelled(label, classes) + _conditioned(wanted)
    return make_dataset(assembled, name, found, note)


def make_dataset(splits: Splits, name: str, found: str, note: str) -> Dataset:
    shape = "x".join(map(str, splits.train.shape[1:]))
    levels = "" if splits.n_levels is None else f", {splits.n_levels:,} levels"
    return Dataset(
        name=title(name),
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        n_levels=splits.n_levels,
        labels=splits.labels,
        conditions=splits.conditions,
        standardisation=splits.standardisation,
        description=f"{found}; examples of {shape}{levels}; {splits.description}{note}",
    )


def _labelled(label: str | None, classes: Classes | None) -> str:
    if label is None:
        return ", no labels"
    if classes is None:
        return f", column `{label}` holds no labels"
    names = classes.names
    n = len(names) if names else 1 + max(int(c.max()) for c in classes.splits.values())
    return f", {n} classes in column `{label}`"


def _conditioned(columns: tuple[str, ...] | None) -> str:
    return "" if columns is None else f", conditions in {', '.join(columns)}"


def _splits(source: Source) -> tuple[dict[str, str], list[str]]:
    """The name in the source of each of the three splits, and what else it has."""
    given = [str(split) for split in source.parts]
    found = {split: split for split in SPLITS if split in given}
    if "train" not in found:
        if len(given) != 1:
            raise ValueError(
                f"{source.where} must have a split called train, or one alone; it has "
                f"{', '.join(given)}."
            )
        found = {"train": given[0]}
    return found, [split for split in given if split not in found.values()]


def _first(source: Source, split: str) -> Part:
    first = next((p for p in source.parts[split]() if len(p.table)), None)
    if first is None:
        raise ValueError(
            f"{source.where} must hold examples; its {split} split has 0 rows."
        )
    return first


def _rows(source: Source, split: str) -> list[Part]:
    rows = [part for part in source.parts[split]() if len(part.table)]
    if not rows:
        raise ValueError(
            f"{source.where} must hold examples; its {split} split has 0 rows."
        )
    return rows


def _without(
    source: Source, splits: Mapping[str, str], column: str
) -> dict[str, list[Part]]:
    """All rows, but for a column that may be large."""
    dropped = lambda part: part._replace(table=part.table.drop_columns([column]))
    return {
        split: [dropped(part) for part in source.parts[of]() if len(part.table)]
        for split, of in splits.items()
    }
