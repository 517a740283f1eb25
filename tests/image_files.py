"""Parquet files of images, as on the Hugging Face Hub."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode_image(image, format="PNG"):
    buffer = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, format=format, lossless=True)
    return buffer.getvalue()


def write_images(file, images, column, format="PNG", labels=None):
    """Write images to a file with the Hub's schema; bytes are written unchanged."""
    encoded = [
        x if x is None or isinstance(x, bytes) else encode_image(x, format)
        for x in images
    ]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": x, "path": None} for x in encoded]
    table = pa.table(
        {
            column: pa.array(rows, type=struct),
            "label": pa.array(
                [0] * len(rows) if labels is None else labels, pa.int64()
            ),
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def random_images(seed, n, shape):
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.integers(256, size=(n, *shape), dtype=np.uint8)
