"""Image data sets of any size, made of random crops of another data set's images."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


N_CLASSES = 1000
_SPLITS = ("train", "validation")
_SIDE = 32
_LEAST_SIDE = 16
_ROWS_PER_GROUP = 1000


class Source(NamedTuple):
    """Images of 32x32x3 to crop, and their classes."""

    images: np.ndarray
    labels: np.ndarray


class Crop(NamedTuple):
    """A square of an image, scaled to 32x32 and perhaps mirrored."""

    image: int
    left: int
    top: int
    side: int
    flip: bool

    @classmethod
    def named(cls, name: str) -> "Crop":
        """The crop with this name, by which each row of a file says what it is."""
        image, left, top, side, flip = map(int, name.removesuffix(".png").split("-"))
        return cls(image, left, top, side, bool(flip))

    @property
    def name(self) -> str:
        return f"{self.image}-{self.left}-{self.top}-{self.side}-{self.flip:d}.png"

    def of(self, images: np.ndarray) -> Image.Image:
        """The pixels of this crop."""
        rows = slice(self.top, self.top + self.side)
        columns = slice(self.left, self.left + self.side)
        # Cropped before it is scaled: with a box, Pillow filters what lies around it.
        square = Image.fromarray(images[self.image, rows, columns])
        scaled = square.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        if self.flip:
            return scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return scaled


def write(
    folder: Path, split: str, source: Source, *, n: int, n_shards: int, seed: int
) -> int:
    """Writes a split of `n` crops in Parquet shards, and returns how many it wrote.

    Each shard depends on the arguments and its number alone, and has its name only once
    it is complete: those that are there already, from the same arguments, are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.arange(n_shards + 1) * n // n_shards
    digest = hashlib.sha256(np.ascontiguousarray(source.images).data).hexdigest()
    n_written = 0
    for shard in range(n_shards):
        path = folder / f"{split}-{shard:05}-of-{n_shards:05}.parquet"
        recipe = f"{seed} {split} {shard} of {n_shards}, {n} of {digest}"
        if path.exists() and _recipe_of(path) == recipe:
            continue
        entropy = [seed, _SPLITS.index(split), shard]
        random = np.random.Generator(np.random.PCG64(entropy))
        part = path.with_suffix(".part")
        _write_shard(part, source, int(ends[shard + 1] - ends[shard]), random, recipe)
        os.replace(part, path)
        n_written += 1
    return n_written


def _recipe_of(path: Path) -> str | None:
    import pyarrow.parquet as pq

    recipe = (pq.read_schema(path).metadata or {}).get(b"recipe")
    return None if recipe is None else recipe.decode()


def _write_shard(
    path: Path, source: Source, n: int, random: np.random.Generator, recipe: str
) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The schema of the Hub, with its description of the features.
    label = datasets.ClassLabel(names=[str(i) for i in range(N_CLASSES)])
    features = datasets.Features(image=datasets.Image(), label=label)
    schema = features.arrow_schema
    schema = schema.with_metadata((schema.metadata or {}) | {b"recipe": recipe})
    # Images do not compress any further, and are hardly ever equal.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": ["label"]}
    with pq.ParquetWriter(path, schema, **options) as file:
        for start in range(0, n, _ROWS_PER_GROUP):
            rows = _rows(source, min(_ROWS_PER_GROUP, n - start), random)
            file.write_table(pa.Table.from_pylist(rows, schema))


def _rows(source: Source, n: int, random: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    images = random.integers(len(source.images), size=n)
    sides = random.integers(_LEAST_SIDE, _SIDE + 1, size=n)
    lefts, tops = random.integers(0, _SIDE - sides + 1, size=(2, n))
    flips = random.integers(2, size=n)
    # A hundred classes for each of the ten, so that labels say something of the image.
    n_each = N_CLASSES // 10
    labels = source.labels[images] * n_each + random.integers(n_each, size=n)
    for numbers, label in zip(
        zip(images, lefts, tops, sides, flips, strict=True), labels, strict=True
    ):
        crop = Crop.named("-".join(map(str, numbers)))
        encoded = io.BytesIO()
        crop.of(source.images).save(encoded, "PNG", compress_level=1)
        image = {"bytes": encoded.getvalue(), "path": crop.name}
        rows.append({"image": image, "label": int(label)})
    return rows
