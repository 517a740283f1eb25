"""What a user of `sample.py` chooses."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import eqmdm

from .. import solvers
from ..clocks import CLOCKS, ClockName, check_clock
from ..trained import TrainedRun


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Draw samples from a trained model, with any solver.

    RUN is the directory that train.py wrote. The result is a picture (samples.png) and
    the samples with the settings that drew them (samples.npz).
    """

    run: Annotated[Path, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """The directory of the run; its last checkpoint is used."""
    solver: str = "data-prediction"
    """By name: one of the library's own (data-prediction, ancestral, sscs, collapsed
    and others) or of Diffrax's. Of the latter sea, heun and others solve the reverse
    SDE; ode-heun and others with this prefix, and tsit5, the probability-flow ODE. A
    wrong name lists all."""
    steps: int = 50
    """Steps of the solver from noise to data."""
    grid: Literal["default", "uniform", "quadratic", "log_snr", "rho"] = "default"
    """How the steps are spaced: uniformly in time, in its square root (quadratic: fine
    towards the data), in the log signal-to-noise ratio (SNR), or in SNR^(-1/(2 rho)).
    By default as suits the solver."""
    rho: float = 7.0
    """Of the grid rho: the larger, the more steps near the data."""
    clock: ClockName = "time"
    """What Diffrax's solvers step in: the diffusion's time, its log-SNR or the angle
    arctan SNR^-1/2. The grid says where the steps are, the clock what is smooth between
    them."""
    n_samples: int = 64
    """How many samples to draw."""
    batch_size: int = 64
    """Samples drawn at once. A matter of speed and memory: samples do not depend on it
    beyond rounding."""
    seed: int = 0
    """Fixes every random draw. Sample number i is the same however many are drawn, and
    starts from the same noise with every solver."""
    ema: bool = True
    """Whether to use the averaged parameters (exponential moving average) or the last
    ones."""
    data_dir: str | None = None
    """A directory with the image files (parquet); by default that of the run."""
    output_dir: Path | None = None
    """Where to write; by default RUN/samples-<solver>-<steps>."""
    overwrite: bool = False
    """Replace samples that are in the output directory already."""

    @property
    def directory(self) -> Path:
        return self.output_dir or self.run / f"samples-{self.solver}-{self.steps}"

    @property
    def method(self) -> solvers.Method:
        return solvers.find(self.solver)

    @property
    def how(self) -> dict[str, Any]:
        """What `eqmdm.sample` is to be called with."""
        how = self.method.options | {"n_steps": self.steps}
        if self.grid != "default":
            how["grid"] = {
                "uniform": eqmdm.UniformGrid,
                "quadratic": eqmdm.QuadraticGrid,
                "log_snr": eqmdm.LogSNRGrid,
                "rho": lambda: eqmdm.RhoGrid(self.rho),
            }[self.grid]()
        clock = CLOCKS[self.clock]
        return how if clock is None else how | {"clock": clock}

    def check(self) -> None:
        """Refuse what is wrong whatever the run is."""
        for name in ("steps", "n_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1; got {getattr(self, name)}."
                )
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0; got {self.seed}.")
        if self.method.process is None and self.clock != "time":
            raise ValueError(
                f"`clock` must be time for the solver {self.solver}, which defines its "
                f"own steps on a grid; got {self.clock}. Choose a --grid, or a solver "
                "of Diffrax's."
            )
        if self.grid == "rho":
            eqmdm.RhoGrid(self.rho)
        if (self.directory / "samples.npz").exists() and not self.overwrite:
            raise ValueError(
                "`output_dir` must not hold samples already; "
                f"{self.directory} does. Choose another --output-dir, or replace them "
                "with --overwrite."
            )

    def check_run(self, trained: TrainedRun) -> None:
        """Refuse what does not suit the run."""
        if self.method.needs_denoiser and not trained.is_denoiser:
            raise ValueError(
                "`solver` must not need a denoiser for this run, whose score is free; "
                f"got {self.solver}. Take data-prediction, which serves any score."
            )
        if self.clock != "time":
            check_clock(self.clock, trained)

    def identity(self) -> dict[str, Any]:
        """The settings that the samples depend on."""
        names = ["solver", "steps", "grid", "clock", "n_samples", "seed", "ema"]
        names += ["rho"] if self.grid == "rho" else []
        return {name: getattr(self, name) for name in names}
