"""Figures as SVG files, one for a light page and one for a dark one."""

import base64
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from eqmdm.cli.styles import PALETTE


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


# Colours that occur nowhere else, which each page replaces by its own.
_TEXT, _GRID, _BLACK = "#0a0b0c", "#d0d1d2", "#000000"
_PAGES = {
    "light": {_TEXT: "#333333", _GRID: "#dddddd", _BLACK: "#000000"},
    "dark": {_TEXT: "#d5d7e0", _GRID: "#484c5c", _BLACK: "#f2f2f2"},
}
# Larger files are slow to load; draw dense parts with `rasterized=True`.
MAX_BYTES = 400_000


def set_style() -> None:
    """Make figures of one look: that of the programs' pictures, without a frame."""
    plt.rcdefaults()
    coloured = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color")
    coloured += ("xtick.color", "ytick.color", "legend.labelcolor")
    plt.rcParams |= dict.fromkeys(coloured, _TEXT) | {
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": plt.cycler(color=PALETTE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "figure.figsize": (7.0, 3.0),
        "font.size": 9,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "legend.framealpha": 0.0,
        # Equal figures must be equal files.
        "svg.hashsalt": "eqmdm",
    }


def save_figures(directory: Path, stem: str, alt: str | None, first: int) -> list[str]:
    """Saves all open figures, closes them, and returns their Markdown.

    **Arguments:**

    - `alt`: the alternative text, which a cell with a figure needs.
    - `first`: the number of the first figure in its page.

    **Raises:** `ValueError` without an `alt`, and for a file above `MAX_BYTES`.
    """
    numbers, shown = plt.get_fignums(), []
    if numbers and not alt:
        raise ValueError('a cell with a figure must be marked with alt="..."')
    for offset, number in enumerate(numbers):
        drawn = directory / "drawn.svg"
        plt.figure(number).savefig(drawn, transparent=True, metadata={"Date": None})
        text = drawn.read_text(encoding="utf-8")
        drawn.unlink()
        if len(text) > MAX_BYTES:
            raise ValueError(
                f"the figure {alt!r} must be smaller than {MAX_BYTES} bytes; got "
                f"{len(text)}. Draw dense parts with rasterized=True."
            )
        for page, colours in _PAGES.items():
            name, own = f"{stem}-{first + offset}-{page}.svg", text
            for old, new in colours.items():
                own = own.replace(old, new)
            # Black areas have no colour in the file: they inherit that of the root.
            own = own.replace("<svg ", f'<svg fill="{colours[_BLACK]}" ', 1)
            if page == "dark":
                own = re.sub(r"(base64,)\s*([^\"]+)", _with_light_ink, own)
            (directory / name).write_text(own, encoding="utf-8")
            shown.append(f"![{alt}]({name}#only-{page})")
    plt.close("all")
    return ["\n".join(shown)] if shown else []


def _with_light_ink(match: re.Match[str]) -> str:
    """A rasterised part of a figure with its black dots and lines in a light colour; a
    picture, which is opaque, as it is."""
    image = Image.open(io.BytesIO(base64.b64decode(match[2]))).convert("RGBA")
    pixels = np.array(image)
    if pixels[..., 3].min() > 0:
        return match[0]
    pixels[pixels[..., :3].max(-1) < 16, :3] = 0xF2
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return match[1] + base64.b64encode(file.getvalue()).decode()
