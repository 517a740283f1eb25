import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from script_runs import error_of, single_precision

from eqmdm.cli.compare_evaluations import CompareOptions, run


@pytest.fixture(autouse=True)
def scripts():
    with single_precision():
        yield


def write_evaluation(directory, route, values, *, first=0, lost=(), images=True):
    """Write a directory as evaluate.py would, with given values."""
    numbers = first + np.arange(len(values))
    columns = {
        "example": numbers,
        "bits_per_dim" if images else "nats": values,
        "evaluations": np.full(len(values), 16),
        "converged": ~np.isin(numbers, lost),
    }
    directory.mkdir()
    pq.write_table(pa.table(columns), directory / "examples.parquet")
    report = {
        "run": "run",
        "data_fingerprint": "abc",
        "settings": {"route": route, "split": "test"},
        "seconds_per_example": 0.25,
    }
    (directory / "report.json").write_text(json.dumps(report))
    return directory


def compare(capsys, *directories):
    run(CompareOptions(evaluations=directories))
    return capsys.readouterr().out


@pytest.fixture
def values():
    generator = np.random.default_rng(0)
    first = 2 + generator.standard_normal(30)
    return first, first - 0.05 + 0.01 * generator.standard_normal(30)


@pytest.mark.parametrize("images", [True, False])
def test_differences_are_those_of_pairs(images, values, tmp_path, capsys):
    directories = [
        write_evaluation(tmp_path / route, route, array, images=images)
        for route, array in zip(("elbo", "collapsed"), values, strict=True)
    ]
    out = compare(capsys, *directories)
    header, _, elbo, collapsed = out.splitlines()
    assert ("bits/dim" if images else "nats") in header
    assert header.startswith("30 examples")
    figure = lambda array: f"{np.mean(array):.4f} +- {stats.sem(array):.4f}"
    assert figure(values[0]) in elbo and "run, elbo" in elbo
    assert figure(values[1]) in collapsed and "16.0" in collapsed
    assert figure(values[1] - values[0]) in collapsed


def test_examples_that_one_has_lost_are_left_out(values, tmp_path, capsys):
    with_gap = values[1].copy()
    with_gap[4] = np.nan
    directories = [
        write_evaluation(tmp_path / "a", "elbo", values[0], lost=[7]),
        write_evaluation(tmp_path / "b", "collapsed", with_gap, lost=[4]),
    ]
    out = compare(capsys, *directories)
    kept = np.delete(values[1] - values[0], [4, 7])
    assert out.startswith("28 examples")
    assert f"{np.mean(kept):.4f} +- {stats.sem(kept):.4f}" in out


def test_pairs_that_do_not_help_are_named(values, tmp_path, capsys):
    generator = np.random.default_rng(1)
    noisy = 2 + generator.standard_normal(30)
    directories = [
        write_evaluation(tmp_path / name, name, array)
        for name, array in (("elbo", noisy), ("collapsed", values[0]))
    ]
    directories.append(write_evaluation(tmp_path / "c", "augmented", noisy + 0.1))
    out = compare(capsys, *directories)
    (note,) = [line for line in out.splitlines() if line.startswith("Pairing")]
    assert "run, collapsed:" in note and "augmented" not in note
    assert "Raise --draws" in note


def test_evaluations_of_one_name_are_told_apart_by_directory(values, tmp_path, capsys):
    directories = [
        write_evaluation(tmp_path / name, "elbo", array)
        for name, array in zip(("a", "b"), values, strict=True)
    ]
    out = compare(capsys, *directories)
    assert "run, elbo, a " in out and "run, elbo, b " in out


@pytest.mark.parametrize("ending", [".csv", ".tex", ".md"])
def test_comparison_is_written_as_its_ending_says(ending, values, tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", "elbo", values[0])
    b = write_evaluation(tmp_path / "b", "collapsed", values[1])
    output = tmp_path / "new" / f"table{ending}"
    run(CompareOptions(evaluations=(a, b), output=output))
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    text = output.read_text()
    if ending == ".csv":
        assert str(values[0].mean()) in text and "difference_error" in text
    else:
        assert "run, collapsed" in text and "30 examples" in text
    assert f"written to {output}" in capsys.readouterr().out


def test_comparison_is_written_into_a_directory(values, tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", "elbo", values[0])
    b = write_evaluation(tmp_path / "b", "collapsed", values[1])
    names = lambda: {path.name for path in (tmp_path / "out").iterdir()}
    run(CompareOptions(evaluations=(a, b), output=tmp_path / "out", format=("latex",)))
    assert names() == {"comparison.txt", "comparison.tex"}
    run(CompareOptions(evaluations=(a, b), output=tmp_path / "out"))
    assert names() == {f"comparison.{end}" for end in ("txt", "tex", "csv", "md")}
    written = (tmp_path / "out" / "comparison.txt").read_text()
    assert capsys.readouterr().out.startswith(written)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output": "table.txt"}, "--output must end in .csv, .tex, .md"),
        ({"format": ("csv",)}, "--format must come with a directory as --output"),
        (
            {"format": ("csv",), "output": "table.tex"},
            "--format must come with a directory",
        ),
        ({"format": ("word",), "output": "out"}, "--format must be table formats"),
    ],
)
def test_wrong_output_is_refused(options, message, tmp_path):
    if "output" in options:
        options = options | {"output": tmp_path / options["output"]}
    line = error_of(run, CompareOptions(evaluations=(tmp_path, tmp_path), **options))
    assert message in line
    assert not list(tmp_path.iterdir())


def test_other_examples_are_refused(values, tmp_path):
    a = write_evaluation(tmp_path / "a", "elbo", values[0])
    b = write_evaluation(tmp_path / "b", "elbo", values[0], first=5)
    line = error_of(run, CompareOptions(evaluations=(a, b)))
    assert "examples is 0 to 29" in line and "5 to 34" in line and "--first" in line


@pytest.mark.parametrize("name", ["report.json", "examples.parquet"])
def test_an_evaluation_that_is_not_finished_is_refused(name, values, tmp_path):
    a = write_evaluation(tmp_path / "a", "elbo", values[0])
    b = write_evaluation(tmp_path / "b", "collapsed", values[1])
    (b / name).unlink()
    line = error_of(run, CompareOptions(evaluations=(a, b)))
    assert f"{b} has no {name}" in line


def test_one_evaluation_is_refused(tmp_path):
    line = error_of(run, CompareOptions(evaluations=(tmp_path,)))
    assert "must be two or more" in line
