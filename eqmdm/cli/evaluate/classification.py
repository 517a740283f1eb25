"""The posterior of the classes from likelihoods given each class, and its quality."""

import math
from typing import Any

import numpy as np

from ..._core.estimate import Estimate
from ..files import error_as_text
from ..tables import Column, Table, mean_of
from .comparison import FinishedEvaluation


_N_BINS = 10


def classify(
    evaluations: list[FinishedEvaluation], labels: np.ndarray
) -> dict[str, Any]:
    """The quality of the posterior of the classes, under a uniform prior.

    Log loss and Brier score are proper scores: the true probabilities minimise them.
    Calibration compares the probability of the predicted class with how often it is
    right, in bins of that probability; standard errors are over examples.

    **Arguments:**

    - `evaluations`: of the same examples, given each class in order.
    - `labels`: the true classes.
    """
    for other in evaluations[1:]:
        evaluations[0].check_same_examples(other)
    kept = np.all([e.columns["converged"] for e in evaluations], axis=0)
    totals = np.stack([e.columns["total"] for e in evaluations], axis=1)[kept]
    labels = labels[kept]
    shifted = totals - totals.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p, rows = np.exp(log_p), np.arange(len(labels))
    predicted = p.argmax(axis=1)
    right = (predicted == labels).astype(float)
    one_hot = np.eye(len(evaluations))[labels]
    report = evaluations[0].report
    settings = {k: v for k, v in report["settings"].items() if k != "of_class"}
    return {
        "run": report["run"],
        "step": report["step"],
        "dataset": report["dataset"],
        "settings": settings,
        "n_examples": len(labels),
        "n_classes": len(evaluations),
        "accuracy": mean_of(right),
        "log_loss": mean_of(-log_p[rows, labels]),
        "brier_score": mean_of(((p - one_hot) ** 2).sum(axis=1)),
        "confidence_less_accuracy": mean_of(p.max(axis=1) - right),
        "bins": _bins(p.max(axis=1), right),
        "confusion": _confusion(labels, predicted, len(evaluations)),
        "versions": report["versions"],
        "device": report["device"],
    }


def as_text(found: dict[str, Any]) -> str:
    lines = [caption(found), "", f"{'':>26} {'mean':>10} {'std error':>10}"]
    for name, shown in _QUANTITIES.items():
        value, error = found[name]
        error = error_as_text(error, found["n_examples"])
        lines.append(f"{shown:>26} {value:10.4f} {error:>10}")
    lines += ["", "confusions (label, predicted, examples):"]
    confusion = np.asarray(found["confusion"])
    wrong = [
        (int(n), i, j) for (i, j), n in np.ndenumerate(confusion) if i != j and n > 0
    ]
    lines += [f"  {i} {j} {n}" for n, i, j in sorted(wrong, reverse=True)] or ["  none"]
    return "\n".join(lines) + "\n"


def as_table(found: dict[str, Any]) -> Table:
    columns = (
        Column("quantity", "quantity"),
        Column("mean", "mean ± standard error", "standard_error"),
    )
    rows = tuple((shown, Estimate(*found[name])) for name, shown in _QUANTITIES.items())
    return Table(caption(found), columns, rows)


def caption(found: dict[str, Any]) -> str:
    settings = found["settings"]
    what = "bound" if settings["route"] == "elbo" else "likelihood"
    return (
        f"Classes from the {what} given each of {found['n_classes']} classes "
        f"({settings['route']}): {found['run']}, step {found['step']}, "
        f"{found['n_examples']} examples of {found['dataset']}, {settings['split']} "
        f"split, {settings['draws']} draws, seed {settings['seed']}, uniform prior"
    )


_QUANTITIES = {
    "accuracy": "accuracy",
    "log_loss": "log loss (nats)",
    "brier_score": "Brier score",
    "confidence_less_accuracy": "confidence less accuracy",
}


def _bins(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """For each bin of confidence that holds examples: their number, mean confidence and
    accuracy, with Wilson's interval of one standard error, which stays within [0, 1]
    (Wilson 1927)."""
    edges = np.linspace(0, 1, _N_BINS + 1)
    places = np.clip(np.digitize(confidence, edges) - 1, 0, _N_BINS - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        n, k = int(inside.sum()), float(right[inside].sum())
        middle = (k + 0.5) / (n + 1)
        half = math.sqrt(k * (n - k) / n + 0.25) / (n + 1)
        bins.append(
            {
                "low": float(edges[place]),
                "high": float(edges[place + 1]),
                "examples": n,
                "confidence": float(confidence[inside].mean()),
                "accuracy": k / n,
                "interval": [middle - half, middle + half],
            }
        )
    return bins


def _confusion(
    labels: np.ndarray, predicted: np.ndarray, n_classes: int
) -> list[list[int]]:
    counts = np.zeros((n_classes, n_classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts.tolist()
