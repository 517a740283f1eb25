"""Tests of evaluations that were stopped, or completed, before."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluations import FEW, error_line, evaluate, report_of
from script_runs import load_once

from eqmdm.cli import plots
from eqmdm.cli.evaluate import program
from eqmdm.cli.evaluate.results import EvaluationResults


FILES = "settings.json report.json report.txt examples.parquet histogram.png".split()


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


class _Killed(BaseException):
    """An exception that no handler catches, like a SIGKILL."""


def test_evaluation_continues_after_a_kill_at_any_write(
    logit_digits, solver, tmp_path, monkeypatch
):
    expected = evaluate(logit_digits, tmp_path / "whole", *FEW)
    picture = (tmp_path / "whole" / "histogram.png").read_bytes()
    count = _kill_before_writes(monkeypatch)
    evaluate(logit_digits, tmp_path / "counted", *FEW)
    n_writes = count.n
    # The settings, three parts, the table, the picture, the report twice and a tidy-up.
    assert n_writes == 9
    for n in range(n_writes):
        directory = tmp_path / str(n)
        count.n, count.last = 0, n
        with pytest.raises(_Killed):
            evaluate(logit_digits, directory, *FEW)
        count.last = None
        table = evaluate(logit_digits, directory, *FEW)
        for name in expected:
            np.testing.assert_array_equal(table[name], expected[name])
        assert (directory / "histogram.png").read_bytes() == picture
        assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)


def _kill_before_writes(monkeypatch):
    """Count writes to the disk, and stop before the one after number `last`."""
    count = SimpleNamespace(n=0, last=None)

    def watched(function):
        def call(*args, **kwargs):
            if count.last is not None and count.n >= count.last:
                raise _Killed
            count.n += 1
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (Path, "replace"),
        (Path, "unlink"),
        (os, "fsync"),
        (plots, "histogram"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return count


KILLED = """
import os, signal, sys
from pathlib import Path
from eqmdm.cli.evaluate.settings import resolve
from eqmdm.cli.evaluate.results import EvaluationResults
results = EvaluationResults(Path({directory!r}), {{"seed": 0}}, anew=False)
for i in range(3):
    if i == 2:
        with (results.directory / "parts.jsonl").open("a") as file:
            file.write('{{"rows": [{{"example": 2, "tot')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    results.add([{{"example": i, "total": i / 7}}], 1.0, compiled=i == 0)
"""


def test_results_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    code = KILLED.format(directory=str(tmp_path))
    process = subprocess.run([sys.executable, "-c", code])
    assert process.returncode == -signal.SIGKILL
    results = EvaluationResults(tmp_path, {"seed": 0}, anew=False)
    assert results.rows == {i: {"example": i, "total": i / 7} for i in (0, 1)}
    results.add([{"example": 2, "total": 2 / 7}], 1.0, compiled=True)
    again = EvaluationResults(tmp_path, {"seed": 0}, anew=False)
    assert again.write_table()["total"].tolist() == [0, 1 / 7, 2 / 7]
    assert again.timing == (1.0, False)


def test_complete_evaluation_is_shown_and_not_repeated(
    logit_digits, solver, tmp_path, capsys
):
    evaluate(logit_digits, tmp_path, *FEW)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == set(FILES)
    capsys.readouterr()
    evaluate(logit_digits, tmp_path, *FEW)
    assert "already complete" in (shown := capsys.readouterr().out)
    assert files["report.txt"].decode() in shown
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Another seed, in its place.
    evaluate(logit_digits, tmp_path, *FEW, "--seed=1", "--overwrite")
    assert report_of(tmp_path)["settings"]["seed"] == 1


def test_other_settings_do_not_continue_an_evaluation(logit_digits, solver, tmp_path):
    evaluate(logit_digits, tmp_path / "results", *FEW)
    output = f"--output-dir={tmp_path / 'results'}"
    error = error_line(logit_digits, *FEW, output, "--tolerance=1e-3")
    assert "--tolerance must be 1e-05" in error and "got 0.001" in error
    (tmp_path / "notes.txt").write_text("mine")
    error = error_line(logit_digits, *FEW, f"--output-dir={tmp_path}", "--overwrite")
    assert "--output-dir must be new, empty or" in error
    assert (tmp_path / "notes.txt").read_text() == "mine"
