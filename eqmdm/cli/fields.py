"""Fields of option classes: metadata for the help, and option names in errors."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class CommaSeparated:
    """Marks, in `Annotated`, a tuple that is comma-separated on the command line."""

    kind: type
    metavar: str


def positional(metavar: str) -> Any:
    """A field for a positional argument."""
    return dataclasses.field(metadata={"metavar": metavar, "positional": True})


def chosen(default: str, *, metavar: str | None = None) -> Any:
    """A field whose default is `None`; the help shows `default`, what is used then."""
    return dataclasses.field(
        default=None, metadata={"default": default, "metavar": metavar}
    )


def named(option: str, metavar: str, *, former: str) -> Any:
    """A required field, given as `--option` or by its former name."""
    metadata = {"metavar": metavar, "option": option, "former": former}
    return dataclasses.field(metadata=metadata)


def with_option_names(message: str, options: type) -> str:
    """An error message with arguments renamed to options: `x` to --x, x=1 to --x=1.

    The library and the checks of options use the Python names.
    """
    names = {field.name: _shown_name(field) for field in dataclasses.fields(options)}
    parts = []
    for part in re.split("(`[^`]*`)", message):
        if part.startswith("`"):
            parts.append(names.get(part.strip("`"), part))
        else:
            values = r"(?<![\w.(])(\w+)(?==\S)"
            parts.append(re.sub(values, lambda m: names.get(m[1], m[0]), part))
    # The library may already name the option in parentheses after its argument.
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", "".join(parts))


def check_at_least(options: Any, minima: Mapping[str, int]) -> None:
    """**Raises:** `ValueError` for the first option that is below its minimum."""
    for name, least in minima.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")


def _shown_name(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get("positional"):
        return field.metadata["metavar"]
    name = field.metadata.get("option", field.name)
    return "--" + name.replace("_", "-")
