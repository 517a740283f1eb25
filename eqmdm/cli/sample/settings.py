"""The sampler, grid and clock that the options of `eqmdm sample` name."""

from typing import Any

import eqmdm

from ..clocks import CLOCKS, check_clock
from ..solvers import find_method
from ..trained import TrainedRun
from .options import SampleOptions


def sampling_arguments(options: SampleOptions) -> dict[str, Any]:
    """The arguments of `eqmdm.sample` that the options choose."""
    grid = {
        "default": lambda: None,
        "uniform": eqmdm.UniformGrid,
        "quadratic": eqmdm.QuadraticGrid,
        "log_snr": eqmdm.LogSNRGrid,
        "rho": lambda: eqmdm.RhoGrid(options.rho),
    }[options.grid]()
    method = find_method(options.solver)
    sampler = method.sampler_on(grid, CLOCKS[options.clock])
    return {"sampler": sampler, "n_steps": options.steps}


def check_names(options: SampleOptions) -> None:
    """**Raises:** `ValueError` for names that are unknown or incompatible."""
    if find_method(options.solver).process is None and options.clock != "time":
        raise ValueError(
            f"`clock` must be time for the solver {options.solver}, which defines its "
            f"own steps on a grid; got {options.clock}. Choose a --grid, or a Diffrax "
            "solver."
        )
    sampling_arguments(options)


def check_run(options: SampleOptions, trained: TrainedRun) -> None:
    """**Raises:** `ValueError` for options that do not suit the run."""
    if find_method(options.solver).needs_denoiser and not trained.is_denoiser:
        raise ValueError(
            "`solver` must not need a denoiser for this run, whose score is free; "
            f"got {options.solver}. Use dpm, which suits any score."
        )
    if options.clock != "time":
        check_clock(options.clock, trained)
