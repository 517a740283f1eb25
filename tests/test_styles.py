"""Tests that colours, markers and lines of pictures are distinguishable."""

import itertools

import numpy as np
import pytest

from eqmdm.cli import solvers, styles
from eqmdm.cli.names import DiffusionName


# Machado, Oliveira & Fernandes (2009), table 1: deuteranopia, on linear RGB.
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
# sRGB to CIE XYZ, and the white of D65 (IEC 61966-2-1).
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
# Six times a just noticeable difference, 2.3 in CIELAB (Mahy et al., 1994).
LEAST_DISTANCE = 6 * 2.3


def _linear(color):
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def _lab(linear):
    ratios = XYZ @ np.clip(linear, 0, 1) / WHITE
    small = ratios / (3 * (6 / 29) ** 2) + 4 / 29
    x, y, z = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), small)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _distance(first, second, vision):
    labs = (_lab(vision @ _linear(color)) for color in (first, second))
    return float(np.linalg.norm(next(labs) - next(labs)))


def test_lab_is_that_of_the_standard():
    np.testing.assert_allclose(_lab(_linear("#FFFFFF")), [100, 0, 0], atol=0.02)
    # Pure red, to the digits that tables of CIELAB have.
    np.testing.assert_allclose(_lab(_linear("#FF0000")), [53.2, 80.1, 67.2], atol=0.1)


def test_simulated_deuteranopia_confuses_red_and_green():
    # A pair known to be confused in deuteranopia and far apart in normal vision.
    red, green = "#C44E52", "#55A868"
    normal = _distance(red, green, np.eye(3))
    assert normal > 80
    assert _distance(red, green, DEUTERANOPIA) < normal / 3


@pytest.mark.parametrize(
    "vision", [np.eye(3), DEUTERANOPIA], ids=["normal", "deuteranopia"]
)
def test_colours_can_be_told_apart(vision):
    for pair in itertools.combinations(styles.PALETTE, 2):
        assert _distance(*pair, vision) > LEAST_DISTANCE, pair


@pytest.mark.parametrize(
    "known",
    [styles.DIFFUSIONS, styles.SOLVERS, styles.EVALUATIONS],
    ids=["diffusions", "solvers", "evaluations"],
)
def test_every_known_name_has_a_look_of_its_own(known):
    found = styles.looks(known, known)
    # Without the line, which may be hidden by markers, and without the marker.
    assert len({(look.color, look.marker) for look in found.values()}) == len(known)
    # Colours that are alike in deuteranopia, by less than 25, differ in all else.
    for first, second in itertools.combinations(list(found.values())[:7], 2):
        if _distance(first.color, second.color, DEUTERANOPIA) < 25:
            assert first.marker != second.marker and first.line != second.line
    # A picture of some of them has the same looks as one of all, in any order.
    some = known[::-2]
    assert styles.looks(some, known) == {name: found[name] for name in some}


def test_every_name_of_the_programs_is_known():
    assert set(styles.SOLVERS) == set(solvers.NAMES)
    assert set(styles.DIFFUSIONS) == set(DiffusionName.__args__)


def test_other_names_have_looks_that_last():
    alone = styles.looks(["mymodule:MyEM"], styles.SOLVERS)
    names = ["sea", "mymodule:MyEM", "dpm"]
    among = styles.looks(names, styles.SOLVERS)
    assert among["mymodule:MyEM"] == alone["mymodule:MyEM"]
    assert list(among) == names and among["dpm"] == styles.look(0)
    # As many names as there are distinct looks.
    many = [f"solver {i}" for i in range(63)]
    found = styles.looks(many, styles.SOLVERS)
    assert len({(look.color, look.marker) for look in found.values()}) == len(many)


def test_known_name_within_words_has_its_colour():
    names = ["mixture, VPSDE", "learned, K = 2", "learned, K = 3"]
    found = styles.looks(names, styles.DIFFUSIONS)
    learned = styles.looks(["learned"], styles.DIFFUSIONS)["learned"]
    assert found["mixture, VPSDE"] == styles.look(0)
    assert found["learned, K = 2"] == learned
    assert found["learned, K = 3"].color == learned.color
    assert found["learned, K = 3"].marker != learned.marker
