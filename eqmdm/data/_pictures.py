"""Images in rows of files and folders, of one shape."""

import collections
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from ._pixels import Pixels, decode_pixels, resized
from ._sources import Part, column_of


_LEVELS = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65_536}


class Pictures(NamedTuple):
    """The grey levels of each split, and how many there are."""

    splits: dict[str, Integer[np.ndarray, "n height width channels"]]
    n_levels: int


class _Kinds:
    """The sizes and depths of images, how many are of each, and the first that is."""

    def __init__(self):
        self.sizes: collections.Counter[str] = collections.Counter()
        self.depths: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}

    def add(self, pixels: Pixels, name: str) -> None:
        height, width, _ = pixels.shape
        depth = f"{8 * pixels.dtype.itemsize} bits"
        self.sizes[f"{width}x{height}"] += 1
        self.depths[depth] += 1
        for kind in (f"{width}x{height}", depth):
            self._first.setdefault(kind, name)

    def check(self) -> None:
        for what, counts, remedy in (
            ("size", self.sizes, "Pass `image_size` to scale and crop them to one"),
            ("depth", self.depths, "Convert them to one"),
        ):
            if len(counts) > 1:
                shown = [f"{n:,} of {kind}" for kind, n in counts.most_common(4)]
                more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
                rarest = counts.most_common()[-1][0]
                raise ValueError(
                    f"Images must be of one {what}; got {', '.join(shown)}{more}, the "
                    f"first of {rarest} in {self._first[rarest]}. {remedy}."
                )


def read_pictures(
    rows: Mapping[str, Callable[[], Iterator[Part]]],
    column: str,
    *,
    is_folder: bool,
    size: tuple[int, int] | None,
) -> Pictures:
    """All the images of a column, decoded, by split.

    Where some are grey and others not, the grey ones become RGB, which loses nothing.

    **Raises:**

    `ValueError`, which names the file and the row, or the image's own file, for one
    that cannot be decoded; for images of several sizes, unless `size` is given, or of 8
    and of 16 bits.
    """
    kinds, splits = _Kinds(), {}
    for split, parts in rows.items():
        images = []
        for part in parts():
            for i, entry in enumerate(column_of(part, column).to_pylist()):
                name = name_of(entry, part, i, is_folder)
                pixels = decode_pixels(encoded(entry, is_folder), name)
                pixels = pixels if size is None else resized(pixels, size)
                kinds.add(pixels, name)
                images.append(pixels)
        splits[split] = images
    kinds.check()
    channels = {image.shape[-1] for images in splits.values() for image in images}
    n_channels, dtypes = max(channels, default=1), set()
    for split, images in splits.items():
        shape = (len(images), *(images[0].shape[:2] if images else (1, 1)), n_channels)
        dtype = images[0].dtype if images else np.dtype(np.uint8)
        stacked = np.empty(shape, dtype)
        for i in range(len(images)):
            # Freed one by one, so that the images are not in memory twice.
            stacked[i], images[i] = images[i], None
        splits[split] = stacked
        dtypes.add(dtype)
    return Pictures(splits, max(_LEVELS[dtype] for dtype in dtypes))


def encoded(entry: Any, is_folder: bool) -> bytes | None:
    """The bytes of an image in a row, or in a file of a folder that the row names.

    Only of a folder: a file of rows might name any file of this machine.
    """
    if entry is None:
        return None
    content = entry.get("bytes")
    if content is None and is_folder and entry.get("path") is not None:
        return Path(entry["path"]).read_bytes()
    return content


def name_of(entry: Any, part: Part, index: int, is_folder: bool) -> str:
    """What an image is called in errors."""
    if is_folder and entry is not None and entry.get("path") is not None:
        return f"`{entry['path']}`"
    return f"Row {part.start + index} of `{part.file}`"
