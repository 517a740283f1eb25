"""Rows of files and folders, as the builders of `datasets` read them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from ._parquet import check_complete, escaped


# Rows at a time: their images fit in cache.
_BATCH = 1000
# Characters of an error from below.
_MOST_SHOWN = 300
# What the builders call themselves, and the names of files that each reads.
_SUFFIXES = {
    "parquet": (".parquet",),
    "csv": (".csv", ".tsv"),
    "json": (".jsonl", ".json", ".ndjson"),
    "arrow": (".arrow",),
}
# A file is read as a whole, so that a column has one type in all of it: `csv` infers it
# anew for each chunk. `json` reads blocks of a 32nd of one, which 2**31 limits.
_WHOLE: dict[str, dict[str, Any]] = {
    "csv": {"chunksize": 2**40},
    "json": {"chunksize": 2**34},
}
KINDS = (
    "a folder of images (the folders in it are their classes), a Parquet, CSV, JSON "
    "lines or Arrow file or a folder of these, a directory saved by `datasets`, an "
    "array (.npy, .npz), a data set of the Hugging Face Hub (org/name) or a function "
    "(module:function)"
)


class Part(NamedTuple):
    """Some rows of a file, of which `start` is the number of the first."""

    table: Any
    file: str
    start: int


class Source(NamedTuple):
    """The rows of each split."""

    kind: str
    """What it is, in words."""
    path: Path
    parts: Mapping[str, Callable[[], Iterator[Part]]]
    is_folder: bool
    """Whether images are files of their own, which rows name."""
    files: Mapping[str, list[Path]]
    """The Parquet files of each split; none for other sources."""

    @property
    def where(self) -> str:
        return f"`{self.path}`"


def open_source(path: Path, configuration: str | None = None) -> Source:
    """The rows of a file, or of a folder whose files and splits `datasets` finds.

    **Raises:** `ValueError` for a kind of file that is not read, `FileNotFoundError`
    for a folder without any.
    """
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved(path)
        return _folder(path, configuration)
    if configuration is not None:
        raise ValueError(
            "`configuration` must be left out for a file; got "
            f"{configuration!r} for `{path}`."
        )
    for builder, suffixes in _SUFFIXES.items():
        if path.suffix.lower() in suffixes:
            return _of_files(builder, path, {"train": [path]})
    raise ValueError(
        f"`dataset` must be {KINDS}; `{path}` is a file that ends in '{path.suffix}'."
    )


def read(parts: Callable[[], Iterator[Part]]) -> list[Part]:
    """All the rows of a split, in memory."""
    return list(parts())


def column_of(part: Part, name: str) -> Any:
    """A column of some rows.

    **Raises:** `ValueError`, which names the file, where another file has it alone.
    """
    if name not in part.table.column_names:
        raise ValueError(
            f"`{part.file}` must have the column `{name}`, as the first file has; it "
            f"has {', '.join(part.table.column_names)}."
        )
    return part.table.column(name)


def where(parts: list[Part], row: int) -> str:
    """The place of a row of a split, for errors."""
    for part in parts:
        if row < len(part.table):
            return f"row {part.start + row} of `{part.file}`"
        row -= len(part.table)
    return "no row"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what `datasets` logs of an error before it raises it."""
    from datasets.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _folder(path: Path, configuration: str | None) -> Source:
    import datasets
    from datasets.exceptions import DatasetsError

    if set("*?[") & set(str(path.absolute())):
        raise ValueError(
            f"`dataset` must be a folder whose path has none of *, ? and [, which "
            f"`datasets` takes for a pattern; got `{path}`. Rename it."
        )
    given = "" if configuration is None else f" with configuration={configuration!r}"
    try:
        with quietly():
            builder = datasets.load_dataset_builder(str(path.absolute()), configuration)
    except (ValueError, RuntimeError, OSError, DatasetsError) as error:
        raise FileNotFoundError(
            f"`dataset` must be {KINDS}; in the folder `{path}`{given} `datasets` "
            f"finds none of these ({_in_one_line(error)})."
        ) from error
    found: Any = builder.config.data_files or {}
    names = {str(split): [Path(file) for file in found[split]] for split in found}
    name = str(builder.name)
    if name == "imagefolder":
        # Not the builder's own stream: its classes are those of all the splits.
        stream = lambda split: lambda: _images(path, configuration, split)
        splits = {split: stream(split) for split in names}
        return Source("a folder of images", path, splits, True, {})
    if name not in _SUFFIXES:
        raise ValueError(
            f"`dataset` must be {KINDS}; the folder `{path}` is of {name} files."
        )
    return _of_files(name, path, names)


def _of_files(builder: str, path: Path, files: dict[str, list[Path]]) -> Source:
    def stream(paths: list[Path]) -> Callable[[], Iterator[Part]]:
        return lambda: (part for file in paths for part in _stream(builder, file))

    for paths in files.values():
        check_complete(paths)
    titles = {"parquet": "Parquet", "csv": "CSV", "json": "JSON", "arrow": "Arrow"}
    n = sum(map(len, files.values()))
    kind = f"{titles[builder]} file" if n == 1 else f"{n} {titles[builder]} files"
    splits = {split: stream(paths) for split, paths in files.items()}
    return Source(kind, path, splits, False, files if builder == "parquet" else {})


def _stream(builder: str, file: Path) -> Iterator[Part]:
    """The rows of one file: errors from below do not say which they are about."""
    import datasets
    import pyarrow as pa

    if not file.exists():
        raise FileNotFoundError(f"`{file}` must be a file; there is none.")
    if file.stat().st_size == 0:
        raise ValueError(
            f"`{file}` must hold examples; it is empty (0 bytes). Copy or download it "
            "again."
        )
    start = 0
    settings: dict[str, Any] = _WHOLE.get(builder, {})
    if file.suffix.lower() == ".tsv":
        settings = settings | {"sep": "\t"}
    try:
        with quietly():
            # Streaming reads the file where it lies, and keeps no copy of it that could
            # be older than the file.
            stream = datasets.load_dataset(
                builder,
                data_files=[escaped(file)],
                split="train",
                streaming=True,
                **settings,
            )
            batches = stream.with_format("arrow").iter(batch_size=_BATCH)
            for batch in batches:
                table = cast(pa.Table, batch)
                yield Part(table, str(file), start)
                start += len(table)
    # pandas raises kinds of ValueError, Arrow its own.
    except (ValueError, pa.ArrowException, OSError) as error:
        raise ValueError(
            f"`{file}` must be a complete {builder} file; it cannot be read beyond row "
            f"{start} ({_in_one_line(error)}). Mend it, or copy or download it again."
        ) from error


def _images(path: Path, configuration: str | None, split: str) -> Iterator[Part]:
    import datasets
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    start = 0
    try:
        with quietly():
            stream: Any = datasets.load_dataset(
                str(path.absolute()), configuration, split=split, streaming=True
            )
            for batch in stream.with_format("arrow").iter(batch_size=_BATCH):
                table = cast(pa.Table, batch)
                yield Part(table, str(path), start)
                start += len(table)
    except (ValueError, pa.ArrowException, DatasetsError) as error:
        raise ValueError(
            f"`{path}` must be a folder of images, whose folders are classes, all at "
            f"one depth; `datasets` cannot read it ({_in_one_line(error)})."
        ) from error


def _saved(path: Path) -> Source:
    import datasets
    import pyarrow as pa

    try:
        with quietly():
            loaded: Any = datasets.load_from_disk(str(path))
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        raise ValueError(
            f"`{path}` must be a complete directory saved by `datasets`; it cannot be "
            f"read ({_in_one_line(error)}). Copy it again."
        ) from error
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}

    def stream(split: str) -> Callable[[], Iterator[Part]]:
        file = str(path / split) if isinstance(loaded, dict) else str(path)

        def parts() -> Iterator[Part]:
            start = 0
            for batch in splits[split].with_format("arrow").iter(batch_size=_BATCH):
                yield Part(batch, file, start)
                start += len(batch)

        return parts

    parts = {split: stream(split) for split in splits}
    return Source("directory saved by `datasets`", path, parts, False, {})


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
