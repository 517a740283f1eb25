"""What a user may say of data of their own."""

from collections.abc import Sequence
from typing import NamedTuple

from ._splits import Fractions


# As a name of the column of labels: that there are none to be read.
NO_LABELS = "none"
# As a condition: the labels, whatever the name of their column.
LABEL = "label"


class Choices(NamedTuple):
    """What a user says of data of their own; see `load`."""

    configuration: str | None
    image_column: str | None
    label_column: str | None
    columns: tuple[str, ...] | None
    condition: tuple[str, ...] | None
    image_size: tuple[int, int] | None
    n_levels: int | None
    fractions: Fractions
    standardise: bool
    in_memory: bool

    @property
    def condition_columns(self) -> tuple[str, ...] | None:
        """The columns of numbers that are conditions; `None` for labels or none."""
        return None if self.condition == (LABEL,) else self.condition


def refuse(choices: Choices, what: str, *names: str, in_memory: bool = False) -> None:
    """**Raises:** `ValueError` for a choice that has no meaning for some data."""
    for name in names:
        value = getattr(choices, name)
        if value is not None:
            raise ValueError(f"`{name}` must be left out for {what}; got {value}.")
    if in_memory and not choices.in_memory:
        raise ValueError(
            f"`in_memory` must be true (without --stream) for {what}: only images in "
            "Parquet files can stay there."
        )


def as_names(value: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """One name, or several, as a tuple; `None` for none."""
    if not value:
        return None
    return (value,) if isinstance(value, str) else tuple(value)
