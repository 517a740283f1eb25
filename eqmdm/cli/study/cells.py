"""The cells of a study: its trainings and evaluations, from a TOML file."""

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..evaluate.options import EvaluateOptions
from ..parsing import parse
from ..train.options import TrainOptions


TomlTable = Mapping[str, Any]
_STUDY = {"question": str, "seeds": list, "train": dict, "evaluations": dict}
_STUDY |= {"grids": dict, "short": dict}
_GRID = {"title": str, "question": str, "seeds": list, "train": dict, "axes": dict}
_GRID |= {"evaluate": list}
_SHORT = {"seeds": list, "train": dict, "evaluations": dict, "grids": list}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run and its evaluations."""

    grid: str
    axes: dict[str, str]
    """The value of the cell on each axis, both by their names in the study."""
    seed: int
    train: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """The name that all seeds of a model share."""
        return ", ".join(self.axes.values()) or self.grid

    @property
    def directory(self) -> Path:
        """The directory of the run, relative to that of the study."""
        slug = re.sub(r"[^\w.]+", "-", "-".join(self.axes.values())).strip("-")
        return Path(self.grid) / (slug or "only") / f"seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study read from its file, with every name and value checked."""

    name: str
    question: str
    grids: dict[str, str]
    """The question of each grid."""
    titles: dict[str, str]
    """The title of each grid in pictures."""
    evaluation_titles: dict[str, str]
    """The title of each evaluation in pictures."""
    cells: tuple[Cell, ...]


def read_study(path: Path, *, short: bool) -> Study:
    """The study in a TOML file.

    Tables of the file: `train`, options of `eqmdm train` for all cells; `evaluations`,
    options of `eqmdm evaluate` by name; and `grids`. A grid has a cell for each
    combination of values on its `axes` and each seed. An axis is a table that gives
    options of `eqmdm train` for each of its values. `evaluate` lists the evaluations by
    name, by default all. A grid or an evaluation may have a `title`, which pictures
    show instead of its name. `short` overrides seeds and options, and lists the grids,
    of the short form.

    **Raises:** `ValueError` if the file does not exist or anything in it is invalid.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    # `ValueError` includes bytes that are not UTF-8.
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`config` must be a TOML file of a study; {path} cannot be read ({error})."
        ) from error
    _check_keys(table, _STUDY, str(path))
    shorter = table.get("short", {})
    _check_keys(shorter, _SHORT, f"{path}, short")
    if not short:
        shorter = {}
    grids = _named(table, "grids", str(path))
    chosen = shorter.get("grids", list(grids))
    _check_among(chosen, grids, f"{path}, short.grids")
    cells: list[Cell] = []
    for name in chosen:
        cells += _cells(name, grids[name], table, shorter, f"{path}, grids.{name}")
    return Study(
        path.stem,
        table.get("question", ""),
        {name: grids[name].get("question", "") for name in chosen},
        {name: _title(grids[name], name) for name in chosen},
        {name: _title(of, name) for name, of in table.get("evaluations", {}).items()},
        tuple(cells),
    )


def arguments(options: TomlTable) -> list[str]:
    """Options as command-line arguments."""
    found: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            found += [flag, *map(str, value)]
        else:
            found.append(f"{flag}={value}")
    return found


def _cells(
    name: str, grid: TomlTable, study: TomlTable, short: TomlTable, where: str
) -> Iterator[Cell]:
    _check_keys(grid, _GRID, where)
    evaluations = _named(study, "evaluations", where) if "evaluations" in study else {}
    chosen = grid.get("evaluate", list(evaluations))
    _check_among(chosen, evaluations, f"{where}, evaluate")
    evaluations = {
        name: {k: v for k, v in evaluations[name].items() if k != "title"}
        | short.get("evaluations", {})
        for name in chosen
    }
    for evaluation, options in evaluations.items():
        label = f"{where}, {evaluation}"
        _check_options(EvaluateOptions, options, label, ["RUN"])
        if options.get("route") == "all":
            raise ValueError(
                f"`route` in `{label}` must be that of one evaluation; got 'all'. Name "
                "an evaluation for each route, which the study then compares."
            )
    axes = grid.get("axes", {})
    seeds = short.get("seeds", grid.get("seeds", study.get("seeds", [0])))
    shared = study.get("train", {}) | grid.get("train", {})
    for values in itertools.product(*[_named(axes, axis, where) for axis in axes]):
        place = dict(zip(axes, values, strict=True))
        train = dict(shared)
        for axis, value in place.items():
            train |= axes[axis][value]
        train |= short.get("train", {})
        label = f"{where}, {' '.join(values)}"
        _check_options(TrainOptions, train, label)
        yield from (Cell(name, place, seed, train, evaluations) for seed in seeds)


def _title(table: TomlTable, name: str) -> str:
    title = table.get("title", name)
    if not isinstance(title, str):
        raise ValueError(f"`title` of {name} must be a str; got {title!r}.")
    return title


def _check_options(cls: Any, options: TomlTable, where: str, before=()) -> None:
    try:
        parse(cls, [*before, *arguments(options)], quiet=True)
    except SystemExit:
        # The parser only prints what is wrong, so find an unknown name here.
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(options.keys() - known)
        what = f"{unknown[0]!r} is not one" if unknown else f"got {dict(options)}"
        raise ValueError(
            f"`{where}` must have options of eqmdm "
            f"{'evaluate' if before else 'train'} with values that it takes; {what}. "
            "See its --help."
        ) from None


def _check_keys(table: TomlTable, known: Mapping[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in known:
            raise ValueError(
                f"`{where}` must have keys among {', '.join(known)}; got {key!r}."
            )
        if not isinstance(value, known[key]):
            raise ValueError(
                f"`{key}` in `{where}` must be a {known[key].__name__}; got {value!r}."
            )


def _named(table: TomlTable, key: str, where: str) -> dict[str, dict[str, Any]]:
    value = table.get(key)
    tables = isinstance(value, dict) and all(
        isinstance(v, dict) for v in value.values()
    )
    if not value or not tables:
        raise ValueError(
            f"`{key}` in `{where}` must be a table of tables, at least one; got "
            f"{value!r}."
        )
    return value


def _check_among(names: list[str], known: Mapping[str, Any], where: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"`{where}` must have names among {', '.join(known) or '(none)'}; got "
                f"{name!r}."
            )
