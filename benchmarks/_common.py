"""Shared code of the benchmarks: settings, versions, timing and results."""

import os


# Equinox reads this when it is imported, so benchmarks import this module first.
os.environ["EQX_ON_ERROR"] = "raise"

import dataclasses
import json
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from eqmdm.cli import build


Name = TypeVar("Name", bound=Hashable)
# Settings that are paths: they do not affect the results.
_PLACES = ("before", "data_dir", "directory", "from_results", "output", "run", "table")
# Or parts of the results that are measured, while others are kept.
_PLACES += ("write", "parts")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all benchmarks share; each derives its own from these."""

    output: Path | None = None
    """A JSON file for the results."""


def facts(seed: int = 0) -> dict[str, Any]:
    """The versions, device and seed that are recorded with results."""
    known = build.facts(seed)
    known.pop("command")
    return known


def show(facts: Mapping[str, Any]) -> None:
    """Print versions and device."""
    print(json.dumps(facts["versions"]), facts["device"]["kind"], flush=True)


def record(settings: Any, facts: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Results with the settings and facts of their measurement."""
    used = dataclasses.asdict(settings)
    used = {name: value for name, value in used.items() if name not in _PLACES}
    return {"settings": used, **parts} | dict(facts)


def write(settings: Any, facts: Mapping[str, Any], **parts: Any) -> None:
    """Write the results so far to the output file, if one is given."""
    if settings.output is not None:
        text = json.dumps(record(settings, facts, **parts), indent=1)
        settings.output.write_text(text + "\n")


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """The seconds that a call takes until the device has finished."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def interleaved(
    calls: Mapping[Name, Callable[..., Any]],
    repeats: int,
    arguments: Callable[[int], tuple[Any, ...]] = lambda repeat: (),
) -> dict[Name, list[float]]:
    """The seconds of each call in each repeat. Calls alternate, so that a change in the
    speed of the machine affects all of them equally.

    `arguments` gives the arguments of all calls in a repeat.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call, *arguments(repeat)))
    return seconds
