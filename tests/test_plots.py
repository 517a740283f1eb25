"""Tests that the pictures of a run show all data and are labelled."""

import numpy as np
import pytest
from matplotlib import colors

from eqmdm.cli import plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, and not written."""
    found = []

    def keep(figure, *_, **__):
        found.append(figure)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(plots, "save", keep)
    yield found
    for figure in found:
        plots.plt.close(figure)


def _curve(path, n_logged, n_validated):
    records = [{"step": 10 * i, "nats": 5.0 / i} for i in range(1, n_logged + 1)]
    for i in range(1, n_validated + 1):
        error = None if i == 1 else 0.1
        records.append({"step": 10 * i, "validation": {"nats": [4.0 / i, error]}})
    plots.training_curve(path, records, "nats", "nats", "run r, seed 3")


@pytest.mark.parametrize("n_logged, n_validated", [(1, 1), (1, 0), (5, 3)])
def test_every_point_of_a_short_training_is_marked(
    n_logged, n_validated, tmp_path, figures
):
    _curve(tmp_path / "curve.png", n_logged, n_validated)
    (axes,) = figures[0].axes
    handles, labels = axes.get_legend_handles_labels()
    shown = ["training, last parameters", "validation, EMA parameters"]
    assert labels == shown[: 1 + bool(n_validated)]
    lines = [
        handle if hasattr(handle, "get_marker") else handle[0] for handle in handles
    ]
    assert all(line.get_marker() not in ("", "None") for line in lines)
    assert [len(line.get_xdata()) for line in lines] == [
        n for n in (n_logged, n_validated) if n
    ]
    # Within the axes, which the first steps of a long training may leave.
    low, high = axes.get_ylim()
    assert low < lines[-1].get_ydata()[-1] < high


def test_long_training_is_a_line(tmp_path, figures):
    _curve(tmp_path / "curve.png", 500, 2)
    (axes,) = figures[0].axes
    assert axes.lines[0].get_marker() in ("", "None")


def test_captions_say_what_bars_are_and_axes_have_units(tmp_path, figures):
    _curve(tmp_path / "curve.png", 3, 2)
    plots.histogram(tmp_path / "h.png", np.arange(5.0), "bound (nats)", "run r, 5")
    records = [
        {
            "step": step,
            "skew_matrix": [[0, -1], [1, 0]],
            "dissipation_matrix": [[1, 0], [0, 2]],
        }
        for step in (1, 2)
    ]
    plots.diffusion_path(tmp_path / "path.png", records, "run r")
    plots.samples(tmp_path / "points.png", np.zeros((4, 2)), None, "run r, 4 samples")
    curve, *_ = figures
    caption = curve.get_supxlabel().replace("\n", " ")
    assert "run r, seed 3" in caption and "bars: standard errors" in caption
    for figure in figures:
        assert "run r" in figure.get_supxlabel()
        for axes in figure.axes:
            assert axes.get_xlabel() and axes.get_ylabel()
    assert curve.axes[0].get_ylabel() == "negative bound (nats)"


def test_entries_of_a_learned_diffusion_are_told_apart(tmp_path, figures):
    skew = np.array([[0, 2.0, 3.0], [-2.0, 0, 4.0], [-3.0, -4.0, 0]])
    records = [
        {"step": 1, "skew_matrix": skew, "dissipation_matrix": np.diag([5.0, 6, 7])}
    ]
    plots.diffusion_path(tmp_path / "path.png", records, "run r")
    skew_axes, dissipation_axes = figures[0].axes
    values = [float(line.get_ydata()[0]) for line in skew_axes.lines]
    labels = [line.get_label() for line in skew_axes.lines]
    assert dict(zip(labels, values, strict=True)) == {
        "$Q_{01}$": 2.0,
        "$Q_{02}$": 3.0,
        "$Q_{12}$": 4.0,
    }
    looks = {(line.get_color(), line.get_marker()) for line in dissipation_axes.lines}
    assert len(looks) == len(dissipation_axes.lines) == 6
    assert all(marker not in ("", "None") for _, marker in looks)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_whole_between_light_gaps(channels, tmp_path, figures):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 17, (5, 8, 8, channels))
    plots.samples(tmp_path / "samples.png", images, 17, "run r")
    (axes,) = figures[0].axes
    shown = np.asarray(axes.images[0].get_array())
    # Three columns and two rows of 8 pixels, each of 8 by 8 dots, 4 dots apart.
    assert shown.shape == (2 * 64 + 4, 3 * 64 + 2 * 4, 3)
    for number, image in enumerate(images):
        top, left = 68 * (number // 3), 68 * (number % 3)
        block = shown[top : top + 64, left : left + 64]
        expected = np.broadcast_to(image / 16, (8, 8, 3))
        np.testing.assert_allclose(block[::8, ::8], expected)
        np.testing.assert_array_equal(block, block[::8, ::8].repeat(8, 0).repeat(8, 1))
    gaps = np.concatenate([shown[64:68].ravel(), shown[:, 64:68].ravel()])
    assert set(gaps) == {0.85}


@pytest.mark.parametrize(
    "kind, start", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_equal_pictures_are_equal_files(kind, start, tmp_path):
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in paths:
        plots.histogram(path, np.arange(5.0), "bound (nats)", "run r")
    first, second = (path.read_bytes() for path in paths)
    assert first == second and first.startswith(start)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(OSError, match="picture.png cannot be written"):
        plots.histogram(tmp_path / "picture.png", np.arange(5.0), "bound", "run r")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_colours_are_those_of_the_palette(tmp_path, figures):
    _curve(tmp_path / "curve.png", 3, 2)
    plots.histogram(tmp_path / "h.png", np.arange(5.0), "bound", "run r")
    palette = {colors.to_hex(color) for color in plots.PALETTE}
    for figure in figures:
        drawn = {colors.to_hex(line.get_color()) for line in figure.axes[0].lines}
        assert drawn <= palette
