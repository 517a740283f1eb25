"""What a user of `evaluate.py` chooses, and what is chosen where nothing is given."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import diffrax as dfx
import jax.numpy as jnp
import tyro

from ..clocks import ClockName, check_clock
from ..errors import did_you_mean
from ..train.options import DiffusionName, Range
from ..trained import TrainedRun


# Those that estimate their own error, which choosing steps by a tolerance needs.
SOLVERS = {
    "tsit5": dfx.Tsit5,
    "dopri5": dfx.Dopri5,
    "dopri8": dfx.Dopri8,
    "bosh3": dfx.Bosh3,
    "heun": dfx.Heun,
}
# Points have an exact divergence by default. Images do not: it takes a derivative for
# each of their dimensions.
_EXACT_UP_TO = 16
_PROBES = 4
# The library refuses a tolerance of fewer units of rounding.
_REACH = 4
# What a route leaves unused, and so refuses.
_OF_AUGMENTED = ("aux_draws", "importance_weighted")
_OF_ODE = ("dequantisation", "divergence", "probes", "solver", "clock", "tolerance")
_OF_ODE += ("max_steps",)
_OF_BOUND = ("decoder",)
_OF_ANOTHER = ("diffusion", "log_snr_range", "t_range")


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a trained model's likelihood, example by example.

    RUN is the directory that train.py wrote. The result is a report (report.txt and
    report.json), a table of every example (examples.parquet) and a histogram
    (histogram.png). The same command continues an evaluation that was stopped, and
    shows the report of one that is complete.
    """

    run: Annotated[Path, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """The directory of the run; its last checkpoint is evaluated."""
    split: Literal["train", "validation", "test"] = "test"
    """The examples: of the data that the run was trained on, this split."""
    first: int = 0
    """The number of the first example in the split."""
    examples: int | None = None
    """How many, counted from the first; by default all that follow."""
    data_dir: str | None = None
    """A directory with the image files (parquet); by default that of the run."""
    route: Literal["collapsed", "augmented", "elbo"] | None = None
    """collapsed: log p(x) by an ODE of the data alone, for denoiser scores, whose
    default it is. augmented: by an ODE of the data and the auxiliary variables, for any
    score; averaged over auxiliaries it is a lower bound. elbo: the lower bound that is
    trained, itemised. They are different models, so their gaps measure the error of the
    score."""
    diffusion: DiffusionName | None = None
    """Evaluate a denoiser under another diffusion than it was trained on, by default
    between the same ends in log-SNR."""
    log_snr_range: Range | None = None
    """Evaluate a denoiser between other ends, as log signal-to-noise ratios. It knows
    none below those it was trained on; above log-SNR 14 the data are all but known."""
    t_range: Range | None = None
    """Evaluate a denoiser between other ends, in time."""
    ema: bool = True
    """Whether to use the averaged parameters (exponential moving average) or the last
    ones."""
    draws: int | None = None
    """Random draws averaged for each example. elbo: of time and noise, by default 8.
    Otherwise of the noise that makes grey levels continuous, by default 1."""
    seed: int = 0
    """Fixes every random draw."""
    batch_size: int = 64
    """Examples evaluated at once. A matter of speed and memory: results do not depend
    on it beyond rounding, and a stopped evaluation may continue with another."""
    output_dir: Path | None = None
    """Where to write; by default RUN/evaluation-<route>-<split>."""
    overwrite: bool = False
    """Start anew where the output directory holds another evaluation."""

    decoder: Literal["data", "theorem3"] | None = None
    """elbo only: what completes the bound at the cut; by default as in training."""
    dequantisation: Literal["uniform", "truncated_normal"] | None = None
    """How integer levels become continuous, on the ODE routes; by default as in
    training. A run with discrete levels needs it given: it has no density without."""
    divergence: Literal["exact", "hutchinson"] | None = None
    """What the ODE routes integrate. exact takes a derivative for each dimension (and
    noise, if augmented), and hutchinson one for each probe: a random estimate, whose
    noise is in the standard errors. By default exact for points and hutchinson for
    images."""
    probes: int | None = None
    """hutchinson only: random probes averaged, by default 4. One has no standard
    error."""
    tolerance: float = 1e-5
    """Of the ODE solver, relative and absolute."""
    max_steps: int = 4096
    """The most steps that a solve may take; one that needs more is reported as not
    converged."""
    solver: str = "tsit5"
    """The ODE solver: tsit5, dopri5, dopri8, bosh3 or heun."""
    clock: ClockName | None = None
    """What the ODE is solved in: the diffusion's time, its log signal-to-noise ratio
    (SNR), or the angle arctan SNR^-1/2. By default angle if collapsed, which has no
    time, and time if augmented. A matter of speed."""

    aux_draws: int = 1
    """augmented only: draws of the auxiliary variables for each solve of an example."""
    importance_weighted: bool = False
    """augmented only: weight these draws for a tighter bound instead of averaging them.
    Best with --divergence exact, for the noise of probes biases it upwards."""

    def check(self) -> None:
        """Refuse what is wrong whatever the run is."""
        for name in ("examples", "draws", "batch_size", "probes", "max_steps"):
            _check_least(name, getattr(self, name), 1)
        _check_least("aux_draws", self.aux_draws, 1)
        _check_least("first", self.first, 0)
        _check_least("seed", self.seed, 0)
        if self.solver not in SOLVERS:
            raise ValueError(
                f"`solver` must be one of {', '.join(SOLVERS)}, which solve ODEs and "
                f"estimate their error; got {self.solver!r}."
                + did_you_mean(self.solver, SOLVERS)
            )
        if self.divergence == "exact" and self.probes is not None:
            raise ValueError(
                "`probes` must be left out with --divergence exact, which has none; "
                f"got {self.probes}."
            )

    def resolved(self, trained: TrainedRun) -> "ResolvedEvaluateOptions":
        """These options with a choice for all that was not given.

        **Raises:** `ValueError` for what does not suit the run.
        """
        route = self.route or ("collapsed" if trained.is_denoiser else "augmented")
        self._check_route(route, trained)
        n_split = len(getattr(trained.dataset, self.split))
        self._check_range(n_split)
        n_examples = self.examples or n_split - self.first
        divergence = self.divergence
        if divergence is None:
            exact = math.prod(trained.dataset.shape) <= _EXACT_UP_TO
            exact = exact and self.probes is None
            divergence = "exact" if exact else "hutchinson"
        defaults = {
            "route": route,
            "examples": n_examples,
            "draws": 8 if route == "elbo" else 1,
            "divergence": divergence,
            "probes": 0 if divergence == "exact" else _PROBES,
            "clock": "angle" if route == "collapsed" else "time",
            "output_dir": self.run
            / "-".join(["evaluation", route, self.split, *self._other_names()]),
        }
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        # A batch is never filled up with more than there is.
        given["batch_size"] = min(self.batch_size, n_examples)
        return ResolvedEvaluateOptions(**(defaults | given))

    @property
    def is_under_another(self) -> bool:
        """Whether the diffusion, or its ends, are not those of the run."""
        return bool(self.diffusion or self.log_snr_range or self.t_range)

    def placed(self, trained: TrainedRun) -> TrainedRun:
        """The run under the diffusion that it is to be evaluated under."""
        if not self.is_under_another:
            return trained
        return trained.under(
            self.diffusion or trained.options.diffusion,
            log_snr_range=self.log_snr_range,
            t_range=self.t_range,
        )

    def _other_names(self) -> list[str]:
        """What tells an evaluation of another model from that of the run's own."""
        ends = ("snr", self.log_snr_range), ("t", self.t_range)
        names = [f"{kind}{r[0]:g}to{r[1]:g}" for kind, r in ends if r is not None]
        names += [] if self.ema else ["last"]
        return [*([self.diffusion] if self.diffusion else []), *names]

    def _check_route(self, route: str, trained: TrainedRun) -> None:
        unused = () if route == "augmented" else _OF_AUGMENTED
        unused += _OF_ODE if route == "elbo" else _OF_BOUND
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                raise ValueError(
                    f"`{field.name}` must be left out on the route {route}, which does "
                    f"not use it; got {value}."
                )
        if route == "elbo":
            return
        if route == "collapsed" and not trained.is_denoiser:
            raise ValueError(
                "`route` must be augmented or elbo for this run, whose score is free; "
                "got collapsed, which needs a denoiser of the data."
            )
        if route == "collapsed" and self.clock == "time":
            raise ValueError(
                "`clock` must be angle or log_snr on the route collapsed, whose ODE "
                "follows the noise and not the diffusion's time; got time."
            )
        if route == "augmented" and self.clock is not None:
            check_clock(self.clock, trained)
        images = trained.dataset.n_levels is not None
        for name in ("dequantisation", "draws"):
            if not images and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` must be left out for points on the route {route}: they "
                    "are continuous already, and no such noise is drawn; got "
                    f"{getattr(self, name)}."
                )
        reach = _REACH * float(jnp.finfo(trained.dtype).eps)
        if not reach <= self.tolerance < 1:
            raise ValueError(
                f"`tolerance` must be from {reach:.1e}, the least that {trained.dtype} "
                f"can reach, to 1; got {self.tolerance:g}. 1e-5 is usual."
            )

    def _check_range(self, n_split: int) -> None:
        if self.first >= n_split:
            raise ValueError(
                f"`first` must be below {n_split}, the number of examples in the "
                f"{self.split} split; got {self.first}."
            )
        if self.examples is not None and self.first + self.examples > n_split:
            raise ValueError(
                f"`examples` must be at most {n_split - self.first}: the {self.split} "
                f"split has {n_split}, of which the first {self.first} are left out; "
                f"got {self.examples}."
            )


@dataclasses.dataclass(frozen=True)
class ResolvedEvaluateOptions(EvaluateOptions):
    """EvaluateOptions in which nothing is left to be chosen."""

    route: Literal["collapsed", "augmented", "elbo"] = "collapsed"
    examples: int = 0
    draws: int = 0
    divergence: Literal["exact", "hutchinson"] = "exact"
    probes: int = 0
    clock: ClockName = "time"
    output_dir: Path = Path()

    def identity(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        names = ["split", "first", "examples", "route", "draws", "seed"]
        names += _OF_ODE if self.route != "elbo" else ()
        names += _OF_AUGMENTED if self.route == "augmented" else ()
        names += _OF_BOUND if self.decoder else ()
        names += _OF_ANOTHER if self.is_under_another else ()
        names += () if self.ema else ("ema",)
        return {name: getattr(self, name) for name in names}


def _check_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}.")
