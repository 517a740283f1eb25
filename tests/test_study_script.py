import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from script_runs import SCRIPTS, single_precision

from eqmdm.cli import plots
from eqmdm.cli.study import pictures, program, tables
from eqmdm.cli.study.cells import read_study
from eqmdm.cli.study.options import StudyOptions


TINY = """
question = "Does it work?"
seeds = [0, 1]
[train]
dataset = "mixture"
steps = 4
log_every = 2
validate_every = 2
checkpoint_every = 2
width = 8
n_blocks = 1
n_samples = 0
test_examples = 0
[evaluations.bound]
title = "the bound"
route = "elbo"
draws = 2
examples = 20
[grids.free]
title = "Free scores"
question = "Is it free?"
train = { score = "free", t_range = [0.001, 1] }
[grids.free.axes.diffusion]
"VPSDE" = { diffusion = "vpsde" }
"learned, K = 2" = { diffusion = "learned", n_vars = 2 }
[short]
seeds = [3]
evaluations = { examples = 5 }
train = { steps = 2 }
"""


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with single_precision():
        yield


def _read(directory, text=TINY, short=False):
    path = directory / "tiny.toml"
    path.write_text(text)
    return read_study(path, short=short)


def test_grid_has_a_cell_for_each_choice_and_seed(tmp_path):
    study = _read(tmp_path)
    assert (study.name, study.question) == ("tiny", "Does it work?")
    assert study.grids == {"free": "Is it free?"}
    assert study.titles == {"free": "Free scores"}
    assert study.evaluation_titles == {"bound": "the bound"}
    assert [(cell.name, cell.seed) for cell in study.cells] == [
        ("VPSDE", 0),
        ("VPSDE", 1),
        ("learned, K = 2", 0),
        ("learned, K = 2", 1),
    ]
    last = study.cells[-1]
    assert str(last.directory) == "free/learned-K-2/seed-1"
    assert last.train["n_vars"] == 2 and last.train["score"] == "free"
    assert last.train["steps"] == 4
    assert last.evaluations == {"bound": {"route": "elbo", "draws": 2, "examples": 20}}


def test_short_form_replaces_what_it_names(tmp_path):
    study = _read(tmp_path, short=True)
    assert [cell.seed for cell in study.cells] == [3, 3]
    assert {cell.train["steps"] for cell in study.cells} == {2}
    assert {cell.evaluations["bound"]["examples"] for cell in study.cells} == {5}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[train]", "[trian]", "must have keys among .*; got 'trian'"),
        ("steps = 4", "stpes = 4", "options of eqmdm train .*'stpes' is not one"),
        ("steps = 4", 'steps = "four"', "options of eqmdm train with values that it"),
        ("draws = 2", "draw = 2", "options of eqmdm evaluate .*'draw' is not one"),
        ("seeds = [0, 1]", "seeds = 0", "`seeds` in .* must be a list; got 0"),
        ('"VPSDE" = {', '"VPSDE" = 1 #', "`diffusion` in .* must be a table of tables"),
        ("[grids.free]", '[grids.free]\nevaluate = ["x"]', "among bound; got 'x'"),
        ('title = "Free scores"', "title = 3", "`title` in .* must be a str; got 3"),
        ('title = "the bound"', "title = 3", "`title` of bound must be a str; got 3"),
        (
            'route = "elbo"',
            'route = "all"',
            "must be that of one evaluation; got 'all'",
        ),
        ("question", "question =", "must be a TOML file of a study; .*tiny.toml"),
    ],
)
def test_wrong_study_is_refused(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, TINY.replace(old, new, 1))


# --- The summary ---------------------------------------------------------------------


def _write_evaluation(directory, total, converged, split="test"):
    directory.mkdir(parents=True)
    columns = {"example": np.arange(len(total)), "total": -total * 64 * np.log(2)}
    columns |= {"bits_per_dim": total, "converged": converged}
    pq.write_table(pa.table(columns), directory / "examples.parquet")
    report = {"settings": {"split": split}}
    (directory / "report.json").write_text(json.dumps(report))


def test_summary_is_over_seeds_and_paired_examples(tmp_path):
    study = _read(tmp_path)
    rng = np.random.default_rng(0)
    # Examples differ far more than cells do.
    examples = rng.normal(3.0, 1.0, 50)
    values, rows = {}, []
    for number, cell in enumerate(study.cells):
        noise = 0.01 * rng.normal(size=50) + 0.002 * cell.seed
        total = examples + noise + 0.1 * (number >= 2)
        converged = np.arange(50) != 7 * (number + 1)
        directory = tmp_path / cell.directory / "evaluation-bound"
        _write_evaluation(directory, total, converged)
        values[cell.name, cell.seed] = np.where(converged, total, np.nan)
        names = {"grid": cell.grid, "cell": cell.name, "seed": cell.seed}
        rows.append(names | {"evaluation": "bound", "unit": "bits/dim", "steps": 4})
    first, second = tables.summarise(study, tmp_path, rows)

    by_seed = np.stack([values["learned, K = 2", seed] for seed in (0, 1)])
    both = by_seed[:, np.isfinite(by_seed).all(axis=0)]
    assert both.shape == (2, 48) and second["examples"] == 48
    np.testing.assert_allclose(second["value"], both.mean(), rtol=1e-12)
    over_examples = both.mean(axis=0).std(ddof=1) / np.sqrt(48)
    np.testing.assert_allclose(second["error_over_examples"], over_examples, rtol=1e-12)
    # The standard error of two values is half their distance.
    over_seeds = abs(np.diff(both.mean(axis=1))[0]) / 2
    np.testing.assert_allclose(second["error_over_seeds"], over_seeds, rtol=1e-12)
    assert first["difference"] is None
    # Known fifty times better than either value.
    np.testing.assert_allclose(second["difference"], 0.1, atol=0.01)
    assert second["difference_error"] < 0.01 < 0.1 < second["error_over_examples"]

    text = tables.as_text(study, [first, second | {"steps": 2000}])
    assert "over 48 examples and 2 seeds, after 4 to 2,000 steps." in text
    line = next(line for line in text.splitlines() if line.startswith("| learned"))
    assert f"| {second['value']:.4f} |" in line and "±" in line


def test_counts_have_their_noun_in_the_right_number():
    assert tables.counted([1, 1], "seed") == "1 seed"
    assert tables.counted([3, 1, 2], "seed") == "1 to 3 seeds"
    assert tables.counted([2000], "example") == "2,000 examples"


def test_pairs_are_of_the_same_models_and_examples(tmp_path):
    study = _read(tmp_path)
    rng = np.random.default_rng(0)
    # Models and examples differ far more than evaluations of one do.
    examples = rng.normal(3.0, 1.0, 50)
    rows, gaps = [], []
    cells = [cell for cell in study.cells if cell.name == "VPSDE"]
    for cell in cells:
        first = examples + cell.seed
        gaps.append(0.1 + 0.01 * rng.normal(size=50))
        for name, total in (("bound", first), ("exact", first + gaps[-1])):
            directory = tmp_path / cell.directory / f"evaluation-{name}"
            _write_evaluation(directory, total, np.arange(50) != 7)
            names = {"grid": cell.grid, "cell": cell.name, "seed": cell.seed}
            rows.append(names | {"evaluation": name})
    # One seed with only the first examples, and other examples.
    for name, n, split in (("last", 30, "test"), ("other", 50, "validation")):
        directory = tmp_path / cells[0].directory / f"evaluation-{name}"
        _write_evaluation(directory, examples[:n], np.ones(n, bool), split)
        rows.append(rows[0] | {"evaluation": name})
    found = {
        (pair["first"], pair["second"]): pair
        for pair in tables.pairs(study, tmp_path, rows)
    }
    assert set(found) == {("bound", "exact"), ("bound", "last"), ("exact", "last")}
    pair = found["bound", "exact"]
    assert (pair["seeds"], pair["examples"]) == (2, 49)
    mean = np.delete(np.mean(gaps, axis=0), 7)
    np.testing.assert_allclose(pair["difference"], mean.mean(), rtol=1e-12)
    over_examples = mean.std(ddof=1) / np.sqrt(49)
    np.testing.assert_allclose(pair["error_over_examples"], over_examples, rtol=1e-9)
    # The standard error of two values is half their distance.
    over_seeds = abs(np.diff(np.delete(gaps, 7, axis=1).mean(axis=1))[0]) / 2
    np.testing.assert_allclose(pair["error_over_seeds"], over_seeds, rtol=1e-9)
    one = found["bound", "last"]
    assert (one["seeds"], one["examples"]) == (1, 29)
    assert np.isnan(one["error_over_seeds"])
    np.testing.assert_allclose(one["difference"], 0.0, atol=1e-12)


# --- The pictures --------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, and not written."""
    found = []
    monkeypatch.setattr(plots, "save", lambda figure, *_, **__: found.append(figure))
    yield found
    for figure in found:
        plots.plt.close(figure)


def _summary(**changes):
    row = {"grid": "free", "evaluation": "bound", "cell": "VPSDE", "value": 2.0}
    row |= {"error_over_seeds": 0.1, "error_over_examples": 0.2, "unit": "bits/dim"}
    return row | {"seeds": 2, "examples": 50, "steps": 4} | changes


def test_panels_are_called_by_their_titles(tmp_path, figures):
    study = _read(tmp_path)
    rows = [_summary(evaluation=e, cell=c) for c in ("VPSDE", "CLD") for e in "ab"]
    rows += [_summary(cell=c) for c in ("VPSDE", "CLD")]
    pictures.draw_bounds(tmp_path / "bounds.png", study, rows)
    (axes,) = figures[0].axes
    assert axes.get_title(loc="left") == "Free scores"
    assert axes.get_ylabel() == "model" and "(bits/dim)" in axes.get_xlabel()
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["a", "b", "the bound"]
    caption = figures[0].get_supxlabel()
    assert "Study tiny: 50 examples, 2 seeds" in caption and "standard err" in caption


def test_evaluations_of_one_model_have_a_row_each(tmp_path, figures):
    study = _read(tmp_path)
    # A grid without axes has one cell, of the grid's name.
    rows = [_summary(cell="free", value=3.0)]
    pictures.draw_bounds(tmp_path / "bounds.png", study, rows)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["the bound"]
    assert axes.get_legend() is None and axes.get_ylabel() == "evaluation"


def test_training_has_a_marked_point_for_each_validation(tmp_path, figures):
    study = _read(tmp_path)
    of_cell = {"grid": "free", "unit": "nats", "standard_error": 0.1}
    rows = [
        of_cell | {"cell": cell, "seed": seed, "step": step, "value": step + seed}
        for cell in ("VPSDE", "CLD")
        for seed in (0, 1)
        for step in ((2, 4) if cell == "VPSDE" else (2,))
    ]
    pictures.draw_training(tmp_path / "training.png", study, rows)
    (axes,) = figures[0].axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [([2, 4], [2, 4]), ([2, 4], [3, 5]), ([2], [2]), ([2], [3])]
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines]
    assert looks[0] == looks[1] != looks[2] == looks[3]
    assert all(marker not in ("", "None") for _, marker in looks)
    assert axes.get_ylabel() == "negative bound (nats)"


def test_process_without_log_snrs_has_a_row_too(tmp_path, monkeypatch):
    report = {"step": 4, "log_snr_range": None, "terms": {}}
    report |= {"evaluations_per_example": 1.0}
    values = np.array([1.0, 2.0]), "bits/dim"
    for name, found in (
        ("is_evaluated", True),
        ("_report", report),
        ("_values", values),
    ):
        monkeypatch.setattr(tables, name, lambda *_, found=found: found)
    rows = tables.read(_read(tmp_path), tmp_path)
    assert len(rows) == 4
    assert rows[0]["value"] == 1.5 and rows[0]["log_snr_low"] is None
    tables.write(tmp_path / "cells.csv", rows)
    assert tables.read_table(tmp_path / "cells.csv")[0]["value"] == 1.5


def test_tables_are_read_as_they_were_written(tmp_path):
    rows = [_summary(difference=None, difference_error=float("nan"))]
    tables.write(tmp_path / "summary.csv", rows)
    (row,) = tables.read_table(tmp_path / "summary.csv")
    assert np.isnan(row.pop("difference")) and np.isnan(row.pop("difference_error"))
    assert row == _summary()
    assert tables.read_table(tmp_path / "none.csv") == []


def test_tables_of_another_study_are_not_drawn(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    options = StudyOptions(
        config=tmp_path / "tiny.toml", results_dir=tmp_path, redraw=True
    )
    with pytest.raises(SystemExit, match="there is no summary.csv"):
        program.run(options)
    tables.write(tmp_path / "summary.csv", [_summary(grid="other")])
    with pytest.raises(SystemExit, match="--results-dir .* have the grid other"):
        program.run(options)


def test_parts_of_a_study_are_all_of_it(tmp_path, monkeypatch, capsys):

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)

    def commands(**options):
        program.run(StudyOptions(config=Path("tiny.toml"), dry_run=True, **options))
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith("  ")]

    parts = [commands(part=(index, 3)) for index in (1, 2, 3)]
    assert [len(part) for part in parts] == [4, 2, 2]
    assert sorted(sum(parts, [])) == sorted(commands())


@pytest.mark.parametrize("part", [(0, 2), (3, 2)])
def test_part_that_there_is_not_is_refused(tmp_path, part):

    (tmp_path / "tiny.toml").write_text(TINY)
    with pytest.raises(SystemExit, match="error: --part must be I N with I from 1 to"):
        program.run(
            StudyOptions(config=tmp_path / "tiny.toml", dry_run=True, part=part)
        )


@pytest.mark.slow
def test_study_does_what_is_left_and_collects_it(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    command = [sys.executable, SCRIPTS / "study.py", "tiny.toml", "--output-dir=out"]
    run = lambda *more: subprocess.run(
        [*command, *more], cwd=tmp_path, capture_output=True, text=True
    )
    done = run()
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "cells.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    steps = (tmp_path / "out" / "learned.csv").read_text().splitlines()
    header = "grid,cell,seed,step,log_snr_low,log_snr_high,Q01,D00,D01,D11"
    assert steps[0] == header and len(steps) >= 1 + 2 * 2
    for name in ("bounds.png", "training.png", "learned.png"):
        content = (tmp_path / "out" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        (tmp_path / "out" / name).unlink()
    # Redrawn from the tables alone, which are rounded to seven digits.
    assert run("--redraw").returncode == 0
    for name in ("bounds.png", "training.png", "learned.png"):
        assert (tmp_path / "out" / name).exists()
    # All on this machine.
    (facts,) = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["versions"]["jax"] and facts["device"]["kind"]
    seed = tmp_path / "out" / "free" / "VPSDE" / "seed-1"
    report = json.loads((seed / "evaluation-bound" / "report.json").read_text())
    assert report["n_examples"] == 20 and report["step"] == 4
    # Only the deleted parts are repeated.
    assert run("--dry-run").stdout == ""
    (seed / "evaluation-bound" / "report.json").unlink()
    left = run("--dry-run").stdout
    assert left.count("eqmdm evaluate") == 1 and "eqmdm train" not in left
    # A reader that closes the pipe early causes no error.
    first_line = f"{' '.join(map(str, command))} --dry-run --short | head -n 1"
    how = dict(shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert subprocess.run(first_line, **how).stderr == ""
    # Another study is not taken for this one.
    (tmp_path / "tiny.toml").write_text(TINY.replace("width = 8", "width = 4"))
    changed = run()
    assert changed.returncode == 1
    assert "error: `width` must be 8" in changed.stderr
