"""The execution of a page: what its code prints, its figures and its inline values.

python -m toolchain.execution SOURCE DIRECTORY
"""

import ast
import contextlib
import io
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cells import Cell, read_cells


# `{{ expression }}` in text is replaced by its value.
INLINE = re.compile(r"\{\{ (.+?) \}\}")


def execute(
    source: Path,
    directory: Path,
    *,
    change: Callable[[ast.Module], ast.Module] = lambda tree: tree,
) -> None:
    """Runs the cells of `source` in order, in one namespace, and writes the results to
    `results.json` in `directory`, with the figures beside it. `change` may change the
    syntax tree of each cell of code.

    The results are a list with an entry for each cell: of code, what it prints and the
    Markdown of its figures; of text, the values of its inline expressions.

    **Raises:** whatever a cell raises, unless its mark `raises` names it; `ValueError`
    if that exception does not come.
    """
    from .pictures import save_figures, set_style

    set_style()
    warnings.simplefilter("error")
    names: dict[str, Any] = {"__name__": "__main__"}
    results, n_figures = [], 0
    for cell in read_cells(source):
        if not cell.is_code:
            results.append([str(eval(e, names)) for e in INLINE.findall(cell.text)])
            continue
        printed = _run(cell, names, source, change)
        alt = cell.marks.get("alt")
        figures = save_figures(directory, source.stem, alt, n_figures)
        n_figures += len(figures)
        results.append({"printed": printed, "figures": figures})
    text = json.dumps(results, indent=1)
    (directory / "results.json").write_text(text, encoding="utf-8")


def page(source: Path, directory: Path) -> str:
    """The Markdown of a page, with the results of its execution in `directory`."""
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    parts = []
    for cell, result in zip(read_cells(source), results, strict=True):
        if not cell.is_code:
            values = iter(result)
            parts.append(INLINE.sub(lambda _, values=values: next(values), cell.text))
            continue
        if "hidden" not in cell.marks:
            parts.append(f"```python\n{cell.text.rstrip()}\n```")
        if result["printed"]:
            parts.append(f"``` {{ .text .output }}\n{result['printed']}\n```")
        parts += result["figures"]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def code_of(source: Path) -> str:
    """All that the results of a page depend on in its own text."""
    cells = read_cells(source)
    return json.dumps(
        [
            [cell.text, cell.marks] if cell.is_code else INLINE.findall(cell.text)
            for cell in cells
        ]
    )


def _run(
    cell: Cell,
    names: dict[str, Any],
    source: Path,
    change: Callable[[ast.Module], ast.Module],
) -> str:
    """What a cell prints, or the message of the exception that it is to raise."""
    tree = change(ast.parse(cell.text, filename=str(source)))
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
