"""Small files of every kind that can be data."""

import io
import struct
import zlib

import numpy as np
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
