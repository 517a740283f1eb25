"""The parsing of command lines into dataclasses of options."""

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from .fields import CommaSeparated


T = TypeVar("T")
_METAVARS = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def parse(
    options: type[T],
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
    *,
    quiet: bool = False,
) -> T:
    """The options given on a command line, by default that of this process.

    A class of options inherits from one dataclass per group in the help. The strings
    below its fields are their help, which ends with `epilog`, if the class has one.

    **Arguments:**

    - `prog`: the program's name in its help.
    - `quiet`: whether to suppress the error text that precedes `SystemExit`.
    """
    parsed = parser_class(options)
    try:
        given = tyro.cli(
            parsed,
            args=arguments,
            prog=prog,
            description=_paragraphs(options),
            console_outputs=not quiet,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as stopped:
        # Only --help exits with status 0.
        epilog = getattr(options, "epilog", None)
        if not stopped.code and epilog is not None:
            print(epilog())
        raise
    groups = (getattr(given, field.name) for field in dataclasses.fields(parsed))
    return options(**{k: v for group in groups for k, v in vars(group).items()})


@functools.cache
def parser_class(options: type) -> type:
    """The class that `tyro` parses for a class of options, with a field for each group.

    It does not parse `options` itself, since it would keep the line breaks of the
    source, show defaults that are chosen later as `None`, and prefix grouped options.
    """
    described = [
        # The program's own group needs no text: the program's description says it.
        (name, _described(group, "" if group is options else _paragraphs(group)))
        for name, group in _groups(options).items()
    ]
    return dataclasses.make_dataclass(options.__name__, described)


def _groups(options: type) -> dict[str, type]:
    """The dataclasses that add options, by their titles in the help."""
    groups = {}
    for cls in options.__mro__:
        if vars(cls).get("__annotations__"):
            name = cls.__name__.removesuffix("Options")
            words = re.findall("[A-Z]+(?![a-z])|[A-Z][a-z]+", name)
            title = "_".join(words).lower()
            groups["main" if cls is options else title] = cls
    return groups


def _paragraphs(options: type) -> str:
    """The docstring of a class with one line per paragraph, since `tyro` would keep
    some line breaks of the source."""
    text = inspect.getdoc(options) or ""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _described(group: type, text: str) -> type:
    """A copy of a group for `tyro`, with the help and the placeholder of each option
    that the group itself adds, and `text` as its description."""
    hints = typing.get_type_hints(group, include_extras=True)
    texts, fields = _texts(group), []
    for field in dataclasses.fields(group):
        if field.name not in vars(group)["__annotations__"]:
            continue
        settings: dict[str, Any] = {"help": texts[field.name]}
        if "default" in field.metadata:
            shown = f"(default: {field.metadata['default']})"
            settings["help_behavior_hint"] = shown
        elif field.default is None or field.default == ():
            settings["help_behavior_hint"] = ""
        elif field.metadata.get("positional"):
            # `tyro` would show an empty default for a tuple.
            settings["help_behavior_hint"] = "(required)"
        hint = hints[field.name]
        if metavar := field.metadata.get("metavar") or _metavar(hint):
            settings["metavar"] = metavar
        if option := field.metadata.get("option"):
            # The current name is the alias, since `tyro` shows aliases first.
            former = field.metadata["former"]
            settings |= {"name": former, "aliases": [f"--{option}"]}
        marks = [tyro.conf.arg(**settings)]
        if field.metadata.get("positional"):
            marks.append(tyro.conf.Positional)
        if separated := _separated(hint):
            marks.append(separated)
        hint = Annotated[hint, *marks]
        fields.append((field.name, hint, dataclasses.field(default=field.default)))
    made = dataclasses.make_dataclass(group.__name__, fields, kw_only=True)
    # A dataclass replaces an empty docstring by its signature.
    made.__doc__ = text or " "
    return made


def _texts(group: type) -> dict[str, str]:
    """The strings below the fields of a class, each joined into one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for statement, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            texts[statement.target.id] = " ".join(ast.literal_eval(below.value).split())
    return texts


def _metavar(hint: Any) -> str | None:
    """The placeholder for values of a type; `None` for flags, which take no value."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return parts[1].metavar
    if origin in (types.UnionType, typing.Union):
        return _metavar(next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return "{" + ",".join(parts) + "}"
    if origin is tuple and parts[-1] is Ellipsis:
        return f"[{_METAVARS[parts[0]]} ...]"
    if origin is tuple:
        return " ".join(_METAVARS[part] for part in parts)
    return _METAVARS.get(hint)


def _separated(hint: Any) -> Any:
    """The `tyro` specification of a comma-separated tuple; `None` for other types."""
    if typing.get_origin(hint) is not Annotated:
        return None
    comma = typing.get_args(hint)[1]
    assert isinstance(comma, CommaSeparated)
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=comma.metavar,
        instance_from_str=lambda given: tuple(
            comma.kind(part.strip()) for part in given[0].split(",") if part.strip()
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )
