"""The run under each diffusion of a solver study, and checks of its solvers."""

from ..clocks import check_clock
from ..solvers import find_method
from ..trained import TrainedRun
from .options import SolverStudyOptions


def check_solvers(options: SolverStudyOptions) -> None:
    """**Raises:** `ValueError` for solvers that are unknown or cannot take a step."""
    methods = [find_method(name, argument="solvers") for name in options.solvers]
    for method in methods:
        least = method.least_evaluations("solvers")
        if max(options.evaluations) < least:
            raise ValueError(
                f"`evaluations` must be at least {least} for {method.name} to take one "
                f"step; got {max(options.evaluations)}. Allow more, or leave out "
                f"{method.name}."
            )
    if options.clock != "time" and all(method.process is None for method in methods):
        raise ValueError(
            f"`clock` must be time for {', '.join(options.solvers)}, which define "
            f"their own steps on a grid; got {options.clock}. Choose a --grid, or add "
            "Diffrax solvers."
        )


def runs_by_diffusion(
    options: SolverStudyOptions, trained: TrainedRun
) -> dict[str, TrainedRun]:
    """The run under each requested diffusion, by name.

    **Raises:**

    `ValueError` for a diffusion or a solver that does not suit the score of the run, or
    a clock that is not strictly monotone in a diffusion's time.
    """
    own = trained.options.diffusion
    needing = [n for n in options.solvers if find_method(n).needs_denoiser]
    if needing and not trained.is_denoiser:
        raise ValueError(
            f"`solvers` must not include {', '.join(needing)} for this run, since they "
            "follow the data estimate of a denoiser, and its score is free. Use dpm, "
            "which suits any score."
        )
    runs = {}
    for name in options.diffusions or (own,):
        runs[name] = (
            trained if name == own else trained.under(name, option="diffusions")
        )
        if options.clock != "time":
            check_clock(options.clock, runs[name], whose=name)
    return runs
