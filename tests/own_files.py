"""Small files of every kind that can be data."""

import io
import json
import struct
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, depth, colour, rows):
    """A PNG with any header and any content."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def grey(n, shape=(6, 5), seed=0, dtype=np.uint8):
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(np.iinfo(dtype).max, size=(n, *shape), dtype=dtype)


def colour(n, shape=(6, 5), seed=0):
    return grey(n, (*shape, 3), seed)


def write_folder(folder, images, classes=("cat", "dog")):
    """Images in a folder for each class, in turn."""
    for i, image in enumerate(images):
        parent = folder / classes[i % len(classes)] if classes else folder
        parent.mkdir(parents=True, exist_ok=True)
        content = image if isinstance(image, bytes) else saved(Image.fromarray(image))
        (parent / f"{i:03d}.png").write_bytes(content)
    return folder


def write_csv(path, columns):
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


SPLITS = ("train", "validation", "test")


def rows_of(dataset):
    """The examples of each split, as keys."""
    return [[x.tobytes() for x in getattr(dataset, split)] for split in SPLITS]


def two_columns(n=40, seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    return {"x": 5 + 0.01 * rng.normal(size=n), "y": 1e6 * rng.normal(size=n)}


def write_table(path, columns):
    if path.suffix == ".csv":
        return write_csv(path, columns)
    if path.suffix == ".jsonl":
        columns = {name: np.asarray(x, object).tolist() for name, x in columns.items()}
        rows = zip(*columns.values(), strict=True)
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return path
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    else:
        datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path
