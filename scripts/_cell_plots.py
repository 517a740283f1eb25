"""The pictures of a study."""

import math
from pathlib import Path
from typing import Any

import _plots
import numpy as np
from _cell_results import records
from _cells import Cell, Study


plt = _plots.plt  # which draws without a display


def bounds(path: Path, summaries: list[dict[str, Any]]) -> None:
    """Every cell's value with its error, a panel for each grid and evaluation."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in summaries:
        groups.setdefault((row["grid"], row["evaluation"]), []).append(row)
    heights = [1.2 + 0.3 * len(rows) for rows in groups.values()]
    figure, panels = plt.subplots(
        len(groups),
        figsize=(8, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (grid, evaluation), rows, axes in zip(
        groups, groups.values(), panels[:, 0], strict=True
    ):
        places = np.arange(len(rows))[::-1]
        for place, row in zip(places, rows, strict=True):
            over = [row["error_over_seeds"], row["error_over_examples"]]
            for error, width in zip(over, (3.0, 1.0), strict=True):
                if not math.isnan(error):
                    axes.errorbar(
                        row["value"], place, xerr=error, color="C0", elinewidth=width
                    )
            axes.plot(row["value"], place, "o", color="C0", ms=4)
        axes.set_yticks(places, [row["cell"] for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_title(f"{grid}: {evaluation}", loc="left", fontsize="medium")
        axes.set_xlabel(
            f"{rows[0]['unit']}; bars: thick over seeds, thin over examples"
        )
        axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def training(path: Path, study: Study, root: Path) -> None:
    """The validation bound over the steps, a panel for each grid."""
    grids = list(study.grids)
    figure, panels = plt.subplots(
        len(grids), figsize=(8, 4 * len(grids)), squeeze=False, layout="constrained"
    )
    for grid, axes in zip(grids, panels[:, 0], strict=True):
        names = list(dict.fromkeys(c.name for c in study.cells if c.grid == grid))
        for cell in [c for c in study.cells if c.grid == grid]:
            validated = [r for r in records(root / cell.directory) if "validation" in r]
            axes.plot(
                [r["step"] for r in validated],
                [r["validation"]["loss"][0] for r in validated],
                color=f"C{names.index(cell.name) % 10}",
                ls=["-", "--", ":"][names.index(cell.name) // 10 % 3],
                lw=0.9,
                label=cell.name if cell.seed == _first_seed(study, cell) else None,
            )
        axes.set_title(f"{grid}: validation bound", loc="left", fontsize="medium")
        axes.set_xlabel("step")
        axes.legend(fontsize="x-small", ncols=2)
    _save(figure, path)


def learned(file: Path, study: Study, root: Path) -> None:
    """The path of what is learned of each diffusion; nothing where none is."""
    found = [(cell, _learned_records(root, cell)) for cell in study.cells]
    found = [(cell, path) for cell, path in found if path]
    if not found:
        return
    figure, panels = plt.subplots(
        len(found),
        3,
        figsize=(12, 2.6 * len(found)),
        squeeze=False,
        layout="constrained",
    )
    for (cell, path), row in zip(found, panels, strict=True):
        steps = [record["step"] for record in path]
        for axes, name in zip(row, ("skew_matrix", "dissipation_matrix"), strict=False):
            matrices = np.array([record[name] for record in path])
            n = matrices.shape[1]
            for i in range(n):
                for j in range(i + (name == "skew_matrix"), n):
                    axes.plot(steps, matrices[:, i, j], lw=0.9, label=f"{i}, {j}")
            axes.set_title(name.replace("_", " "), fontsize="small")
            axes.legend(fontsize="x-small")
        ends = np.array([record["log_snr_range"] for record in path])
        row[2].plot(steps, ends, lw=0.9)
        row[2].set_title("log-SNR at the ends", fontsize="small")
        row[0].set_ylabel(
            f"{cell.grid}:\n{cell.name}, seed {cell.seed}", fontsize="small"
        )
    _save(figure, file)


def _learned_records(root: Path, cell: Cell) -> list[dict[str, Any]]:
    return [r for r in records(root / cell.directory) if "skew_matrix" in r]


def _first_seed(study: Study, cell: Cell) -> int:
    same = (c.seed for c in study.cells if (c.grid, c.name) == (cell.grid, cell.name))
    return next(same)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
