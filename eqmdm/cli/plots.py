"""The pictures of a run, drawn without a display."""

import io
import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from .styles import BLUE, LINES, MARKERS, PALETTE, VERMILLION


# A fixed salt and no dates: equal pictures are equal files in a repository.
plt.rcParams["svg.hashsalt"] = "eqmdm"
# Matplotlib leaves out metadata that are `None`.
_NO_DATES = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
# The largest number of points at which a line has markers.
_MOST_MARKED = 40
# The total area of all points of a scatter plot, in square points.
_INK = 8000
# The characters of a caption that fit in an inch of width.
_PER_INCH = 19
# In a grid of images: the smallest width of one, the gap, and the grey of the gap.
_DOTS, _GAP, _LIGHT = 64, 4, 0.85
# The colour of pixels that are not seen, as RGB.
_UNSEEN = (0.55, 0.75, 0.9)


def samples(
    path: Path,
    x: np.ndarray,
    n_levels: int | None,
    caption: str,
    *,
    n_columns: int | None = None,
) -> np.ndarray:
    """Draw images as a grid, by default a square one, and points as a scatter plot of
    their first two coordinates, or as a histogram if they have only one; the pixels of
    the picture."""
    if n_levels is None or x.ndim != 4 or x.shape[-1] not in (1, 3):
        x = x.reshape(len(x), -1)
        if x.shape[1] == 1:
            return histogram(path, x[:, 0], "sample (units of the data)", caption)
        figure, axes = plt.subplots(figsize=(5, 5.4), layout="constrained")
        # Small enough that most points do not overlap.
        size = np.clip(_INK / len(x), 2, 16)
        axes.scatter(x[:, 0], x[:, 1], s=size, linewidths=0, color=BLUE)
        if x.shape[1] == 2:
            axes.set_aspect("equal")
        axes.set_xlabel("first coordinate (units of the data)")
        axes.set_ylabel("second coordinate (units of the data)")
    else:
        grid = _grid(x / (n_levels - 1), n_columns)
        figure, axes = plt.subplots(
            figsize=(6, 6 * grid.shape[0] / grid.shape[1] + 0.4), layout="constrained"
        )
        axes.imshow(grid, interpolation="nearest")
        axes.set_axis_off()
    add_caption(figure, caption)
    return save(figure, path)


def posteriors(path: Path, rows: list[dict[str, np.ndarray]], caption: str) -> None:
    """Draw named images from 0 to 1 in rows, the same names in each; pixels that are
    NaN in a colour of their own."""
    names = list(rows[0])
    height, width = next(iter(rows[0].values())).shape[:2]
    side = max(0.75, 8 / len(names))
    figure, axes = plt.subplots(
        len(rows),
        len(names),
        figsize=(side * len(names), side * len(rows) * height / width + 0.7),
        layout="constrained",
        squeeze=False,
    )
    for i, row in enumerate(rows):
        for axis, name in zip(axes[i], names, strict=True):
            image = np.broadcast_to(row[name], (height, width, 3)).clip(0, 1)
            axis.imshow(np.where(np.isnan(image), _UNSEEN, image))
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(name, fontsize="small")
    add_caption(figure, caption)
    save(figure, path)


def training_curve(
    path: Path, records: list[dict], name: str, unit: str, caption: str
) -> None:
    """Draw the training loss, which records call `name`, and the validation bound."""
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    trained = [record for record in records if name in record]
    steps = [record["step"] for record in trained]
    losses = [record[name] for record in trained]
    axes.plot(
        steps,
        losses,
        color=BLUE,
        lw=0.8,
        marker=_marker(len(steps)),
        ms=3,
        label="training, last parameters",
    )
    validated = [record for record in records if "validation" in record]
    # The first steps, of an untrained network, would compress the rest of the axis.
    settled = losses[len(losses) // 10 :]
    if validated:
        means, errors = zip(*(r["validation"][name] for r in validated), strict=True)
        # A single example has no standard error.
        errors = [math.nan if error is None else error for error in errors]
        steps = [record["step"] for record in validated]
        axes.errorbar(
            steps,
            means,
            errors,
            color=VERMILLION,
            fmt="s--",
            ms=4,
            capsize=2,
            label="validation, EMA parameters",
        )
        # The error of a single example is unknown, and no part of the range.
        last, error = means[-1], errors[-1] if math.isfinite(errors[-1]) else 0.0
        settled = [*settled, last - error, last + error]
        caption += "; bars: standard errors over the validation examples"
    settled = [value for value in settled if math.isfinite(value)]
    if settled:
        low, high = min(settled), max(settled)
        axes.set_ylim(low - 0.1 * (high - low + 1e-6), high + 0.2 * (high - low + 1e-6))
    label_steps(axes)
    axes.set_ylabel(f"negative bound ({unit})")
    axes.legend()
    axes.grid(alpha=0.3)
    add_caption(figure, caption)
    save(figure, path)


def histogram(path: Path, values: np.ndarray, label: str, caption: str) -> np.ndarray:
    """Draw a histogram of the values with their mean, leaving out non-finite ones; the
    pixels of the picture."""
    values = values[np.isfinite(values)]
    figure, axes = plt.subplots(figsize=(6, 4.4), layout="constrained")
    if len(values):
        n_bins = min(max(10, math.ceil(2 * math.sqrt(len(values)))), 100)
        axes.hist(values, bins=n_bins, color=BLUE, alpha=0.6)
        mean = values.mean()
        axes.axvline(mean, color=VERMILLION, ls="--", label=f"mean {mean:.3f}")
        axes.legend()
    axes.set_xlabel(label)
    axes.set_ylabel("number of examples")
    add_caption(figure, caption)
    return save(figure, path)


def calibration(path: Path, bins: list[dict[str, Any]], caption: str) -> None:
    """Draw the accuracy in each bin of confidence, with its standard error."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.5", ls=":", label="perfectly calibrated")
    accuracy = np.asarray([part["accuracy"] for part in bins])
    low, high = np.asarray([part["interval"] for part in bins]).T
    axes.errorbar(
        [part["confidence"] for part in bins],
        accuracy,
        [accuracy - low, high - accuracy],
        color=BLUE,
        fmt="o",
        capsize=2,
        label="examples in bins of confidence",
    )
    for part in bins:
        axes.annotate(
            f"{part['examples']:,}",
            (part["confidence"], part["accuracy"]),
            xytext=(6, -10),
            textcoords="offset points",
            fontsize="x-small",
        )
    axes.set_xlabel("probability of the predicted class")
    axes.set_ylabel("fraction predicted correctly")
    axes.set_xlim(0, 1.06)
    axes.set_ylim(-0.06, 1.06)
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    add_caption(
        figure, f"{caption}. Numbers: examples; bars: intervals of one standard error"
    )
    save(figure, path)


def diffusion_path(path: Path, records: list[dict], caption: str) -> None:
    """Draw the entries of Q (above the diagonal) and D (on it too) over the steps."""
    records = [record for record in records if "skew_matrix" in record]
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 4.2), sharex=True, layout="constrained"
    )
    steps = [record["step"] for record in records]
    for axis, name, offset in (
        (axes[0], "skew_matrix", 1),
        (axes[1], "dissipation_matrix", 0),
    ):
        matrices = np.array([record[name] for record in records])
        draw_entries(axis, steps, matrices, "Q" if offset else "D", offset)
        label_steps(axis)
        axis.set_ylabel("entry, per unit of the schedule")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(ncols=2)
    axes[0].set_title("skew part Q")
    axes[1].set_title("dissipation D")
    add_caption(figure, caption)
    save(figure, path)


def label_steps(axes: Any) -> None:
    """Label the horizontal axis of training steps, with ticks at integers only."""
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def draw_entries(
    axes: Any,
    steps: list[int],
    matrices: np.ndarray,
    letter: str,
    offset: int,
    *,
    line: Any = None,
    labelled: bool = True,
) -> None:
    """Draw the entries of a matrix on and above a diagonal over the steps.

    Each has its own colour, and its own line style unless `line` is given.
    """
    places = np.triu_indices(matrices.shape[1], offset) if len(matrices) else ((), ())
    for number, (i, j) in enumerate(zip(*places, strict=True)):
        axes.plot(
            steps,
            matrices[:, i, j],
            color=PALETTE[number % len(PALETTE)],
            ls=LINES[number % len(LINES)] if line is None else line,
            marker=_marker(len(steps), MARKERS[number % len(MARKERS)]),
            ms=3,
            lw=1,
            label=f"${letter}_{{{i}{j}}}$" if labelled else None,
        )


def _marker(n_points: int, marker: str = "o") -> str:
    """The marker of a line: none if it has many points."""
    return marker if n_points <= _MOST_MARKED else ""


def _grid(images: np.ndarray, n_columns: int | None) -> np.ndarray:
    """Images in rows and columns with thin gaps between them, as RGB from 0 to 1."""
    if n_columns is None:
        n_columns = math.ceil(math.sqrt(len(images)))
    n_rows = math.ceil(len(images) / n_columns)
    # Small images are enlarged, so that a gap is narrow beside them.
    scale = math.ceil(_DOTS / images.shape[2])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    _, height, width, _ = images.shape
    shape = (n_rows * (height + _GAP) - _GAP, n_columns * (width + _GAP) - _GAP, 3)
    grid = np.full(shape, _LIGHT)
    for i, image in enumerate(images):
        top, left = (height + _GAP) * (i // n_columns), (width + _GAP) * (i % n_columns)
        grid[top : top + height, left : left + width] = image
    return grid


def add_caption(figure: Any, caption: str) -> None:
    """Add a caption below the panels, wrapped to their width."""
    width = int(_PER_INCH * figure.get_figwidth())
    text = "\n".join(textwrap.wrap(caption, width))
    figure.supxlabel(text, fontsize="x-small", color="0.3", x=0.01, ha="left")


def save(figure: Any, path: Path, *, dots_per_inch: int = 150) -> np.ndarray:
    """Write a picture atomically, in the format of its extension; its pixels."""
    kind = path.suffix.removeprefix(".")
    picture = io.BytesIO()
    figure.savefig(
        picture, dpi=dots_per_inch, format=kind, metadata=_NO_DATES.get(kind, {})
    )
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    # A full disk then leaves the old picture, not half of the new one.
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(picture.getvalue())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error.strerror}).") from error
    return pixels
