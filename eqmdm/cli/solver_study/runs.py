"""The run of a study under each of the diffusions that it is studied with."""

from .. import solvers
from ..clocks import check_clock
from ..trained import TrainedRun
from .options import SolverStudyOptions


def runs_by_diffusion(
    options: SolverStudyOptions, trained: TrainedRun
) -> dict[str, TrainedRun]:
    """The run under each diffusion that is asked for, by its name.

    **Raises:**

    `ValueError` for a diffusion or a solver that the score of the run cannot serve, or
    a clock that cannot tell the time of a diffusion.
    """
    own = trained.options.diffusion
    needing = [n for n in options.solvers if solvers.find(n).needs_denoiser]
    if needing and not trained.is_denoiser:
        raise ValueError(
            f"`solvers` must not have {', '.join(needing)} for this run, for they "
            "follow the data's estimate of a denoiser, and its score is free. Take "
            "data-prediction, which serves any score."
        )
    runs = {}
    for name in options.diffusions or (own,):
        runs[name] = (
            trained if name == own else trained.under(name, option="diffusions")
        )
        if options.clock != "time":
            check_clock(options.clock, runs[name], whose=name)
    return runs
