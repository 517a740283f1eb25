"""The options of `eqmdm train`, and the defaults of each data set."""

import dataclasses
import itertools
from typing import Annotated, Any, Literal

from ..._core.hints import did_you_mean
from ..._core.own import is_own
from ..fields import CommaSeparated, check_at_least, chosen, named
from ..names import DIFFUSIONS, NETWORKS, Range
from ..outputs import PictureOptions
from .defaults import (
    DEFAULTS,
    FOCUS,
    defaults_by_size,
    log_snr_range,
    preset_defaults,
)
from .network_options import NetworkOptions, TrainingOptions, check_network
from .process_options import ProcessOptions, check_process
from .snr_options import SNROptions, check_snr


# Options that may change when a run is resumed, since training does not depend on them.
MAY_DIFFER = ("data_dir", "n_samples", "resume", "run_dir", "sample_steps", "steps")
MAY_DIFFER += ("profile", "remat", "shard_parameters", "test_draws", "test_examples")
MAY_DIFFER += ("distributed", "coordinator", "n_processes", "process_index")
# Options that a run does not record, since no parameter or result depends on them.
NOT_RECORDED = ("picture_format", "tracker")
MAY_DIFFER += NOT_RECORDED
_POSITIVE = ("steps", "batch_size", "log_every", "validate_every", "checkpoint_every")
_POSITIVE += ("validation_draws", "test_draws", "sample_steps")


def _by_data_set() -> Any:
    return chosen("depends on the data set, see below")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set, and how its examples are encoded."""

    dataset: str = named("data", "PATH_OR_NAME", former="dataset")
    """A file or folder: images (folders are classes), Parquet, CSV, JSON lines, Arrow,
    .npy, .npz or what `datasets` saved; a name on the Hugging Face Hub (org/name); a
    function (module:function); or digits, mnist, fashion_mnist, cifar10, imagenet32,
    mixture, rings or checkerboard."""
    data_dir: str | None = chosen("the Hugging Face Hub")
    """For a known name, a directory with the image files (parquet); for your own data,
    their present location, if they have moved."""
    configuration: str | None = None
    """The configuration of a data set that has several."""
    image_column: str | None = chosen("the only one of images")
    """The column with the images."""
    label_column: str | None = chosen("label, labels, class, or the only one of these")
    """The column with the classes; none to ignore classes."""
    columns: Annotated[tuple[str, ...], CommaSeparated(str, "A,B,...")] = ()
    """The columns of a table to use; by default all but the column of classes. They are
    standardised, and likelihoods are in their own units."""
    condition: Annotated[tuple[str, ...], CommaSeparated(str, "label|A,B,...")] = ()
    """What to condition the model on: label, or columns of numbers, which are then not
    among the examples; for arrays and functions, their array `conditions`."""
    image_size: tuple[int, ...] = ()
    """The side, or the height and width, to which images are scaled and cropped."""
    n_levels: int | None = chosen("256 for uint8, 65536 for uint16")
    """The number of grey levels of an array of integers."""
    standardise: bool = True
    """Standardise your own points."""
    validation_fraction: float | None = chosen("0.1")
    """The fraction of the training split used for validation, if the data have no
    validation split."""
    test_fraction: float | None = chosen("0.1")
    """The fraction of the training split used as the test split, if the data have
    none."""
    stream: bool = False
    """Read training images from their files when needed, for data sets larger than
    memory. The files are copied once into the cache of `datasets`."""
    transform: Literal["scale", "logit"] = "scale"
    """How grey levels become data."""
    dequantisation: Literal["uniform", "truncated_normal", "discrete"] = "uniform"
    """How integer levels become continuous; discrete leaves this to the decoder."""
    dequantisation_std: float = 0.3
    """The standard deviation of truncated_normal, in grey levels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The run, its directory and its seed."""

    run_dir: str | None = chosen("runs/<data>-<diffusion>-<score>-<seed>")
    """The directory of the run, RUN below."""
    resume: bool = False
    """Continue the run in RUN exactly from its last checkpoint."""
    seed: int = 0
    """The seed of every random draw."""
    profile: bool = False
    """Trace the second log interval, for XProf and Perfetto, to RUN/profile."""
    tracker: Annotated[tuple[str, ...], CommaSeparated(str, "NAME,NAME,...")] = ()
    """Where progress is sent besides RUN/metrics.jsonl: tensorboard, wandb (offline
    unless WANDB_MODE is set), mlflow or trackio, each with the extra of its name, or
    module:name, a function of the directory of the run that makes an eqmdm.Tracker. A
    tracker that fails does not stop training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """The diffusion process and its interval."""

    diffusion: str = "cld"
    """The diffusion process: vpsde, subvpsde, vesde, cld, alda, malda, psld, critical3,
    learned, or your own as module:name, a class or a function that takes `interval` and
    makes one. With the denoiser score the bound depends on it only
    through its interval in log-SNR; with the free score the choice matters."""
    n_vars: int | None = chosen("2 if learned")
    """For learned: the number of variables per data coordinate, the data included."""
    log_snr_range: Range | None = chosen(
        "for fixed diffusions with the denoiser score, -9 13.3, or -9 20 with "
        "spike-and-slab and dequantised levels",
        metavar="LOW HIGH",
    )
    """The interval of the diffusion, in log signal-to-noise ratio."""
    t_range: Range | None = chosen(
        "0.001 1 for the free score and for learned", metavar="T0 T1"
    )
    """The interval of the diffusion, in time instead."""
    schedule: Literal["default", "constant", "linear", "cosine"] = "default"
    """The noise rate as a function of time; default is the diffusion's own."""
    schedule_values: tuple[float, ...] = ()
    """The values of the schedule: constant, its rate; linear, its rates at 0 and 1;
    cosine, its integral at 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundOptions:
    """The bound that is optimised and reported."""

    form: Literal["low_variance", "dsm", "hsm", "ism", "hutchinson", "local"] = (
        "low_variance"
    )
    """The form of the bound; local, ism or hutchinson for a drift that is nonlinear."""
    decoder: Literal["data", "theorem3", "discrete"] | None = chosen(
        "discrete with discrete levels, theorem3 with the form dsm, else data"
    )
    """The decoder, which completes the bound at the start time t0."""
    time: Literal["uniform", "importance", "log_snr"] | None = chosen(
        "log_snr for the denoiser score, importance for the free one"
    )
    """The distribution that times are drawn from."""
    focus: tuple[float, ...] | None = chosen(
        "-3 14 with spike-and-slab and the form low_variance, else no values",
        metavar="LOW HIGH",
    )
    """For times in log_snr: the range where they are ten times as dense as elsewhere,
    or no values for uniform ones. The bound is the same, and its gradients vary less if
    this is where they are large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is logged during training and evaluated after it."""

    log_every: int | None = _by_data_set()
    """Steps between lines of metrics.jsonl."""
    validate_every: int | None = _by_data_set()
    """Steps between validations; a multiple of --log-every."""
    checkpoint_every: int | None = _by_data_set()
    """Steps between checkpoints; a multiple of --log-every."""
    validation_examples: int = 256
    """The largest number of examples of the validation split to use."""
    validation_draws: int = 4
    """Draws of time and noise averaged for each of them."""
    test_examples: int = 1000
    """The largest number of test examples of the final bound; 0 for no bound."""
    test_draws: int = 8
    """Draws of time and noise averaged for each of them."""
    n_samples: int | None = _by_data_set()
    """Samples to draw after training; 0 for none."""
    sample_steps: int = 50
    """Steps of the sampler, DPM-Solver, that draws them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Several devices, and several processes."""

    shard_parameters: bool = False
    """If several devices divide the batches, let each hold only a share of the large
    parameters."""
    distributed: bool = False
    """Train in several processes on a shared file system, each given the same command.
    On a cluster that JAX detects, such as Slurm, the processes find one another;
    elsewhere give the three options below."""
    coordinator: str | None = chosen("detected", metavar="HOST:PORT")
    """The host of the first process, and a free port on it."""
    n_processes: int | None = chosen("detected")
    """The number of processes."""
    process_index: int | None = chosen("detected")
    """The number of this process, counted from 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(
    DataOptions,
    RunOptions,
    DiffusionOptions,
    ProcessOptions,
    NetworkOptions,
    SNROptions,
    BoundOptions,
    TrainingOptions,
    EvaluationOptions,
    PictureOptions,
    DeviceOptions,
):
    """Train a diffusion model, evaluate its likelihood bound and draw samples.

    All results are written to the directory of the run.
    """

    @staticmethod
    def epilog() -> str:
        """The table of defaults for each data set, which ends the help."""
        names: dict[int, list[str]] = {}
        for name, values in DEFAULTS.items():
            names.setdefault(id(values), []).append(name)
        rows = [["", *cells] for cells in itertools.zip_longest(*names.values())]
        for option in DEFAULTS["mnist"]:
            values = [DEFAULTS[column[0]][option] for column in names.values()]
            rows.append(["--" + option.replace("_", "-"), *map(as_given, values)])
        lines = [
            f"  {head:18}" + "".join(f"{cell or '':>15}" for cell in cells)
            for head, *cells in rows
        ]
        return "\n".join(["defaults by data set:", *lines])

    def resolved(
        self, shape: tuple[int, ...] | None = None, n_levels: int | None = None
    ) -> "ResolvedTrainOptions":
        """These options with the defaults of the data set for those not given.

        For data that are not known by name, the defaults follow from the `shape` of an
        example and its number of grey levels.
        """
        by_data, title = DEFAULTS.get(self.dataset), self.dataset
        if by_data is None:
            # Imported here, so that parsing needs no JAX.
            from eqmdm.data import title as title_of

            assert shape is not None
            by_data = defaults_by_size(shape, n_levels, self.network)
            title = title_of(self.dataset)
        if self.preset is not None:
            by_data = by_data | preset_defaults(self.preset, self.dataset, shape)
        if not self._may_know_levels():
            by_data = by_data | {"preconditioning": "normal"}
        # Not every file system allows the colon of module:name in a file name.
        diffusion = self.diffusion.replace(":", "-")
        defaults: dict[str, Any] = by_data | {
            "run_dir": f"runs/{title}-{diffusion}-{self.score}-{self.seed}",
            "decoder": self._default_decoder(),
            "time": "log_snr" if self.score == "denoiser" else "importance",
            "n_vars": 2 if self.diffusion == "learned" else None,
            "nu": 4.0 if self.noise else None,
        }
        pixel = self.preconditioning or by_data["preconditioning"]
        chosen_by = pixel, self.time or defaults["time"], self.form
        # Other forms, and a hidden precision, lack the control variate, without which
        # rare times would make the loss vary more.
        has_control = chosen_by == ("spike-and-slab", "log_snr", "low_variance")
        if has_control and not self.hidden_precision:
            defaults["focus"] = FOCUS
        if self.t_range is None and self.log_snr_range is None:
            in_log_snr = self.score == "denoiser" and self.diffusion != "learned"
            if in_log_snr:
                defaults["log_snr_range"] = log_snr_range(pixel, self.dequantisation)
            else:
                defaults["t_range"] = (1e-3, 1.0)
        absent = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        options = ResolvedTrainOptions(**(dataclasses.asdict(self) | absent))
        options.check()
        return options

    def _may_know_levels(self) -> bool:
        """Whether the network is a denoiser of pixels whose levels are as wide as in
        the images."""
        of_pixels = self.snr == "scalar" or self.basis == "pixels"
        return self.score == "denoiser" and of_pixels and self.transform == "scale"

    def _default_decoder(self) -> str:
        if self.dequantisation == "discrete":
            return "discrete"
        # The form dsm conditions on the whole state at t0, so its decoder must too.
        return "theorem3" if self.form == "dsm" else "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedTrainOptions(TrainOptions):
    """Options of a run with all defaults filled in."""

    run_dir: str = dataclasses.field()
    network: str = dataclasses.field()
    decoder: Literal["data", "theorem3", "discrete"] = dataclasses.field()
    time: Literal["uniform", "importance", "log_snr"] = dataclasses.field()
    steps: int = dataclasses.field()
    batch_size: int = dataclasses.field()
    learning_rate: float = dataclasses.field()
    warmup: int = dataclasses.field()
    ema_decay: float = dataclasses.field()
    decay: Literal["none", "cosine"] = dataclasses.field()
    width: int = dataclasses.field()
    multipliers: tuple[int, ...] = dataclasses.field()
    n_blocks: int = dataclasses.field()
    patch: int = dataclasses.field()
    preconditioning: Literal["normal", "spike-and-slab"] = dataclasses.field()
    log_every: int = dataclasses.field()
    validate_every: int = dataclasses.field()
    checkpoint_every: int = dataclasses.field()
    n_samples: int = dataclasses.field()

    def check(self) -> None:
        """**Raises:** `ValueError` for unknown names, and values that contradict one
        another."""
        _check_name("diffusion", self.diffusion, DIFFUSIONS)
        _check_name("network", self.network, NETWORKS)
        if self.t_range is not None and self.log_snr_range is not None:
            raise ValueError(
                "`t_range` and `log_snr_range` must not both be given; got "
                f"{self.t_range} and {self.log_snr_range}."
            )
        if self.n_vars is not None and self.diffusion != "learned":
            raise ValueError(
                "`n_vars` must be left out unless the diffusion is learned; got "
                f"{self.n_vars} with {self.diffusion}, whose number of variables is "
                "fixed."
            )
        if (self.dequantisation == "discrete") != (self.decoder == "discrete"):
            raise ValueError(
                "`dequantisation` and `decoder` must be discrete together, since the "
                "discrete decoder gives the mass of whole levels; got "
                f"{self.dequantisation} and {self.decoder}."
            )
        check_focus(self)
        check_process(self)
        check_snr(self)
        check_network(self)
        check_at_least(self, dict.fromkeys(_POSITIVE, 1))
        if self.profile and self.steps < 2 * self.log_every:
            raise ValueError(
                "`profile` must come with at least two log intervals, since the first "
                f"one compiles; got {self.steps} `steps` with `log_every` "
                f"{self.log_every}."
            )
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"`{name}` must be a multiple of `log_every`, {self.log_every}; "
                    f"got {getattr(self, name)}."
                )


def check_focus(options: ResolvedTrainOptions) -> None:
    """**Raises:** `ValueError` unless a `focus` is a range, of times in log-SNR."""
    focus = options.focus
    if not focus:
        return
    if options.time != "log_snr":
        raise ValueError(
            "`focus` must be left out unless `time` is log_snr, whose times it "
            f"concentrates; got {focus} with {options.time}."
        )
    if len(focus) != 2 or not focus[0] < focus[1]:
        raise ValueError(
            f"`focus` must be two increasing log-SNRs, or no values; got {focus}."
        )


def _check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known and not is_own(name):
        raise ValueError(
            f"`{option}` must be one of {', '.join(known)}, or your own as "
            f"module:name; got {name!r}.{did_you_mean(name, known)}"
        )


def as_given(value: Any) -> str:
    """A value as written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
