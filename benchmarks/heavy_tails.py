"""Does Student-t noise give samples the tails of heavy-tailed data?

    python benchmarks/heavy_tails.py --output FILE --table FILE

Trains a small network on points of a multivariate t law, with normal noise and with
Student-t noise whose precision is shown to the network or hidden from it. Everything
else is equal. The share of sampled coordinates beyond quantiles of the true law shows
the tails, and the bound on held-out points the fit as a whole; the true mean
log-density is known. Errors of shares are those over samples, and of the bound over
held-out points, for which all processes have the same points. Each seed has data, a
network and draws of its own.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import _common as common
import jax.random as jr
import numpy as np
import tyro
from scipy import special, stats

import eqmdm
from eqmdm import nn


# The shares of the true law beyond the quantiles, on both sides together.
SHARES = 0.1, 0.01, 0.001
_INTERVAL = eqmdm.LogSNRInterval(-9.0, 9.0)


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Measures the tails of samples under processes with normal and Student-t noise."""

    degrees: float = 3.0
    """Degrees of freedom of the data, in the plane."""
    nu: float = 4.0
    """Degrees of freedom of the noise."""
    examples: int = 20_000
    """Training points; as many samples are drawn."""
    held_out: int = 2000
    """Points for the bound."""
    draws: int = 8
    """Draws of time and noise for each of them."""
    steps: int = 1000
    """Training steps."""
    seeds: int = 2
    """Trainings of each process."""
    table: Path | None = None
    """A Markdown file for the table."""
    quick: bool = False
    """Run with few points and steps, and one seed."""


def student_t(n: int, degrees: float, seed: int) -> np.ndarray:
    """Points in the plane of a multivariate t law with unit scale."""
    generator = np.random.default_rng(seed)
    precision = generator.gamma(degrees / 2, 2 / degrees, (n, 1))
    points = generator.standard_normal((n, 2)) / np.sqrt(precision)
    return points.astype(np.float32)


def log_density(x: np.ndarray, degrees: float) -> np.ndarray:
    """The true log-density, in nats."""
    tail = 0.5 * (degrees + 2) * np.log1p(np.sum(x**2, axis=1) / degrees)
    constant = special.gammaln(degrees / 2 + 1) - special.gammaln(degrees / 2)
    return constant - math.log(math.pi * degrees) - tail


def model_of(
    process: str, settings: Settings, x: np.ndarray, seed: int
) -> eqmdm.AbstractModel:
    network = nn.MLP((2,), 1, width=64, depth=2, key=jr.key(seed))
    diffusion = eqmdm.VPSDE(interval=_INTERVAL)
    if process == "normal":
        return eqmdm.DenoiserModel.for_data(network, diffusion, x)
    hidden = process == "Student t, hidden"
    return eqmdm.StudentTModel.for_data(
        network, diffusion, x, settings.nu, hidden=hidden
    )


_HEADING = """# Tails of samples with normal and with Student-t noise

Points of a multivariate t law in the plane; the share of sampled coordinates beyond
quantiles of the true law, with its standard error over samples, the largest absolute
value, and the bound on held-out points less the true log-density. Made by `python
benchmarks/heavy_tails.py --output FILE --table FILE`; settings and versions are in
[heavy_tails.json](heavy_tails.json).

"""
PROCESSES = "normal", "Student t, shown", "Student t, hidden"


def measure(settings: Settings, process: str, seed: int) -> dict[str, Any]:
    """The tails of samples, and the bound on held-out points less their true mean
    log-density."""
    x = student_t(settings.examples, settings.degrees, 2 * seed)
    test = student_t(settings.held_out, settings.degrees, 2 * seed + 1)
    model = eqmdm.fit(
        model_of(process, settings, x, seed),
        x,
        key=jr.key(seed),
        steps=settings.steps,
        batch_size=256,
        optimiser=eqmdm.make_optimiser(2e-3, warmup=50),
        ema_decay=0.99,
    )
    samples = np.abs(
        eqmdm.sample(model, (2,), key=jr.key(seed), n_samples=settings.examples)
    )
    bound = eqmdm.evaluate(
        model,
        test,
        eqmdm.Objective(),
        key=jr.key(seed),
        n_draws=settings.draws,
        batch_size=2000,
    ).terms["total"]
    gap = eqmdm.Estimate.from_mean(bound - log_density(test, settings.degrees))
    beyond = {}
    for share in SHARES:
        # The coordinates of a point are dependent; points are not.
        is_beyond = samples > stats.t(settings.degrees).isf(share / 2)
        beyond[str(share)] = eqmdm.Estimate.from_mean(is_beyond.mean(axis=1))
    return {
        "process": process,
        "seed": seed,
        "beyond": beyond,
        "gap": gap,
        "largest": float(samples.max()),
        "largest_of_data": float(np.abs(x).max()),
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, with a heading."""
    heads = [f"beyond {share:.1%}" for share in SHARES]
    head = ["noise", "seed", *heads, "largest", "bound less log-density, nats"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["process"], str(row["seed"])]
        cells += [f"{100 * m:.3f} ± {100 * e:.3f} %" for m, e in row["beyond"].values()]
        cells += [f"{row['largest']:.1f} (data {row['largest_of_data']:.1f})"]
        mean, error = row["gap"]
        lines.append([*cells, f"{mean:.4f} ± {error:.4f}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    return _HEADING + table


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, examples=500, held_out=100, draws=2, steps=20, seeds=1
        )
    facts = common.facts()
    common.show(facts)
    rows = []
    for process in PROCESSES:
        for seed in range(settings.seeds):
            rows.append(measure(settings, process, seed))
            common.write(settings, facts, rows=rows)
            table = as_table(rows)
            if settings.table is not None:
                settings.table.write_text(table)
            print(table.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
