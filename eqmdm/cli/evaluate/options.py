"""The options of `eqmdm evaluate`."""

import dataclasses
from pathlib import Path
from typing import Literal

from ..fields import check_at_least, chosen, positional
from ..names import ClockName, DiffusionName, Range
from ..outputs import PictureOptions, TableFormats, check_formats


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamplesOptions:
    """The examples that are evaluated, and where the results go."""

    split: Literal["train", "validation", "test"] = "test"
    """The split of the run's data set to evaluate."""
    first: int = 0
    """The index of the first example in the split."""
    examples: int | None = chosen("all that follow")
    """The number of examples, counted from the first."""
    data_dir: str | None = chosen("that of the run")
    """A directory with the image files (parquet)."""
    trust_code: bool = False
    """Import the user's own diffusion and network that the run names as module:name."""
    batch_size: int = 64
    """Examples evaluated at once. It affects speed and memory, but results only by
    rounding; a stopped evaluation may continue with another."""
    seed: int = 0
    """The seed of every random draw."""
    output_dir: Path | None = chosen("RUN/evaluation-<route>-<split>")
    """The directory of the results."""
    overwrite: bool = False
    """Start again if the output directory holds another evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model: by default the run's own, with averaged parameters."""

    ema: bool = True
    """Use the moving average of the parameters instead of the last ones."""
    unconditional: bool = False
    """For a model trained with --condition: leave the condition out."""
    ema_length: float | None = chosen("the average with the decay of training")
    """Use an average of this length, made from the snapshots of a run that was trained
    with --ema-profiles: its standard deviation as a fraction of the training, such as
    0.05, and below 0.288."""
    diffusion: DiffusionName | None = chosen("that of the run")
    """Evaluate a denoiser under a diffusion that it was not trained on, by default over
    the same interval in log-SNR."""
    log_snr_range: Range | None = chosen("that of the run", metavar="LOW HIGH")
    """Evaluate a denoiser over another interval, in log signal-to-noise ratio. It is
    untrained below the interval of its training; above log-SNR 14 its network has no
    effect, and the data are almost determined."""
    t_range: Range | None = chosen("that of the run", metavar="T0 T1")
    """Evaluate a denoiser over another interval, in time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """The likelihood or the bound."""

    route: Literal["collapsed", "augmented", "elbo", "all"] | None = chosen(
        "collapsed for denoisers, augmented for the free score"
    )
    """collapsed: log p(x) by an ODE of the data alone, for denoisers. augmented: by an
    ODE of the data and the auxiliary variables, for any score; averaged over the
    auxiliary variables it is a lower bound. elbo: the lower bound of training, term by
    term. These are different models: the gaps between them measure the error of the
    score. all: every route that suits the run, each with its own options, and a
    comparison."""
    draws: int | None = chosen("8 for elbo, else 1")
    """Random draws averaged for each example. elbo: of time and noise. Otherwise: of
    the noise that makes grey levels continuous."""
    decoder: Literal["data", "theorem3"] | None = chosen("that of training")
    """elbo only: the decoder, which completes the bound at the start time t0."""
    focus: tuple[float, ...] | None = chosen("that of training", metavar="LOW HIGH")
    """elbo only, for times in log_snr: the range where they are ten times as dense as
    elsewhere, or no values for uniform ones. It affects the standard error alone."""
    dequantisation: Literal["uniform", "truncated_normal"] | None = chosen(
        "that of training"
    )
    """How integer levels become continuous, on the ODE routes. Required for a run with
    discrete levels, which has no density otherwise."""
    aux_draws: int = 1
    """augmented only: draws of the auxiliary variables for each solve of an example."""
    importance_weighted: bool = False
    """augmented only: weight these draws for a tighter bound instead of averaging them.
    Best with --divergence exact, since the noise of probes biases it upwards."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ODEOptions:
    """The ODE of the routes collapsed and augmented."""

    divergence: Literal["exact", "hutchinson"] | None = chosen(
        "exact for points, hutchinson for images"
    )
    """exact takes one derivative per dimension, of the whole state if augmented.
    hutchinson is a random estimate with one derivative per probe; its noise is in the
    standard errors."""
    probes: int | None = chosen("4")
    """hutchinson only: random probes averaged. A single one has no standard error."""
    tolerance: float | None = chosen("1e-5")
    """The tolerance of the ODE solver, relative and absolute."""
    max_steps: int = 4096
    """The largest number of steps of a solve; one that needs more is reported as not
    converged."""
    solver: str = "tsit5"
    """The ODE solver: tsit5, dopri5, dopri8, bosh3 or heun, or one of your own as
    module:name, its class, or a function without arguments that makes it."""
    clock: ClockName | None = chosen(
        "angle if collapsed, or log_snr for spike-and-slab; time if augmented"
    )
    """The independent variable of the ODE: the diffusion's time, its log
    signal-to-noise ratio (SNR), or the angle arctan SNR^-1/2. It affects speed, and in
    the angle steps may pass over the edges of grey levels. The route collapsed has no
    time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the report shows; a complete evaluation is reported again."""

    by: Literal["label"] | None = chosen("the split as a whole")
    """label: also show the mean of each label, and whether the labels can be
    distinguished, in the report and as a separate table."""
    classify: bool = False
    """For a model conditioned on labels: evaluate every example given each class, and
    report how well the posterior of the classes predicts the labels."""
    diagnose: bool = False
    """For a model trained with --snr vector: instead of a likelihood, print how much
    the bound depends on the path of the SNRs, which is error of the network; by default
    for 256 examples and 4 draws."""
    format: TableFormats = dataclasses.field(
        default=(), metadata={"default": "text and JSON only"}
    )
    """Tables to write besides the report: csv, latex, markdown, or several of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(
    ExamplesOptions,
    ModelOptions,
    LikelihoodOptions,
    ODEOptions,
    ReportOptions,
    PictureOptions,
):
    """Evaluate a trained model's likelihood, example by example.

    RUN is a directory that `eqmdm train` wrote. The result is a report (report.txt and
    report.json), a table of every example (examples.parquet) and a histogram
    (histogram.png). The same command continues an evaluation that was stopped, and
    shows the report of one that is complete. --format adds tables for papers and
    spreadsheets: of the terms (terms.csv, .tex, .md) and, with --by, of the labels
    (by_label.csv, .tex, .md). With --route all, every route and the comparison have
    their own directories, and so have the classes with --classify.
    """

    run: Path = positional("RUN")
    """The directory of the run; its last checkpoint is evaluated."""

    def check(self) -> None:
        """**Raises:** `ValueError` for options that are invalid for any run."""
        names = ("examples", "draws", "batch_size", "probes", "max_steps", "aux_draws")
        check_at_least(self, dict.fromkeys(names, 1) | {"first": 0, "seed": 0})
        check_formats(self.format)
        if self.ema_length is not None and not self.ema:
            raise ValueError(
                "`ema_length` must be left out with --no-ema, which uses no average; "
                f"got {self.ema_length:g}."
            )
        if self.divergence == "exact" and self.probes is not None:
            raise ValueError(
                "`probes` must be left out with --divergence exact, which has none; "
                f"got {self.probes}."
            )

    @property
    def is_under_another(self) -> bool:
        """Whether the diffusion or its interval differs from that of the run."""
        return bool(self.diffusion or self.log_snr_range or self.t_range)
