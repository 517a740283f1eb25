"""Colours, markers and line styles, the same for a name in every picture."""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any


# Okabe & Ito (2008), distinguishable with and without normal colour vision. Their
# yellow is left out, since its lines are hard to see on white.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (BLACK, BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY_BLUE)
# The numbers of colours, markers and lines are coprime, so that pairs do not repeat.
# Colours that look alike in deuteranopia differ in marker and line too.
MARKERS = "osD^vP*X<"
LINES = ("-", "--", "-.", ":")

# Names with a fixed look, given by their position. Append new names.
DIFFUSIONS = ("vpsde", "cld", "malda", "alda", "learned", "psld", "vesde")
DIFFUSIONS += ("critical3", "subvpsde")
SOLVERS = ("dpm", "sea", "edm-heun", "euler", "sscs", "ode-heun", "ancestral")
SOLVERS += ("tsit5", "heun", "dpm-1", "ode-euler", "langevin-dpm", "dopri5", "dopri8")
SOLVERS += ("dpm-3", "shark", "bosh3", "midpoint", "langevin-ancestral", "ode-midpoint")
SOLVERS += ("ralston", "ode-ralston", "eulerheun", "itomilstein", "sra1", "slowrk")
SOLVERS += ("stratonovichmilstein", "generalshark", "spark")
EVALUATIONS = ("bound", "augmented", "collapsed", "theorem3", "last", "elbo")


@dataclasses.dataclass(frozen=True)
class Look:
    """The colour, marker and line style of a name."""

    color: str
    marker: str
    line: str

    @property
    def settings(self) -> dict[str, Any]:
        """The look as arguments for Matplotlib."""
        return {"color": self.color, "marker": self.marker, "ls": self.line}


def look(number: int) -> Look:
    """The look at a position; 63 in a row differ in colour or marker."""
    return Look(
        PALETTE[number % len(PALETTE)],
        MARKERS[number % len(MARKERS)],
        LINES[number % len(LINES)],
    )


def looks(names: Iterable[str], known: Sequence[str]) -> dict[str, Look]:
    """The looks of the names in a picture, no two with the same colour and marker.

    A name that is in `known`, or has a word that is, takes the look of that position; a
    second name for the same position takes its colour. Any other name takes a look from
    its hash, or the next free one if other names have that already.
    """
    names = list(dict.fromkeys(names))
    places = {name: _place(name, known) for name in names}
    found: dict[str, Look] = {}
    # Known names come first, so that no other name takes their looks.
    for name in sorted(names, key=lambda name: places[name] is None):
        place = places[name]
        step = len(PALETTE)
        if place is None:
            place, step = zlib.crc32(name.encode()), 1
        taken = {(other.color, other.marker) for other in found.values()}
        for _ in range(len(PALETTE) * len(MARKERS)):
            if (look(place).color, look(place).marker) not in taken:
                break
            place += step
        found[name] = look(place)
    return {name: found[name] for name in names}


def _place(name: str, known: Sequence[str]) -> int | None:
    words = [name.lower(), *re.findall(r"[a-z0-9-]+", name.lower())]
    return next((known.index(word) for word in words if word in known), None)
