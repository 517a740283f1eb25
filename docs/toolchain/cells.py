"""Cells of text and code of the pages in Markdown and of the percent-format scripts."""

import dataclasses
import re
import shlex
from pathlib import Path


# What may follow the word python at the start of a block, or `# %%` in a tutorial.
MARKS = ("hidden", "raises", "alt")
_FENCE = re.compile(r"^```python(?P<marks>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
_PERCENT = re.compile(r"^# %%(?P<marks>[^\n]*)\n", re.M)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A part of a page: text, or code that the build runs."""

    text: str
    line: int
    """The line of the file at which the text begins, counted from 1."""
    is_code: bool = False
    marks: dict[str, str] = dataclasses.field(default_factory=dict)
    """`hidden` code is run and not shown; `raises` names the exception that it ends
    with; `alt` is the alternative text of its figure."""


def read_cells(file: Path) -> list[Cell]:
    """The cells of a page (`.md`) or of a tutorial (`.py`).

    **Raises:** `ValueError` for a mark that is not among `MARKS`.
    """
    text = file.read_text(encoding="utf-8")
    cells = _percent_cells(text) if file.suffix == ".py" else _page_cells(text)
    for cell in cells:
        if unknown := set(cell.marks) - set(MARKS):
            raise ValueError(
                f"{file}:{cell.line}: the marks of a cell must be among "
                f"{', '.join(MARKS)}; got {', '.join(sorted(unknown))}."
            )
    return [cell for cell in cells if cell.text.strip()]


def _page_cells(text: str) -> list[Cell]:
    cells, end = [], 0
    for match in _FENCE.finditer(text):
        cells.append(Cell(text[end : match.start()], _line(text, end)))
        marks, line = _marks(match["marks"]), _line(text, match.start("code"))
        cells.append(Cell(match["code"], line, True, marks))
        end = match.end() + 1
    return [*cells, Cell(text[end:], _line(text, end))]


def _percent_cells(text: str) -> list[Cell]:
    cells = []
    matches = list(_PERCENT.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    for match, end in zip(matches, ends, strict=True):
        body, line = text[match.end() : end].rstrip() + "\n", _line(text, match.end())
        marks = match["marks"].strip()
        if marks == "[markdown]":
            lines = [part.removeprefix("#") for part in body.splitlines()]
            cells.append(
                Cell("\n".join(part.removeprefix(" ") for part in lines) + "\n", line)
            )
        else:
            cells.append(Cell(body, line, True, _marks(marks)))
    return cells


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _marks(given: str) -> dict[str, str]:
    parts = [part.partition("=") for part in shlex.split(given)]
    return {name: value for name, _, value in parts}
