"""The columns of images and of classes among the columns of some rows."""

from collections.abc import Mapping
from typing import Any

from ._choices import NO_LABELS, Choices
from ._labels import Classes, LabelColumn, encode_labels
from ._sources import Part, Source, column_of, where


# Columns that hold labels unless another is named; the Hub's data sets have these.
_LABEL_COLUMNS = ("label", "labels", "class")


def image_column(source: Source, part: Part, choices: Choices) -> str | None:
    import datasets
    import pyarrow as pa

    is_image = lambda name, feature: (
        isinstance(feature, datasets.Image)
        or (
            pa.types.is_struct(part.table.schema.field(name).type)
            and part.table.schema.field(name).type.get_field_index("bytes") >= 0
        )
    )
    features = _features(part)
    images = [name for name in features if is_image(name, features[name])]
    given = choices.image_column
    if given is not None and given not in images:
        has = ", ".join(f"`{name}`" for name in images or part.table.column_names)
        what = "its columns of images are" if images else "it has none; it has"
        raise ValueError(
            f"`image_column` must name a column of images of {source.where}; {what} "
            f"{has}, and no images in `{given}`."
        )
    if given is None and choices.columns is None and len(images) > 1:
        raise ValueError(
            f"`image_column` must name one of the columns of images of {source.where}: "
            f"{', '.join(images)}."
        )
    if given is None and choices.columns is not None:
        return None
    return given or (images[0] if images else None)


def label_column(
    source: Source, part: Part, choices: Choices, image: str | None
) -> str | None:
    import datasets

    given, present = choices.label_column, part.table.column_names
    if given == NO_LABELS and NO_LABELS not in present:
        return None
    if given is not None:
        if given not in present:
            raise ValueError(
                f"`label_column` must be a column of {source.where}, or none; it has "
                f"{', '.join(present)}, and no `{given}`."
            )
        return given
    taken = {image, *(choices.columns or ())}
    features = _features(part)
    named = [name for name in _LABEL_COLUMNS if name in present and name not in taken]
    classes = [n for n in features if isinstance(features[n], datasets.ClassLabel)]
    if named:
        return named[0]
    if len(classes) > 1:
        raise ValueError(
            f"`label_column` must name one of the columns of classes of "
            f"{source.where}, or none: {', '.join(classes)}."
        )
    return classes[0] if classes else None


def read_classes(rows: Mapping[str, list[Part]], label: str | None) -> Classes | None:
    import datasets
    import pyarrow as pa

    if label is None:
        return None
    columns, names = {}, None
    for split, parts in rows.items():
        try:
            chunks = [c for p in parts for c in column_of(p, label).chunks]
            values = pa.chunked_array(chunks)
        except pa.ArrowException as error:
            raise ValueError(
                f"`label_column` must be of one type in all files and splits; "
                f"`{label}` of {split} is not ({str(error).splitlines()[0]})."
            ) from error
        feature = _features(parts[0])[label]
        if isinstance(feature, datasets.ClassLabel):
            names = tuple(feature.names)
        place = lambda row, parts=parts: where(parts, row)
        columns[split] = LabelColumn(values, label, place)
    return encode_labels(columns, names)


def _features(part: Part) -> Any:
    import datasets

    return datasets.Features.from_arrow_schema(part.table.schema)
