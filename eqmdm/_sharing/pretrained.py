"""Models saved for others, and loaded from a directory or the Hugging Face Hub."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._core.array_file import read_arrays, write_arrays
from .._core.files import write_atomically, write_json
from .._core.sharding import on_host
from .._model.base import AbstractModel, check_model
from .._training.checkpoint import fill, named_arrays
from .._training.load import find_builder
from ..data._hub import fetch
from ..data._names import is_on_hub
from .card import model_card, public_record, read_bound


ARRAYS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_FORMAT, _VERSION = "eqmdm", 1


def save_pretrained(
    model: AbstractModel,
    directory: str | os.PathLike,
    *,
    run_dir: str | os.PathLike | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> Path:
    """The directory with a model for others to load: `model.safetensors` with its
    arrays, `config.json`, and `README.md`, the card that the Hugging Face Hub shows.

    Upload it with `huggingface_hub.upload_folder`, or send it as it is. It holds no
    code and no path of this machine.

    !!! Example

        ```python
        model = eqmdm.load_run("runs/demo")
        eqmdm.save_pretrained(model, "shared", run_dir="runs/demo", licence="mit")
        model = eqmdm.load_pretrained("shared")
        ```

    **Arguments:**

    - `model`: the model, such as that of [`eqmdm.load_run`][] or [`eqmdm.fit`][].
    - `directory`: the directory, created if it does not exist. Its files of the three
        names are replaced.
    - `run_dir`: the directory of the run that trained the model. Its options are
        recorded, and the card has its test bound. After `eqmdm train` they also
        determine the structure of the model, so that it is loaded without `like`.
    - `name`: the title of the card; by default the name of the directory.
    - `licence`: the licence of the model, by its identifier on the Hub.

    **Raises:**

    `TypeError` unless `model` is a model with arrays of real numbers; `ValueError` if
    `run_dir` holds no run, or one of a model with other arrays; `OSError` if the files
    cannot be written.
    """
    check_model(model)
    directory = Path(directory)
    record = bound = build = None
    if run_dir is not None:
        record, bound = public_record(Path(run_dir)), read_bound(Path(run_dir))
        build = find_builder(record)
    arrays = {k: np.asarray(on_host(v)) for k, v in named_arrays(model).items()}
    if build is not None and record is not None:
        # Loading must succeed later, when it is too late to save again.
        fill(build(record["options"]), arrays)
    trainable = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    card = model_card(
        name or directory.resolve().name,
        type(model).__name__,
        record=record,
        bound=bound,
        licence=licence,
        n_parameters=sum(leaf.size for leaf in trainable),
        needs_like=build is None,
    )
    config = {"format": _FORMAT, "format_version": _VERSION, "options": {}}
    config |= {"builder": None, **(record or {})}
    directory.mkdir(parents=True, exist_ok=True)
    write_arrays(directory / ARRAYS, arrays)
    write_json(directory / CONFIG, config)
    write_atomically(directory / CARD, card)
    return directory


def load_pretrained(
    name: str | os.PathLike,
    *,
    like: AbstractModel | Callable[[dict[str, Any]], AbstractModel] | None = None,
    revision: str | None = None,
) -> AbstractModel:
    """The model that [`eqmdm.save_pretrained`][] saved, equal to the last bit.

    No code from the files is executed: arrays are read from `model.safetensors` alone,
    and the structure comes from this package, or from `like`.

    **Arguments:**

    - `name`: the directory, or the name of a repository on the Hugging Face Hub, such
        as `"org/name"`, of which only the two files are fetched.
    - `like`: a model with the structure of the saved one, or a function that builds one
        from its options. Required for models that were not trained by a program of this
        package.
    - `revision`: the branch, tag or commit of the repository.

    **Raises:**

    `ValueError` if there is no such directory or name, if a file is missing, damaged or
    in another format, or if the arrays are not those of `like`; `ConnectionError` if
    the Hub cannot be reached or has no such repository.
    """
    directory = _located(name, revision)
    config = _config(directory / CONFIG)
    path = directory / ARRAYS
    if not path.is_file():
        raise ValueError(
            f"`name` must hold a model in {ARRAYS}; {name} has none. Other files of "
            "parameters, such as pickles, are not read, since they can hold code."
        )
    arrays = read_arrays(path)
    if not isinstance(like, AbstractModel):
        build = find_builder(config) if like is None else like
        if build is None:
            raise ValueError(
                f"`like` must be given for {name}, which no program of this package "
                "trained. Pass a model with the structure of the saved one, or a "
                "function that builds one from its options."
            )
        like = build(config["options"])
    return fill(like, arrays)


def _located(name: str | os.PathLike, revision: str | None) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if not is_on_hub(str(name)):
        raise ValueError(
            "`name` must be a directory, or the name of a repository on the Hugging "
            f"Face Hub (org/name); got {os.fspath(name)!r}, which is neither."
        )
    try:
        return fetch(str(name), (ARRAYS, CONFIG), repo_type="model", revision=revision)
    except ConnectionError as error:
        raise ConnectionError(
            f"The model {name} cannot be fetched from the Hugging Face Hub ({error})."
        ) from error


def _config(path: Path) -> Mapping[str, Any]:
    reason = "there is no such file"
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        # Deeply nested brackets raise `RecursionError`.
        except (ValueError, RecursionError):
            config = None
        match config:
            case {"format": "eqmdm", "format_version": int(version)} if (
                version > _VERSION
            ):
                reason = f"its format {version} is newer than this eqmdm: upgrade it"
            case {"format": "eqmdm", "options": {}}:
                return config
            case _:
                reason = "it is damaged, or of another program"
    raise ValueError(
        f"`name` must hold a model that `eqmdm.save_pretrained` saved; {path} cannot "
        f"be used ({reason})."
    )
