"""Builders: diffusions, networks and objectives from the options of `eqmdm train`."""

import dataclasses
import enum
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm._bound.times import Focus
from eqmdm._model.data_scale import data_scale
from eqmdm._model.denoiser import TOP_LOG_SNR
from eqmdm._model.ends import log_snr_range

from . import conditions, own_code
from .bases import build_basis, fit_basis, to_pixels, transform_of
from .diffusions import build_diffusion as build_diffusion, ends_are_learned
from .networks import build_network
from .pixels import describe_pixel, pixel_of
from .process_model import lowest_shift, with_process
from .train.options import NOT_RECORDED, ResolvedTrainOptions, TrainOptions


# How far, in log-SNR, the ends of an interval may move if they are learned.
_LEARNED_MARGIN = 20.0


# The values, in runs that lack them, of options that depend on the data set.
_FORMER = {"patch": 1, "preconditioning": "normal", "decay": "none", "focus": ()}


class Purpose(enum.IntEnum):
    """The purposes of random draws; each has its own stream of keys."""

    DIFFUSION = 0
    NETWORK = 1
    TRAINING = 2
    VALIDATION = 3
    BOUND = 4
    SAMPLES = 5
    LIKELIHOOD = 6
    DIRECTIONS = 7
    HELD_OUT = 8
    OBSERVATIONS = 9


def load_data(options: TrainOptions, data_dir: str | None = None) -> eqmdm.data.Dataset:
    """The data set that the options name, from `data_dir` if that is given.

    **Raises:** the errors of [`eqmdm.data.load`][].
    """
    dataset = eqmdm.data.load(
        options.dataset,
        data_dir=options.data_dir if data_dir is None else data_dir,
        in_memory=not options.stream,
        configuration=options.configuration,
        image_column=options.image_column,
        label_column=options.label_column,
        columns=options.columns or None,
        condition=options.condition or None,
        image_size=options.image_size or None,
        n_levels=options.n_levels,
        standardise=options.standardise,
        validation_fraction=options.validation_fraction,
        test_fraction=options.test_fraction,
    )
    if dataset.conditions is not None and not options.condition:
        # A function's own, which the model is not to be conditioned on.
        return dataclasses.replace(dataset, conditions=None)
    return dataset


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """The facts about the data that a model is built from."""

    shape: tuple[int, ...]
    n_levels: int | None
    std: float
    """The standard deviation about zero of the training data, as encoded for the
    network."""
    condition: dict[str, Any] | None = None
    """The kind of condition, from `conditions.describe`."""
    pixel: dict[str, Any] | None = None
    """The distribution of a pixel, for spike-and-slab preconditioning."""

    @classmethod
    def of(cls, options: ResolvedTrainOptions, dataset: Any) -> "DataFacts":
        std = data_scale(dataset, transform_of(options))
        condition = conditions.describe(dataset)
        pixel = None
        if options.preconditioning == "spike-and-slab":
            pixel = describe_pixel(dataset, build_grey_levels(options, dataset))
        return cls(tuple(dataset.shape), dataset.n_levels, std, condition, pixel)


def build_model(
    options: ResolvedTrainOptions,
    data: DataFacts,
    diffusion: eqmdm.AbstractProcess,
    key: jax.Array,
    basis: eqmdm.AbstractBasis | None = None,
) -> eqmdm.AbstractModel:
    """The model to train: a noise prediction, or a denoiser, in the fitted `basis` if
    it is fitted, with the noise and the start of its process."""
    model = _build_normal_model(options, data, diffusion, key, basis)
    return with_process(options, model, data.shape, key)


def _build_normal_model(
    options: ResolvedTrainOptions,
    data: DataFacts,
    diffusion: eqmdm.AbstractProcess,
    key: jax.Array,
    basis: eqmdm.AbstractBasis | None,
) -> eqmdm.AbstractModel:
    own_code.check_linear(options, diffusion)
    pixel = pixel_of(data.pixel)
    n_vars = diffusion.n_vars
    if options.score == "denoiser":
        n_vars = 1 if pixel is None else 1 + pixel.n_spikes
    told: dict[str, Any] = {"condition": conditions.kind_of(data.condition)}
    if basis is None:
        basis = build_basis(options, data.shape)
    if basis is not None:
        told["noise_levels"] = basis.noise_levels
    network = build_network(options, data.shape, n_vars, key=key, **told)
    if options.score == "free":
        return eqmdm.NoiseModel(network, diffusion)
    assert isinstance(diffusion, eqmdm.AbstractLinearDiffusion)
    low, high = log_snr_range(diffusion)
    low += lowest_shift(options)
    margin = _LEARNED_MARGIN if ends_are_learned(diffusion) else 0.01
    trained = (low - margin, min(high + margin, TOP_LOG_SNR))
    if pixel is not None:
        denoiser = eqmdm.SpikeAndSlabDenoiser(network, pixel, trained, basis)
        return eqmdm.DenoiserModel(denoiser, diffusion)
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=data.std, log_snr_range=trained, basis=basis
    )
    return eqmdm.DenoiserModel(denoiser, diffusion)


def build_grey_levels(options: TrainOptions, dataset: Any) -> Any:
    """The encoding of grey levels as data; `None` for points."""
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
        dataset.n_levels, transform=transform_of(options), dequantiser=dequantiser
    )


def build_objective(
    options: ResolvedTrainOptions,
    dataset: Any,
    basis: eqmdm.AbstractBasis | None = None,
) -> Any:
    """The objective of a run, in its `basis` if that was fitted."""
    if basis is None:
        basis = fit_basis(options, dataset)
    vectors = eqmdm.SNRVectors(options.scalar_share)
    grey_levels = build_grey_levels(options, dataset)
    if grey_levels is None and options.decoder == "discrete":
        raise ValueError("`decoder` must not be discrete for points.")
    form = {
        "low_variance": eqmdm.LowVariance,
        "dsm": eqmdm.DenoisingScoreMatching,
        "hsm": eqmdm.HybridScoreMatching,
        "ism": eqmdm.ImplicitScoreMatching,
        "local": eqmdm.LocalScoreMatching,
        "hutchinson": lambda: eqmdm.ImplicitScoreMatching(eqmdm.HutchinsonDivergence()),
    }[options.form]()
    decoder = eqmdm.StartDecoder()
    if options.decoder == "data":
        decoder = eqmdm.DataDecoder()
    elif options.decoder == "discrete":
        assert grey_levels is not None
        decoder = eqmdm.DiscreteDecoder(grey_levels)
    density = Focus(*options.focus) if options.focus else None
    time_sampler = {
        "uniform": eqmdm.UniformTimeSampler,
        "importance": eqmdm.ImportanceTimeSampler,
        "log_snr": lambda: eqmdm.LogSNRTimeSampler(density=density),
    }[options.time]()
    return eqmdm.Objective(
        form=form,
        decoder=decoder,
        time_sampler=time_sampler,
        levels=grey_levels,
        flip=dataset.flip,
        drop_condition=options.drop_condition if options.condition else 0.0,
        log_jacobian=log_jacobian(dataset),
        basis=basis,
        snr_vectors=None if basis is None else vectors,
    )


def log_jacobian(dataset: Any) -> float:
    """The log-density of points in their own units less that of the standardised points
    that the model sees, in nats."""
    scale = dataset.standardisation
    return 0.0 if scale is None else scale.log_jacobian


def decode(
    options: TrainOptions,
    dataset: Any,
    x: Any,
    basis: eqmdm.AbstractBasis | None = None,
) -> np.ndarray:
    """Samples decoded to the form of the data: grey levels, or points in own units.

    `basis` is that of the model, and by default the one that its data give.
    """
    if basis is None:
        basis = fit_basis(options, dataset)
    x = to_pixels(basis, x)
    grey_levels = build_grey_levels(options, dataset)
    if grey_levels is not None:
        levels = np.asarray(grey_levels.decode(jnp.asarray(x)))
        return levels.astype(dataset.train.dtype)
    scale = dataset.standardisation
    return np.asarray(x) if scale is None else scale.inverse(np.asarray(x))


def build_mesh(batch_size: int) -> jax.sharding.Mesh:
    """The most devices that divide a batch evenly; with several processes, all."""
    devices = jax.devices()
    if jax.process_count() > 1 and batch_size % len(devices):
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices of all "
            f"processes, {len(devices)}; got {batch_size}."
        )
    n_used = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return eqmdm.device_mesh(devices[:n_used])


def training_data(
    options: ResolvedTrainOptions,
    objective: eqmdm.Objective,
    dataset: eqmdm.data.Dataset,
) -> Any:
    """The training examples: on the devices, or on the host if they are streamed."""
    # Streams and multi-process runs load only what the process's own devices need.
    if options.stream or jax.process_count() > 1:
        return dataset.train
    given = dataset.conditions
    data = (
        jnp.asarray(dataset.train),
        None if given is None else jnp.asarray(given.train),
    )
    examples, condition = eqmdm.distribute(data, build_mesh(options.batch_size))
    return eqmdm.TrainingSet(examples, objective, condition)


def facts(seed: int) -> dict[str, Any]:
    """The versions, device and command of a run."""
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


def as_json(
    options: ResolvedTrainOptions, dataset: Any, data: DataFacts
) -> dict[str, Any]:
    """The identity of a run: its options and its data."""
    named = dataclasses.asdict(options)
    named = {k: v for k, v in named.items() if k not in NOT_RECORDED}
    return named | {
        "data_fingerprint": dataset.fingerprint,
        "data": dataclasses.asdict(data),
    }


def from_json(record: Mapping[str, Any]) -> tuple[ResolvedTrainOptions, DataFacts, str]:
    """The options, data facts and data fingerprint that `as_json` recorded.

    **Raises:** `ValueError` for a record that `eqmdm train` did not write.
    """
    stored = dict(record)
    fields = dataclasses.fields(ResolvedTrainOptions)
    known = {field.name for field in fields} | {"data_fingerprint", "data"}
    # Older runs lack the options that were added since.
    optional = {f.name for f in fields if f.default is not dataclasses.MISSING}
    optional |= {"network", *_FORMER}
    missing = known - optional - stored.keys()
    differ = missing | (stored.keys() - known)
    try:
        if differ:
            raise KeyError(min(differ))
        fingerprint, data = stored.pop("data_fingerprint"), stored.pop("data")
        stored.setdefault("network", "mlp" if data["n_levels"] is None else "unet")
        stored = _FORMER | stored
        # JSON has no tuples.
        options = ResolvedTrainOptions(**{k: _tupled(v) for k, v in stored.items()})
        return (
            options,
            DataFacts(**{k: _tupled(v) for k, v in data.items()}),
            fingerprint,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "`run` must be the directory of a run of `eqmdm train`; its options are "
            f"from another program ({error}). Load your own run in Python, with "
            "`eqmdm.load_run(run_dir, like=model)`."
        ) from error


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def model_from_options(record: dict[str, Any]) -> eqmdm.AbstractModel:
    """A model with the structure of a run of `eqmdm train` with these options.

    **Raises:** `ValueError` if they name code, which is not imported only because a
    file names it.
    """
    options, data, _ = from_json(record)
    own = own_code.own_names(options)
    if own:
        raise ValueError(
            f"`like` must be given for a run with the user's own code, "
            f"{', '.join(own.values())}. Pass a model with the structure of the run."
        )
    return rebuilt(options, data)


def rebuilt(options: ResolvedTrainOptions, data: DataFacts) -> eqmdm.AbstractModel:
    """The untrained model of a run, with the user's own code if the options name it."""
    key = lambda purpose: purpose_key(options.seed, purpose)
    diffusion = build_diffusion(options, key(Purpose.DIFFUSION))
    return build_model(options, data, diffusion, key(Purpose.NETWORK))


# The name that runs record for rebuilding their model.
MODEL_BUILDER = f"{__name__}:{model_from_options.__name__}"


def purpose_key(seed: int, purpose: int) -> jax.Array:
    return jr.fold_in(jr.key(seed), purpose)
