"""Builders: diffusions, networks and objectives from the options of `eqmdm train`."""

import contextlib
import dataclasses
import enum
import itertools
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import nn

from .train.options import ResolvedTrainOptions, TrainOptions


_DIFFUSIONS = {
    "vpsde": eqmdm.VPSDE,
    "subvpsde": eqmdm.SubVPSDE,
    "vesde": eqmdm.VESDE,
    "cld": eqmdm.CLD,
    "alda": eqmdm.ALDA,
    "malda": eqmdm.MALDA,
    "psld": eqmdm.PSLD,
    "critical3": eqmdm.CriticalThirdOrder,
    "learned": eqmdm.LearnedDiffusion,
}
_SCHEDULES = {
    "constant": (eqmdm.ConstantSchedule, 1),
    "linear": (eqmdm.LinearSchedule, 2),
    "cosine": (eqmdm.CosineSchedule, 1),
}
# Above this log-SNR a network has nothing to add to a Gaussian posterior: the noise is
# a thousandth of the data's range.
_TOP_LOG_SNR = 14.0
# How far the ends of a learned diffusion may move down, in log-SNR.
_LEARNED_MARGIN = 20.0


class Purpose(enum.IntEnum):
    """What random draws are for; each has its own stream of keys."""

    DIFFUSION = 0
    NETWORK = 1
    TRAINING = 2
    VALIDATION = 3
    BOUND = 4
    SAMPLES = 5
    LIKELIHOOD = 6
    DIRECTIONS = 7
    HELD_OUT = 8


def build_diffusion(options: ResolvedTrainOptions, key: jax.Array) -> Any:
    settings: dict[str, Any] = {}
    if options.t_range is not None:
        settings["interval"] = eqmdm.TimeInterval(*options.t_range)
    elif options.log_snr_range is not None:
        settings["interval"] = eqmdm.LogSNRInterval(*options.log_snr_range)
    if options.schedule != "default":
        cls, n_values = _SCHEDULES[options.schedule]
        if len(options.schedule_values) not in (0, n_values):
            raise ValueError(
                f"`schedule_values` must be {n_values} number(s) for the "
                f"{options.schedule} schedule, or none for its defaults; got "
                f"{options.schedule_values}."
            )
        if options.diffusion == "vesde":
            raise ValueError("`schedule` must be left out for vesde, which has none.")
        settings["schedule"] = cls(*options.schedule_values)
    elif options.schedule_values:
        raise ValueError(
            "`schedule_values` must come with a `schedule` that they are of."
        )
    if options.diffusion == "learned":
        assert options.n_vars is not None
        return eqmdm.LearnedDiffusion(options.n_vars, key=key, **settings)
    return _DIFFUSIONS[options.diffusion](**settings)


def build_network(
    options: ResolvedTrainOptions, dataset: Any, diffusion: Any, key: jax.Array
) -> Any:
    """The network of a free score, or a denoiser around one."""
    n_vars = 1 if options.score == "denoiser" else diffusion.n_vars
    if dataset.n_levels is None:
        network = nn.MLP(
            dataset.shape, n_vars, width=options.width, depth=options.n_blocks, key=key
        )
    else:
        network = nn.UNet(
            dataset.shape,
            n_vars,
            width=options.width,
            multipliers=options.multipliers,
            n_blocks=options.n_blocks,
            compute_dtype=None if options.compute_dtype == "float32" else jnp.bfloat16,
            remat=options.remat,
            key=key,
        )
    if options.score == "free":
        return network
    low = float(diffusion.log_snr(diffusion.t1))
    high = float(diffusion.log_snr(diffusion.t0))
    margin = _LEARNED_MARGIN if options.diffusion == "learned" else 0.01
    return eqmdm.PreconditionedDenoiser(
        network,
        data_std=data_scale(options, dataset),
        log_snr_range=(low - margin, min(high + margin, _TOP_LOG_SNR)),
    )


def data_scale(options: TrainOptions, dataset: Any) -> float:
    """The standard deviation, about zero, of the training data as the network sees it.

    About zero rather than the mean, because the denoiser's Gaussian is centred there.
    """
    if dataset.n_levels is None:
        return float(np.sqrt(np.mean(np.square(dataset.train, dtype=np.float64))))
    levels = dataset.train
    if isinstance(levels, eqmdm.data.ImageFiles):
        # Decoding all would take minutes; of these it is known to a thousandth.
        levels = levels[np.random.RandomState(0).permutation(len(levels))[:10_000]]
    counts = np.bincount(levels.ravel(), minlength=dataset.n_levels)
    centres = (jnp.arange(dataset.n_levels, dtype=jnp.float32) + 0.5) / dataset.n_levels
    values = np.asarray(_transform(options).forward(centres), np.float64)
    return float(np.sqrt(np.average(values**2, weights=counts)))


def build_grey_levels(options: TrainOptions, dataset: Any) -> Any:
    """How grey levels become data; `None` for points."""
    if dataset.n_levels is None:
        return None
    dequantiser = {
        "uniform": eqmdm.UniformDequantiser,
        "truncated_normal": lambda: eqmdm.TruncatedNormalDequantiser(
            std=options.dequantisation_std
        ),
        "discrete": eqmdm.CentreDequantiser,
    }[options.dequantisation]()
    return eqmdm.GreyLevels(
        dataset.n_levels, transform=_transform(options), dequantiser=dequantiser
    )


def build_objective(options: ResolvedTrainOptions, dataset: Any) -> Any:
    grey_levels = build_grey_levels(options, dataset)
    if grey_levels is None and options.decoder == "discrete":
        raise ValueError("`decoder` must not be discrete for points.")
    form = {
        "low_variance": eqmdm.LowVariance,
        "dsm": eqmdm.DenoisingScoreMatching,
        "hsm": eqmdm.HybridScoreMatching,
        "ism": eqmdm.ImplicitScoreMatching,
        "hutchinson": lambda: eqmdm.ImplicitScoreMatching(eqmdm.HutchinsonDivergence()),
    }[options.form]()
    decoder = eqmdm.StartDecoder()
    if options.decoder == "data":
        decoder = eqmdm.DataDecoder()
    elif options.decoder == "discrete":
        assert grey_levels is not None
        decoder = eqmdm.DiscreteDecoder(grey_levels)
    time_sampler = {
        "uniform": eqmdm.UniformTime,
        "importance": eqmdm.ImportanceTime,
        "log_snr": eqmdm.LogSNRTime,
    }[options.time]()
    return eqmdm.Objective(form, decoder, time_sampler, grey_levels, dataset.flip)


def build_mesh(batch_size: int) -> jax.sharding.Mesh:
    """As many of the devices as divide a batch evenly; with several processes, all."""
    devices = jax.devices()
    if jax.process_count() > 1 and batch_size % len(devices):
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices of all "
            f"processes, {len(devices)}; got {batch_size}."
        )
    n_used = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return eqmdm.device_mesh(devices[:n_used])


def batches(
    options: ResolvedTrainOptions, state: Any, examples: Any, n_inner: int
) -> contextlib.AbstractContextManager[Iterator[Any]]:
    """The data of each call of `train_step`."""
    # A process reads what its own devices need, and no more.
    if options.stream or jax.process_count() > 1:
        return eqmdm.BatchStream(
            state, examples, batch_size=options.batch_size, n_inner=n_inner
        )
    mesh = build_mesh(options.batch_size)
    on_devices = eqmdm.distribute(jnp.asarray(examples), mesh)
    return contextlib.nullcontext(itertools.repeat(on_devices))


def facts(seed: int) -> dict[str, Any]:
    """What else a run used: versions, device and command."""
    packages = ("eqmdm", "jax", "jaxlib", "equinox", "diffrax", "optax", "lineax")
    packages += ("numpy", "orbax-checkpoint")
    device = jax.devices()[0]
    return {
        "command": [sys.executable, *sys.argv],
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "machine": platform.platform(),
        },
        "seed": seed,
    }


def as_json(options: ResolvedTrainOptions, dataset: Any) -> dict[str, Any]:
    """What identifies a run: its options and its data."""
    return dataclasses.asdict(options) | {"data_fingerprint": dataset.fingerprint}


def purpose_key(seed: int, purpose: int) -> jax.Array:
    return jr.fold_in(jr.key(seed), purpose)


def _transform(options: TrainOptions) -> Any:
    return eqmdm.Scale() if options.transform == "scale" else eqmdm.Logit()
