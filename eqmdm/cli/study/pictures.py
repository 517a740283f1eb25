"""The pictures of a study, each drawn from one of its tables."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..styles import BLUE, DIFFUSIONS, EVALUATIONS, looks
from .cells import Study
from .tables import counted


Row = dict[str, Any]
plt = plots.plt  # which draws without a display
_SEEDS = "-", "--", ":", "-.", (0, (1, 4))
# The width of a picture and the height of a panel, in inches.
_WIDTH, _PANEL = 8, 3.4


def draw_all(
    directory: Path,
    study: Study,
    summaries: list[Row],
    validations: list[Row],
    learned: list[Row],
    picture_format: str,
) -> None:
    """Draw every picture that has rows, into one directory."""
    for name, draw, rows in (
        ("bounds", draw_bounds, summaries),
        ("training", draw_training, validations),
        ("learned", draw_learned, learned),
    ):
        if rows:
            draw(directory / f"{name}.{picture_format}", study, rows)


def draw_bounds(path: Path, study: Study, summaries: list[Row]) -> None:
    """Draw every cell's value with its errors, one panel per grid, on a shared axis.

    Evaluations of several cells are distinguished by colour and marker; those of a
    single cell have one row each.
    """
    grids = _by(summaries, "grid")
    placed = {grid: _placed(rows) for grid, rows in grids.items()}
    titles = study.evaluation_titles
    of_evaluation = looks((row["evaluation"] for row in summaries), EVALUATIONS)
    shared = len({row["unit"] for row in summaries}) == 1
    heights = [0.8 + 0.3 * len(names) for names, _ in placed.values()]
    figure, panels = plt.subplots(
        len(grids),
        figsize=(_WIDTH, sum(heights) + 0.6),
        height_ratios=heights,
        sharex=shared,
        squeeze=False,
        layout="constrained",
    )
    for axes, (grid, rows) in zip(panels[:, 0], grids.items(), strict=True):
        names, places = placed[grid]
        labels = set()
        for row, (place, label) in zip(rows, places, strict=True):
            of_row = of_evaluation[row["evaluation"]]
            color, marker = of_row.color, of_row.marker
            if label is None:
                color, marker = BLUE, "o"
            over = [row["error_over_seeds"], row["error_over_examples"]]
            for error, width in zip(over, (3.0, 1.0), strict=True):
                if not math.isnan(error):
                    axes.errorbar(
                        row["value"], place, xerr=error, color=color, elinewidth=width
                    )
            shown = None
            if label is not None and label not in labels:
                shown = titles.get(label, label)
            axes.plot(
                row["value"], place, marker, ls="", color=color, ms=5, label=shown
            )
            labels.add(label)
        axes.set_yticks(range(len(names)), [titles.get(name, name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(study.titles[grid], loc="left", fontsize="medium")
        if not shared or axes is panels[-1, 0]:
            axes.set_xlabel(f"negative bound or log-likelihood ({rows[0]['unit']})")
        axes.set_ylabel("evaluation" if labels == {None} else "model")
        axes.grid(axis="x", alpha=0.3)
        if labels - {None}:
            axes.legend(fontsize="x-small")
    figure.align_ylabels(panels[:, 0])
    plots.add_caption(
        figure,
        f"{_described(study, summaries)}. Bars: standard errors, thick over the seeds, "
        "thin over the examples",
    )
    plots.save(figure, path)


def _placed(rows: list[Row]) -> tuple[list[str], list[tuple[float, str | None]]]:
    """The tick labels of a grid, and the position and legend name of each row."""
    cells, evaluations = (
        list(dict.fromkeys(row[name] for row in rows))
        for name in ("cell", "evaluation")
    )
    # The only cell of a grid without axes has the grid's name, which is in the title.
    if len(cells) == 1 and (len(evaluations) > 1 or cells[0] == rows[0]["grid"]):
        return evaluations, [(float(place), None) for place in range(len(rows))]
    places = []
    for row in rows:
        number = evaluations.index(row["evaluation"])
        aside = 0.5 * ((number + 0.5) / len(evaluations) - 0.5)
        places.append((cells.index(row["cell"]) + aside, row["evaluation"]))
    return cells, places


def draw_training(path: Path, study: Study, validations: list[Row]) -> None:
    """Draw the validation bound over the steps, one panel per grid."""
    grids = _by(validations, "grid")
    of_cell = looks((row["cell"] for row in validations), DIFFUSIONS)
    n_columns = min(2, len(grids))
    n_rows = math.ceil(len(grids) / n_columns)
    figure, panels = plt.subplots(
        n_rows,
        n_columns,
        figsize=(_WIDTH * (0.5 + 0.5 * n_columns), _PANEL * n_rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.ravel()[len(grids) :]:
        axes.set_axis_off()
    for axes, (grid, rows) in zip(panels.ravel(), grids.items(), strict=False):
        for cell, of_seeds in _by(rows, "cell").items():
            for number, of_seed in enumerate(_by(of_seeds, "seed").values()):
                axes.plot(
                    [row["step"] for row in of_seed],
                    [row["value"] for row in of_seed],
                    ms=4,
                    lw=0.9,
                    label=None if number else cell,
                    **of_cell[cell].settings,
                )
        axes.set_title(study.titles[grid], loc="left", fontsize="medium")
        plots.label_steps(axes)
        axes.set_ylabel(f"negative bound ({rows[0]['unit']})")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", ncols=2)
    plots.add_caption(
        figure,
        f"{_described(study, validations)}: one line each. The bound of the "
        "validation examples, EMA parameters",
    )
    plots.save(figure, path)


def draw_learned(path: Path, study: Study, learned: list[Row]) -> None:
    """Draw the learned entries over the steps: a row per diffusion, a line per seed."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in learned:
        groups.setdefault((row["grid"], row["cell"]), []).append(row)
    figure, panels = plt.subplots(
        len(groups),
        3,
        figsize=(12, 3.2 * len(groups) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for ((grid, cell), rows), line in zip(groups.items(), panels, strict=True):
        by_seed = _by(rows, "seed")
        for style, of_seed in zip(itertools.cycle(_SEEDS), by_seed.values()):
            steps = [row["step"] for row in of_seed]
            for axes, letter, offset in zip(line, "QD", (1, 0), strict=False):
                plots.draw_entries(
                    axes,
                    steps,
                    np.array([_matrix(row, letter) for row in of_seed]),
                    letter,
                    offset,
                    line=style,
                    labelled=style == _SEEDS[0],
                )
            for name in ("log_snr_low", "log_snr_high"):
                ends = [row[name] for row in of_seed]
                line[2].plot(steps, ends, color=BLUE, ls=style, lw=1)
        title = study.titles[grid]
        title += f": {cell}" if cell not in (grid, title) else ""
        line[0].set_title(title, loc="left", fontsize="small")
        line[2].set_title("log-SNR at both ends", loc="left", fontsize="small")
        labels = [f"entry of {name}, per unit of the schedule" for name in "QD"]
        for axes, label in zip(line, [*labels, "log-SNR (natural log)"], strict=True):
            axes.set_ylabel(label, fontsize="small")
            plots.label_steps(axes)
            axes.grid(alpha=0.3)
        for axes in line[:2]:
            axes.legend(fontsize="x-small", ncols=2)
    plots.add_caption(figure, f"{_described(study, learned)}: one line style per seed")
    plots.save(figure, path)


def _matrix(row: Row, letter: str) -> np.ndarray:
    """The matrix of entries on and above the diagonal; those not in the table are 0."""
    names = [name for name in row if name[0] == letter and name[1:].isdigit()]
    names = [name for name in names if not math.isnan(row[name])]
    size = 1 + max(int(name[2]) for name in names)
    matrix = np.zeros((size, size))
    for name in names:
        matrix[int(name[1]), int(name[2])] = row[name]
    return matrix


def _by(rows: list[Row], name: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _described(study: Study, rows: list[Row]) -> str:
    """A description of the study, its examples and its seeds for captions."""
    words = f"Study {study.name}"
    counts = [row["examples"] for row in rows if "examples" in row]
    if counts:
        words += f": {counted(counts, 'example')}"
    if "seed" in rows[0]:
        seeds = sorted({row["seed"] for row in rows})
        return f"{words}, seeds {', '.join(map(str, seeds))}"
    return f"{words}, {counted((row['seeds'] for row in rows), 'seed')} per model"
