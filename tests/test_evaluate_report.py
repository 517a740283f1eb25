"""Tests of the reports of evaluations: by label, as tables, of all routes, notes."""

import csv
import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from evaluations import COARSE, error_line, options_of
from scipy import stats
from script_runs import (
    load_once,
)

import eqmdm
from eqmdm.cli.evaluate import by_label, program
from eqmdm.cli.evaluate.comparison import read
from eqmdm.cli.evaluate.notes import comparable_with, notes
from eqmdm.cli.evaluate.report import noise_of
from eqmdm.cli.evaluate.settings import resolve


BOUND = "--route=elbo --draws=2 --examples=60".split()


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


def _evaluate(run, *arguments):
    program.run(options_of(run, *arguments))


def _csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- By label ------------------------------------------------------------------------


def _columns(groups):
    values = np.concatenate(groups)
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    columns = {"bits_per_dim": values, "converged": np.isfinite(values)}
    return columns, labels


@pytest.fixture
def groups():
    generator = np.random.default_rng(0)
    sizes, spreads = (4, 9, 30), (0.5, 1.0, 0.2)
    return [s * generator.normal(size=n) for n, s in zip(sizes, spreads, strict=True)]


def test_labels_are_told_apart_by_welchs_tests(groups):
    shifted = [groups[0], groups[1] + 0.4, groups[2] + 2.0]
    for given in (groups, shifted):
        found = by_label.by_label(*_columns(given))
        expected = stats.f_oneway(*given, equal_var=False).pvalue
        # The incomplete beta function in float32.
        np.testing.assert_allclose(found["p_value"], expected, rtol=1e-4)
        pairs = [(0, 1), (0, 2), (1, 2)]
        p_values = [
            stats.ttest_ind(given[a], given[b], equal_var=False).pvalue
            for a, b in pairs
        ]
        distinct = [
            list(pair) for pair, p in zip(pairs, p_values, strict=True) if p < 0.05 / 3
        ]
        assert found["distinct_pairs"] == distinct and found["pairs"] == 3
    assert [0, 2] in distinct
    text = by_label.verdict(found)
    assert f"{len(distinct)} of 3 pairs of labels can be distinguished" in text
    assert "0 from 2" in text


def test_labels_that_do_not_differ_are_said_to_be_alike(groups):
    found = by_label.by_label(*_columns(groups))
    assert found["p_value"] > 0.05
    assert "cannot be distinguished" in by_label.verdict(found)
    assert f"p = {found['p_value']:.2g}" in by_label.as_lines(found)[-1]


def test_means_of_labels_are_of_the_examples_that_converged(groups):
    lost = [groups[0], groups[1].copy(), np.array([0.3]), np.array([np.nan])]
    lost[1][2] = np.nan
    found = by_label.by_label(*_columns(lost))
    kept = np.delete(groups[1], 2)
    assert [row["examples"] for row in found["labels"]] == [4, 8, 1, 0]
    row = found["labels"][1]
    np.testing.assert_allclose(row["mean"], kept.mean(), rtol=1e-12)
    np.testing.assert_allclose(row["standard_error"], stats.sem(kept), rtol=1e-12)
    # Two labels remain to be tested.
    assert found["pairs"] == 1
    lines = by_label.as_lines(found)
    assert "not known for one example" in lines[4]
    assert "not known for no example" in lines[5]


def test_report_by_label_adds_to_a_complete_evaluation(
    digits, tmp_path, capsys, no_pictures
):
    output = f"--output-dir={tmp_path}"
    _evaluate(digits, *BOUND, output)
    before = json.loads((tmp_path / "report.json").read_text())
    rows = (tmp_path / "examples.parquet").read_bytes()
    capsys.readouterr()
    _evaluate(digits, *BOUND, output, "--by=label", "--format=csv,markdown")
    report = json.loads((tmp_path / "report.json").read_text())
    found = report.pop("by_label")
    assert report == before and (tmp_path / "examples.parquet").read_bytes() == rows
    columns = read(tmp_path).columns
    labels = eqmdm.data.load("digits").labels.test[:60]
    assert [row["label"] for row in found["labels"]] == sorted(set(labels))
    for row in found["labels"]:
        values = columns["bits_per_dim"][labels == row["label"]]
        assert row["examples"] == len(values)
        np.testing.assert_allclose(row["mean"], values.mean(), rtol=1e-12)
    shown = capsys.readouterr().out
    assert by_label.verdict(found) in shown
    assert by_label.verdict(found) in (tmp_path / "report.txt").read_text()
    table = _csv(tmp_path / "by_label.csv")
    assert [float(row["bits_per_dim"]) for row in table] == [
        row["mean"] for row in found["labels"]
    ]
    assert not (tmp_path / "by_label.tex").exists()
    assert "| label | bits/dim | examples |" in (tmp_path / "by_label.md").read_text()
    # Shown on later runs without the option, until the evaluation starts again.
    _evaluate(digits, *BOUND, output)
    assert by_label.verdict(found) in capsys.readouterr().out
    _evaluate(digits, *BOUND, output, "--seed=1", "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("settings.json", "report.json", "report.txt"),
        *("examples.parquet", "histogram.png"),
    }


def test_labels_are_refused_where_there_are_none(points):
    line = error_line(points, "--by=label")
    assert "--by must be left out for mixture" in line and "column `label`" in line


# --- Tables and pictures -------------------------------------------------------------


def test_tables_have_a_row_for_each_term(points, tmp_path):
    output = f"--output-dir={tmp_path}"
    _evaluate(points, *BOUND, output, "--format=csv,latex", "--picture-format=svg")
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["term"]: row for row in _csv(tmp_path / "terms.csv")}
    assert list(rows) == list(report["terms"]) and {"total", "nats"} <= set(rows)
    for name, row in rows.items():
        term = report["terms"][name]
        assert (float(row["mean"]), row["unit"]) == (term["mean"], term["unit"])
        assert float(row["standard_error"]) == term["standard_error"]
    assert r"\begin{tabular}" in (tmp_path / "terms.tex").read_text()
    assert (tmp_path / "histogram.svg").read_text().startswith("<?xml")
    # A complete evaluation is drawn in another format too.
    _evaluate(points, *BOUND, output, "--picture-format=pdf")
    assert (tmp_path / "histogram.pdf").read_bytes().startswith(b"%PDF")


def test_wrong_format_is_refused(points):
    line = error_line(points, "--format=latx")
    assert "--format must be table formats" in line and "got 'latx'" in line
    assert line.endswith("Did you mean latex? The formats are csv, latex, markdown.")


def test_noise_of_the_estimator_is_its_share_of_the_variance():
    settings = {"settings": {"draws": 8}}
    totals = np.array([1.0, 2.0, 3.0, 4.0])
    columns = {"total": totals, "converged": np.ones(4, bool)}
    columns["standard_error"] = np.full(4, 0.5)
    # 0.25 of a variance of 5/3.
    assert "About 15% of the variance" in noise_of(columns, settings)
    columns["standard_error"] = np.full(4, np.nan)
    assert "a single draw does not reveal" in noise_of(columns, settings)
    columns["standard_error"] = np.zeros(4)
    assert noise_of(columns, settings) == ""


# --- All routes ----------------------------------------------------------------------


def test_all_routes_are_evaluated_and_compared(points, tmp_path, capsys, no_pictures):
    arguments = "--route=all", "--examples=8", *COARSE, f"--output-dir={tmp_path}"
    _evaluate(points, *arguments, "--draws=3", "--aux-draws=2", "--format=csv")
    routes = "elbo", "augmented", "collapsed"
    for route in routes:
        settings = json.loads((tmp_path / route / "settings.json").read_text())
        assert settings["route"] == route
        assert settings["draws"] == (3 if route == "elbo" else 1)
        assert settings.get("aux_draws") == (2 if route == "augmented" else None)
    shown = capsys.readouterr().out
    text = (tmp_path / "comparison" / "comparison.txt").read_text()
    assert text in shown
    rows = _csv(tmp_path / "comparison" / "comparison.csv")
    assert [row["evaluation"] for row in rows] == [f"run, {route}" for route in routes]
    values = [read(tmp_path / route).columns["nats"] for route in routes]
    for row, found in zip(rows, values, strict=True):
        np.testing.assert_allclose(float(row["nats"]), found.mean(), rtol=1e-12)
    gap = values[2] - values[0]
    np.testing.assert_allclose(float(rows[2]["difference"]), gap.mean(), rtol=1e-9)
    np.testing.assert_allclose(float(rows[2]["difference_error"]), stats.sem(gap))
    # Complete evaluations are not repeated.
    tables = {
        route: (tmp_path / route / "examples.parquet").stat().st_mtime_ns
        for route in routes
    }
    _evaluate(points, *arguments, "--draws=3", "--aux-draws=2")
    assert capsys.readouterr().out.count("already complete") == 3
    for route in routes:
        path = tmp_path / route / "examples.parquet"
        assert path.stat().st_mtime_ns == tables[route]


@pytest.mark.slow
def test_all_routes_go_on_where_they_were_stopped(points, tmp_path, monkeypatch):
    arguments = "--route=all", "--examples=8", "--batch-size=4", *COARSE
    arguments += (f"--output-dir={tmp_path / 'stopped'}",)
    evaluated, stop_at = [], [("augmented", 4)]
    call = program.Evaluator.__call__

    def watched(self, start, stop):
        if (self._options.route, start) in stop_at:
            raise KeyboardInterrupt
        evaluated.append((self._options.route, start))
        return call(self, start, stop)

    monkeypatch.setattr(program.Evaluator, "__call__", watched)
    with pytest.raises(SystemExit, match="stopped after 4 examples"):
        _evaluate(points, *arguments)
    assert not (tmp_path / "stopped" / "comparison").exists()
    stop_at.clear()
    _evaluate(points, *arguments)
    # Each batch once.
    routes = "elbo", "augmented", "collapsed"
    assert evaluated == [(route, start) for route in routes for start in (0, 4)]
    rows = _csv(tmp_path / "stopped" / "comparison" / "comparison.csv")
    assert len(rows) == 3


def test_routes_are_those_that_suit_the_run(points, free):
    options = lambda run, *more: program.by_route(
        options_of(run, "--route=all", *more), load_once(run, data_dir=None)
    )
    assert [o.route for o in options(free)] == ["elbo", "augmented"]
    assert [o.route for o in options(points)] == ["elbo", "augmented", "collapsed"]
    # An ODE of the data alone has no time.
    clocks = {o.route: o.clock for o in options(points, "--clock=time")}
    assert clocks == {"elbo": None, "augmented": "time", "collapsed": None}
    line = error_line(points, "--route=all", "--dequantisation=uniform")
    assert "--dequantisation must be left out for points" in line


# --- Comparability of results --------------------------------------------------------


def _trained(run, *, n_levels, n_vars=2, dequantisation="uniform"):
    trained = load_once(run, data_dir=None)
    diffusion = {1: eqmdm.VPSDE, 2: eqmdm.CLD}[n_vars]()
    return dataclasses.replace(
        trained,
        dataset=SimpleNamespace(name="data", n_levels=n_levels, test=np.zeros((50, 2))),
        options=dataclasses.replace(trained.options, dequantisation=dequantisation),
        model=trained.model.under(diffusion),
    )


def _settings(points, route, **changes):
    given = options_of(points, f"--route={route}", "--examples=10")
    settings = resolve(given, load_once(points, data_dir=None))
    return dataclasses.replace(settings, **changes)


KNOWN = {"total": {"standard_error": 0.1}}


@pytest.mark.parametrize(
    "n_levels, data",
    [
        (256, "bits/dim of data as 8-bit data"),
        (17, "at 17 grey levels alone: not comparable with 8-bit data"),
        (None, "densities of data in the same units alone"),
    ],
)
@pytest.mark.parametrize("examples", [10, 50])
def test_figure_says_of_which_data_it_is(points, n_levels, data, examples):
    settings = _settings(points, "collapsed", examples=examples)
    text = comparable_with(_trained(points, n_levels=n_levels), settings)
    assert data in text
    whole = "the whole test split" in text
    assert whole == (examples == 50) and ("10 of the 50" in text) == (not whole)


@pytest.mark.parametrize(
    "route, dequantisation, said",
    [
        ("elbo", "uniform", "variational bounds with uniform dequantisation"),
        ("elbo", "discrete", "variational bounds with a discrete decoder and no deq"),
        ("collapsed", "truncated_normal", "of the data with truncated normal deq"),
        ("augmented", "uniform", "of the whole state with uniform dequantisation"),
    ],
)
def test_figure_says_how_it_was_found(points, route, dequantisation, said):
    trained = _trained(points, n_levels=256, dequantisation=dequantisation)
    assert said in comparable_with(trained, _settings(points, route))


@pytest.mark.parametrize(
    "route, n_levels, n_vars, bounded",
    [
        ("elbo", 256, 1, "log-mass .* dequantisation noise, times and states"),
        ("elbo", None, 1, "log-density, on average over times and states"),
        ("collapsed", 256, 2, "log-mass .* over dequantisation noise"),
        ("collapsed", None, 2, None),
        ("augmented", 256, 2, "dequantisation noise and the auxiliary variables"),
        ("augmented", None, 2, "log-density, .* over the auxiliary variables"),
        # Without auxiliary variables it is the density itself.
        ("augmented", None, 1, None),
    ],
)
def test_lower_bounds_are_called_so_on_every_route(
    points, route, n_levels, n_vars, bounded
):
    trained = _trained(points, n_levels=n_levels, n_vars=n_vars)
    found = notes(trained, _settings(points, route), KNOWN)
    if bounded is None:
        assert not found
    else:
        (note,) = found
        assert re.search(f"total is a lower bound of the .*{bounded}", note)


def test_error_of_one_example_is_explained(points):
    terms = {"total": {"standard_error": float("nan")}}
    found = notes(
        _trained(points, n_levels=None), _settings(points, "collapsed"), terms
    )
    assert found == [
        "standard errors are over examples and need at least two; the error of a "
        "single example's estimate is in examples.parquet"
    ]
