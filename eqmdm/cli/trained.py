"""Trained runs, as other programs load them: the model and its data."""

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

import eqmdm

from .._model import ends
from . import build, conditions
from .names import Range
from .own_code import own_names
from .train.options import ResolvedTrainOptions, TrainOptions


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained model with its data and the options that it was trained with."""

    name: str
    step: int
    options: ResolvedTrainOptions
    dataset: Any
    model: eqmdm.AbstractModel
    dtype: jnp.dtype
    parameters: str
    """A digest of the values of the parameters."""

    condition: Any = None
    """The kind of condition of the network; `None` if it has none."""

    mesh: jax.sharding.Mesh | None = None
    """The devices that divide the batches, once `over_devices` has chosen them."""

    def over_devices(self, batch_size: int) -> "TrainedRun":
        """The same run, on as many devices as divide a batch of this size evenly."""
        mesh = build.build_mesh(batch_size)
        return dataclasses.replace(
            self, model=eqmdm.distribute(self.model, mesh), mesh=mesh
        )

    def under(
        self,
        diffusion: str,
        *,
        log_snr_range: Range | None = None,
        t_range: Range | None = None,
        option: str = "diffusion",
    ) -> "TrainedRun":
        """The denoiser of this run under another diffusion, by default over the same
        interval in log-SNR.

        **Raises:** `ValueError` if the model of this run suits only its own diffusion.
        """
        own = self.options.diffusion
        if not self.is_denoiser:
            raise ValueError(
                f"`{option}` must be {own} alone, and its interval must be left out, "
                "since the score of this run is free and valid only for the process "
                f"that it was trained on; got {diffusion}. Train with --score denoiser "
                "to evaluate it under several."
            )
        if diffusion == "learned":
            raise ValueError(
                f"`{option}` must not be learned for this run, and the interval of a "
                f"learned diffusion must not change; it was trained on {own}. Leave "
                "both out."
            )
        present = self.model.linear_diffusion
        if log_snr_range is None and t_range is None:
            log_snr_range = ends.log_snr_range(present)
        options = TrainOptions(
            dataset=self.options.dataset,
            diffusion=cast(Any, diffusion),
            log_snr_range=log_snr_range,
            t_range=t_range,
        )
        shape, n_levels = self.dataset.shape, self.dataset.n_levels
        resolved = options.resolved(shape, n_levels)
        other = build.build_diffusion(resolved, jr.key(0))
        return dataclasses.replace(self, model=self.model.under(other))

    def check_missing(self, option: str) -> None:
        """**Raises:** `ValueError` unless the run also learned the unconditional data,
        as the `option` requires."""
        if self.condition is None:
            raise ValueError(
                f"`{option}` must be left out for this run, whose model has no "
                "condition. Train with --condition."
            )
        if self.options.drop_condition == 0:
            raise ValueError(
                f"`{option}` must be left out for this run, which was trained with "
                "--drop-condition 0, so its model does not know the unconditional data."
            )

    @property
    def is_denoiser(self) -> bool:
        return self.model.has_denoiser


def load_trained(
    directory: Path,
    *,
    data_dir: str | None,
    ema: bool = True,
    ema_length: float | None = None,
    trust_code: bool = False,
) -> TrainedRun:
    """The model in a run's last checkpoint, and its training data.

    `ema` chooses the averaged parameters, and `ema_length` the length of their average.
    `trust_code` is whether the user's own code that the run names may be imported.

    **Raises:**

    `ValueError` if the directory holds no run, no checkpoint or a run of a newer
    version, or if the data are not those of the run.
    """
    print(f"loading {directory} ...", flush=True)
    run = eqmdm.Run(directory)
    if not (directory / "options.json").is_file():
        raise ValueError(
            "`run` must be a directory that `eqmdm train` wrote; "
            f"{directory} has no options.json."
        )
    facts = run.read_options()
    _check_version(facts)
    options, data, fingerprint = build.from_json(facts["options"])
    if not run.steps:
        raise ValueError(
            f"`run` must have a checkpoint to evaluate; {directory} has none yet."
        )
    _check_trusted(options, trust_code)
    like = build.rebuilt(options, data) if own_names(options) else None
    restored = run.restore()
    with warnings.catch_warnings():
        # Skipped checkpoints are reported in one line below.
        warnings.simplefilter("ignore", UserWarning)
        model = eqmdm.load_run(directory, like=like, ema=ema)
    for step, reason in restored.skipped.items():
        print(f"the checkpoint of step {step} cannot be read ({reason})")
    if ema_length is not None:
        model = _averaged(directory, ema_length, restored.step, model)
    _check_function(options, data_dir)
    dataset = build.load_data(options, data_dir)
    if dataset.fingerprint != fingerprint:
        raise ValueError(
            f"`data_dir` must hold the {options.dataset} data of the run, whose "
            f"fingerprint is {fingerprint[:16]}; got {data_dir} with "
            f"{dataset.fingerprint[:16]}."
        )
    trainable = eqx.filter(model, eqx.is_inexact_array)
    digest = hashlib.sha256()
    for path, value in jtu.tree_leaves_with_path(trainable):
        digest.update(jtu.keystr(path).encode() + np.asarray(value).tobytes())
    dtype = jnp.result_type(*jax.tree.leaves(trainable))
    return TrainedRun(
        directory.resolve().name,
        restored.step,
        options,
        dataset,
        model,
        dtype,
        digest.hexdigest()[:16],
        conditions.kind_of(data.condition),
    )


def _averaged(
    directory: Path, length: float, step: int, like: eqmdm.AbstractModel
) -> eqmdm.AbstractModel:
    """The model of a run with an average of another length."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always", UserWarning)
        model = eqmdm.posthoc_ema(directory, length, step=step, like=like)
    for warning in shown:
        print(warning.message)
    return model


def _check_function(options: TrainOptions, data_dir: str | None) -> None:
    """**Raises:** `ValueError` if loading the data would run code that only the files
    of the run name, and not the user."""
    name = options.data_dir or options.dataset
    is_code = eqmdm.data.is_function(name) and not Path(name).exists()
    if is_code and data_dir is None:
        raise ValueError(
            f"`data_dir` must name the function that gives the data of this run, {name}"
            ", because code is not run only because a file names it. If you trust it, "
            f"pass --data-dir {name}."
        )


def _check_trusted(options: TrainOptions, trust_code: bool) -> None:
    """**Raises:** `ValueError` if building the model would run code that only the files
    of the run name, and not the user."""
    own = own_names(options)
    if own and not trust_code:
        raise ValueError(
            "`trust_code` must be given for this run, whose "
            f"{' and '.join(f'{k} is {v}' for k, v in own.items())}, because code is "
            "not run only because a file names it. If you trust it, pass --trust-code."
        )


def _check_version(facts: Mapping[str, Any]) -> None:
    written = facts.get("versions", {}).get("eqmdm", "0.0")
    release = lambda version: [int(part) for part in re.findall(r"\d+", version)[:2]]
    if release(written) > release(eqmdm.__version__):
        raise ValueError(
            f"`run` must not be from a newer eqmdm than the one installed, "
            f"{eqmdm.__version__}; it was trained with {written}. Upgrade eqmdm."
        )
