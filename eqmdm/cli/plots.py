"""The figures of a run, drawn without a display."""

import io
import math
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np


def samples(path: Path, x: np.ndarray, n_levels: int | None) -> None:
    """A grid of images from their grey levels, or a scatter plot of points."""
    if n_levels is None:
        figure, axes = plt.subplots(figsize=(5, 5))
        axes.scatter(x[:, 0], x[:, 1], s=2, linewidths=0)
        axes.set_aspect("equal")
        axes.set_title(f"{len(x)} samples")
    else:
        n_columns = math.ceil(math.sqrt(len(x)))
        n_rows = math.ceil(len(x) / n_columns)
        _, height, width, channels = x.shape
        grid = np.zeros((n_rows, height + 1, n_columns, width + 1, channels))
        for i, image in enumerate(x / (n_levels - 1)):
            grid[i // n_columns, :height, i % n_columns, :width] = image
        grid = grid.reshape(n_rows * (height + 1), n_columns * (width + 1), channels)
        figure, axes = plt.subplots(figsize=(6, 6 * n_rows / n_columns))
        grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if channels == 1 else {}
        axes.imshow(grid[..., 0] if channels == 1 else grid, **grey)
        axes.set_axis_off()
    _save(figure, path)


def training_curve(path: Path, records: list[dict], name: str, unit: str) -> None:
    """The training loss, which records call `name`, and the validation bound."""
    figure, axes = plt.subplots(figsize=(7, 4))
    trained = [record for record in records if name in record]
    steps = [record["step"] for record in trained]
    losses = [record[name] for record in trained]
    axes.plot(steps, losses, lw=0.8, label="training")
    validated = [record for record in records if "validation" in record]
    # The first steps, of an untrained network, would flatten the rest.
    settled = losses[len(losses) // 10 :]
    if validated:
        means, errors = zip(*(r["validation"][name] for r in validated), strict=True)
        # One example has no standard error.
        errors = [math.nan if error is None else error for error in errors]
        steps = [record["step"] for record in validated]
        axes.errorbar(
            steps, means, errors, fmt="o-", ms=3, label="validation, averaged"
        )
        settled = [*settled, means[-1] - errors[-1], means[-1] + errors[-1]]
    settled = [value for value in settled if math.isfinite(value)]
    if settled:
        low, high = min(settled), max(settled)
        axes.set_ylim(low - 0.1 * (high - low + 1e-6), high + 0.2 * (high - low + 1e-6))
    axes.set_xlabel("step")
    axes.set_ylabel(f"minus the bound ({unit})")
    axes.legend()
    _save(figure, path)


def histogram(path: Path, values: np.ndarray, label: str, title: str) -> None:
    """How many examples have which value, and their mean; NaN are left out."""
    values = values[np.isfinite(values)]
    figure, axes = plt.subplots(figsize=(6, 4))
    if len(values):
        n_bins = min(max(10, math.ceil(2 * math.sqrt(len(values)))), 100)
        axes.hist(values, bins=n_bins, color="C0", alpha=0.7)
        mean = values.mean()
        axes.axvline(mean, color="C3", label=f"mean {mean:.3f}")
        axes.legend()
    axes.set_xlabel(label)
    axes.set_ylabel("examples")
    axes.set_title(title, fontsize="medium")
    _save(figure, path)


def diffusion_path(path: Path, records: list[dict]) -> None:
    """The entries of Q (below the diagonal) and D (with it) over the steps."""
    records = [record for record in records if "skew_matrix" in record]
    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True)
    for axis, name, offset in (
        (axes[0], "skew_matrix", -1),
        (axes[1], "dissipation_matrix", 0),
    ):
        matrices = np.array([record[name] for record in records])
        letter = "Q" if offset else "D"
        for i, j in zip(*np.tril_indices(matrices.shape[1], offset), strict=True):
            axis.plot(steps, matrices[:, i, j], label=f"${letter}_{{{i}{j}}}$")
        axis.set_xlabel("step")
        if axis.lines:
            axis.legend()
    axes[0].set_title("skew part Q, per unit of the clock")
    axes[1].set_title("dissipation D, per unit of the clock")
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix.removeprefix("."))
    plt.close(figure)
    # All at once, so that a disk that fills up leaves the old one and no half of it.
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(picture.getvalue())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error.strerror}).") from error
