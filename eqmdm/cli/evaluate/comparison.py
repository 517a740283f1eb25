"""Finished evaluations of the same examples, compared example by example."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..._core.estimate import Estimate
from ..files import LOSS_UNITS, loss_name
from ..tables import Column, Table, mean_of
from .results import REPORT, TABLE


# Pairing is called useless if it leaves more than this share of the unpaired error.
_NO_HELP = 0.9


@dataclasses.dataclass(frozen=True)
class FinishedEvaluation:
    """A finished evaluation, read from its directory."""

    directory: Path
    report: dict[str, Any]
    columns: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return f"{self.report['run']}, {self.report['settings']['route']}"

    def check_same_examples(self, other: "FinishedEvaluation") -> None:
        """**Raises:** `ValueError` if the other evaluation has other examples."""
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


@dataclasses.dataclass(frozen=True)
class ComparedEvaluation:
    """One of the compared evaluations, over the examples that converged in all."""

    name: str
    mean: Estimate
    difference: Estimate | None
    """The mean paired difference from the first; `None` for the first itself."""
    evaluations: float
    """Network evaluations per example."""
    seconds: float
    """Seconds per example."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Evaluations of the same examples, compared with the first of them."""

    quantity: str
    n_examples: int
    rows: tuple[ComparedEvaluation, ...]

    @property
    def unit(self) -> str:
        return LOSS_UNITS[self.quantity]

    @property
    def caption(self) -> str:
        return f"{self.n_examples} examples; {self.unit}, +- standard errors over them"

    def as_text(self) -> str:
        """One line for each: its mean, and its mean difference from the first."""
        width = max(len(row.name) for row in self.rows)
        lines = [
            self.caption,
            f"{'':{width}}  {'mean':>18}  {'less the first':>20}  "
            f"{'evaluations':>11}  {'s/example':>9}",
        ]
        for row in self.rows:
            lines.append(
                f"{row.name:{width}}  {_as_text(row.mean):>18}  "
                f"{_as_text(row.difference):>20}  {row.evaluations:11.1f}  "
                f"{row.seconds:9.3g}"
            )
        return "\n".join([*lines, *self._notes()])

    def as_table(self) -> Table:
        columns = (
            Column("evaluation", "evaluation"),
            Column(self.quantity, self.unit, "standard_error"),
            Column("difference", "less the first", "difference_error"),
            Column("evaluations", "network evaluations"),
            Column("seconds_per_example", "s/example"),
        )
        rows = tuple(
            (row.name, row.mean, row.difference, row.evaluations, row.seconds)
            for row in self.rows
        )
        caption = self.caption.replace("+-", "±")
        return Table(". ".join([caption, *self._notes()]), columns, rows)

    def _notes(self) -> list[str]:
        first, *others = self.rows
        noisy = [
            row.name
            for row in others
            if row.difference is not None
            and row.difference.standard_error
            > _NO_HELP * math.hypot(row.mean.standard_error, first.mean.standard_error)
        ]
        if not noisy:
            return []
        return [
            f"Pairing does not help for {'; '.join(noisy)}: the noise of each estimate "
            "exceeds the variation that the evaluations share. Raise --draws."
        ]


def compare(evaluations: list[FinishedEvaluation]) -> Comparison:
    """The comparison of evaluations with the first of them.

    **Raises:** `ValueError` unless all are of the same examples.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        first.check_same_examples(other)
    name = loss_name(first.columns)
    both = np.all([e.columns["converged"] for e in evaluations], axis=0)
    names = [evaluation.name for evaluation in evaluations]
    rows = []
    for evaluation in evaluations:
        # Evaluations of the same run and route are distinguished by their directories.
        unique = names.count(evaluation.name) == 1
        shown = "" if unique else f", {evaluation.directory.name}"
        values = evaluation.columns[name][both]
        gap = values - first.columns[name][both]
        counts = evaluation.columns["evaluations"][both]
        rows.append(
            ComparedEvaluation(
                evaluation.name + shown,
                mean_of(values),
                None if evaluation is first else mean_of(gap),
                mean_of(counts).value,
                evaluation.report["seconds_per_example"],
            )
        )
    return Comparison(name, int(np.count_nonzero(both)), tuple(rows))


def read(directory: Path) -> FinishedEvaluation:
    """The finished evaluation in a directory.

    **Raises:** `ValueError` if there is none.
    """
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


def _as_text(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if math.isnan(estimate.standard_error):
        return "too few examples"
    return f"{estimate.value:.4f} +- {estimate.standard_error:.4f}"
