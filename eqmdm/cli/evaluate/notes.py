"""Notes in the report of an evaluation: comparability, bounds and caveats."""

import math
from typing import Any

from ..trained import TrainedRun
from .settings import EvaluateSettings


_8_BIT = 256


def dequantisation(trained: TrainedRun, options: EvaluateSettings) -> str:
    """The dequantisation of grey levels; "none" for points."""
    if trained.dataset.n_levels is None:
        return "none"
    return options.dequantisation or trained.options.dequantisation


def comparable_with(trained: TrainedRun, options: EvaluateSettings) -> str:
    """The results that this one may be compared with: their data and method."""
    n_levels, name = trained.dataset.n_levels, trained.dataset.name
    if n_levels is None:
        data = f"densities of {name} in the same units alone"
    elif n_levels == _8_BIT:
        data = f"bits/dim of {name} as 8-bit data"
    else:
        data = (
            f"bits/dim of {name} at {n_levels} grey levels alone: not comparable with "
            "8-bit data"
        )
    n_split = len(getattr(trained.dataset, options.split))
    examples = f"the whole {options.split} split"
    if options.examples < n_split:
        examples = f"{options.examples:,} of the {n_split:,} examples of the "
        examples += f"{options.split} split"
    return f"{data}; {examples}; {_kind(trained, options)}"


def notes(
    trained: TrainedRun, options: EvaluateSettings, terms: dict[str, dict[str, Any]]
) -> list[str]:
    """Caveats that apply to the results."""
    found = []
    given = options.dequantisation
    in_training = trained.options.dequantisation
    if given is not None and given != in_training:
        found.append(
            f"dequantisation is {given} by --dequantisation; the run was trained with "
            f"{in_training}"
        )
    if bounded := _bounded(trained, options):
        found.append(f"total is a lower bound of {bounded}")
    if options.importance_weighted and options.divergence == "hutchinson":
        found.append(
            "the noise of the probes biases importance weights upwards; --divergence "
            "exact has no such bias"
        )
    if math.isnan(terms["total"]["standard_error"]):
        found.append(
            "standard errors are over examples and need at least two; the error of a "
            "single example's estimate is in examples.parquet"
        )
    return found


def _kind(trained: TrainedRun, options: EvaluateSettings) -> str:
    noise = dequantisation(trained, options).replace("_", " ")
    with_noise = {
        "none": "",
        "discrete": " with a discrete decoder and no dequantisation",
    }.get(noise, f" with {noise} dequantisation")
    if options.route == "elbo":
        return (
            f"variational bounds{with_noise}; an exact negative log-likelihood can "
            "only be lower"
        )
    of = "of the data" if options.route == "collapsed" else "of the whole state"
    return f"likelihoods by a probability-flow ODE {of}{with_noise}"


def _bounded(trained: TrainedRun, options: EvaluateSettings) -> str:
    """The quantity that the total bounds from below, and the noise it is averaged
    over; empty if the total is exact."""
    over = []
    if dequantisation(trained, options) not in ("none", "discrete"):
        over.append("dequantisation noise")
    if options.route == "augmented" and trained.model.diffusion.n_vars > 1:
        over.append("the auxiliary variables")
    if options.route == "elbo":
        over += ["times", "states"]
    if not over:
        return ""
    points = trained.dataset.n_levels is None
    what = "the log-density" if points else "the log-mass of the grey levels"
    *others, last = over
    drawn = f"{', '.join(others)} and {last}" if others else last
    return f"{what}, on average over {drawn}"
