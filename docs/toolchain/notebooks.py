"""Tutorials as notebooks, without outputs."""

import json
from pathlib import Path

from .cells import read_cells


def notebook(source: Path) -> str:
    """The notebook of a tutorial in percent format, as JSON."""
    cells = []
    for number, cell in enumerate(read_cells(source)):
        kind = "code" if cell.is_code else "markdown"
        own = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        own["source"] = cell.text.strip("\n")
        cells.append(
            own | ({"execution_count": None, "outputs": []} if cell.is_code else {})
        )
    language = {"name": "python", "display_name": "Python 3", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": language}}
    return json.dumps(whole | {"nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
