"""The sampler, grid and clock that the options of `eqmdm sample` name."""

from typing import Any

import numpy as np

import eqmdm

from ..clocks import CLOCKS, check_clock
from ..conditions import parse_condition
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
    if not isinstance(trained.model.diffusion, eqmdm.AbstractLinearDiffusion):
        _check_nonlinear(options, trained)
    if options.clock != "time":
        check_clock(options.clock, trained)
    if options.condition is not None:
        if trained.condition is None:
            raise ValueError(
                "`condition` must be left out for this run, whose model has no "
                f"condition; got {options.condition}. Train with --condition."
            )
        if options.condition == "none":
            trained.check_missing("condition")
        given_condition(options, trained)
    if options.guidance != 1:
        trained.check_missing("guidance")
    elif options.guidance_interval is not None:
        raise ValueError(
            "`guidance_interval` must come with a `guidance` other than 1; got "
            f"{options.guidance_interval}."
        )


def _check_nonlinear(options: SampleOptions, trained: TrainedRun) -> None:
    is_not = f"this run, whose {trained.options.diffusion} is not linear"
    if find_method(options.solver).process is None:
        raise ValueError(
            f"`solver` must be one of Diffrax's for {is_not}; got {options.solver}. "
            "Try --solver shark."
        )
    for name, suits in (
        ("clock", ("time",)),
        ("grid", ("default", "uniform", "quadratic")),
    ):
        value = getattr(options, name)
        if value not in suits:
            raise ValueError(
                f"`{name}` must be {' or '.join(suits)} for {is_not}, so that there is "
                f"no log-SNR; got {value}."
            )


def given_condition(options: SampleOptions, trained: TrainedRun) -> np.ndarray | None:
    """The condition of all samples that the options give, if any."""
    if options.condition is None:
        return None
    labels = trained.dataset.labels
    return parse_condition(options.condition, trained.condition, labels)


def guided(options: SampleOptions, model: eqmdm.AbstractModel) -> eqmdm.AbstractModel:
    """The model with the guidance that the options choose."""
    if options.guidance == 1:
        return model
    interval = options.guidance_interval
    return eqmdm.GuidedModel(
        model,
        options.guidance,
        None if interval is None else eqmdm.LogSNRInterval(*interval),
    )
