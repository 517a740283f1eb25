"""Tests that benchmarks/RESULTS.md agrees with the tables in benchmarks/results."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STUDIES = sorted((BENCHMARKS / "results").glob("study_*"))


@pytest.fixture(scope="module")
def program():
    sys.path.insert(0, str(BENCHMARKS / "studies"))
    try:
        import write_results

        yield write_results
    finally:
        sys.path.remove(str(BENCHMARKS / "studies"))


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_document_is_what_the_tables_say(program):
    expected = program.render(program.TEMPLATE.read_text())
    assert program.DOCUMENT.read_text() == expected, (
        "run python benchmarks/studies/write_results.py"
    )


def test_every_measured_number_comes_from_a_table(program):
    text = re.sub(r"\{\{.+?\}\}", "", program.TEMPLATE.read_text(), flags=re.DOTALL)
    # Settings have at most one significant decimal or are in code; quotations say so.
    text = re.sub(r"`[^`]*`", "", text)
    paragraphs = [part for part in text.split("\n\n") if "quoted" not in part]
    assert not re.findall(r"\d+\.\d{2,}|±|\d %", "\n\n".join(paragraphs))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_summary_is_the_mean_over_the_seeds(study):
    cells, summary = (_rows(study / f"{name}.csv") for name in ("cells", "summary"))
    assert summary
    for row in summary:
        same = [
            c
            for c in cells
            if all(c[name] == row[name] for name in ("grid", "evaluation", "cell"))
        ]
        assert len(same) == int(row["seeds"])
        if any(int(cell["not_converged"]) for cell in same):
            continue
        values = np.array([float(cell["value"]) for cell in same])
        # Tables have seven digits.
        np.testing.assert_allclose(float(row["value"]), values.mean(), rtol=2e-6)
        if len(values) > 1:
            error = values.std(ddof=1) / np.sqrt(len(values))
            np.testing.assert_allclose(
                float(row["error_over_seeds"]),
                error,
                rtol=1e-5,
                atol=2e-6 * abs(values).max(),
            )


@pytest.fixture
def tables(program, tmp_path, monkeypatch):
    directory = tmp_path / "study_tiny"
    directory.mkdir()
    cells = ["grid,cell,evaluation,seed,value"]
    cells += [f"g,A,one,{seed},{1 + seed / 8}" for seed in range(3)]
    cells += [f"g,A,two,{seed},{1.5 + seed / 4}" for seed in range(3)]
    cells += ["g,A,three,0,3"]
    (directory / "cells.csv").write_text("\n".join(cells) + "\n")
    pairs = ["grid,cell,first,second,difference,error_over_seeds,error_over_examples"]
    pairs += ["h,A,one,two,0.5,0.03,0.04"]
    (directory / "pairs.csv").write_text("\n".join(pairs) + "\n")
    header = "grid,evaluation,cell,value,error_over_seeds,error_over_examples"
    summary = [f"{header},difference,difference_error,unit,seeds,examples"]
    summary += [
        "g,one,A,1.125,0.0721688,0.5,,,nats,3,7",
        "g,one,B,2,,0.25,1,3,nats,1,7",
        "h,one,A,1,0.5,0.25,,,nats,3,7",
        "h,two,A,1.5,0.5,0.25,,,nats,3,7",
    ]
    (directory / "summary.csv").write_text("\n".join(summary) + "\n")
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    program.read.cache_clear()
    yield
    program.read.cache_clear()


def test_directives_read_the_tables(program, tables):
    assert program.render("{{value | tiny | g | one | A}}") == "1.125 ± 0.500"
    assert program.render("{{difference | tiny |\n g | one | B}}") == "+1.000 ± 3.000"
    # Differences of the seeds: 1/2, 5/8, 3/4.
    between = program.render("x {{between | tiny | g | one | two | A}} y")
    assert between == f"x +0.6250 ± {0.125 / np.sqrt(3):.4f} y"
    # A single seed has no error.
    one_seed = program.render("{{between | tiny | g | one | three | A}}")
    assert one_seed == "+2.0000"
    table = program.render("{{table | tiny | g | one}}").splitlines()
    assert table[0].startswith("| nats, 7 examples | value |")
    assert table[2] == "| A | 1.1250 | 0.0722 | 0.5000 |  | 3 |"
    assert table[3] == "| B | 2.0000 | one only | 0.2500 | +1.0000 ± 3.0000 | 1 |"
    # Errors over seeds and examples combine: 0.03 and 0.04 give 0.05.
    table = program.render("{{pairs | tiny | h | one, two}}").splitlines()
    assert program.render("{{pair | tiny | h | one | two | A}}") == "+0.5000 ± 0.0500"
    assert table[2] == "| A: one | 1.0000 | 0.5000 | 0.2500 |  |"
    assert table[3] == "| A: two | 1.5000 | 0.5000 | 0.2500 | +0.5000 ± 0.0500 |"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{{valu | tiny | g | one | A}}", "`directive` must be one of value, .*'valu'"),
        (
            "{{value | tiny | g | one | C}}",
            "`summary` of tiny must have a row with .*C",
        ),
    ],
)
def test_wrong_directive_is_refused(program, tables, text, message):
    with pytest.raises(ValueError, match=message):
        program.render(text)
