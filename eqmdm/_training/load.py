"""Loading the model of a run."""

import os
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from .._model.base import AbstractModel
from .run import Run, check_builder


def load_run(
    run_dir: str | os.PathLike,
    *,
    ema: bool = True,
    like: AbstractModel | Callable[[dict[str, Any]], AbstractModel] | None = None,
) -> AbstractModel:
    """The model of a trained run, ready for inference.

    The arrays come from the newest readable checkpoint, and the structure from the
    program that made the run, or from `like`. No code from the files is executed.

    **Arguments:**

    - `run_dir`: the directory that a training run wrote.
    - `ema`: whether to use the averaged parameters or the latest ones.
    - `like`: a model with the structure of the trained one, such as the initial model
        of the training, or a function that builds one from the run's options. Required
        for runs that were not made by a program of this package.

    **Raises:**

    `ValueError` if there is no run, no readable checkpoint, another structure, or no
    `like` if it is required. A damaged checkpoint is skipped with a warning that says
    which one is loaded instead.
    """
    run = Run(run_dir)
    record = run.read_options()
    restored = run.restore()
    for step, reason in restored.skipped.items():
        warnings.warn(
            f"The checkpoint of step {step} in {run.run_dir} cannot be read "
            f"({reason}); that of step {restored.step} is loaded instead.",
            stacklevel=2,
        )
    return restored.model(structure(run, record, like), ema=ema)


def structure(
    run: Run,
    record: Mapping[str, Any],
    like: AbstractModel | Callable[[dict[str, Any]], AbstractModel] | None,
) -> AbstractModel:
    """A model with the structure of that of a run, as [`eqmdm.load_run`][] finds it.

    **Raises:** `ValueError` if there is no `like` where it is required.
    """
    if isinstance(like, AbstractModel):
        return like
    build = find_builder(record) if like is None else like
    if build is None:
        raise ValueError(
            f"`like` must be given for the run in {run.run_dir}, which no program "
            "of this package made. Pass a model with the structure of the trained "
            "one, or a function that builds one from the run's options."
        )
    return build(record["options"])


def find_builder(
    record: Mapping[str, Any],
) -> Callable[[dict[str, Any]], AbstractModel] | None:
    """The function that builds the model of a run from its options; `None` for a run
    that no program of this package made."""
    name = record.get("builder")
    if name is None:
        return None
    check_builder(name)
    # The name is one of a fixed list, so a file cannot name other code. It is imported
    # here, because no module of the library imports the programs.
    return pkgutil.resolve_name(name)
