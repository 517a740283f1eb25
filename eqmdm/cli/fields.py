"""The fields of options: what they say of themselves, and their names in errors."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class CommaSeparated:
    """In `Annotated`: a tuple that is written on the command line with commas."""

    kind: type
    metavar: str


def positional(metavar: str) -> Any:
    """A field that is given without its name."""
    return dataclasses.field(metadata={"metavar": metavar, "positional": True})


def chosen(default: str, *, metavar: str | None = None) -> Any:
    """A field that is `None` unless given; `default` says what is used then."""
    return dataclasses.field(
        default=None, metadata={"default": default, "metavar": metavar}
    )


def named(option: str, metavar: str, *, former: str) -> Any:
    """A field that must be given, as `--option` or by the name that it had formerly."""
    metadata = {"metavar": metavar, "option": option, "former": former}
    return dataclasses.field(metadata=metadata)


def with_option_names(message: str, options: type) -> str:
    """An error with its arguments named as on the command line: `x` and x=1 as --x.

    The library and the checks of options name them as Python does.
    """
    names = {field.name: _shown_name(field) for field in dataclasses.fields(options)}
    parts = []
    for part in re.split("(`[^`]*`)", message):
        if part.startswith("`"):
            parts.append(names.get(part.strip("`"), part))
        else:
            values = r"(?<![\w.(])(\w+)(?==\S)"
            parts.append(re.sub(values, lambda m: names.get(m[1], m[0]), part))
    # Where the library has named the option beside its argument.
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", "".join(parts))


def check_at_least(options: Any, minima: Mapping[str, int]) -> None:
    """**Raises:** `ValueError` for the first option that is below its minimum."""
    for name, least in minima.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The names nearest to a wrong one as the end of an error; empty if none is."""
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    found = " or ".join(by_lower[known] for known in near)
    return f" Did you mean {found}?" if near else ""


def _shown_name(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get("positional"):
        return field.metadata["metavar"]
    name = field.metadata.get("option", field.name)
    return "--" + name.replace("_", "-")
