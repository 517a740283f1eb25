import numpy as np
import pytest
from solver_studies import error, study

from eqmdm.cli.solver_study import picture
from eqmdm.cli.solver_study.table import REAL_DATA, SolverTable


def test_picture_shows_each_row_and_the_floor(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    table = SolverTable(tmp_path, {})
    figures = lambda value: {
        "squared_mmd": value - 0.2,
        "squared_mmd_error": 0.01,
        "sliced_wasserstein": value,
        "sliced_wasserstein_error": 0.02,
    }
    table.add(REAL_DATA, figures(0.15))
    for diffusion in ("vpsde", "cld"):
        for solver in ("euler", "sea"):
            # Not in the order of the evaluations.
            for n in (50, 10, 20):
                row = {"failure": "no law"}
                if (solver, n) != ("sea", 20):
                    row = {"evaluations": n} | figures(2 / n + 0.1)
                table.add((diffusion, solver, n), row)
    path = tmp_path / "study.png"
    picture.draw(path, table.rows, "the caption", floor="real data", images=True)
    (figure,) = drawn
    assert [panel.get_title() for panel in figure.axes] == ["vpsde", "cld", "", ""]
    assert "caption" in figure.get_supxlabel()
    for i, panel in enumerate(figure.axes):
        euler, sea = (container.lines[0] for container in panel.containers)
        shift = 0.2 if i > 1 else 0.0
        for line, counts in ((euler, [10, 20, 50]), (sea, [10, 50])):
            assert list(line.get_xdata()) == counts
            expected = [2 / n + 0.1 - shift for n in counts]
            np.testing.assert_allclose(line.get_ydata(orig=False), expected)
        solvers = [container.lines[0] for container in panel.containers]
        floors = [line for line in panel.lines if line not in solvers]
        # Of the error bars' caps there are two points for each.
        floors = [line for line in floors if len(set(line.get_ydata())) == 1]
        floors = [line for line in floors if len(line.get_xdata()) == 2]
        assert [line.get_ydata()[0] for line in floors] == [pytest.approx(0.15 - shift)]
        scales = panel.get_xscale(), panel.get_yscale()
        assert scales == ("log", "symlog" if i > 1 else "log")
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["euler", "sea", "real data"]


def test_picture_is_drawn_anew_from_the_table_alone(tmp_path, capsys):
    settings = {"dataset": "digits", "step": 5, "n_samples": 60, "seed": 0}
    settings |= {"n_held_out": 60, "real_data": "held out", "features": "none"}
    table = SolverTable(tmp_path, settings)
    figures = {"sliced_wasserstein": 0.2, "sliced_wasserstein_error": 0.02}
    table.add(REAL_DATA, figures)
    for n in (10, 20):
        table.add(("vpsde", "dpm", n), {"evaluations": n} | figures)
    text = (tmp_path / "study.csv").read_text()
    output = f"--output-dir={tmp_path}"
    # There is no such run.
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        study(tmp_path / "demo", output, "--redraw", f"--picture-format={kind}")
        written = (tmp_path / f"study.{kind}").read_bytes()
        assert written.startswith(start)
        study(tmp_path / "demo", output, "--redraw", f"--picture-format={kind}")
        assert (tmp_path / f"study.{kind}").read_bytes() == written
    assert (tmp_path / "study.csv").read_text() == text
    drawn = (tmp_path / "study.svg").read_text()
    for words in ("demo, step 5", "60 samples of digits", "grey range 0 to 1"):
        assert f"<!-- {words}" in drawn or words in drawn
    line = error(tmp_path / "demo", "--redraw")
    assert "--output-dir must hold the study" in line and "has no study.csv" in line
