"""The program `eqmdm study`: train and evaluate cells, and tabulate the results."""

import json
import subprocess
import sys
from pathlib import Path

from ..errors import clean_errors
from ..files import write_text
from . import pictures, tables
from .cells import Cell, Study, arguments, read_study
from .options import StudyOptions


# Run by the same interpreter, since its environment may not be on the path.
_EQMDM = [sys.executable, "-m", "eqmdm.cli"]


def run(options: StudyOptions) -> None:
    with clean_errors(options):
        study = read_study(options.config, short=options.short)
        index, n_parts = _checked_part(options.part)
    name = study.name + ("-short" if options.short else "")
    root = options.output_dir or Path("runs") / "studies" / name
    results_dir = options.results_dir or root
    if options.redraw:
        with clean_errors(options):
            _redraw(results_dir, study, options)
        return
    failures = []
    for number, cell in enumerate(study.cells):
        if options.collect_only or number % n_parts != index - 1:
            continue
        title = f"[{number + 1}/{len(study.cells)}] {cell.grid}: {cell.name}"
        with clean_errors(options):
            commands = _commands(cell, root / cell.directory, options)
        for command in commands:
            print(f"{title}, seed {cell.seed}\n  eqmdm {' '.join(command)}", flush=True)
            if options.dry_run:
                continue
            if subprocess.run([*_EQMDM, *command]).returncode:
                failures.append(f"{cell.directory}: {command[0]}")
                # The evaluations need the training that failed.
                break
    if options.dry_run:
        return

    results_dir.mkdir(parents=True, exist_ok=True)
    with clean_errors(options):
        rows = tables.read(study, root)
        if not rows:
            sys.exit("error: no cell has been evaluated yet")
        tables.write(results_dir / "cells.csv", rows)
        summaries = tables.summarise(study, root, rows)
        tables.write(results_dir / "summary.csv", summaries)
        if pairs := tables.pairs(study, root, rows):
            tables.write(results_dir / "pairs.csv", pairs)
        learned, validations = (
            make(study, root) for make in (tables.learned, tables.validations)
        )
        for name, found in (("learned", learned), ("training", validations)):
            if found:
                tables.write(results_dir / f"{name}.csv", found)
    text = tables.as_text(study, summaries)
    write_text(results_dir / "summary.md", text)
    facts = tables.facts(study, root)
    write_text(results_dir / "facts.json", json.dumps(facts, indent=1) + "\n")
    pictures.draw_all(
        results_dir, study, summaries, validations, learned, options.picture_format
    )
    print(text)
    print(f"written to {results_dir}")
    if failures:
        sys.exit("error: failed: " + "; ".join(failures))


def _redraw(directory: Path, study: Study, options: StudyOptions) -> None:
    """Draw the pictures again from the tables.

    **Raises:** `ValueError` if there are no tables of this study.
    """
    summaries, validations, learned = (
        tables.read_table(directory / f"{name}.csv")
        for name in ("summary", "training", "learned")
    )
    if not summaries:
        raise ValueError(
            "`results_dir` must hold the tables of the study; there is no summary.csv "
            f"in {directory}. Run the study, or --collect-only, first."
        )
    unknown = {row["grid"] for row in summaries} - set(study.titles)
    if unknown:
        raise ValueError(
            f"`results_dir` must hold the tables of {study.name}; those in {directory} "
            f"have the grid {min(unknown)}, which it lacks."
        )
    pictures.draw_all(
        directory, study, summaries, validations, learned, options.picture_format
    )
    print(f"written to {directory}")


def _checked_part(part: tuple[int, int] | None) -> tuple[int, int]:
    index, n_parts = part or (1, 1)
    if not 1 <= index <= n_parts:
        raise ValueError(
            f"`part` must be I N with I from 1 to N; got {index} {n_parts}. For the "
            "second of three processes that share a study, use 2 3."
        )
    return index, n_parts


def _commands(cell: Cell, directory: Path, options: StudyOptions) -> list[list[str]]:
    """The remaining commands of a cell."""
    commands = []
    data_dir = [] if options.data_dir is None else [f"--data-dir={options.data_dir}"]
    if not tables.is_trained(cell, directory):
        command = ["train", *arguments(cell.train), *data_dir]
        command += [f"--seed={cell.seed}", f"--run-dir={directory}"]
        # A run can be resumed once it has written its options.
        resume = (directory / "options.json").exists()
        commands.append([*command, *["--resume"] * resume])
    for name, settings in cell.evaluations.items():
        if tables.is_evaluated(cell, directory, name):
            continue
        output_dir = tables.evaluation_dir(directory, name)
        command = ["evaluate", str(directory), *arguments(settings)]
        commands.append([*command, *data_dir, f"--output-dir={output_dir}"])
    return commands
