"""Pages of the programs: their options, from the classes that parse them."""

import dataclasses
import importlib
import typing
from typing import Any

import tyro

from eqmdm.cli.entry import PROGRAMS
from eqmdm.cli.parsing import parser_class


# The class of options of each program, in `eqmdm.cli`.
OPTIONS = {
    "train": "train.options:TrainOptions",
    "evaluate": "evaluate.options:EvaluateOptions",
    "report": "report.options:ReportOptions",
    "sample": "sample.options:SampleOptions",
    "compare-evaluations": "compare_evaluations:CompareOptions",
    "solver-study": "solver_study.options:SolverStudyOptions",
    "study": "study.options:StudyOptions",
    "train-classifier": "train_classifier.options:ClassifierOptions",
    "plot-diffusions": "plot_diffusions.options:PlotOptions",
    "read-profile": "read_profile:ReadProfileOptions",
}


def program_pages() -> dict[str, str]:
    """The Markdown of each page by its path, with a list of all programs."""
    if set(OPTIONS) != set(PROGRAMS):
        raise ValueError(f"`OPTIONS` must have exactly {', '.join(PROGRAMS)}.")
    rows = [f"| [`eqmdm {name}`]({name}.md) | {PROGRAMS[name]} |" for name in PROGRAMS]
    index = ["# Programs", "", _INTRODUCTION, "", "| program | task |", "| --- | --- |"]
    pages = {"reference/programs/index.md": "\n".join([*index, *rows, ""])}
    for name in PROGRAMS:
        pages[f"reference/programs/{name}.md"] = _page(name, options_of(name))
    return pages


_INTRODUCTION = """
Each program is a command of its own after `pip install 'eqmdm[programs]'`, such as
`eqmdm train`, and a script in a clone, such as `python scripts/train.py`. The options
below are those of the parsers themselves; `--help` shows the same.
""".strip()


def options_of(name: str) -> type:
    """The class of options of a program."""
    module, _, cls = OPTIONS[name].partition(":")
    return getattr(importlib.import_module(f"eqmdm.cli.{module}"), cls)


def _page(name: str, options: type) -> str:
    described = [paragraph for paragraph in (options.__doc__ or "").split("\n\n")]
    parts = [f"# eqmdm {name}", *(" ".join(part.split()) for part in described)]
    usage = f"eqmdm {name} [OPTIONS]"
    tables = []
    for group in dataclasses.fields(parser_class(options)):
        positional, table = _table(typing.cast(type, group.type))
        usage += "".join(f" {name}" for name in positional)
        if group.name != "main":
            title = group.name.replace("_", " ").capitalize().replace("Snr", "SNR")
            tables += [f"## {title.replace('Ode', 'ODE')}", group.type.__doc__ or ""]
        tables.append(table)
    parts += [f"```text\n{usage}\n```", *tables]
    if epilog := getattr(options, "epilog", None):
        head, *lines = epilog().split("\n")
        parts += [f"## {head.rstrip(':').capitalize()}"]
        parts += ["```text\n" + "\n".join(lines) + "\n```"]
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _table(group: type) -> tuple[list[str], str]:
    """The positional arguments of a group, and the table of its arguments."""
    positional, rows = [], ["| option | meaning | default |", "| --- | --- | --- |"]
    for field in dataclasses.fields(group):
        marks = typing.get_args(field.type)[1:]
        # The settings of `tyro` have no public type.
        settings = next(mark for mark in marks if hasattr(mark, "help_behavior_hint"))
        is_positional = any(mark is tyro.conf.Positional for mark in marks)
        option = settings.metavar if is_positional else _option(field, settings)
        if is_positional:
            positional.append(option)
        default = _default(field.default, settings.help_behavior_hint)
        rows.append(f"| `{option}` | {_escaped(settings.help)} | {default} |")
    return positional, "\n".join(rows)


def _option(field: dataclasses.Field[Any], settings: Any) -> str:
    (name, *_) = settings.aliases or [f"--{field.name.replace('_', '-')}"]
    if settings.metavar is None:
        return f"{name}` `--no-{name.removeprefix('--')}"
    values = settings.metavar
    if values.startswith("{"):
        # With spaces, at which a narrow table can break the line.
        values = values.replace(",", ", ")
    return f"{name}` `{values}".replace("|", "\\|")


def _default(default: Any, hint: str | None) -> str:
    if hint is not None:
        return _escaped(hint.strip("()").removeprefix("default: "))
    if default is dataclasses.MISSING:
        return "required"
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f"`{default}`"


def _escaped(text: str) -> str:
    """Text in a cell of a table, which shows names in angle brackets as they are."""
    for old, new in (("|", "\\|"), ("<", "&lt;"), (">", "&gt;"), ("*", "\\*")):
        text = text.replace(old, new)
    return text
