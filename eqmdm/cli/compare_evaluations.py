"""Compare evaluations of the same examples, example by example."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from .errors import clean_errors
from .evaluate.results import REPORT, TABLE
from .fields import positional
from .files import LOSS_UNITS, loss_name
from .parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare evaluations of the same examples, example by example.

    Examples differ far more from each other than two evaluations of one do, so the
    mean difference of pairs is known much better than either mean. It is over the
    examples that converged in all of the evaluations.
    """

    evaluations: tuple[Path, ...] = positional("DIRECTORY")
    """Two or more directories that `eqmdm evaluate` wrote; the others are compared with
    the first."""


@dataclasses.dataclass(frozen=True)
class FinishedEvaluation:
    """A finished evaluation, as read back."""

    directory: Path
    report: dict[str, Any]
    columns: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return f"{self.report['run']}, {self.report['settings']['route']}"

    def check_same_examples(self, other: "FinishedEvaluation") -> None:
        """**Raises:** `ValueError` if those of the other are not these."""
        for name, of in (
            ("data_fingerprint", lambda e: e.report["data_fingerprint"]),
            ("split", lambda e: e.report["settings"]["split"]),
            ("examples", lambda e: e.columns["example"].tolist()),
        ):
            mine, its = of(self), of(other)
            if mine != its:
                if name == "examples":
                    mine, its = (f"{v[0]} to {v[-1]}" for v in (mine, its))
                raise ValueError(
                    f"`evaluations` must be of the same examples: {name} is {mine} in "
                    f"{self.directory} and {its} in {other.directory}. Evaluate both "
                    "with the same --split, --first and --examples."
                )


def read(directory: Path) -> FinishedEvaluation:
    """**Raises:** `ValueError` if the directory holds no finished evaluation."""
    for name in (REPORT, TABLE):
        if not (directory / name).is_file():
            raise ValueError(
                "`evaluations` must be directories that `eqmdm evaluate` has finished; "
                f"{directory} has no {name}."
            )
    try:
        table = pq.read_table(directory / TABLE)
        report = json.loads((directory / REPORT).read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(
            f"`evaluations` must be directories that `eqmdm evaluate` has finished; "
            f"{directory} cannot be read ({error})."
        ) from error
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return FinishedEvaluation(directory, report, columns)


def as_text(evaluations: list[FinishedEvaluation]) -> str:
    """A line for each: its mean, and its mean difference from the first."""
    first = evaluations[0]
    name = loss_name(first.columns)
    both = np.all([e.columns["converged"] for e in evaluations], axis=0)
    width = max(len(e.name) for e in evaluations)
    lines = [
        f"{np.count_nonzero(both)} examples; {LOSS_UNITS[name]}, +- standard errors "
        "over them",
        f"{'':{width}}  {'mean':>18}  {'less the first':>20}  {'evaluations':>11}  "
        f"{'s/example':>9}",
    ]
    for evaluation in evaluations:
        values = evaluation.columns[name][both]
        gap = values - first.columns[name][both]
        compared = "" if evaluation is first else _mean(gap)
        counts = evaluation.columns["evaluations"][both]
        lines.append(
            f"{evaluation.name:{width}}  {_mean(values):>18}  {compared:>20}  "
            f"{np.mean(counts):11.1f}  {evaluation.report['seconds_per_example']:9.3g}"
        )
    return "\n".join(lines)


def _mean(values: np.ndarray) -> str:
    if len(values) < 2:
        return "too few examples"
    error = values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.4f} +- {error:.4f}"


def run(options: CompareOptions) -> None:
    with clean_errors(options):
        if len(options.evaluations) < 2:
            raise ValueError(
                "`evaluations` must be two or more; got "
                f"{' '.join(map(str, options.evaluations)) or 'none'}."
            )
        evaluations = [read(directory) for directory in options.evaluations]
        for other in evaluations[1:]:
            evaluations[0].check_same_examples(other)
    print(as_text(evaluations))


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    run(parse(CompareOptions, arguments, prog))
