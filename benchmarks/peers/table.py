"""The tables of results in Markdown."""

from typing import Any

import numpy as np


_COLUMNS = {
    "train": ("parameters", "MFLOP", "network"),
    "sample": ("evaluations", "distance", "of exact samples"),
    "likelihood": ("evaluations", "slowest", "error at the cut", "error"),
}
_HEADINGS = {
    "train images": "Training step, U-Net, {images} images of 28x28",
    "train points": "Training step, MLP, {points} points in two dimensions",
    "sample images": "{sampled_images} samples of 28x28 by the U-Net",
    "sample points": "{sampled_points} samples in two dimensions by the MLP",
    "likelihood mixture": (
        "{likelihood_points} likelihoods of a mixture in two dimensions"
    ),
    "likelihood correlated": (
        "{likelihood_correlated} likelihoods of a normal law in 64 dimensions, exact "
        "divergence"
    ),
    "likelihood correlated, one probe": (
        "The same, with one probe of Hutchinson's for the divergence"
    ),
}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add to each row its times relative to eqmdm's first variant of the task.

    `ratio` and `wall_ratio` are the three quartiles, over the common repeats, of the
    ratios within a repeat; `first_call_ratio` is the ratio of the first calls.
    """
    for row in rows:
        base = next(
            other
            for other in rows
            if other["task"] == row["task"] and other["peer"] == "eqmdm"
        )
        if "error" in row or "error" in base:
            continue
        by_repeat = {times["repeat"]: times for times in base["times"]}
        for name, kind in (("ratio", "cpu_seconds"), ("wall_ratio", "wall_seconds")):
            ratios = [
                times[kind] / by_repeat[times["repeat"]][kind]
                for times in row["times"]
                if times["repeat"] in by_repeat
            ]
            row[name] = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        first, of_base = (r["first_call"]["cpu_seconds"] for r in (row, base))
        row["first_call_ratio"] = first / of_base


def render(record: dict[str, Any]) -> str:
    """All tables, with the versions of the peers."""
    settings = record["settings"]
    lines = [
        "# eqmdm beside its peers",
        "",
        f"On {settings['cores']} core(s) of a CPU. A ratio is the processor time of a "
        "call over that of eqmdm's first variant: the median over "
        f"{settings['repeats']} interleaved repeats, and the quartiles. Above 1, eqmdm "
        "is faster. First calls compile. `run.py` and the workers beside it say what "
        "each does.",
        "",
        "| peer | versions |",
        "| --- | --- |",
    ]
    for peer, facts in record["peers"].items():
        versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
        lines.append(f"| {peer} | {versions} |")
    tasks = dict.fromkeys(row["task"] for row in record["rows"])
    for task in tasks:
        rows = [row for row in record["rows"] if row["task"] == task]
        lines += ["", f"## {_HEADINGS[task].format(**settings)}", ""]
        columns = _COLUMNS[task.split()[0]]
        head = ["peer", "variant", "ratio", "quartiles", "first call", *columns]
        lines += [_line(head), _line(["---"] * len(head))]
        lines += [_line(_cells(row, columns)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    name = [row["peer"], row["variant"]]
    if "error" in row:
        last = row["error"].strip().splitlines()[-1]
        return [*name, f"failed: {last}", *[""] * (2 + len(columns))]
    low, ratio, high = row["ratio"]
    times = [f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"]
    times.append(f"{row['first_call_ratio']:.2f}")
    return [*name, *times, *(_value(row, column) for column in columns)]


def _value(row: dict[str, Any], column: str) -> str:
    facts, check = row["facts"], row.get("check", {})
    found = {
        "parameters": (facts, "n_parameters", "{:,}"),
        "MFLOP": (facts, "flops", "{:.1f}"),
        "network": (facts, "network", "{}"),
        "evaluations": (facts | check, "evaluations", "{:.4g}"),
        "slowest": (check, "evaluations_of_batch", "{}"),
        "distance": (check, "distance", "{:.4f}"),
        "of exact samples": (check, "distance_of_exact", "{:.4f}"),
        "error at the cut": (check, "cut_error", "{:.1e}"),
        "error": (check, "data_error", "{:.1e}"),
    }
    where, key, form = found[column]
    if key not in where:
        return ""
    value = where[key] / 1e6 if column == "MFLOP" else where[key]
    return form.format(value)
