"""Images that are decoded from their files on access."""

import copy
import functools
import hashlib
from pathlib import Path
from typing import cast, final

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from ._parquet import check_schema, decode, escaped, name_row, unreadable
from ._sources import quietly


@final
class ImageFiles:
    """The images of Parquet files, indexed by an array of integers or a slice.

    `datasets` copies the encoded images once into its cache, from where they are mapped
    into memory for random access. They are decoded on every access, which several
    threads may do at the same time.

    **Arguments:**

    - `files`: in the schema of the Hugging Face Hub.
    - `column`: with the images.
    - `image_shape`: of each.

    **Raises:**

    `ValueError` if a file cannot be read or has no such column and, on access, if an
    image has another size or mode. `OSError` if the images cannot be copied.
    """

    def __init__(
        self,
        files: list[Path],
        *,
        column: str,
        image_shape: tuple[int, int, int],
    ):
        self._files, self._column = files, column
        lengths = [check_schema(file, column) for file in files]
        if sum(lengths) == 0:
            raise ValueError(
                f"`{files[0]}` must hold images; it has 0 rows"
                + (
                    f", and so have the {len(files) - 1} other files."
                    * (len(files) > 1)
                    or "."
                )
            )
        self._ends = np.cumsum(lengths).tolist()
        self._image_shape = image_shape
        self._rows = np.arange(self._ends[-1])
        self._digests = [_digest(file) for file in files]
        # `datasets` cannot read a file without rows.
        full = [file for file, n in zip(files, lengths, strict=True) if n]
        self._table = _map_into_memory(full, column, self._digests)

    def take(self, rows: Int64[np.ndarray, " n"]) -> "ImageFiles":
        """The images of some of the rows, in the same files."""
        taken = copy.copy(self)
        taken.__dict__.pop("fingerprint", None)
        taken._rows = self._rows[rows]
        return taken

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of images, and the shape of one."""
        return len(self), *self._image_shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __getitem__(
        self, indices: Integer[np.ndarray, " n"] | slice
    ) -> UInt8[np.ndarray, "n height width channels"]:
        import pyarrow as pa

        rows = self._rows[indices]
        images = np.empty((len(rows), *self._image_shape), np.uint8)
        encoded = cast(pa.Table, self._table[rows]).column(self._column).to_pylist()
        for i, (row, image) in enumerate(zip(rows, encoded, strict=True)):
            content = None if image is None else image["bytes"]
            images[i] = decode(content, self._image_shape, self._name(int(row)))
        return images

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the files' contents and the rows, in hexadecimal."""
        digest = hashlib.sha256()
        for content in self._digests:
            digest.update(content)
        digest.update(self._rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def _name(self, row: int) -> str:
        return f"R{name_row(row, self._files, self._ends)[1:]}"


def _digest(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _map_into_memory(files: list[Path], column: str, digests: list[bytes]):
    # Imported late: it takes seconds, and points and digits do without.
    import datasets
    from datasets import config
    from datasets.exceptions import DatasetGenerationError

    # `datasets` knows a file by its name and time, which one that replaces it may have
    # too: what it holds is in the name of the folder that its copy is kept in.
    key = hashlib.sha256(b"".join(digests)).hexdigest()[:32]
    cache = Path(config.HF_DATASETS_CACHE) / f"eqmdm-{key}"
    try:
        with quietly():
            table = datasets.load_dataset(
                "parquet",
                data_files=[escaped(file) for file in files],
                split="train",
                columns=[column],
                cache_dir=str(cache),
            )
    except (OSError, DatasetGenerationError) as error:
        for file in files:
            _check_pages(file, column)
        raise OSError(
            f"The images in {files[0].parent} could not be copied to "
            f"{config.HF_DATASETS_CACHE} ({error.__cause__ or error}). Free "
            "some space there, or name another folder in HF_DATASETS_CACHE."
        ) from error
    return table.with_format("arrow")


def _check_pages(file: Path, column: str) -> None:
    """**Raises:** `ValueError` for a file whose footer is intact but not its pages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                parquet.read_row_group(group, columns=[column])
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
