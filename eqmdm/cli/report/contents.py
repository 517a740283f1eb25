"""The files of a run, read without trust: whatever has another form is left out."""

import base64
import dataclasses
import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

import eqmdm

from ..conditions import MOST_COLUMNS
from ..files import LOSS_UNITS


# The most bytes of a file that is read, and pixels of a picture.
_MOST_BYTES, _MOST_PIXELS = 64 * 2**20, 2**25
# Integers beyond this one are not all floats.
_LARGEST = 2**53
# The pictures of a run: their file names without the extension, and their titles.
_PICTURES = {"samples": "Samples", "diffusion_path": "The learned diffusion"}


@dataclasses.dataclass(frozen=True)
class Point:
    """A value at a step, and its standard error, NaN if it is not known."""

    step: int
    value: float
    error: float = math.nan


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the test bound."""

    name: str
    mean: float
    error: float
    unit: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as a data URI; without one if its format cannot be shown in a page."""

    title: str
    file: str
    uri: str | None
    is_by_class: bool
    """Whether a conditional model has a class in each column."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the files of a run hold. All text is as in the files, not escaped."""

    name: str
    record: Mapping[str, Any]
    """The options of the run under `options`, and facts such as its versions."""
    loss_name: str
    curves: Mapping[str, list[Point]]
    """The curves `training`, `validation` and `grad_norm`."""
    terms: list[Term]
    bound: Mapping[str, Any]
    """The settings of the test bound."""
    pictures: list[Picture]

    @property
    def options(self) -> Mapping[str, Any]:
        return self.record["options"]

    @property
    def unit(self) -> str:
        return LOSS_UNITS[self.loss_name]

    @property
    def classes(self) -> list[str] | None:
        """The names, or else the numbers, of the columns of the samples of a model of
        classes; else `None`."""
        match self.options.get("data"):
            case {"condition": {"n_classes": int(n), **rest}} if 0 < n <= MOST_COLUMNS:
                match rest.get("names"):
                    case [*names] if len(names) == n:
                        return [str(name) for name in names]
                return [str(number) for number in range(n)]
        return None

    def text(self, name: str) -> str:
        """An option as text; empty if the run has none of this name."""
        value = self.options.get(name)
        return "" if value is None else str(value)


def read(run_dir: Path) -> Contents:
    """The contents of a run.

    **Raises:** `ValueError` if the directory holds no options of a run.
    """
    record = eqmdm.Run(run_dir).read_options()
    records = [_json(line) for line in _text(run_dir / "metrics.jsonl").splitlines()]
    records = [r for r in records if isinstance(r, dict) and _is_step(r.get("step"))]
    bound = _json(_text(run_dir / "test_bound.json"))
    bound = bound if isinstance(bound, dict) else {}
    terms = _terms(bound.pop("terms", None))
    names = {term.name for term in terms}.union(*records)
    loss_name = "bits_per_dim" if "bits_per_dim" in names else "nats"
    pictures = [_picture(run_dir, name) for name in _PICTURES]
    return Contents(
        name=run_dir.resolve().name,
        record=record,
        loss_name=loss_name,
        curves={
            "training": _curve(records, loss_name),
            "validation": _validation(records, loss_name),
            "grad_norm": _curve(records, "grad_norm"),
        },
        terms=terms,
        bound={k: v for k, v in bound.items() if type(v) in (int, float, str)},
        pictures=[picture for picture in pictures if picture is not None],
    )


def _text(path: Path) -> str:
    """The text of a file; empty if there is none."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    # Deeply nested brackets raise `RecursionError`.
    except (ValueError, RecursionError):
        return None


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _number(value: Any) -> float:
    """A finite number of JSON; NaN for anything else."""
    if type(value) is int:
        return float(value) if abs(value) < _LARGEST else math.nan
    return value if type(value) is float and math.isfinite(value) else math.nan


def _curve(records: list[dict], name: str) -> list[Point]:
    points = [Point(r["step"], _number(r.get(name))) for r in records]
    return [point for point in points if math.isfinite(point.value)]


def _validation(records: list[dict], name: str) -> list[Point]:
    points = []
    for record in records:
        match record.get("validation"):
            case {**summary} if isinstance(summary.get(name), list):
                mean, error, *_ = [*summary[name], None, None]
                points.append(Point(record["step"], _number(mean), _number(error)))
    return [point for point in points if math.isfinite(point.value)]


def _terms(found: Any) -> list[Term]:
    terms = []
    for name, entry in (found if isinstance(found, dict) else {}).items():
        if isinstance(entry, dict) and math.isfinite(_number(entry.get("mean"))):
            values = _number(entry["mean"]), _number(entry.get("standard_error"))
            terms.append(Term(name, *values, str(entry.get("unit", ""))))
    return terms


def _picture(run_dir: Path, name: str) -> Picture | None:
    title = _PICTURES[name]
    # Of several formats, the one that was drawn last.
    paths = [run_dir / f"{name}.{suffix}" for suffix in ("png", "svg", "pdf")]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        return None
    path = max(paths, key=lambda path: path.stat().st_mtime)
    return Picture(title, path.name, _uri(path), name == "samples")


def _uri(path: Path) -> str | None:
    if path.stat().st_size > _MOST_BYTES:
        return None
    content, kind = path.read_bytes(), path.suffix.removeprefix(".")
    if kind == "png" and (image := _png(content)) is not None:
        return f"data:image/png;base64,{base64.b64encode(image).decode()}"
    # As an image, an SVG neither runs scripts nor loads anything.
    if kind == "svg" and re.match(rb"\s*<(\?xml|svg)", content):
        return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return None


def _png(content: bytes) -> bytes | None:
    """The file of a picture, written anew, so that it is nothing but a picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            if image.width * image.height > _MOST_PIXELS:
                return None
            file = io.BytesIO()
            image.convert("RGB").save(file, format="png")
    # A damaged or a hostile file; Pillow raises any of these.
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError):
        return None
    return file.getvalue()
