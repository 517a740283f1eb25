"""The execution of a page: its Markdown, with the results of its code and its figures.

python -m toolchain.execution SOURCE DIRECTORY
"""

import ast
import contextlib
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from .cells import Cell, read_cells


# `{{ expression }}` in text is replaced by its value.
_INLINE = re.compile(r"\{\{ (.+?) \}\}")


def execute(source: Path, directory: Path) -> None:
    """Runs the cells of `source` in order, in one namespace, and writes the page and
    its figures to `directory`.

    **Raises:** whatever a cell raises, unless its mark `raises` names it; `ValueError`
    if that exception does not come.
    """
    from .pictures import save_figures, set_style

    set_style()
    warnings.simplefilter("error")
    names: dict[str, Any] = {"__name__": "__main__"}
    parts, n_figures = [], 0
    for cell in read_cells(source):
        if not cell.is_code:
            parts.append(_INLINE.sub(lambda m: str(eval(m[1], names)), cell.text))
            continue
        printed = _run(cell, names, source)
        alt = cell.marks.get("alt")
        figures = save_figures(directory, source.stem, alt, n_figures)
        n_figures += len(figures)
        if "hidden" not in cell.marks:
            parts.append(f"```python\n{cell.text.rstrip()}\n```\n")
        if printed:
            parts.append(f"``` {{ .text .output }}\n{printed}\n```\n")
        parts += [f"{figure}\n" for figure in figures]
    text = "\n".join(part.strip("\n") + "\n" for part in parts)
    (directory / f"{source.stem}.md").write_text(text, encoding="utf-8")


def _run(cell: Cell, names: dict[str, Any], source: Path) -> str:
    """What a cell prints, or the message of the exception that it is to raise."""
    tree = ast.parse(cell.text, filename=str(source))
    ast.increment_lineno(tree, cell.line - 1)
    code = compile(tree, str(source), "exec")
    printed, expected = io.StringIO(), cell.marks.get("raises")
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    except Exception as error:
        if type(error).__name__ != expected:
            raise
        return f"{printed.getvalue()}{expected}: {error}".rstrip()
    if expected:
        raise ValueError(f"{source}:{cell.line}: the cell must raise {expected}.")
    return printed.getvalue().rstrip()


if __name__ == "__main__":
    execute(Path(sys.argv[1]), Path(sys.argv[2]))
