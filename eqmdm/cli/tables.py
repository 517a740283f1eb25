"""Tables of results as text: CSV, LaTeX and Markdown."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np

# Not the public name, which would import JAX.
from .._core.estimate import Estimate
from .files import write_text
from .outputs import TABLE_FORMATS


Cell: TypeAlias = Estimate | float | int | str | None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its names in each format."""

    name: str
    """The name in CSV."""
    title: str
    """The heading in LaTeX and Markdown."""
    error_name: str | None = None
    """For estimates, the name of the extra CSV column with their standard errors."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of results with a caption."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_csv(self) -> str:
        """CSV with all digits; missing values are empty."""
        head: list[str] = []
        for column in self.columns:
            head.append(column.name)
            head += [] if column.error_name is None else [column.error_name]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            fields: list[Cell] = []
            for column, cell in zip(self.columns, row, strict=True):
                known = isinstance(cell, Estimate)
                fields.append(cell.value if known else cell)
                if column.error_name is not None:
                    fields.append(cell.standard_error if known else None)
            writer.writerow("" if _is_missing(cell) else cell for cell in fields)
        return text.getvalue()

    def as_latex(self) -> str:
        r"""A tabular for `\input`, with two digits of each error."""
        kinds = [
            "l" if any(isinstance(row[i], str) for row in self.rows) else "r"
            for i in range(len(self.columns))
        ]
        lines = [
            f"% {' '.join(self.caption.split())}",
            "% A plain tabular: it needs no package, not even booktabs.",
            rf"\begin{{tabular}}{{{''.join(kinds)}}}",
            r"\hline",
            _latex_row(escape_latex(column.title) for column in self.columns),
            r"\hline",
            *(_latex_row(map(_latex_cell, row)) for row in self.rows),
            r"\hline",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def as_markdown(self) -> str:
        """A Markdown table below its caption, with two digits of each error."""
        head = [escape_markdown(column.title) for column in self.columns]
        rows = [head, ["---"] * len(head)]
        rows += [[_markdown_cell(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        caption = escape_markdown(" ".join(self.caption.split()))
        return "\n".join([caption, "", *lines]) + "\n"

    def as_text(self, name: str) -> str:
        """The table in the format with this name."""
        write = {"csv": self.as_csv, "latex": self.as_latex}
        return (write | {"markdown": self.as_markdown})[name]()


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of the values and its standard error; both NaN if there are none."""
    if not len(values):
        return Estimate(math.nan, math.nan)
    return Estimate.from_mean(values.astype(np.float64))


def write_tables(stem: Path, table: Table, formats: Iterable[str]) -> None:
    """Write a file for each format, named by `stem` and the extension of the format."""
    for name in formats:
        path = stem.with_name(stem.name + TABLE_FORMATS[name])
        write_text(path, table.as_text(name))


def rounded(estimate: Estimate) -> tuple[str, str]:
    """A value and its error as text, both to two significant digits of the error.

    If the error is zero or not finite, the value has six digits.
    """
    value, error = estimate.value, estimate.standard_error
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.6g}", "" if math.isnan(error) else f"{error:.2g}"
    # Round first: 0.0996 to two digits is 0.10.
    exponent = math.floor(math.log10(float(f"{error:.1e}")))
    if exponent > 1:
        unit = 10 ** (exponent - 1)
        return f"{round(value / unit) * unit:d}", f"{round(error / unit) * unit:d}"
    return f"{value:.{1 - exponent}f}", f"{error:.{1 - exponent}f}"


_LATEX = {c: rf"\{c}" for c in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}
_LATEX |= {"|": r"\textbar{}", "±": r"$\pm$"}


def escape_latex(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    """Text escaped for a Markdown cell; `_` within words needs no escape."""
    return re.sub(r"([\\`*<|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape_latex(cell)
    value, error = _digits(cell)
    mantissa, _, exponent = value.partition("e")
    if exponent:
        value = rf"{mantissa} \times 10^{{{int(exponent)}}}"
    value += rf" \pm {error}" if error else ""
    return f"${value}$" if value else ""


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape_markdown(cell)
    value, error = _digits(cell)
    return f"{value} ± {error}" if error else value


def _digits(cell: Estimate | float | int | None) -> tuple[str, str]:
    """A number and its error as text; empty if they are missing."""
    if isinstance(cell, Estimate):
        return ("", "") if math.isnan(cell.value) else rounded(cell)
    if cell is None or _is_missing(cell):
        return "", ""
    return (f"{cell:.4g}" if isinstance(cell, float) else str(cell)), ""
