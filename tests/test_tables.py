"""Tables of results in the formats of spreadsheets, papers and pages."""

import csv
import io
import math

import pytest

from eqmdm import Estimate
from eqmdm.cli.tables import (
    Column,
    Table,
    escape_latex,
    escape_markdown,
    rounded,
    write_tables,
)


TABLE = Table(
    "5 % of\nx_y",
    (
        Column("term", "term & more"),
        Column("mean", "mean ± standard error", "standard_error"),
        Column("count", "count"),
    ),
    (
        ("bits_per_dim", Estimate(1.942537, 0.025613), 3),
        ('a, "b" | c', Estimate(-2.5, math.nan), None),
        ("none", Estimate(math.nan, math.nan), 1.25e-7),
    ),
)


@pytest.mark.parametrize(
    "value, error, shown",
    [
        (1.942537, 0.025613, ("1.943", "0.026")),
        (-104.99, 5.3745, ("-105.0", "5.4")),
        (1234.5, 37.4, ("1234", "37")),
        # Tens and hundreds of an error are digits too.
        (1234.5, 321.0, ("1230", "320")),
        # To two digits 0.0996 is 0.10, and 9.96 is 10.
        (0.5, 0.0996, ("0.50", "0.10")),
        (0.5, 9.96, ("0", "10")),
        (12.0, 0.0, ("12", "0")),
        (12.0, math.nan, ("12", "")),
    ],
)
def test_numbers_are_rounded_to_two_digits_of_their_errors(value, error, shown):
    assert rounded(Estimate(value, error)) == shown


def test_csv_holds_every_digit_and_nothing_for_what_is_not_known():
    head, *rows = csv.reader(io.StringIO(TABLE.as_csv()))
    assert head == ["term", "mean", "standard_error", "count"]
    assert [float(x) for x in rows[0][1:]] == [1.942537, 0.025613, 3]
    assert rows[1] == ['a, "b" | c', "-2.5", "", ""]
    assert rows[2][1:3] == ["", ""] and float(rows[2][3]) == 1.25e-7


def test_latex_is_a_plain_tabular_that_says_so():
    lines = TABLE.as_latex().splitlines()
    assert lines[0] == "% 5 % of x_y"
    assert lines[1].startswith("% ") and "booktabs" in lines[1]
    assert lines[2:4] == [r"\begin{tabular}{lrr}", r"\hline"]
    assert lines[4] == r"term \& more & mean $\pm$ standard error & count \\"
    assert lines[6] == r"bits\_per\_dim & $1.943 \pm 0.026$ & $3$ \\"
    assert lines[7] == r'a, "b" \textbar{} c & $-2.5$ &  \\'
    assert lines[8] == r"none &  & $1.25 \times 10^{-7}$ \\"
    assert lines[9:] == [r"\hline", r"\end{tabular}"]
    commands = {word for line in lines for word in line.split() if word[0] == "\\"}
    assert not any("rule" in command for command in commands)


def test_every_special_character_of_latex_is_escaped():
    assert escape_latex(r"&%$#_{}") == r"\&\%\$\#\_\{\}"
    assert escape_latex("\\~^") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    )


def test_markdown_has_a_cell_for_each_column():
    caption, _, head, rule, *rows = TABLE.as_markdown().splitlines()
    assert caption == "5 % of x_y"
    assert head == "| term & more | mean ± standard error | count |"
    assert rule == "| --- | --- | --- |"
    assert rows[0] == "| bits_per_dim | 1.943 ± 0.026 | 3 |"
    assert rows[1] == r'| a, "b" \| c | -2.5 |  |'
    assert escape_markdown("*a* _b_ c_d [e]") == r"\*a\* \_b\_ c_d \[e\]"


def test_each_format_is_a_file_with_its_ending(tmp_path):
    write_tables(tmp_path / "table", TABLE, ("csv", "latex", "markdown"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "table.csv": TABLE.as_csv(),
        "table.tex": TABLE.as_latex(),
        "table.md": TABLE.as_markdown(),
    }
