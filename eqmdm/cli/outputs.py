"""Options for the formats of pictures and tables."""

import dataclasses
import typing
from typing import Annotated

from .._core.hints import did_you_mean
from .fields import CommaSeparated
from .names import PictureFormat


PICTURE_FORMATS = typing.get_args(PictureFormat)
# The file extension of each format.
TABLE_FORMATS: dict[str, str] = {"csv": ".csv", "latex": ".tex", "markdown": ".md"}
TableFormats = Annotated[tuple[str, ...], CommaSeparated(str, "NAME,NAME,...")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """The pictures."""

    picture_format: PictureFormat = "png"
    """The format of pictures: png, or pdf or svg, which stay sharp at any size."""


def check_formats(formats: tuple[str, ...]) -> None:
    """**Raises:** `ValueError` for the first unknown format."""
    for name in formats:
        if name not in TABLE_FORMATS:
            raise ValueError(
                f"`format` must be table formats, separated by commas; got {name!r}."
                f"{did_you_mean(name, TABLE_FORMATS)} The formats are "
                f"{', '.join(TABLE_FORMATS)}."
            )
