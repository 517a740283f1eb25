"""Tests of the quality of class posteriors, against known probabilities."""

from pathlib import Path

import numpy as np
from numpy.testing import assert_allclose

from eqmdm.cli import plots
from eqmdm.cli.evaluate import classification
from eqmdm.cli.evaluate.comparison import FinishedEvaluation


def _evaluations(p):
    """Evaluations whose totals give these probabilities, up to a constant each."""
    shifts = np.random.default_rng(1).normal(size=len(p))
    report = {"run": "r", "step": 1, "dataset": "d", "data_fingerprint": "f"}
    report |= {"versions": {}, "device": {}}
    report["settings"] = {"split": "test", "route": "elbo", "draws": 8, "seed": 0}
    columns = {"example": np.arange(len(p)), "converged": np.ones(len(p), bool)}
    return [
        FinishedEvaluation(
            Path("."), report, columns | {"total": np.log(column) + shifts}
        )
        for column in p.T
    ]


def _calibrated(n=4000):
    """Probabilities of three classes, and labels drawn from them."""
    random = np.random.default_rng(0)
    p = random.dirichlet([0.3, 0.5, 1.0], n).clip(1e-12)
    p /= p.sum(axis=1, keepdims=True)
    labels = (random.random(n)[:, None] > np.cumsum(p, axis=1)).sum(axis=1).clip(max=2)
    return p, labels


def test_scores_are_those_of_the_probabilities():
    p, labels = _calibrated()
    found = classification.classify(_evaluations(p), labels)
    rows = np.arange(len(p))
    assert_allclose(found["log_loss"].value, -np.log(p[rows, labels]).mean(), rtol=1e-9)
    brier = ((p - np.eye(3)[labels]) ** 2).sum(axis=1)
    assert_allclose(found["brier_score"].value, brier.mean(), rtol=1e-9)
    right = p.argmax(axis=1) == labels
    assert_allclose(found["accuracy"].value, right.mean())
    confusion = np.asarray(found["confusion"])
    assert confusion.sum() == len(p) and confusion.trace() == right.sum()


def test_labels_drawn_from_the_probabilities_are_calibrated():
    p, labels = _calibrated()
    found = classification.classify(_evaluations(p), labels)
    gap, error = found["confidence_less_accuracy"]
    assert abs(gap) < 5 * error
    assert sum(part["examples"] for part in found["bins"]) == len(p)
    for part in found["bins"]:
        assert part["low"] <= part["confidence"] <= part["high"]
        low, high = part["interval"]
        # Five standard errors of the accuracy, from the exact binomial law.
        std = np.sqrt(part["confidence"] * (1 - part["confidence"]) / part["examples"])
        assert abs(part["accuracy"] - part["confidence"]) < 5 * std + 1e-9
        assert 0 <= low <= part["accuracy"] <= high <= 1


def test_overconfident_probabilities_are_not_calibrated():
    p, labels = _calibrated()
    sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    found = classification.classify(_evaluations(sharp), labels)
    gap, error = found["confidence_less_accuracy"]
    assert gap > 10 * error
    honest = classification.classify(_evaluations(p), labels)
    assert found["log_loss"].value > honest["log_loss"].value


def test_failed_examples_are_left_out(tmp_path):
    p, labels = _calibrated(50)
    evaluations = _evaluations(p)
    evaluations[1].columns["converged"][:5] = False
    found = classification.classify(evaluations, labels)
    assert found["n_examples"] == 45
    text = classification.as_text(found)
    assert "45 examples" in text and "confusions" in text
    assert "log loss" in classification.as_table(found).as_markdown()
    plots.calibration(tmp_path / "c.png", found["bins"], classification.caption(found))
    assert (tmp_path / "c.png").stat().st_size > 0
