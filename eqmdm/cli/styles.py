"""Colours, markers and lines of pictures: the same for a name in all of them."""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any


# Okabe & Ito (2008), told apart with and without normal colour vision. Their yellow is
# left out: lines of it can hardly be seen on white.
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (BLACK, BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY_BLUE)
# Their numbers have no factor in common with each other or with that of the colours, so
# that pairs do not repeat. Colours that are alike in deuteranopia differ in all three.
MARKERS = "osD^vP*X<"
LINES = ("-", "--", "-.", ":")

# What has a look of its own, which is that of its place. New names go last.
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
    """How the line and the points of a name are drawn."""

    color: str
    marker: str
    line: str

    @property
    def settings(self) -> dict[str, Any]:
        """The same as arguments of Matplotlib."""
        return {"color": self.color, "marker": self.marker, "ls": self.line}


def look(number: int) -> Look:
    """The look of a place: 63 of them differ in colour or in marker."""
    return Look(
        PALETTE[number % len(PALETTE)],
        MARKERS[number % len(MARKERS)],
        LINES[number % len(LINES)],
    )


def looks(names: Iterable[str], known: Sequence[str]) -> dict[str, Look]:
    """The looks of the names in a picture, no two of which share colour and marker.

    A name that is among `known`, or one of whose words is, has the look of that place;
    a second one of the same place has its colour. Any other name has a look that
    depends on the name, and on the other names only where these have it already.
    """
    names = list(dict.fromkeys(names))
    places = {name: _place(name, known) for name in names}
    found: dict[str, Look] = {}
    # Those that are known first, so that no other name takes what is theirs.
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
