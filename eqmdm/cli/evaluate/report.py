"""The report of a likelihood evaluation, as data and as text."""

import math
from typing import Any

import numpy as np

from .. import build
from ..files import LOSS_UNITS, error_as_text
from ..trained import TrainedRun
from .settings import EvaluateSettings


_TITLES = {
    "collapsed": "log-likelihood by the ODE of the data (collapsed)",
    "augmented": "log-likelihood by the ODE of the whole state (augmented)",
    "elbo": "evidence lower bound",
}
# Columns of the table that are not terms of the likelihood.
_OTHERS = ("example", "standard_error", "evaluations", "converged")
# How many examples the text names; the table has all.
_MOST_NAMED = 20


def make_report(
    trained: TrainedRun,
    options: EvaluateSettings,
    columns: dict[str, np.ndarray],
    timing: tuple[float, bool],
) -> dict[str, Any]:
    """Everything that is known of the evaluation, for report.json.

    `timing` has the seconds per example, and whether they include compilation.
    """
    converged = columns["converged"]
    diffusion = trained.model.diffusion
    facts = build.facts(trained.options.seed)
    return {
        "run": trained.name,
        "step": trained.step,
        "dataset": trained.options.dataset,
        "data_fingerprint": trained.dataset.fingerprint,
        "diffusion": options.diffusion or trained.options.diffusion,
        "log_snr_range": [
            float(diffusion.log_snr(t)) for t in (diffusion.t1, diffusion.t0)
        ],
        "score": trained.options.score,
        "settings": options.identity()
        | {
            "dequantisation": _dequantisation(trained, options),
            "batch_size": options.batch_size,
        },
        "n_examples": len(converged),
        "n_converged": int(converged.sum()),
        "not_converged": columns["example"][~converged].tolist(),
        "terms": _terms(columns),
        "evaluations_per_example": _mean(columns["evaluations"][converged])[0],
        "seconds_per_example": timing[0],
        "compilation_included": timing[1],
        "notes": _notes(trained, options),
        "versions": facts["versions"],
        "device": facts["device"],
    }


def make_text(report: dict[str, Any]) -> str:
    """The same for report.txt: what was found, how, and what to make of it."""
    settings, n = report["settings"], report["n_examples"]
    first = settings["first"]
    numbers = f"number {first}" if n == 1 else f"numbers {first} to {first + n - 1}"
    lines = [
        _TITLES[settings["route"]],
        f"{n} examples of {report['dataset']}, {settings['split']} split, {numbers}",
        f"run {report['run']} at step {report['step']}: {report['diffusion']} "
        f"diffusion, {report['score']} score, "
        f"{'averaged' if settings.get('ema', True) else 'last'} parameters",
        _method(settings),
        "",
        f"{'term':>16} {'mean':>12} {'std error':>10}",
    ]
    for name, term in report["terms"].items():
        mean, error = term["mean"], term["standard_error"]
        error = error_as_text(error)
        lines.append(f"{name:>16} {mean:12.4f} {error:>10} {term['unit']}")
    timed = f"{report['seconds_per_example']:.3g} s"
    timed += ", compilation included" if report["compilation_included"] else ""
    lines += [
        "",
        f"an example: {report['evaluations_per_example']:.1f} evaluations of the "
        f"network, {timed}",
        f"converged: {report['n_converged']} of {n}",
        *_failures(report),
        *(f"note: {note}" for note in report["notes"]),
    ]
    return "\n".join(lines) + "\n"


def _terms(columns: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    converged, terms = columns["converged"], {}
    for name in columns:
        if name not in _OTHERS:
            mean, error = _mean(columns[name][converged])
            unit = LOSS_UNITS.get(name, "nats")
            terms[name] = {"mean": mean, "standard_error": error, "unit": unit}
    return terms


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean, and its standard error over the examples."""
    n = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return (float(values.mean()) if n else math.nan), error


def _dequantisation(trained: TrainedRun, options: EvaluateSettings) -> str:
    if trained.dataset.n_levels is None:
        return "none"
    return options.dequantisation or trained.options.dequantisation


def _method(settings: dict[str, Any]) -> str:
    draws = f"{settings['dequantisation']} dequantisation, {settings['draws']} draws "
    draws += f"an example, seed {settings['seed']}"
    if settings["route"] == "elbo":
        return draws
    how = f"{settings['divergence']} divergence"
    if settings["divergence"] == "hutchinson":
        how += f", {settings['probes']} probes"
    how += f"; {settings['solver']} in {settings['clock']}, tolerance "
    how += f"{settings['tolerance']:g}"
    if settings["route"] == "augmented":
        weighted = "importance-weighted " if settings["importance_weighted"] else ""
        how += f"; {settings['aux_draws']} {weighted}draws of the auxiliaries"
    return f"{how}\n{draws}"


def _failures(report: dict[str, Any]) -> list[str]:
    failed, settings = report["not_converged"], report["settings"]
    if not failed:
        return []
    named = ", ".join(map(str, failed[:_MOST_NAMED]))
    if len(failed) > _MOST_NAMED:
        named += f" and {len(failed) - _MOST_NAMED} more (see examples.parquet)"
    what = f"the means are over the others. Without a result: examples {named}."
    if settings["route"] == "elbo":
        return [f"{len(failed)} did not give a finite bound; {what}"]
    return [
        f"{len(failed)} did not converge; {what} Raise --max-steps, which was "
        f"{settings['max_steps']}, or loosen --tolerance, which was "
        f"{settings['tolerance']:g}."
    ]


def _notes(trained: TrainedRun, options: EvaluateSettings) -> list[str]:
    notes = []
    given = options.dequantisation
    in_training = trained.options.dequantisation
    if given is not None and given != in_training:
        notes.append(
            f"dequantisation is {given} by --dequantisation; the run was trained with "
            f"{in_training}"
        )
    if trained.dataset.n_levels is not None and options.route != "elbo":
        notes.append(
            "total is a lower bound of the log-mass of the grey levels, on average "
            "over the noise of dequantisation"
        )
    if options.importance_weighted and options.divergence == "hutchinson":
        notes.append(
            "the noise of probes biases importance weights upwards; --divergence exact "
            "does not"
        )
    return notes
