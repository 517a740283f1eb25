"""Write benchmarks/RESULTS.md from the tables in benchmarks/results.

    python benchmarks/studies/write_results.py

The text is that of RESULTS.template.md, in which each `{{directive | argument | ...}}`
is replaced from the tables:

- `value | study | grid | evaluation | cell`: a value with the larger of its standard
    errors; `difference`, with the same arguments: its difference from the first cell of
    the grid.
- `table | study | grid | evaluation`: all cells, with errors and differences.
- `evaluations | study | grid | evaluation, ...`: one model evaluated in several ways.
- `pairs | study | grid | evaluation, ...`: the same for a study with `pairs.csv`, with
    errors of the differences over seeds and examples.
- `pair | study | grid | evaluation | evaluation | cell`: one of these differences.
- `between | study | grid | evaluation | evaluation | cell`: the second minus the
    first, for the same models and examples.
- `learned | study | grid`: the result of each start of the learned diffusions.
- `range | study | grid | column | cell`: a learned quantity's range over the starts.
- `estimators`, `gradients`, `solvers | run, ...`: the tables of these programs.
- `budget | study`: steps, seeds and examples.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path


HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
TEMPLATE = HERE / "RESULTS.template.md"
DOCUMENT = HERE.parent / "RESULTS.md"
_DIRECTIVE = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)

Row = dict[str, str]


def main() -> None:
    DOCUMENT.write_text(render(TEMPLATE.read_text()))
    print(f"written to {DOCUMENT}")


def render(template: str) -> str:
    """The template with every directive replaced.

    **Raises:** `ValueError`, naming the directive, if it is unknown or has no table.
    """

    def replace(match: re.Match[str]) -> str:
        name, *arguments = (" ".join(part.split()) for part in match[1].split("|"))
        if name not in _DIRECTIVES:
            raise ValueError(
                f"`directive` must be one of {', '.join(_DIRECTIVES)}; got {name!r}."
            )
        return _DIRECTIVES[name](*arguments)

    return _DIRECTIVE.sub(replace, template)


@cache
def read(study: str, table: str) -> list[Row]:
    with (RESULTS / f"study_{study}" / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def select(study: str, table: str, **keys: str) -> list[Row]:
    """The rows with these values.

    **Raises:** `ValueError` if there are none.
    """
    rows = [
        row
        for row in read(study, table)
        if all(row[name] == value for name, value in keys.items())
    ]
    if not rows:
        raise ValueError(f"`{table}` of {study} must have a row with {keys}; got none.")
    return rows


def _value(study: str, grid: str, evaluation: str, cell: str) -> str:
    [row] = select(study, "summary", grid=grid, evaluation=evaluation, cell=cell)
    errors = [row["error_over_seeds"], row["error_over_examples"]]
    error = max(float(error) for error in errors if error)
    return f"{float(row['value']):.3f} ± {error:.3f}"


def _difference(study: str, grid: str, evaluation: str, cell: str) -> str:
    [row] = select(study, "summary", grid=grid, evaluation=evaluation, cell=cell)
    return f"{float(row['difference']):+.3f} ± {float(row['difference_error']):.3f}"


def _table(study: str, grid: str, evaluation: str) -> str:
    rows = select(study, "summary", grid=grid, evaluation=evaluation)
    unit, examples = rows[0]["unit"], rows[0]["examples"]
    header = [f"{unit}, {examples} examples", "value", "error over seeds"]
    header += ["over examples", "less the first", "seeds"]
    lines = []
    for row in rows:
        difference = row["difference"] and (
            f"{float(row['difference']):+.4f} ± {float(row['difference_error']):.4f}"
        )
        numbers = (
            _number(row[name])
            for name in ("value", "error_over_seeds", "error_over_examples")
        )
        lines.append([row["cell"], *numbers, difference, row["seeds"]])
    return _markdown(header, lines)


def _between(study: str, grid: str, first: str, second: str, cell: str) -> str:
    by_seed = [
        {
            row["seed"]: float(row["value"])
            for row in select(study, "cells", grid=grid, evaluation=name, cell=cell)
        }
        for name in (first, second)
    ]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    mean, error = _mean_and_error(by_seed[1][s] - by_seed[0][s] for s in seeds)
    # A single seed has no error.
    return f"{mean:+.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")


def _evaluations(
    study: str, grid: str, names: str, between: Callable[..., str] = _between
) -> str:
    evaluations = [name.strip() for name in names.split(",")]
    header = ["", "value", "error over seeds", "over examples", "less the first"]
    lines = []
    for name in evaluations:
        for row in select(study, "summary", grid=grid, evaluation=name):
            numbers = (
                _number(row[n])
                for n in ("value", "error_over_seeds", "error_over_examples")
            )
            less = ""
            if name != evaluations[0]:
                less = between(study, grid, evaluations[0], name, row["cell"])
            label = f"{row['cell']}: {name}" if row["cell"] else name
            lines.append([label, *numbers, less])
    unit = select(study, "summary", grid=grid, evaluation=evaluations[0])[0]["unit"]
    header[0] = unit
    return _markdown(header, lines)


def _pairs(study: str, grid: str, names: str) -> str:
    return _evaluations(study, grid, names, _pair)


def _pair(study: str, grid: str, first: str, second: str, cell: str) -> str:
    keys = {"grid": grid, "cell": cell, "first": first, "second": second}
    [row] = select(study, "pairs", **keys)
    errors = [row["error_over_seeds"], row["error_over_examples"]]
    error = math.hypot(*(float(error) for error in errors if error))
    return f"{float(row['difference']):+.4f} ± {error:.4f}"


def _learned(study: str, grid: str) -> str:
    rows = select(study, "learned", grid=grid)
    names = [n for n in rows[0] if n[0] in "QD" and any(row[n] for row in rows)]
    names += ["log_snr_low", "log_snr_high"]
    header = ["start", *(n.replace("_", " ").replace("snr", "SNR") for n in names)]
    lines = []
    for cell, seed in dict.fromkeys((row["cell"], row["seed"]) for row in rows):
        path = [row for row in rows if (row["cell"], row["seed"]) == (cell, seed)]
        moves = (
            f"{float(path[0][n]):.2f} → {float(path[-1][n]):.2f}" if path[0][n] else ""
            for n in names
        )
        lines.append([f"{cell} seed {seed}".strip(), *moves])
    return _markdown(header, lines)


def _learned_range(study: str, grid: str, column: str, cell: str) -> str:
    last: dict[str, Row] = {}
    for row in select(study, "learned", grid=grid, cell=cell):
        last[row["seed"]] = row
    values = [float(row[column]) for row in last.values()]
    ends = dict.fromkeys(f"{end(values):.2f}" for end in (min, max))
    return " to ".join(ends)


def _budget(study: str) -> str:
    rows = read(study, "cells")
    steps, examples = ({row[name] for row in rows} for name in ("steps", "examples"))
    seeds = {row["seed"] for row in rows}
    trainings = {(row["grid"], row["cell"], row["seed"]) for row in rows}
    most = f"up to {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return (
        f"{len(trainings)} trainings of {_all(steps)} steps, {most}, "
        f"{_all(examples)} test examples"
    )


def _estimators() -> str:
    found = json.loads((RESULTS / "estimators_rings.json").read_text())["results"]
    header = ["bound", "times", "sd of a draw", "gradient noise, network"]
    header += ["gradient noise, (Q, D)", "cost", "gap after training, nats"]
    lines = []
    for row in found:
        error = row["gap_error_over_seeds"]
        gap = "diverged"
        if row["gap_after_training"] is not None:
            gap = f"{row['gap_after_training']:.4f}"
            gap += "" if error is None else f" ± {error:.4f}"
        noises = (
            "below noise" if row[name] is None else f"{row[name]:.2f}"
            for name in ("network_gradient_noise", "diffusion_gradient_noise")
        )
        deviation = f"{row['bound_deviation']:.3f} ± {row['bound_deviation_error']:.3f}"
        cost = f"{row['relative_cost']:.2f}"
        lines.append([row["form"], row["times"], deviation, *noises, cost, gap])
    return _markdown(header, lines)


def _gradients() -> str:
    found = json.loads((RESULTS / "gradients_rings.json").read_text())["results"]
    entries = list(found[0]["gradient"])
    lines = []
    for row in found:
        numbers = (
            f"{row['gradient'][name]:.2g} ± {row['error'][name]:.1g}"
            for name in entries
        )
        lines.append([row["score"], row["ends"], row["term"], *numbers])
    return _markdown(["score", "interval fixed in", "terms", *entries], lines)


def _solvers(names: str) -> str:
    rows = []
    for name in names.split(","):
        path = RESULTS / f"solver_study_{name.strip()}.csv"
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    allowed = sorted({int(row["allowed"]) for row in rows} - {0})
    header = ["sliced W2", *(f"{n} evaluations" for n in allowed)]
    lines = []
    for diffusion, solver in dict.fromkeys((r["diffusion"], r["solver"]) for r in rows):
        of = {
            int(row["allowed"]): row
            for row in rows
            if (row["diffusion"], row["solver"]) == (diffusion, solver)
        }
        cells = []
        for n in allowed:
            row = of.get(n, of.get(0))
            if row is None or not row["sliced_wasserstein"]:
                cells.append("")
                continue
            cells.append(
                f"{float(row['sliced_wasserstein']):.3f} ± "
                f"{float(row['sliced_wasserstein_error']):.3f}"
            )
        lines.append([f"{diffusion}, {solver}" if diffusion else solver, *cells])
    return _markdown(header, lines)


_DIRECTIVES: dict[str, Callable[..., str]] = {
    "value": _value,
    "difference": _difference,
    "table": _table,
    "evaluations": _evaluations,
    "pairs": _pairs,
    "pair": _pair,
    "between": _between,
    "learned": _learned,
    "range": _learned_range,
    "budget": _budget,
    "estimators": _estimators,
    "gradients": _gradients,
    "solvers": _solvers,
}


def _mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    values = list(values)
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _number(text: str) -> str:
    return f"{float(text):.4f}" if text else "one only"


def _all(numbers: set[str]) -> str:
    ordered = sorted(map(int, numbers))
    return " or ".join(f"{number:,}" for number in ordered)


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
