"""The trackers of a training run, by the names that `--tracker` takes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import eqmdm

from ..._core.hints import did_you_mean
from ..._core.own import find_own, is_own
from ..processes import is_first


TRACKERS: dict[str, Any] = {
    "tensorboard": eqmdm.TensorBoardTracker,
    "wandb": eqmdm.WandBTracker,
    "mlflow": eqmdm.MLflowTracker,
    "trackio": eqmdm.TrackioTracker,
}
_TITLED = {"wandb", "mlflow", "trackio"}

Maker = Callable[[Path], Any]


def find(names: tuple[str, ...]) -> list[Maker]:
    """The functions that make the trackers, given the directory of the run.

    **Raises:** `ValueError` for an unknown name, or a package that is not installed.
    """
    return [_find(name) for name in names]


def _find(name: str) -> Maker:
    if is_own(name):
        kind = "a function or class that makes a tracker from the directory of a run"
        own = find_own(name, argument="tracker", kind=kind)
        if not callable(own):
            raise ValueError(f"`tracker` must be {kind}, as module:name; got {name}.")
        return own
    if name not in TRACKERS:
        raise ValueError(
            f"`tracker` must be trackers, separated by commas; got {name!r}."
            f"{did_you_mean(name, TRACKERS)} They are {', '.join(TRACKERS)}, and your "
            "own as module:name."
        )
    titled = name in _TITLED
    make = lambda run_dir: TRACKERS[name](
        run_dir / name, **({"name": run_dir.name} if titled else {})
    )
    try:
        # This opens nothing: it names a package that is missing.
        make(Path())
    except ModuleNotFoundError as error:
        raise ValueError(f"`tracker` cannot be {name}: {error}") from error
    return make


def make_trackings(
    makers: list[Maker], run_dir: Path, record: Mapping[str, Any], loss_name: str
) -> tuple[eqmdm.Tracking, ...]:
    """The trackers of the first process, protected; none for the others.

    **Raises:** `ValueError` for an object that is no tracker.
    """
    if not is_first():
        return ()
    settings: dict[str, Any] = {"config": record, "loss_name": loss_name}
    try:
        return tuple(eqmdm.Tracking(make(run_dir), **settings) for make in makers)
    except TypeError as error:
        raise ValueError(
            f"`tracker` must make trackers from a path: {error}"
        ) from error
