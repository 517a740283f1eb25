"""The picture of a study, drawn without a display, and its table as text."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import ticker
from matplotlib.lines import Line2D

from .. import plots
from ..styles import SOLVERS, Look, looks
from .table import FIGURES, REAL_DATA, Key, Row


plt = plots.plt  # which draws without a display
# The line of real data, in a grey that no solver has.
_FLOOR = {"color": "0.4", "ls": (0, (6, 2)), "lw": 1.5}
_HEADINGS = {
    "sliced_wasserstein": "sliced W2",
    "squared_mmd": "squared MMD",
    "frechet": "Fréchet",
    "reference_rms": "rms to tight",
}


def draw(
    path: Path, rows: dict[Key, Row], caption: str, *, floor: str, images: bool
) -> None:
    """Draw a column of panels for each diffusion, and a line for each solver.

    `floor` names the row of real data in the legend.
    """
    results = [row for key, row in rows.items() if key != REAL_DATA]
    present = [n for n in FIGURES if any(r[n] is not None for r in rows.values())]
    diffusions = list(dict.fromkeys(row["diffusion"] for row in results))
    width = max(6.5, 1.5 + 3.8 * len(diffusions))
    figure, axes = plt.subplots(
        len(present),
        len(diffusions),
        figsize=(width, 0.8 + 2.7 * len(present)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    of_solver = looks((row["solver"] for row in results), SOLVERS)
    handles = {}
    for i, name in enumerate(present):
        for j, diffusion in enumerate(diffusions):
            panel = axes[i, j]
            for solver, look in of_solver.items():
                key = diffusion, solver
                of_line = [r for r in results if (r["diffusion"], r["solver"]) == key]
                line = _line(panel, of_line, name, look)
                if line is not None:
                    handles.setdefault(solver, line)
            _draw_floor(panel, rows.get(REAL_DATA), name)
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
        _scale(
            axes[i, 0], [row for row in rows.values() if row[name] is not None], name
        )
        axes[i, 0].set_ylabel(_label(name, images=images))
    for panel, diffusion in zip(axes[0], diffusions, strict=True):
        panel.set_title(diffusion)
    _count_ticks(axes, sorted({row["allowed"] for row in results}))
    names = [solver for solver in of_solver if solver in handles]
    lines = [handles[name] for name in names]
    lines.append(Line2D([], [], **_FLOOR))
    figure.legend(
        lines, [*names, floor], loc="outside upper center", ncols=int(width // 2.3)
    )
    plots.add_caption(figure, caption)
    plots.save(figure, path)


def _line(panel: Any, rows: list[Row], name: str, look: Look) -> Any:
    rows = [row for row in rows if row[name] is not None]
    if not rows:
        return None
    rows.sort(key=lambda row: row["evaluations"])
    return panel.errorbar(
        [row["evaluations"] for row in rows],
        [row[name] for row in rows],
        [row[f"{name}_error"] for row in rows],
        ms=5,
        lw=1.2,
        capsize=2,
        **look.settings,
    )


def _draw_floor(panel: Any, row: Row | None, name: str) -> None:
    if row is None or row[name] is None:
        return
    value, error = row[name], row[f"{name}_error"]
    panel.axhspan(value - error, value + error, color="0.88", lw=0, zorder=0)
    panel.axhline(value, zorder=1, **_FLOOR)


def _scale(panel: Any, rows: list[Row], name: str) -> None:
    """Make the axis logarithmic, or linear about 0 for an unbiased estimate, which may
    be negative."""
    if name != "squared_mmd":
        panel.set_yscale("log")
        values = [row[name] for row in rows]
        # More ticks per decade if there are few decades.
        subs = (1, 2, 5) if max(values) < 100 * min(values) else (1,)
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=subs))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(ticker.NullFormatter())
        return
    low, high = (
        pick(row[name] + sign * row[f"{name}_error"] for row in rows)
        for pick, sign in ((min, -1), (max, 1))
    )
    linear = 2 * min(row[f"{name}_error"] for row in rows) or 1e-12
    powers = range(math.ceil(math.log10(linear)), math.floor(math.log10(high)) + 1)
    panel.set_yscale("symlog", linthresh=linear, linscale=0.5)
    panel.set_yticks([0, *(10.0**power for power in powers)])
    panel.minorticks_off()
    panel.set_ylim(min(1.3 * low, 0), 1.5 * high)


def _count_ticks(axes: Any, counts: list[int]) -> None:
    """Label the numbers of evaluations, without those that would overlap."""
    ticks: list[int] = []
    for count in counts:
        if not ticks or count >= 1.25 * ticks[-1]:
            ticks.append(count)
    for panel in axes[-1]:
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("network evaluations per sample")


def _label(name: str, *, images: bool) -> str:
    unit = "grey range 0 to 1" if images else "units of the data"
    return {
        "sliced_wasserstein": f"sliced Wasserstein-2\n({unit})",
        "squared_mmd": "squared MMD\n(no unit; linear about 0)",
        "frechet": "squared Fréchet distance\n(units of the features)",
        "reference_rms": "rms distance to a tight\nsolution (units of the model)",
    }[name]


def as_text(rows: dict[Key, Row], keys: Iterable[Key]) -> str:
    """The rows with the given keys, one line each."""
    keys = list(keys)
    present = [n for n in FIGURES if any(rows[key][n] is not None for key in keys)]
    heading = f"{'diffusion':10} {'solver':24} {'evaluations':>11} {'seconds':>8}"
    lines = [heading + "".join(f"{_HEADINGS[name]:>22}" for name in present)]
    for key in keys:
        row = rows[key]
        line = f"{row['diffusion']:10} {row['solver']:24} "
        count = row["allowed"] if row["evaluations"] is None else row["evaluations"]
        line += f"{count or '':>11} {_number(row['seconds'], '8.2f')}"
        if row["failure"]:
            lines.append(f"{line}  failed: {row['failure']}")
            continue
        for name in present:
            value, error = row[name], row[f"{name}_error"]
            text = "" if value is None else f"{value:.4g} +- {error:.1g}"
            line += f"{text:>22}"
        lines.append(line)
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return " " * int(form.split(".")[0]) if value is None else f"{value:{form}}"
