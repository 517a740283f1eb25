"""The floor plan: every file of the package with the noun in its first line."""

import ast
import re

from .cache import ROOT


def floor_plan() -> str:
    """The tables of the floors, highest first, from the order that the tests enforce
    and from the docstrings of the files."""
    text = (ROOT / "tests" / "test_structure.py").read_text(encoding="utf-8")
    match = re.search(r"^ORDER = (\(.*?^\))", text, re.M | re.S)
    assert match
    parts = []
    for floor in ast.literal_eval(match[1]):
        path = ROOT / "eqmdm" / floor
        files = (
            sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        )
        rows = ["| file | contents |", "| --- | --- |"]
        for file in files:
            if summary := _first_line(file.read_text(encoding="utf-8")):
                name = file.relative_to(ROOT / "eqmdm").as_posix()
                rows.append(f"| `{name}` | {summary} |")
        parts.append("\n".join([f"### `{floor}`", "", *rows]))
    return "\n\n".join(parts) + "\n"


def _first_line(source: str) -> str:
    text = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
