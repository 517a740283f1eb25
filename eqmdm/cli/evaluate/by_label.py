"""The results of an evaluation for each label, and tests of their differences."""

import itertools
from typing import Any

import numpy as np
from jax.scipy.special import betainc

from ..._core.estimate import Estimate
from ..files import LOSS_UNITS, error_as_text, from_plain, loss_name
from ..tables import Column, Table, mean_of


# The significance level: the chance of calling equal labels different.
LEVEL = 0.05
# The most pairs of labels that the text names.
_MOST_NAMED = 10


def labels_of(dataset: Any, split: str, first: int, n_examples: int) -> np.ndarray:
    """The labels of the examples of an evaluation.

    **Raises:** `ValueError` if the data have none.
    """
    if dataset.labels is None:
        raise ValueError(
            f"`by` must be left out for {dataset.name}, whose examples have no labels; "
            "got label. Image files have them in a column `label`, with a class for "
            "every image."
        )
    return getattr(dataset.labels, split)[first : first + n_examples]


def by_label(columns: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """The mean of each label over the examples that converged, for report.json.

    Welch's analysis of variance tests whether the means differ at all, and his t-test
    which pairs differ, with the level divided by the number of pairs (Bonferroni).
    Labels with fewer than two such examples are not tested.

    **Source:** Welch (1951), On the comparison of several mean values.
    """
    name, converged = loss_name(columns), columns["converged"]
    groups = {
        int(label): columns[name][(labels == label) & converged]
        for label in np.unique(labels)
    }
    rows = []
    for label, values in groups.items():
        mean, error = mean_of(values)
        row = {"label": label, "examples": len(values)}
        rows.append(row | {"mean": mean, "standard_error": error})
    tested = {
        label: (len(values), values.mean(), values.var(ddof=1))
        for label, values in groups.items()
        if len(values) > 1 and np.ptp(values) > 0
    }
    facts = {"quantity": name, "unit": LOSS_UNITS[name], "labels": rows}
    if len(tested) < 2:
        return facts | {"p_value": None, "pairs": 0, "distinct_pairs": []}
    pairs = list(itertools.combinations(tested, 2))
    p_values = _t_tests([(tested[a], tested[b]) for a, b in pairs])
    distinct = [
        list(pair)
        for pair, p in zip(pairs, p_values, strict=True)
        if p < LEVEL / len(pairs)
    ]
    p_value = _analysis_of_variance(list(tested.values()))
    return facts | {"p_value": p_value, "pairs": len(pairs), "distinct_pairs": distinct}


def as_lines(found: dict[str, Any]) -> list[str]:
    """The results of `by_label` for report.txt."""
    lines = ["", f"{'label':>16} {found['unit']:>12} {'std error':>10} examples"]
    for row in found["labels"]:
        mean, error = from_plain(row["mean"]), from_plain(row["standard_error"])
        error = error_as_text(error, row["examples"])
        lines.append(f"{row['label']:>16} {mean:12.4f} {error:>10} {row['examples']}")
    return [*lines, verdict(found)]


def verdict(found: dict[str, Any]) -> str:
    """The conclusion of the tests, in one sentence."""
    p_value, pairs = found["p_value"], found["pairs"]
    if p_value is None:
        return "Too few examples of each label to distinguish the labels"
    if p_value >= LEVEL:
        return (
            "The labels cannot be distinguished: their means differ no more than their "
            f"errors explain (Welch's test, p = {p_value:.2g})"
        )
    text = f"The means of the labels differ (Welch's test, p = {p_value:.2g})"
    distinct = found["distinct_pairs"]
    if not distinct:
        return f"{text}, but no single pair differs significantly"
    named = ", ".join(f"{a} from {b}" for a, b in distinct[:_MOST_NAMED])
    named += ", ..." if len(distinct) > _MOST_NAMED else ""
    return (
        f"{text}; {len(distinct)} of {pairs} pairs of labels can be distinguished, at "
        f"{LEVEL:.0%} for all pairs together: {named}"
    )


def as_table(found: dict[str, Any], caption: str) -> Table:
    columns = (
        Column("label", "label"),
        Column(found["quantity"], found["unit"], "standard_error"),
        Column("examples", "examples"),
    )
    rows = tuple(
        (
            row["label"],
            Estimate(from_plain(row["mean"]), from_plain(row["standard_error"])),
            row["examples"],
        )
        for row in found["labels"]
    )
    return Table(f"{caption}. {verdict(found)}.", columns, rows)


def _t_tests(pairs: list[tuple[tuple[int, float, float], ...]]) -> np.ndarray:
    """The p-values of Welch's t-test for pairs of (size, mean, variance)."""
    (n, mean, variance), (m, other, its_variance) = np.moveaxis(np.array(pairs), 0, -1)
    parts = variance / n, its_variance / m
    squares = (mean - other) ** 2 / sum(parts)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1))
    return np.asarray(betainc(freedom / 2, 0.5, freedom / (freedom + squares)))


def _analysis_of_variance(groups: list[tuple[int, float, float]]) -> float:
    """The p-value of Welch's test for equal means, from (size, mean, variance)."""
    n, mean, variance = np.array(groups).T
    k, weights = len(groups), n / variance
    shares = weights / weights.sum()
    spread = np.sum((1 - shares) ** 2 / (n - 1))
    between = np.sum(weights * (mean - shares @ mean) ** 2) / (k - 1)
    ratio = between / (1 + 2 * (k - 2) / (k**2 - 1) * spread)
    freedom = (k**2 - 1) / (3 * spread)
    x = freedom / (freedom + (k - 1) * ratio)
    return float(betainc(freedom / 2, (k - 1) / 2, x))
