"""Evaluate the likelihood of a trained model, example by example."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import plots
from ..errors import clean_errors
from ..files import LOSS_UNITS, loss_name, plain, write_text
from ..outputs import TABLE_FORMATS
from ..tables import write_tables
from ..trained import TrainedRun, load_trained
from . import by_label, classification, diagnosis
from .comparison import compare, read
from .evaluator import Evaluator
from .notes import comparable_with
from .options import EvaluateOptions
from .report import caption, make_report, make_text, noise_of, terms_table
from .results import BY_LABEL, HISTOGRAM, TERMS, TEXT, EvaluationResults
from .settings import (
    EvaluateSettings,
    by_class,
    by_route,
    comparison_dir,
    find_solver,
    resolve,
    under_chosen_diffusion,
)


def run(given: EvaluateOptions) -> None:
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors(given):
        given.check()
        find_solver(given.solver)
        trained = load_trained(
            given.run,
            data_dir=given.data_dir,
            ema=given.ema,
            ema_length=given.ema_length,
            trust_code=given.trust_code,
        )
        trained = under_chosen_diffusion(given, trained)
        if given.diagnose:
            diagnosis.check(given, trained)
            diagnosis.diagnose(given, trained)
            return
        settings = [resolve(options, trained) for options in by_route(given, trained)]
        classifications = []
        if given.classify:
            classifications = [by_class(one, trained) for one in settings]
            settings = [one for classes in classifications for one in classes]
        evaluations = [_Evaluation(given, one, trained) for one in settings]
    # ----- The evaluations and their comparison.
    for evaluation in evaluations:
        evaluation.run(quiet=given.classify)
    for classes in classifications:
        with clean_errors(given):
            _classify(classes, trained, given)
    if given.route == "all" and not given.classify:
        directories = [evaluation.directory for evaluation in evaluations]
        with clean_errors(given):
            _compare(directories, comparison_dir(given), given.format)


class _Evaluation:
    """The evaluation of a run on one route, in its own directory."""

    def __init__(
        self, given: EvaluateOptions, options: EvaluateSettings, trained: TrainedRun
    ):
        """**Raises:** `ValueError` if the options or the directory are unsuitable."""
        self._given, self._options, self._trained = given, options, trained
        self._quiet = False
        self._labels = None
        if options.by is not None:
            self._labels = by_label.labels_of(
                trained.dataset, options.split, options.first, options.examples
            )
        self._evaluate = Evaluator(trained, options)
        self._results = EvaluationResults(
            options.output_dir,
            {"dataset": trained.dataset.name, "step": trained.step}
            | options.identity()
            | {"parameters": trained.parameters},
            anew=options.overwrite,
        )

    @property
    def _name(self) -> str:
        given = self._options.of_class
        return self._options.route + ("" if given is None else f", class {given}")

    @property
    def directory(self) -> Path:
        return self._results.directory

    def run(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        if self._results.is_complete:
            if not quiet:
                print(f"already complete: {self.directory}\n")
                self._report_anew()
            return
        self._evaluate_batches()
        columns = self._results.write_table()
        report = make_report(
            self._trained, self._options, columns, self._results.timing
        )
        self._add_labels(report, columns)
        self._draw(report, columns)
        # The report is written last, since it marks the evaluation as complete.
        self._show(report)
        self._results.finish(report)
        if not quiet:
            written = sorted(path.name for path in self.directory.iterdir())
            print(f"written to {self.directory}: {', '.join(written)}")

    def _evaluate_batches(self) -> None:
        """Evaluate the missing batches. Their limits do not depend on where an earlier
        process was stopped, so neither do rounding errors."""
        options, results = self._options, self._results
        stop = options.first + options.examples
        bar = tqdm(total=options.examples, initial=len(results.rows), unit="example")
        compiled = False
        try:
            for begin in range(options.first, stop, options.batch_size):
                end = min(begin + options.batch_size, stop)
                if results.rows.keys() >= set(range(begin, end)):
                    continue
                doing = "evaluating" if compiled else "compiling"
                bar.set_description(f"{self._name}: {doing}")
                clock = time.perf_counter()
                with clean_errors(self._given):
                    rows = self._evaluate(begin, end)
                    seconds = time.perf_counter() - clock
                    results.add(rows, seconds, compiled=not compiled)
                compiled = True
                name = loss_name(rows[0])
                bar.set_postfix_str(f"mean {results.mean(name):.3f} {LOSS_UNITS[name]}")
                bar.update(len(results.rows) - bar.n)
        except KeyboardInterrupt:
            sys.exit(
                f"stopped after {len(results.rows)} examples; the same command "
                "continues"
            )
        finally:
            bar.close()

    def _report_anew(self) -> None:
        """Show a complete evaluation, and make from its table what is missing."""
        report = self._results.read_report()
        picture = self._picture
        if self._labels is None and not self._options.format and picture.exists():
            print((self.directory / TEXT).read_text(), end="")
            return
        columns = self._results.read_table()
        # Reports of earlier versions lack this entry.
        report.setdefault(
            "comparable_with", comparable_with(self._trained, self._options)
        )
        self._add_labels(report, columns)
        if not picture.exists():
            self._draw(report, columns)
        self._show(report)
        self._results.finish(report)

    def _add_labels(self, report: dict[str, Any], columns: dict[str, Any]) -> None:
        if self._labels is not None:
            report["by_label"] = by_label.by_label(columns, self._labels)

    def _show(self, report: dict[str, Any]) -> None:
        """Print and write the text, and write the tables."""
        text, formats = make_text(report), self._options.format
        write_tables(self.directory / TERMS, terms_table(report), formats)
        if "by_label" in report:
            table = by_label.as_table(report["by_label"], caption(report))
            write_tables(self.directory / BY_LABEL, table, formats)
        write_text(self.directory / TEXT, text)
        if not self._quiet:
            print(text)

    @property
    def _picture(self) -> Path:
        return self.directory / f"{HISTOGRAM}.{self._options.picture_format}"

    def _draw(self, report: dict[str, Any], columns: dict[str, Any]) -> None:
        name = loss_name(columns)
        is_bound = self._options.route == "elbo"
        what = "negative bound" if is_bound else "negative log-likelihood"
        text = caption(report) + noise_of(columns, report)
        plots.histogram(
            self._picture, columns[name], f"{what} ({LOSS_UNITS[name]})", text
        )


def _classify(
    classes: list[EvaluateSettings], trained: TrainedRun, given: EvaluateOptions
) -> None:
    """Print how well the posterior of the classes predicts the labels, and write it as
    text, JSON, a table and a picture."""
    first = classes[0]
    labels = by_label.labels_of(
        trained.dataset, first.split, first.first, first.examples
    )
    found = classification.classify([read(one.output_dir) for one in classes], labels)
    directory = first.output_dir.parent
    text = classification.as_text(found)
    write_text(directory / "classification.json", json.dumps(plain(found), indent=1))
    write_text(directory / "classification.txt", text)
    table = classification.as_table(found)
    write_tables(directory / "classification", table, given.format)
    path = directory / f"calibration.{given.picture_format}"
    plots.calibration(path, found["bins"], classification.caption(found))
    print(f"{text}\nwritten to {directory}")


def _compare(
    directories: list[Path], directory: Path, formats: tuple[str, ...]
) -> None:
    """Print the comparison of the routes, and write it as text and tables."""
    comparison = compare([read(path) for path in directories])
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "comparison.txt", comparison.as_text() + "\n")
    formats = formats or tuple(TABLE_FORMATS)
    write_tables(directory / "comparison", comparison.as_table(), formats)
    print(f"{comparison.as_text()}\nwritten to {directory}")
