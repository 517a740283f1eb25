"""The pictures of a study."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..files import loss_name
from .cells import Cell, Study
from .tables import records


plt = plots.plt  # which draws without a display
_MATRICES = "skew_matrix", "dissipation_matrix"
_STYLES = "-", "--", ":", "-.", (0, (1, 4))


def bounds(path: Path, summaries: list[dict[str, Any]]) -> None:
    """Every cell's value with its errors, a panel for each grid, on one axis.

    Evaluations of the same cells have a colour each; those of a single cell, a row.
    """
    grids: dict[str, list[dict[str, Any]]] = {}
    for row in summaries:
        grids.setdefault(row["grid"], []).append(row)
    placed = {grid: _placed(rows) for grid, rows in grids.items()}
    shared = len({row["unit"] for row in summaries}) == 1
    heights = [0.7 + 0.3 * len(names) for names, _ in placed.values()]
    figure, panels = plt.subplots(
        len(grids),
        figsize=(8, sum(heights)),
        height_ratios=heights,
        sharex=shared,
        squeeze=False,
        layout="constrained",
    )
    for axes, (grid, rows) in zip(panels[:, 0], grids.items(), strict=True):
        names, places = placed[grid]
        labels = set()
        for row, (place, color, label) in zip(rows, places, strict=True):
            over = [row["error_over_seeds"], row["error_over_examples"]]
            for error, width in zip(over, (3.0, 1.0), strict=True):
                if not math.isnan(error):
                    axes.errorbar(
                        row["value"], place, xerr=error, color=color, elinewidth=width
                    )
            shown = None if label in labels else label
            axes.plot(row["value"], place, "o", color=color, ms=4, label=shown)
            labels.add(label)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(grid, loc="left", fontsize="medium")
        if not shared or axes is panels[-1, 0]:
            unit = rows[0]["unit"]
            axes.set_xlabel(f"{unit}; bars: thick over seeds, thin over examples")
        axes.grid(axis="x", alpha=0.3)
        if labels != {None}:
            axes.legend(fontsize="x-small")
    _save(figure, path)


def _placed(
    rows: list[dict[str, Any]],
) -> tuple[list[str], list[tuple[float, str, str | None]]]:
    """What stands beside the axis of a grid, and of each row its place, colour and
    name in the legend."""
    cells, evaluations = (
        list(dict.fromkeys(row[name] for row in rows))
        for name in ("cell", "evaluation")
    )
    if len(cells) == 1 and len(evaluations) > 1:
        return evaluations, [(place, "C0", None) for place in range(len(rows))]
    places = []
    for row in rows:
        number = evaluations.index(row["evaluation"])
        aside = 0.5 * ((number + 0.5) / len(evaluations) - 0.5)
        label = row["evaluation"] if len(evaluations) > 1 else None
        places.append((cells.index(row["cell"]) + aside, f"C{number % 10}", label))
    return cells, places


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
                [_bound(r["validation"]) for r in validated],
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
    """The path of what is learned, a row for each diffusion and a line for each seed.

    Nothing where nothing is learned.
    """
    groups: dict[tuple[str, str], list[list[dict[str, Any]]]] = {}
    for cell in study.cells:
        path = [r for r in records(root / cell.directory) if "skew_matrix" in r]
        if path:
            groups.setdefault((cell.grid, cell.name), []).append(path)
    if not groups:
        return
    figure, panels = plt.subplots(
        len(groups),
        3,
        figsize=(12, 3.2 * len(groups)),
        squeeze=False,
        layout="constrained",
    )
    for ((grid, name), paths), row in zip(groups.items(), panels, strict=True):
        for path, style in zip(paths, itertools.cycle(_STYLES)):
            steps = [record["step"] for record in path]
            for axes, letter, matrix in zip(row, "QD", _MATRICES, strict=False):
                entries = np.array([record[matrix] for record in path])
                places = np.triu_indices(entries.shape[1], int(letter == "Q"))
                for number, (i, j) in enumerate(zip(*places, strict=True)):
                    axes.plot(
                        steps,
                        entries[:, i, j],
                        color=f"C{number}",
                        ls=style,
                        lw=0.9,
                        label=f"${letter}_{{{i}{j}}}$" if path is paths[0] else None,
                    )
                axes.legend(fontsize="x-small", ncols=2)
            ends = np.array([record["log_snr_range"] for record in path])
            row[2].plot(steps, ends, color="C0", ls=style, lw=0.9)
        row[0].set_title(f"{grid}: {name}", loc="left", fontsize="small")
        row[2].set_title("log-SNR at the ends", loc="left", fontsize="small")
        for axes in row:
            axes.set_xlabel(f"step; {len(paths)} seeds", fontsize="small")
    _save(figure, file)


def _bound(validation: dict[str, list[float]]) -> float:
    return validation[loss_name(validation)][0]


def _first_seed(study: Study, cell: Cell) -> int:
    same = (c.seed for c in study.cells if (c.grid, c.name) == (cell.grid, cell.name))
    return next(same)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
