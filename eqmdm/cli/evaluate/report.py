"""The report of a likelihood evaluation, as JSON data and as text."""

from typing import Any

import numpy as np

import eqmdm

from ..._core.estimate import Estimate
from ..._model.ends import log_snr_range
from .. import build
from ..files import LOSS_UNITS, error_as_text, from_plain
from ..tables import Column, Table, mean_of
from ..trained import TrainedRun
from . import by_label
from .notes import comparable_with, dequantisation, notes
from .settings import EvaluateSettings


_TITLES = {
    "collapsed": "log-likelihood by the ODE of the data (collapsed)",
    "augmented": "log-likelihood by the ODE of the whole state (augmented)",
    "elbo": "evidence lower bound",
}
# Columns of the table that are not terms of the likelihood.
_OTHERS = ("example", "standard_error", "evaluations", "converged")
# The most failed examples that the text names; the table has all.
_MOST_NAMED = 20


def make_report(
    trained: TrainedRun,
    options: EvaluateSettings,
    columns: dict[str, np.ndarray],
    timing: tuple[float, bool],
) -> dict[str, Any]:
    """The complete record of the evaluation, for report.json.

    `timing` is the seconds per example, and whether they include compilation.
    """
    converged = columns["converged"]
    diffusion = trained.model.diffusion
    facts, terms = build.facts(trained.options.seed), _terms(columns)
    return {
        "run": trained.name,
        "step": trained.step,
        "dataset": trained.options.dataset,
        "data_fingerprint": trained.dataset.fingerprint,
        "diffusion": options.diffusion or trained.options.diffusion,
        # Other processes have no log-SNR.
        "log_snr_range": list(log_snr_range(diffusion))
        if isinstance(diffusion, eqmdm.AbstractLinearDiffusion)
        else None,
        "score": trained.options.score,
        "settings": options.identity()
        | {
            "dequantisation": dequantisation(trained, options),
            "batch_size": options.batch_size,
        },
        "n_examples": len(converged),
        "n_converged": int(converged.sum()),
        "not_converged": columns["example"][~converged].tolist(),
        "terms": terms,
        "n_levels": trained.dataset.n_levels,
        "comparable_with": comparable_with(trained, options),
        "evaluations_per_example": mean_of(columns["evaluations"][converged]).value,
        "seconds_per_example": timing[0],
        "compilation_included": timing[1],
        "notes": notes(trained, options, terms),
        "versions": facts["versions"],
        "device": facts["device"],
    }


def _parameters(settings: dict[str, Any]) -> str:
    if "ema_length" in settings:
        return f"averaged (length {settings['ema_length']:g})"
    return "averaged" if settings.get("ema", True) else "last"


def make_text(report: dict[str, Any]) -> str:
    """The text of report.txt: results, method and notes."""
    settings, n = report["settings"], report["n_examples"]
    first = settings["first"]
    numbers = f"number {first}" if n == 1 else f"numbers {first} to {first + n - 1}"
    lines = [
        _TITLES[settings["route"]],
        f"{_counted(n)} of {report['dataset']}, {settings['split']} split, {numbers}",
        f"run {report['run']} at step {report['step']}: {report['diffusion']} "
        f"diffusion, {report['score']} score, "
        f"{_parameters(settings)} parameters",
        _method(settings),
        "",
        f"{'term':>16} {'mean':>12} {'std error':>10}",
    ]
    for name, term in report["terms"].items():
        mean, error = from_plain(term["mean"]), from_plain(term["standard_error"])
        error = error_as_text(error, report["n_converged"])
        lines.append(f"{name:>16} {mean:12.4f} {error:>10} {term['unit']}")
    if "by_label" in report:
        lines += by_label.as_lines(report["by_label"])
    timed = f"{report['seconds_per_example']:.3g} s"
    timed += ", compilation included" if report["compilation_included"] else ""
    lines += [
        "",
        f"per example: {report['evaluations_per_example']:.1f} evaluations of the "
        f"network, {timed}",
        f"converged: {report['n_converged']} of {n}",
        *_failures(report),
        f"compare with: {report['comparable_with']}",
        *(f"note: {note}" for note in report["notes"]),
    ]
    return "\n".join(lines) + "\n"


def terms_table(report: dict[str, Any]) -> Table:
    """A row for each term, the total and the reported quantity."""
    columns = (
        Column("term", "term"),
        Column("mean", "mean ± standard error", "standard_error"),
        Column("unit", "unit"),
    )
    rows = tuple(
        (
            name,
            Estimate(from_plain(term["mean"]), from_plain(term["standard_error"])),
            term["unit"],
        )
        for name, term in report["terms"].items()
    )
    words = f"{caption(report)}; standard errors over examples"
    return Table(f"{words}. Compare with {report['comparable_with']}.", columns, rows)


def caption(report: dict[str, Any]) -> str:
    """The caption of a table or picture of the evaluation."""
    settings = report["settings"]
    title = _TITLES[settings["route"]]
    return (
        f"{title[0].upper()}{title[1:]}: {report['run']}, step {report['step']}, "
        f"{_counted(report['n_converged'])} of {report['dataset']}, "
        f"{settings['split']} split, seed {settings['seed']}"
    )


def noise_of(columns: dict[str, np.ndarray], report: dict[str, Any]) -> str:
    """The share of the spread over examples that is estimator noise, for a caption."""
    settings, converged = report["settings"], columns["converged"]
    errors = columns["standard_error"][converged]
    values = columns["total"][converged]
    if not len(errors) or not np.isfinite(errors).all():
        return (
            ". The spread includes the noise of the estimator, which a single draw "
            "does not reveal"
        )
    if len(errors) < 2 or not errors.any():
        return ""
    share = min(np.mean(errors**2) / values.var(ddof=1), 1.0)
    return (
        f". About {share:.0%} of the variance shown is the estimator's "
        f"({settings['draws']} draws per example), not the examples'"
    )


def _counted(n: int, what: str = "example") -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _terms(columns: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    converged, terms = columns["converged"], {}
    for name in columns:
        if name not in _OTHERS:
            mean, error = mean_of(columns[name][converged])
            unit = LOSS_UNITS.get(name, "nats")
            terms[name] = {"mean": mean, "standard_error": error, "unit": unit}
    return terms


def _method(settings: dict[str, Any]) -> str:
    noise = settings["dequantisation"]
    draws = f"{'no' if noise == 'none' else noise} dequantisation, "
    draws += f"{_counted(settings['draws'], 'draw')} per example, seed "
    draws += str(settings["seed"])
    if settings["route"] == "elbo":
        return draws
    method = f"{settings['divergence']} divergence"
    if settings["divergence"] == "hutchinson":
        method += f", {_counted(settings['probes'], 'probe')}"
    method += f"; {settings['solver']} in {settings['clock']}, tolerance "
    method += f"{settings['tolerance']:g}"
    if settings["route"] == "augmented":
        weighted = "importance-weighted " if settings["importance_weighted"] else ""
        drawn = _counted(settings["aux_draws"], f"{weighted}draw")
        method += f"; {drawn} of the auxiliary variables"
    return f"{method}\n{draws}"


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
