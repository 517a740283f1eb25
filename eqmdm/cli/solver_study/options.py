"""What a user of `solver_study.py` chooses."""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import eqmdm

from .. import solvers
from ..clocks import ClockName
from ..errors import did_you_mean
from ..train.options import DiffusionName


# Of the jackknife of the distances, each with two samples at least.
_FEWEST = 40


def _separated(kind: Callable[[str], Any], metavar: str) -> Any:
    """How a list with commas is written on the command line."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: tuple(
            kind(part.strip()) for part in given[0].split(",") if part.strip()
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


Names = Annotated[tuple[str, ...], _separated(str, "NAME,NAME,...")]
Counts = Annotated[tuple[int, ...], _separated(int, "N,N,...")]

GRIDS = {
    "uniform": eqmdm.UniformGrid(),
    "quadratic": eqmdm.QuadraticGrid(),
    "log_snr": eqmdm.LogSNRGrid(),
    "rho": eqmdm.RhoGrid(),
}
DIFFUSIONS = typing.get_args(DiffusionName)


@dataclasses.dataclass(frozen=True)
class SolverStudyOptions:
    """Compare solvers at equal numbers of network evaluations.

    RUN is the directory that train.py wrote. For each diffusion, solver and number of
    evaluations, samples are compared with held-out data (validation and test). The
    result is a table (study.csv) and a picture (study.png). The dashed line is the
    score of as many other real examples, held out too, or where these are too few of
    the training split: below it no solver can be told from a perfect one. Standard
    errors are of both sets, and seconds those of all samples without compilation. The
    same command continues a study that was stopped, and more solvers, evaluations or
    diffusions extend it.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The directory of the run; its last checkpoint is used, with the averaged
    parameters."""
    solvers: Names = ("collapsed", "data-prediction", "sscs", "sea", "ode-heun")
    """Solvers by name, with commas: the library's own (collapsed, ancestral, sscs and
    others) and Diffrax's. Those of SDEs solve the reverse process; those of ODEs
    (tsit5, or with the prefix ode-) the probability flow. A wrong name lists all."""
    evaluations: Counts = (10, 20, 50, 100)
    """Evaluations of the network that a sample may take, with commas. Each solver takes
    as many steps as fit."""
    diffusions: Names = ()
    """Diffusions by name, with commas; by default the run's own. One denoiser serves
    them all, between the run's own log-SNR ends. A free score knows only its own."""
    grid: Literal["default", "uniform", "quadratic", "log_snr", "rho"] = "default"
    """How steps are spaced, as for sample.py; by default as suits each solver."""
    clock: ClockName = "time"
    """What Diffrax's solvers step in, as for sample.py; the library's own have none."""
    n_samples: int = 1000
    """Samples for each figure, and real examples for the dashed line."""
    seed: int = 0
    """Fixes the starts, which all solvers share, the noise and the choice of data."""
    batch_size: int = 250
    """Samples drawn at once."""
    features: str | None = None
    """What the Fréchet distance of images is of: a file that train_classifier.py wrote;
    module:function, your own code, which is then run: a function from a batch of images
    (n height width channels, grey levels) to features (n d), such as an Inception
    network's; or none, for no such distance. By default runs/features-<dataset>.npz,
    trained first where it is not there."""
    reference_samples: int = 64
    """Of the samples, how many are compared with a tight solution from the same start,
    where a solver has no noise; 0 for none."""
    reference_steps: int = 1000
    """Steps of the tight solution for the library's samplers. That of the probability
    flow is Tsit5's with tolerances of 1e-6."""
    data_dir: str | None = None
    """A directory with the image files (parquet); by default that of the run."""
    output_dir: Path | None = None
    """Where to write; by default RUN/solver_study."""

    @property
    def directory(self) -> Path:
        return self.output_dir or self.run / "solver_study"

    def check(self) -> None:
        """**Raises:** `ValueError` for what can be told wrong without the run."""
        for name in ("solvers", "evaluations"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must name at least one; got none.")
        for name in self.diffusions:
            if name not in DIFFUSIONS:
                raise ValueError(
                    f"`diffusions` must be among {', '.join(DIFFUSIONS)}; got "
                    f"{name!r}.{did_you_mean(name, DIFFUSIONS)}"
                )
        if min(self.evaluations) < 1:
            raise ValueError(
                f"`evaluations` must be at least 1 each; got {min(self.evaluations)}."
            )
        least = {"batch_size": 1, "reference_steps": 1, "reference_samples": 0}
        least |= {"n_samples": _FEWEST, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(
                    f"`{name}` must be at least {bound}; got {getattr(self, name)}."
                )
        self._check_solvers()

    def _check_solvers(self) -> None:
        methods = [solvers.find(name, argument="solvers") for name in self.solvers]
        for method in methods:
            least = method.n_evaluations(1)
            if max(self.evaluations) < least:
                raise ValueError(
                    f"`evaluations` must be at least {least} for {method.name} to take "
                    f"one step; got {max(self.evaluations)}. Allow more, or leave out "
                    f"{method.name}."
                )
        if self.clock != "time" and all(method.process is None for method in methods):
            raise ValueError(
                f"`clock` must be time for {', '.join(self.solvers)}, which define "
                f"their own steps on a grid; got {self.clock}. Choose a --grid, or add "
                "solvers of Diffrax's."
            )

    def identity(self) -> dict[str, Any]:
        """What every row of a study has in common."""
        names = ("n_samples", "seed", "batch_size", "grid", "clock")
        names += ("reference_samples", "reference_steps")
        return {name: getattr(self, name) for name in names}
