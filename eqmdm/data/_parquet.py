"""Images out of Parquet files in the schema of the Hugging Face Hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8

from ._labels import Classes, LabelColumn, encode_labels
from ._pixels import decode_pixels, mode_of


# Fits in cache, and is far above the cost of a batch.
_BATCH = 1000
_LABEL = "label"


def find_split(folder: Path, split: str) -> list[Path]:
    """The split's files in `folder`, in order; empty if there are none.

    **Raises:**

    `ValueError` if some of a split's numbered files are missing.
    """
    files = sorted(
        [*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")]
    )
    check_complete(files)
    return files


def check_complete(files: list[Path]) -> None:
    numbered = [re.search(r"-(\d{5})-of-(\d{5})", file.name) for file in files]
    totals = {int(match[2]) for match in numbered if match}
    for total in totals:
        have = {int(match[1]) for match in numbered if match and int(match[2]) == total}
        missing = sorted(set(range(total)) - have)
        if missing or len(files) != total:
            raise ValueError(
                f"`{files[0].parent}` must hold one complete set of the files that "
                f"`{files[0].name}` belongs to; it has {len(files)} of {total}"
                + (f", without number {missing[0]}" if missing else "")
                + ". Fetch the missing files, or move away those of another set."
            )


def read_images(
    files: list[Path], *, column: str, shape: tuple[int, int, int]
) -> UInt8[np.ndarray, "n height width channels"]:
    """The images of all the files, in their order.

    **Raises:**

    `ValueError` if a file cannot be read, has no such column of images, or holds an
    image of another size or mode. The message names the file, and the row.
    """
    lengths = [check_schema(file, column) for file in files]
    images = np.empty((sum(lengths), *shape), np.uint8)
    n = 0
    # `datasets` cannot stream a file without rows.
    for file in [file for file, length in zip(files, lengths, strict=True) if length]:
        for row, encoded in enumerate(_encoded_images(file, column)):
            images[n] = decode(encoded, shape, f"Row {row} of `{file}`")
            n += 1
    return images


def read_labels(files: Mapping[str, list[Path]]) -> Classes | None:
    """The classes of all the images of each split, from the column `label`.

    `None` where a file has no such column, or a split no classes.

    **Raises:** `ValueError` as `encode_labels`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for split, paths in files.items():
        chunks, ends = [], []
        for file in paths:
            if _LABEL not in pq.read_schema(file).names:
                return None
            try:
                column = pq.read_table(file, columns=[_LABEL]).column(_LABEL)
            except (pa.ArrowException, OSError) as error:
                raise unreadable(file, error) from error
            chunks += column.chunks
            ends.append(len(column) + (ends[-1] if ends else 0))
        kinds = {str(chunk.type) for chunk in chunks}
        if len(kinds) > 1:
            raise ValueError(
                f"Column `{_LABEL}` must be of one type in all files of "
                f"`{paths[0].parent}`; it is {' and '.join(sorted(kinds))}."
            )
        place = lambda row, paths=paths, ends=ends: name_row(row, paths, ends)
        columns[split] = LabelColumn(pa.chunked_array(chunks), _LABEL, place)
    return encode_labels(columns)


def name_row(row: int, files: Sequence[Path], ends: Sequence[int]) -> str:
    """A row of several files, of which `ends` are the numbers of rows up to and with
    each."""
    file = int(np.searchsorted(ends, row, side="right"))
    start = 0 if file == 0 else ends[file - 1]
    return f"row {row - start} of `{files[file]}`"


def check_schema(file: Path, column: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            schema, n_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
    if column not in schema.names:
        columns = ", ".join(f"`{name}`" for name in schema.names)
        raise ValueError(
            f"`{file}` must have the column `{column}`, as on the Hugging Face Hub; it "
            f"has {columns}. Is it the file of another data set?"
        )
    kind = schema.field(column).type
    names = {kind.field(i).name for i in range(kind.num_fields)}
    if not pa.types.is_struct(kind) or "bytes" not in names:
        raise ValueError(
            f"Column `{column}` of `{file}` must hold encoded images, of type "
            f"struct<bytes: binary, path: string>; its type is {kind}."
        )
    return n_rows


def _encoded_images(file: Path, column: str) -> Iterator[bytes | None]:
    # Imported late: it takes seconds, and points and digits do without.
    import datasets
    import pyarrow as pa

    # Streaming reads the file where it lies. Without, a copy of every data set would be
    # written to a cache first, and a full disk or a read-only home would stop us. One
    # file at a time, because errors from below do not say which they are about.
    stream = datasets.load_dataset(
        "parquet",
        data_files=[escaped(file)],
        split="train",
        streaming=True,
        columns=[column],
    )
    try:
        for batch in stream.with_format("arrow").iter(batch_size=_BATCH):
            for image in cast(pa.Table, batch).column(column).to_pylist():
                yield None if image is None else image["bytes"]
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def escaped(file: Path) -> str:
    # `datasets` takes names for patterns.
    return re.sub(r"([*?\[])", r"[\1]", str(file.absolute()))


def unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"`{file}` must be a complete Parquet file; it cannot be read ({error}). It "
        "is probably truncated: copy or download it again."
    )


def decode(
    encoded: bytes | None, shape: tuple[int, int, int], where: str
) -> UInt8[np.ndarray, "height width channels"]:
    """An image of 8 bits and a known shape; by the rules of `decode_pixels`."""
    pixels = decode_pixels(encoded, where)
    height, width, channels = shape
    if pixels.shape != shape or pixels.dtype != np.uint8:
        mode = {1: "L", 3: "RGB"}[channels]
        raise ValueError(
            f"{where} must be an image of {width}x{height} pixels and mode {mode}; it "
            f"is {pixels.shape[1]}x{pixels.shape[0]}, {mode_of(pixels)}. Is it the "
            "file of another data set?"
        )
    return pixels
