"""Curves as inline SVG, with colours from the style sheet of the page."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from .contents import Point


# The size of a chart in pixels, on wide screens and on narrow ones.
_WIDE, _NARROW = (760, 320), (360, 280)
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 44
# The most points of a line: more are averaged in groups.
_MOST_POINTS = 300
# The most points that have a marker each.
_MOST_MARKED = 60


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart; its name is a class of the style sheet too."""

    name: str
    title: str
    points: Sequence[Point]


def chart(lines: Sequence[Line], label: str) -> str:
    """The chart of some lines over the steps, and a table of their last values.

    The vertical axis leaves out the first tenth of the first line, which is that of an
    untrained network.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    drawn = [dataclasses.replace(line, points=_thinned(line.points)) for line in lines]
    wide = _svg(drawn, label, "wide", _WIDE)
    narrow = _svg(drawn, label, "narrow", _NARROW)
    keys = "".join(
        f'<li class="{line.name}"><span></span>{escape(line.title)}: last '
        f"{_with_error(line.points[-1])} at step {line.points[-1].step:,}</li>"
        for line in lines
    )
    keys = f'<figcaption><ul class="key">{keys}</ul></figcaption>'
    return f"<figure>{wide}{narrow}{keys}</figure>"


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = math.ceil(len(points) / _MOST_POINTS)
    if size == 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        # Standard errors of neighbours are those of the same examples: no smaller.
        Point(group[-1].step, *(sum(v) / len(group) for v in _values(group)))
        for group in groups
    ]


def _values(group: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.value for point in group], [point.error for point in group]


def _svg(lines: list[Line], label: str, kind: str, size: tuple[int, int]) -> str:
    width, height = size
    steps = [point.step for line in lines for point in line.points]
    first, last = float(min(steps)), float(max(max(steps), min(steps) + 1))
    low, high = _limits(lines)
    x = lambda step: _LEFT + (step - first) / (last - first) * (width - _LEFT - _RIGHT)
    y = lambda v: _TOP + (high - v) / (high - low) * (height - _TOP - _BOTTOM)
    parts = []
    for tick in ticks(low, high, 5):
        place = y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {place:.1f}H{width - _RIGHT}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" class="end">{tick:g}</text>'
        )
    for tick in ticks(first, last, width // 120):
        if tick == round(tick):
            place, below = x(tick), height - _BOTTOM + 18
            shown = f"{round(tick):,}"
            parts.append(
                f'<text x="{place:.1f}" y="{below}" class="mid">{shown}</text>'
            )
    middle = (_LEFT + width - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 6}" class="mid">training step</text>'
    )
    across = (height - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(13 {across:.0f}) rotate(-90)" class="mid">'
        f"{escape(label)}</text>"
    )
    clip = f"{kind}-{lines[0].name}"
    inner = f'width="{width - _LEFT - _RIGHT}" height="{height - _TOP - _BOTTOM}"'
    parts.append(f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP}" {inner}/>')
    parts.append("</clipPath>")
    parts.append(f'<rect class="frame" x="{_LEFT}" y="{_TOP}" {inner}/>')
    parts.append(f'<g clip-path="url(#{clip})">')
    parts += [_line(line, x, y) for line in lines]
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)} over the training steps">'
        + "".join(parts)
        + "</g></svg>"
    )


def _line(line: Line, x, y) -> str:
    places = [(x(p.step), y(p.value), p) for p in line.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b, _ in places)
    parts = [f'<g class="{line.name}"><path class="line" d="{path}"/>']
    bars = [(a, p) for a, _, p in places if math.isfinite(p.error)]
    if bars:
        path = "".join(
            f"M{a:.1f} {y(p.value - p.error):.1f}V{y(p.value + p.error):.1f}"
            for a, p in bars
        )
        parts.append(f'<path class="bar" d="{path}"/>')
    if len(places) <= _MOST_MARKED:
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b, _ in places]
    return "".join(parts) + "</g>"


def _limits(lines: list[Line]) -> tuple[float, float]:
    points = lines[0].points
    settled = [point.value for point in points[len(points) // 10 :]]
    for line in lines[1:]:
        end = line.points[-1]
        error = end.error if math.isfinite(end.error) else 0.0
        settled += [end.value - error, end.value + error]
    low, high = min(settled), max(settled)
    # Relative to the values too, so that equal ones are apart from the limits.
    room = 0.05 * (high - low) + 1e-6 * max(abs(low), abs(high), 1.0)
    return low - room, high + 2 * room


def ticks(low: float, high: float, n: int) -> list[float]:
    """About `n` round numbers between two others."""
    raw = (high - low) / max(n, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _with_error(point: Point) -> str:
    error = f" ± {point.error:.4f}" if math.isfinite(point.error) else ""
    return f"{point.value:.4f}{error}"
