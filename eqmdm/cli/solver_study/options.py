"""The options of `eqmdm solver-study`."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

from ..._core.hints import did_you_mean
from ..fields import CommaSeparated, check_at_least, chosen, positional
from ..names import ClockName, DiffusionName, GridName
from ..outputs import PictureOptions


# The jackknife of the distances has 20 blocks, each of at least two samples.
_FEWEST = 40
_DIFFUSIONS = typing.get_args(DiffusionName)

Names = Annotated[tuple[str, ...], CommaSeparated(str, "NAME,NAME,...")]
Counts = Annotated[tuple[int, ...], CommaSeparated(int, "N,N,...")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedOptions:
    """The solvers and settings to compare."""

    solvers: Names = ("dpm", "edm-heun", "sscs", "sea", "ode-heun")
    """Solvers by name: the library's own (dpm, ancestral, sscs and others) and
    Diffrax's. SDE solvers solve the reverse process; ODE solvers (tsit5, or with the
    prefix ode-) solve the probability flow. A wrong name lists all. module:name is your
    own solver or sampler, as in `eqmdm sample`."""
    evaluations: Counts = (10, 20, 50, 100)
    """The numbers of network evaluations allowed per sample. Each solver takes as many
    steps as fit."""
    diffusions: Names = dataclasses.field(
        default=(), metadata={"default": "that of the run"}
    )
    """Diffusions by name. A denoiser suits them all, over the run's own interval in
    log-SNR; a free score suits only its own."""
    grid: GridName = "default"
    """The spacing of the steps, as in `eqmdm sample`."""
    clock: ClockName = "time"
    """The independent variable of Diffrax's solvers, as in `eqmdm sample`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """The comparison of samples with data."""

    n_samples: int = 1000
    """Samples for each row, and real examples for the dashed line."""
    seed: int = 0
    """The seed of the starting points, which all solvers share, of the noise and of the
    choice of data."""
    batch_size: int = 250
    """Samples drawn at once."""
    features: str | None = chosen(
        "runs/features-<dataset>.npz, trained first if it does not exist"
    )
    """The image features for the Fréchet distance: a file that `eqmdm train-classifier`
    wrote; a safetensors file with the weights of the Inception network of the Fréchet
    Inception distance, which is not included; module:function, your own code, which is
    then run: a function from a batch of images (n height width channels, grey levels)
    to features (n d); or none, for no such distance."""
    reference_samples: int = 64
    """For solvers without noise, the number of samples to compare with an accurate
    solution from the same starting points; 0 for none."""
    reference_steps: int = 1000
    """Steps of the accurate solution for the library's samplers. That of the
    probability flow is by Tsit5 with tolerances of 1e-6."""
    trust_code: bool = False
    """Import the user's own diffusion and network that the run names as module:name."""
    data_dir: str | None = chosen("that of the run")
    """A directory with the image files (parquet)."""
    output_dir: Path | None = chosen("RUN/solver_study")
    """The directory of the results."""
    redraw: bool = False
    """Only redraw the picture, from study.csv and settings.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverStudyOptions(ComparedOptions, MeasureOptions, PictureOptions):
    """Compare solvers at equal numbers of network evaluations.

    RUN is a directory that `eqmdm train` wrote. For each diffusion, solver and number
    of evaluations, samples are compared with held-out data (validation and test). The
    result is a table (study.csv) and a picture (study.png). The dashed line is the
    score of as many other real examples: also held out, or from the training split if
    those are too few. Below it a solver cannot be distinguished from a perfect one.
    Standard errors cover both sets; seconds are for all samples, without compilation.
    The same command continues a study that was stopped, and more solvers, evaluations
    or diffusions extend it.
    """

    run: Path = positional("RUN")
    """The directory of the run; its last checkpoint is used, with the averaged
    parameters."""

    @property
    def directory(self) -> Path:
        return self.output_dir or self.run / "solver_study"

    def check(self) -> None:
        """**Raises:** `ValueError` for options that are invalid for any run."""
        for name in ("solvers", "evaluations"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must name at least one; got none.")
        for name in self.diffusions:
            if name not in _DIFFUSIONS:
                raise ValueError(
                    f"`diffusions` must be names of diffusions; got {name!r}."
                    f"{did_you_mean(name, _DIFFUSIONS)} The names are "
                    f"{', '.join(_DIFFUSIONS)}."
                )
        if min(self.evaluations) < 1:
            raise ValueError(
                f"`evaluations` must be at least 1 each; got {min(self.evaluations)}."
            )
        minima = {"batch_size": 1, "reference_steps": 1, "reference_samples": 0}
        check_at_least(self, minima | {"n_samples": _FEWEST, "seed": 0})

    def identity(self) -> dict[str, Any]:
        """The settings that all rows of a study share."""
        names = ("n_samples", "seed", "batch_size", "grid", "clock")
        names += ("reference_samples", "reference_steps")
        return {name: getattr(self, name) for name in names}
