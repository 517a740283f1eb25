"""Tables of the results of a study."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq

import eqmdm

from ..evaluate.results import REPORT, TABLE
from ..files import LOSS_UNITS, loss_name, write_text
from ..parsing import parse
from ..train.options import MAY_DIFFER, TrainOptions
from .cells import Cell, Study, arguments


Row = dict[str, Any]
_TERMS = ("reconstruction", "prior", "diffusion", "auxiliary", "dequantisation")
_TERMS += ("data_transform", "log_likelihood")
# The columns with text, and those with integers.
_WORDS = ("grid", "cell", "evaluation", "unit")
_COUNTS = ("seed", "seeds", "step", "steps", "examples", "not_converged")
# Each matrix of a record: its letter, and the diagonal from which it is determined.
_LEARNED = ("Q", "skew_matrix", 1), ("D", "dissipation_matrix", 0)


def evaluation_dir(directory: Path, name: str) -> Path:
    return directory / f"evaluation-{name}"


def is_trained(cell: Cell, directory: Path) -> bool:
    """Whether the cell has been trained to its last step.

    **Raises:** `ValueError` if the directory has a run with other options.
    """
    run = eqmdm.Run(directory)
    if not (directory / "options.json").exists():
        return False
    given = parse(TrainOptions, [*arguments(cell.train), f"--seed={cell.seed}"])
    options = given.resolved()
    not_of_the_cell = (*MAY_DIFFER, "data_fingerprint", "data")
    run.check_options(vars(options), may_differ=not_of_the_cell)
    return options.steps in run.steps


def is_evaluated(cell: Cell, directory: Path, name: str) -> bool:
    """Whether an evaluation of the last step with the study's settings is finished."""
    path = evaluation_dir(directory, name) / REPORT
    if not path.exists() or not is_trained(cell, directory):
        return False
    report = json.loads(path.read_text())
    settings = report["settings"]
    same = all(
        settings[option] == value
        for option, value in cell.evaluations[name].items()
        if option in settings
    )
    return same and report["step"] == max(eqmdm.Run(directory).steps)


def read(study: Study, root: Path) -> list[Row]:
    """A row for each finished evaluation."""
    rows = []
    for cell in study.cells:
        directory = root / cell.directory
        for name in cell.evaluations:
            if not is_evaluated(cell, directory, name):
                continue
            report = _report(directory, name)
            values, unit = _values(directory, name)
            finite = values[np.isfinite(values)]
            # A process without kernels has no log-SNR.
            low, high = report["log_snr_range"] or (None, None)
            rows.append(
                {
                    "grid": cell.grid,
                    "cell": cell.name,
                    "evaluation": name,
                    "seed": cell.seed,
                    "value": finite.mean(),
                    "standard_error": _standard_error(finite),
                    "unit": unit,
                    "examples": len(values),
                    "not_converged": len(values) - len(finite),
                    "steps": report["step"],
                    "log_snr_low": low,
                    "log_snr_high": high,
                    "evaluations_per_example": report["evaluations_per_example"],
                }
                | {
                    f"{term}_nats": report["terms"].get(term, {}).get("mean")
                    for term in _TERMS
                }
            )
    return rows


def summarise(study: Study, root: Path, rows: list[Row]) -> list[Row]:
    """The mean of each cell over its seeds, and its difference from the first cell.

    The standard error over seeds measures the variation of training, that over examples
    the choice of examples. Differences from the first cell of the grid are paired by
    example.
    """
    directories = {(c.grid, c.name, c.seed): root / c.directory for c in study.cells}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        key = row["grid"], row["evaluation"], row["cell"]
        groups.setdefault(key, []).append(row)
    firsts: dict[tuple[str, str], np.ndarray] = {}
    summaries = []
    for (grid, evaluation, cell), of_seeds in groups.items():
        by_seed = np.stack(
            [
                _values(directories[grid, cell, row["seed"]], evaluation)[0]
                for row in of_seeds
            ]
        )
        first = firsts.setdefault((grid, evaluation), by_seed)
        difference: Row = dict.fromkeys(("difference", "difference_error"))
        if first is not by_seed and first.shape[1] == by_seed.shape[1]:
            pairs = by_seed.mean(axis=0) - first.mean(axis=0)
            pairs = pairs[np.isfinite(pairs)]
            errors = [_standard_error(pairs)]
            errors += [_of_seeds(values) for values in (first, by_seed)]
            known = [error for error in errors if not math.isnan(error)]
            difference = {
                "difference": pairs.mean(),
                "difference_error": math.sqrt(sum(error**2 for error in known)),
            }
        mean = by_seed.mean(axis=0)
        mean = mean[np.isfinite(mean)]
        summaries.append(
            {
                "grid": grid,
                "evaluation": evaluation,
                "cell": cell,
                "value": mean.mean(),
                "error_over_seeds": _of_seeds(by_seed),
                "error_over_examples": _standard_error(mean),
                **difference,
                "unit": of_seeds[0]["unit"],
                "seeds": len(of_seeds),
                "examples": len(mean),
                "steps": of_seeds[0]["steps"],
            }
        )
    return summaries


def pairs(study: Study, root: Path, rows: list[Row]) -> list[Row]:
    """The paired difference of every two evaluations of a cell, second minus first.

    The two share their models and are compared on their common examples. The error over
    examples includes the noise of the draws, which all seeds share.
    """
    directories = {(c.grid, c.name, c.seed): root / c.directory for c in study.cells}
    seeds: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in rows:
        of_cell = seeds.setdefault((row["grid"], row["cell"]), {})
        of_cell.setdefault(row["evaluation"], []).append(row["seed"])
    found = []
    for (grid, cell), of_cell in seeds.items():
        for first, second in itertools.combinations(of_cell, 2):
            both = sorted({*of_cell[first]} & {*of_cell[second]})
            by_seed = [
                _difference(directories[grid, cell, seed], first, second)
                for seed in both
            ]
            if not both or not by_seed[0].size:
                continue
            by_seed = np.stack(by_seed)
            mean = by_seed.mean(axis=0)
            mean = mean[np.isfinite(mean)]
            found.append(
                {
                    "grid": grid,
                    "cell": cell,
                    "first": first,
                    "second": second,
                    "difference": mean.mean(),
                    "error_over_seeds": _of_seeds(by_seed),
                    "error_over_examples": _standard_error(mean),
                    "seeds": len(both),
                    "examples": len(mean),
                }
            )
    return found


def _difference(directory: Path, first: str, second: str) -> np.ndarray:
    """The second evaluation minus the first, for each common example."""
    names = first, second
    if len({_report(directory, name)["settings"]["split"] for name in names}) > 1:
        return np.empty(0)
    examples = [
        pq.read_table(evaluation_dir(directory, name) / TABLE, columns=["example"])
        for name in names
    ]
    _, *places = np.intersect1d(
        *(table["example"].to_numpy() for table in examples), return_indices=True
    )
    of_first, of_second = (
        _values(directory, name)[0][chosen]
        for name, chosen in zip(names, places, strict=True)
    )
    return of_second - of_first


def learned(study: Study, root: Path) -> list[Row]:
    """The learned parameters of each diffusion, one row per recorded step.

    Q above the diagonal and D on and above it, per unit of the schedule; the interval
    in log-SNR.
    """
    rows = []
    for cell in study.cells:
        for record in records(root / cell.directory):
            if "skew_matrix" not in record:
                continue
            low, high = sorted(record["log_snr_range"])
            row = {"grid": cell.grid, "cell": cell.name, "seed": cell.seed}
            row |= {"step": record["step"], "log_snr_low": low, "log_snr_high": high}
            for letter, name, offset in _LEARNED:
                matrix = np.array(record[name])
                for i, j in zip(*np.triu_indices(len(matrix), offset), strict=True):
                    row[f"{letter}{i}{j}"] = float(matrix[i, j])
            rows.append(row)
    return rows


def validations(study: Study, root: Path) -> list[Row]:
    """The bound of the validation examples, one row per validation."""
    rows = []
    for cell in study.cells:
        for record in records(root / cell.directory):
            if "validation" not in record:
                continue
            name = loss_name(record["validation"])
            value, error = record["validation"][name]
            row = {"grid": cell.grid, "cell": cell.name, "seed": cell.seed}
            row |= {"step": record["step"], "value": value, "standard_error": error}
            rows.append(row | {"unit": LOSS_UNITS[name]})
    return rows


def facts(study: Study, root: Path) -> list[Row]:
    """The distinct versions and devices of the training runs."""
    found: list[Row] = []
    for cell in study.cells:
        path = root / cell.directory / "options.json"
        if path.exists():
            used = json.loads(path.read_text())
            used = {name: used[name] for name in ("versions", "device")}
            found += [used] if used not in found else []
    return found


def records(directory: Path) -> list[Row]:
    """The metrics of a run, in order of steps."""
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def write(path: Path, rows: list[Row]) -> None:
    """Write rows as CSV, with seven digits; unknown values are empty."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _digits(value) for name, value in row.items()})
    write_text(path, text.getvalue())


def read_table(path: Path) -> list[Row]:
    """The rows that `write` wrote, with NaN for unknown values; none without a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: _value(name, text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def _value(name: str, text: str) -> Any:
    if name in _WORDS:
        return text
    if not text:
        return math.nan
    return int(text) if name in _COUNTS else float(text)


def counted(counts: Iterable[int], noun: str) -> str:
    """The range of these counts, with its noun in the right number."""
    counts = sorted(counts)
    low, high = counts[0], counts[-1]
    if low < high:
        return f"{low:,} to {high:,} {noun}s"
    return f"{low:,} {noun}" if low == 1 else f"{low:,} {noun}s"


def as_text(study: Study, summaries: list[Row]) -> str:
    """The summaries as a Markdown document, one table per grid and evaluation."""
    lines = [f"# {study.name}", "", study.question]
    tables = dict.fromkeys((row["grid"], row["evaluation"]) for row in summaries)
    for grid, evaluation in tables:
        rows = [
            row
            for row in summaries
            if (row["grid"], row["evaluation"]) == (grid, evaluation)
        ]
        some = rows[0]
        lines += ["", f"## {grid}: {evaluation}", "", study.grids[grid], ""]
        lines += [
            f"Negative log-likelihood or bound in {some['unit']}, over "
            f"{counted((r['examples'] for r in rows), 'example')} and "
            f"{counted((r['seeds'] for r in rows), 'seed')}, after "
            f"{counted((r['steps'] for r in rows), 'step')}.",
            "",
            "| | value | error over seeds | over examples | less the first |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            difference = ""
            if row["difference"] is not None:
                difference = f"{row['difference']:+.4f} ± {row['difference_error']:.4f}"
            lines.append(
                f"| {row['cell']} | {row['value']:.4f} | {_error(row, 'seeds')} | "
                f"{_error(row, 'examples')} | {difference} |"
            )
    return "\n".join(lines) + "\n"


def _report(directory: Path, name: str) -> Any:
    return json.loads((evaluation_dir(directory, name) / REPORT).read_text())


def _values(directory: Path, name: str) -> tuple[np.ndarray, str]:
    """The negative log-likelihood of each example, and its unit; NaN if not converged.

    For known densities, its excess over that of the true density.
    """
    table = pq.read_table(evaluation_dir(directory, name) / TABLE)
    column = lambda name: table[name].to_numpy()
    converged = np.where(column("converged"), 0.0, np.nan)
    if "bits_per_dim" in table.column_names:
        return column("bits_per_dim") + converged, "bits/dim"
    report = _report(directory, name)
    # Only data sets known by name have a known density.
    known = report["dataset"] in eqmdm.data.NAMES
    dataset = eqmdm.data.load(report["dataset"]) if known else None
    if dataset is None or dataset.log_density is None:
        return -column("total") + converged, "nats"
    points = getattr(dataset, report["settings"]["split"])[column("example")]
    truth = np.asarray(jax.vmap(dataset.log_density)(points), np.float64)
    return truth - column("total") + converged, "nats above the truth"


def _standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _of_seeds(by_seed: np.ndarray) -> float:
    """The standard error over seeds; NaN for a single one."""
    whole = by_seed[:, np.isfinite(by_seed).all(axis=0)]
    return _standard_error(whole.mean(axis=1))


def _digits(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.7g}" if isinstance(value, float) else value


def _error(row: Row, over: str) -> str:
    value = row[f"error_over_{over}"]
    return "one only" if math.isnan(value) else f"{value:.4f}"
