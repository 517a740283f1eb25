"""Pixels of one encoded image, by rules that lose nothing in silence."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16


Pixels = UInt8[np.ndarray, "_ _ _"] | UInt16[np.ndarray, "_ _ _"]

# Bits of a sample in a 16-bit PNG, from its header.
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
# The number of the tag of a TIFF file that holds the bits of each sample.
_BITS_PER_SAMPLE = 258
_REFUSED = {
    "CMYK": "its colours are those of inks, whose meaning a colour profile decides: "
    "convert it to RGB with that profile",
    "F": "its pixels are floats: save them as an array (.npy)",
    "LAB": "convert it to RGB",
    "HSV": "convert it to RGB",
    "YCbCr": "convert it to RGB",
}


def decode_pixels(encoded: bytes | None, where: str) -> Pixels:
    """The grey levels of an encoded image, upright, with one channel or three.

    - It is turned upright by its EXIF orientation, as `datasets` does.
    - A palette becomes grey where all its colours in use are grey, and RGB otherwise;
        one bit becomes the levels 0 and 255.
    - 16-bit grey keeps its 65,536 levels. 16-bit colour raises, because Pillow would
        drop half of its bits.
    - Transparency raises, unless all pixels are opaque, for what lies behind is not
        known. So do CMYK, other colour spaces and floats, and several frames.

    `where` names the image in errors.

    **Raises:** `ValueError` for what cannot be decoded or, by these rules, is not.
    """
    from PIL import Image

    if encoded is None:
        raise ValueError(
            f"{where} must hold an encoded image; it is empty. Files that only name "
            "images stored elsewhere are not supported."
        )
    if len(encoded) == 0:
        raise ValueError(
            f"{where} must be an image; it has 0 bytes. Copy or download it again."
        )
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            _check_size(image, where)
            n_frames = getattr(image, "n_frames", 1)
            if n_frames > 1:
                raise ValueError(
                    f"{where} must be a single image; it has {n_frames} frames. "
                    "Save the frames as images of their own."
                )
            if _loses_bits(encoded, image):
                raise ValueError(
                    f"{where} must have 8 bits in each channel of a colour; it has 16, "
                    "of which half would be lost. Convert it to 8 bits, or save its "
                    "pixels as an array (.npy)."
                )
            return _levels(_upright(image), where)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{where} must have at most {Image.MAX_IMAGE_PIXELS or 0:,} pixels; its "
            f"header promises more ({error}). If it is no attack, raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    # Pillow reports a broken chunk of a PNG as a SyntaxError.
    except (OSError, SyntaxError) as error:
        # Its name is that of a buffer of ours.
        reason = str(error).split(" <_io.")[0]
        raise ValueError(
            f"{where} must be an image; it cannot be decoded ({reason}). Copy or "
            "download the file again."
        ) from error


def mode_of(pixels: Pixels) -> str:
    """The mode that Pillow has for pixels as `decode_pixels` returns them."""
    if pixels.dtype == np.uint16:
        return "I;16"
    return "L" if pixels.shape[-1] == 1 else "RGB"


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The image scaled by Lanczos' filter to cover (height, width) and cropped to it
    about its centre."""
    from PIL import Image, ImageOps

    height, width = size
    if pixels.shape[:2] == size:
        return pixels
    channels = []
    limit = np.iinfo(pixels.dtype).max
    for channel in np.moveaxis(pixels, -1, 0):
        # In floats: Pillow's own 16-bit mode cannot be filtered.
        image = Image.fromarray(channel.astype(np.float32))
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        channels.append(np.clip(np.rint(np.asarray(image)), 0, limit))
    return np.stack(channels, axis=-1).astype(pixels.dtype)


def _check_size(image: Any, where: str) -> None:
    from PIL import Image

    width, height = image.size
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise Image.DecompressionBombError(f"{width}x{height}")


def _upright(image: Any) -> Any:
    from PIL import ExifTags, ImageOps

    if image.getexif().get(ExifTags.Base.Orientation) is None:
        return image
    return ImageOps.exif_transpose(image)


def _loses_bits(encoded: bytes, image: Any) -> bool:
    if image.mode.startswith("I"):
        return False
    if image.format == "PNG":
        return encoded.startswith(_PNG) and encoded[_PNG_DEPTH] == 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8 and image.mode != "F"
    return False


def _levels(image: Any, where: str) -> Pixels:
    if image.mode in _REFUSED:
        raise ValueError(
            f"{where} must be grey or RGB; its mode is {image.mode}: "
            f"{_REFUSED[image.mode]}."
        )
    if image.mode in ("1", "L", "RGB") and "transparency" not in image.info:
        return _with_channels(
            np.asarray(image.convert("L" if image.mode == "1" else None))
        )
    if image.mode.startswith("I"):
        return _sixteen_bits(np.asarray(image), where)
    rgba = np.asarray(image.convert("RGBA"))
    if rgba[..., 3].min() < 255:
        raise ValueError(
            f"{where} must be opaque; {np.mean(rgba[..., 3] < 255):.0%} of its pixels "
            "are not, and what lies behind them is not known. Paste it on a background "
            "first, for instance by Image.alpha_composite of Pillow."
        )
    rgb = rgba[..., :3]
    is_grey = image.mode in ("L", "LA", "La") or (
        image.mode in ("P", "PA") and bool(np.all(rgb == rgb[..., :1]))
    )
    return np.ascontiguousarray(rgb[..., :1] if is_grey else rgb)


def _sixteen_bits(levels: np.ndarray, where: str) -> Pixels:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ValueError(
            f"{where} must have at most 16 bits a pixel; its levels are from {low} to "
            f"{high}. Save its pixels as an array (.npy)."
        )
    return levels.astype(np.uint16)[..., None]


def _with_channels(levels: np.ndarray) -> Pixels:
    return levels[..., None] if levels.ndim == 2 else levels
