"""What a user of `train.py` chooses, and the defaults of each data set."""

import dataclasses
from typing import Any, Literal


Range = tuple[float, float]
DiffusionName = Literal[
    "vpsde",
    "subvpsde",
    "vesde",
    "cld",
    "alda",
    "malda",
    "psld",
    "critical3",
    "learned",
]

_MNIST: dict[str, Any] = {
    "steps": 50_000,
    "batch_size": 128,
    "learning_rate": 2e-4,
    "warmup": 500,
    "ema_decay": 0.9995,
    "width": 32,
    "multipliers": (1, 2, 2),
    "n_blocks": 2,
    "log_every": 50,
    "validate_every": 1000,
    "checkpoint_every": 1000,
    "n_samples": 64,
}
_CIFAR10 = _MNIST | {
    "steps": 500_000,
    "warmup": 5000,
    "ema_decay": 0.9999,
    "width": 128,
    "multipliers": (1, 2, 2, 2),
    "log_every": 100,
    "validate_every": 5000,
    "checkpoint_every": 5000,
}
_POINTS = _MNIST | {
    "steps": 10_000,
    "batch_size": 512,
    "learning_rate": 1e-3,
    "ema_decay": 0.999,
    "width": 128,
    "n_blocks": 3,
    "log_every": 100,
    "n_samples": 4000,
}
_DIGITS = _MNIST | {
    "steps": 2000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup": 100,
    "ema_decay": 0.998,
    "width": 24,
    "multipliers": (1, 2),
    "n_blocks": 1,
    "log_every": 20,
    "validate_every": 500,
    "checkpoint_every": 500,
}
_DEFAULTS = {
    "digits": _DIGITS,
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": _CIFAR10,
    "imagenet32": _CIFAR10,
    "mixture": _POINTS,
    "rings": _POINTS,
    "checkerboard": _POINTS,
}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train a diffusion model, evaluate its likelihood bound and draw samples.

    Everything that a run uses and finds is written to its directory. What is not given
    is chosen for the data set.
    """

    dataset: Literal[
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "imagenet32",
        "mixture",
        "rings",
        "checkerboard",
    ]
    """The data. digits, mixture, rings and checkerboard need no network."""
    data_dir: str | None = None
    """A directory with the image files (parquet), instead of the Hugging Face Hub."""
    run_dir: str | None = None
    """Where to write; by default runs/<dataset>-<diffusion>-<score>-<seed>."""
    resume: bool = False
    """Continue the run in the run directory, exactly where its last checkpoint is."""
    seed: int = 0
    """Fixes every random draw."""

    diffusion: DiffusionName = "cld"
    """The process. The default is the best-known multivariate one. With the denoiser
    score the choice matters little to the bound, which then depends on the diffusion
    only through its ends; with the free score it does."""
    n_vars: int | None = None
    """Variables per data coordinate, the data included; of learned only, by default
    2."""
    score: Literal["denoiser", "free"] = "denoiser"
    """What the network predicts: the data from one channel (denoiser: one network
    serves every diffusion), or the noise in all channels (free: as in MDM)."""
    log_snr_range: Range | None = None
    """The diffusion's ends as log signal-to-noise ratios. -9 13.3 is the default of
    fixed diffusions with the denoiser score: it is where they can be compared."""
    t_range: Range | None = None
    """The diffusion's ends in time instead. 0.001 1 is the default of the free score
    and of learned diffusions, as in MDM."""
    schedule: Literal["default", "constant", "linear", "cosine"] = "default"
    """The rate of noise in time; the default is the diffusion's own."""
    schedule_values: tuple[float, ...] = ()
    """Of the schedule: constant, its rate; linear, its rates at 0 and 1; cosine, its
    integral at 1."""

    form: Literal["low_variance", "dsm", "hsm", "ism", "hutchinson"] = "low_variance"
    """The bound's form."""
    decoder: Literal["data", "theorem3", "discrete"] | None = None
    """What completes the bound at the cut; data, but discrete with discrete levels and
    theorem3 with the form dsm."""
    time: Literal["uniform", "importance", "log_snr"] | None = None
    """How times are drawn; log_snr for the denoiser, importance for the free score."""
    transform: Literal["scale", "logit"] = "scale"
    """How grey levels become data."""
    dequantisation: Literal["uniform", "truncated_normal", "discrete"] = "uniform"
    """How integer levels become continuous; discrete leaves them to the decoder."""
    dequantisation_std: float = 0.3
    """Of truncated_normal, in grey levels."""

    steps: int | None = None
    """Steps in all; a resumed run may be given more."""
    batch_size: int | None = None
    """Examples in a step."""
    accumulate: int = 1
    """Steps whose gradients are averaged into one update."""
    learning_rate: float | None = None
    """Adam's, for the network; 2e-4 for the larger data sets."""
    diffusion_learning_rate: float | None = None
    """Adam's, for a learned diffusion; by default as the network's."""
    warmup: int | None = None
    """Updates over which the learning rates rise."""
    clip: float = 1.0
    """The largest norm of a gradient."""
    ema_decay: float | None = None
    """The averaging of parameters, which evaluation and samples use."""

    width: int | None = None
    """Channels of the U-Net's first level; hidden units for points."""
    multipliers: tuple[int, ...] | None = None
    """The width of each level of the U-Net, in multiples."""
    n_blocks: int | None = None
    """Residual blocks in a level of the U-Net; layers for points."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the U-Net computes in; parameters are float32."""
    remat: bool = False
    """Whether gradients of the U-Net compute its blocks again instead of keeping what
    is in them: less memory for about a third more work."""
    shard_parameters: bool = False
    """With several devices, which divide every batch: whether each holds a share of the
    large parameters instead of all of them."""

    stream: bool = False
    """Whether training images are read from their files as they are needed, for those
    that memory cannot hold. They are copied once, as they are, into the cache of
    `datasets`."""
    distributed: bool = False
    """Train in several processes, each of which is given the same command, on a file
    system that all see. On a cluster that JAX knows (Slurm, for one) it finds the
    others by itself; elsewhere by the three options below."""
    coordinator: str | None = None
    """Where the first process is: its host and a free port, host:port."""
    n_processes: int | None = None
    """How many processes there are."""
    process_index: int | None = None
    """Which of them this one is, counted from 0."""

    profile: bool = False
    """Trace the second log interval, for XProf and Perfetto; RUN/profile."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl."""
    validate_every: int | None = None
    """Steps between validations; a multiple of log-every."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; a multiple of log-every."""
    validation_examples: int = 256
    """Examples of the validation split to use, at most."""
    validation_draws: int = 4
    """Draws of time and noise averaged for each of them."""
    test_examples: int = 1000
    """Examples of the test split to evaluate in the end, at most; 0 for none."""
    test_draws: int = 8
    """Draws of time and noise averaged for each of them."""
    n_samples: int | None = None
    """Samples to draw in the end; 0 for none."""
    sample_steps: int = 250
    """Steps of the reverse-time SDE that draws them."""

    def resolved(self) -> "ResolvedTrainOptions":
        """These options with the data set's defaults for those not given."""
        defaults = _DEFAULTS[self.dataset] | {
            "run_dir": f"runs/{self.dataset}-{self.diffusion}-{self.score}-{self.seed}",
            "decoder": self._default_decoder(),
            "time": "log_snr" if self.score == "denoiser" else "importance",
            "n_vars": 2 if self.diffusion == "learned" else None,
        }
        if self.t_range is None and self.log_snr_range is None:
            fixed_ends = self.score == "denoiser" and self.diffusion != "learned"
            key = "log_snr_range" if fixed_ends else "t_range"
            defaults[key] = (-9.0, 13.3) if fixed_ends else (1e-3, 1.0)
        absent = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        options = ResolvedTrainOptions(**(dataclasses.asdict(self) | absent))
        options._check()
        return options

    def _default_decoder(self) -> str:
        if self.dequantisation == "discrete":
            return "discrete"
        # The denoising form is given the whole start, so its decoder must be of it.
        return "theorem3" if self.form == "dsm" else "data"

    def _check(self) -> None:
        if self.t_range is not None and self.log_snr_range is not None:
            raise ValueError(
                "`t_range` and `log_snr_range` must not both be given; got "
                f"{self.t_range} and {self.log_snr_range}."
            )
        if self.n_vars is not None and self.diffusion != "learned":
            raise ValueError(
                "`n_vars` must be left out but for diffusion=learned; got "
                f"{self.n_vars} with {self.diffusion}, whose number of variables is "
                "fixed."
            )
        if (self.dequantisation == "discrete") != (self.decoder == "discrete"):
            raise ValueError(
                "`dequantisation` and `decoder` must be discrete together, for the "
                "discrete decoder gives the mass of whole levels; got "
                f"{self.dequantisation} and {self.decoder}."
            )
        positive = ("steps", "batch_size", "log_every", "validate_every")
        positive += (
            "checkpoint_every",
            "validation_draws",
            "test_draws",
            "sample_steps",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1; got {getattr(self, name)}."
                )
        assert self.steps is not None and self.log_every is not None
        if self.profile and self.steps < 2 * self.log_every:
            raise ValueError(
                "`profile` must come with two log intervals at least, for the first "
                f"compiles; got steps={self.steps} and log_every={self.log_every}."
            )
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"`{name}` must be a multiple of log_every={self.log_every}; got "
                    f"{getattr(self, name)}."
                )


@dataclasses.dataclass(frozen=True)
class ResolvedTrainOptions(TrainOptions):
    """TrainOptions in which nothing is left to be chosen."""

    run_dir: str = ""
    decoder: Literal["data", "theorem3", "discrete"] = "data"
    time: Literal["uniform", "importance", "log_snr"] = "importance"
    steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    warmup: int = 0
    ema_decay: float = 0.0
    width: int = 0
    multipliers: tuple[int, ...] = ()
    n_blocks: int = 0
    log_every: int = 0
    validate_every: int = 0
    checkpoint_every: int = 0
    n_samples: int = 0
