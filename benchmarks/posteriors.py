"""Are conditional models posteriors that one can trust?

    python benchmarks/posteriors.py --output FILE.json --table FILE.md

Trains denoisers of a simulator's parameters given its observations, with `eqmdm.fit`,
on problems whose posteriors are known, and compares with the truth:

- the mean log-density of test parameters given their observations, exact by the
  probability flow, with the paired difference from the true posterior;
- classifier two-sample tests between posterior samples and true ones: the accuracy of a
  network on held-out samples, 0.5 if they cannot be told apart;
- simulation-based calibration: the rank of each test parameter among posterior samples
  is uniform if the posteriors are right. Shown are the coverage of central intervals
  and the p-values of chi-squared tests.

Problems, after sbibm (Lueckmann et al. 2021): `linear`, ten parameters of N(0, 0.1)
observed with noise N(0, 0.1), also with up to five independent observations, of which
those that are absent are missing in the condition; `moons`, two parameters whose
posterior is two crescents.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from scipy.stats import chi2
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import eqmdm
from eqmdm import nn


VARIANCE = 0.1
MOST_OBSERVATIONS = 5
LEVELS = (0.5, 0.9)
N_BINS = 10


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Trains conditional models and compares them with known posteriors."""

    problems: tuple[str, ...] = ("linear", "linear, several", "moons")
    """The problems."""
    simulations: int = 20_000
    """The simulations to train on."""
    steps: int = 10_000
    """The steps of training."""
    width: int = 128
    """The width of the network, of three residual layers."""
    test: int = 500
    """The pairs for log-densities and ranks."""
    samples: int = 1000
    """The samples of each posterior for the two-sample tests."""
    observations: int = 5
    """The observations for the two-sample tests."""
    seed: int = 0
    """The seed of every random draw."""
    quick: bool = False
    """Few of everything: the results are those of an untrained network."""
    table: Path | None = None
    """A Markdown file for the results."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A simulator with its posterior. Parameters and observations are NumPy arrays."""

    simulate: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    """Pairs of parameters and observations; missing entries are NaN."""
    log_posterior: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """The log-density of each parameter given its observation, in nats."""
    draw: Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
    """Samples of the posterior given one observation."""


def linear(most: int) -> Problem:
    """Normal parameters with up to `most` independent observations of each."""

    def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = np.sum(np.isfinite(x[..., 0]), axis=-1)[..., None]
        # Prior and noise have the same variance.
        return np.nansum(x, axis=-2) / (count + 1), VARIANCE / (count + 1)

    def simulate(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = math.sqrt(VARIANCE) * random.normal(size=(n, 10))
        noise = math.sqrt(VARIANCE) * random.normal(size=(n, most, 10))
        count = random.integers(1, most + 1, size=n)
        absent = np.arange(most) >= count[:, None]
        x = np.where(absent[..., None], np.nan, theta[:, None] + noise)
        return theta, x

    def log_posterior(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        mean, variance = moments(x)
        squares = (theta - mean) ** 2 / variance + np.log(2 * np.pi * variance)
        return -0.5 * squares.sum(axis=-1)

    def draw(random: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        mean, variance = moments(x)
        return mean + np.sqrt(variance) * random.normal(size=(n, 10))

    return Problem(simulate, log_posterior, draw)


def moons() -> Problem:
    """Two moons: parameters uniform on a square, two crescents as their posterior."""

    def arc(random: np.random.Generator, n: int) -> np.ndarray:
        angle = random.uniform(-np.pi / 2, np.pi / 2, n)
        radius = 0.1 + 0.01 * random.normal(size=n)
        point = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return point + np.asarray([0.25, 0.0])

    def shift(theta: np.ndarray) -> np.ndarray:
        total, gap = theta.sum(axis=-1), theta[..., 1] - theta[..., 0]
        return np.stack([-np.abs(total), gap], axis=-1) / math.sqrt(2)

    def simulate(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = random.uniform(-1, 1, (n, 2))
        return theta, arc(random, n) + shift(theta)

    def log_likelihood(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        point = x - shift(theta) - np.asarray([0.25, 0.0])
        radius = np.linalg.norm(point, axis=-1)
        normal = -0.5 * ((radius - 0.1) / 0.01) ** 2 - math.log(0.01)
        normal -= 0.5 * math.log(2 * np.pi)
        inside = point[..., 0] > 0
        return np.where(inside, normal - np.log(np.pi * radius), -np.inf)

    def log_posterior(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        # By quadrature over the prior's square, in the coordinates of the simulator in
        # which each half of the square is moved rigidly onto the arc.
        edges = np.linspace(-1, 1, 801)
        grid = 0.5 * (edges[1:] + edges[:-1])
        points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)
        log_area = 2 * math.log(grid[1] - grid[0])
        evidence = [
            np.logaddexp.reduce(log_likelihood(points, one).ravel()) + log_area
            for one in x
        ]
        return log_likelihood(theta, x) - np.asarray(evidence)

    def draw(random: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        kept = np.zeros((0, 2))
        while len(kept) < n:
            along, across = (arc(random, 4 * n) - x).T
            sign = random.choice([-1.0, 1.0], 4 * n)
            total, gap = math.sqrt(2) * sign * along, -math.sqrt(2) * across
            theta = 0.5 * np.stack([total - gap, total + gap], axis=1)
            valid = (along > 0) & (np.abs(theta) < 1).all(axis=1)
            kept = np.concatenate([kept, theta[valid]])
        return kept[:n]

    return Problem(simulate, log_posterior, draw)


PROBLEMS = {
    "linear": linear(1),
    "linear, several": linear(MOST_OBSERVATIONS),
    "moons": moons(),
}


def as_condition(x: np.ndarray) -> np.ndarray:
    """Observations as conditions: one vector for each."""
    return x.reshape(len(x), -1).astype(np.float32)


def trained(settings: Settings, problem: Problem) -> tuple[Any, Any, float]:
    """The model, the standardisation of the parameters, and the processor seconds."""
    random = np.random.default_rng(settings.seed)
    theta, x = problem.simulate(random, settings.simulations)
    dataset = eqmdm.data.Dataset.from_arrays(
        theta, conditions=as_condition(x), standardise=True
    )
    assert dataset.conditions is not None
    kind = nn.condition_for(dataset.conditions.train)
    shape = dataset.shape
    key_network, key_fit = jr.split(jr.key(settings.seed))
    network = nn.MLP(shape, 1, width=settings.width, condition=kind, key=key_network)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    model = eqmdm.DenoiserModel.for_data(network, diffusion, dataset)
    start = time.process_time()
    model = eqmdm.fit(
        model,
        dataset,
        key=key_fit,
        steps=settings.steps,
        batch_size=256,
        optimiser=eqmdm.make_optimiser(1e-3, warmup=100),
        validate_every=settings.steps,
    )
    return model, dataset.standardisation, time.process_time() - start


def log_densities(
    model: Any, scale: Any, theta: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """The exact log-density of each parameter given its observation, in nats."""

    @eqx.filter_jit
    def solve(model: Any, theta: jax.Array, condition: jax.Array) -> jax.Array:
        one = lambda t, c: eqmdm.log_likelihood(model, t, condition=c, key=jr.key(0))
        return jax.vmap(one)(theta, condition).log_likelihood

    scaled = jnp.asarray(scale.forward(theta), jnp.float32)
    found = solve(model, scaled, jnp.asarray(as_condition(x)))
    return np.asarray(found, np.float64) + scale.log_jacobian


def posterior_samples(
    model: Any, scale: Any, x: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """`n` samples given each of the observations, of shape (observations, n, dims)."""
    conditions = np.repeat(as_condition(x), n, axis=0)
    samples = eqmdm.sample(
        model,
        scale.mean.shape,
        conditions=conditions,
        n_samples=len(conditions),
        key=jr.key(seed),
    )
    return scale.inverse(np.asarray(samples)).reshape(len(x), n, -1)


def two_sample_accuracy(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """The cross-validated accuracy of a classifier of two sets of samples."""
    # It stops once the loss on a tenth of its samples no longer falls.
    network = MLPClassifier(
        (64, 64), early_stopping=True, n_iter_no_change=20, random_state=seed
    )
    classifier = make_pipeline(StandardScaler(), network)
    labels = np.concatenate([np.zeros(len(a)), np.ones(len(b))])
    scores = cross_val_score(classifier, np.concatenate([a, b]), labels, cv=5)
    return float(scores.mean())


def calibration(ranks: np.ndarray, n: int) -> dict[str, Any]:
    """Tests of uniformity of ranks from 0 to n, one column for each parameter."""
    fractions = (ranks + 0.5) / (n + 1)
    counts = np.stack(
        [np.histogram(column, N_BINS, (0, 1))[0] for column in fractions.T]
    )
    expected = len(ranks) / N_BINS
    statistics = ((counts - expected) ** 2 / expected).sum(axis=1)
    p_values = chi2.sf(statistics, N_BINS - 1)
    coverage = {}
    for level in LEVELS:
        inside = (np.abs(fractions - 0.5) < level / 2).mean(axis=1)
        coverage[f"{level:g}"] = _estimate(inside)
    return {
        # Of the least of several p-values (Bonferroni).
        "p_value": float(min(1.0, p_values.min() * len(p_values))),
        "coverage": coverage,
    }


def measured(settings: Settings, name: str) -> dict[str, Any]:
    problem = PROBLEMS[name]
    model, scale, seconds = trained(settings, problem)
    random = np.random.default_rng(settings.seed + 1)
    theta, x = problem.simulate(random, settings.test)
    own, true = log_densities(model, scale, theta, x), problem.log_posterior(theta, x)
    n_ranks = 99
    drawn = posterior_samples(model, scale, x, n_ranks, settings.seed + 2)
    ranks = (drawn < theta[:, None]).sum(axis=1)
    _, observed = problem.simulate(random, settings.observations)
    samples = posterior_samples(
        model, scale, observed, settings.samples, settings.seed + 3
    )
    accuracies, floors = [], []
    for one, of_model in zip(observed, samples, strict=True):
        exact, again = (problem.draw(random, one, settings.samples) for _ in range(2))
        accuracies.append(two_sample_accuracy(of_model, exact, settings.seed))
        floors.append(two_sample_accuracy(again, exact, settings.seed))
    return {
        "log_density": _estimate(own),
        "true_log_density": _estimate(true),
        "difference": _estimate(own - true),
        "two_sample_accuracy": _estimate(np.asarray(accuracies)),
        "accuracy_of_two_true_sets": _estimate(np.asarray(floors)),
        "calibration": calibration(ranks, n_ranks),
        "processor_seconds": seconds,
    }


def _estimate(values: np.ndarray) -> dict[str, float]:
    estimate = eqmdm.Estimate.from_mean(values)
    return {"value": estimate.value, "standard_error": estimate.standard_error}


def _shown(estimate: dict[str, float], digits: int = 3) -> str:
    return f"{estimate['value']:.{digits}f} ± {estimate['standard_error']:.{digits}f}"


def as_markdown(settings: Settings, found: dict[str, Any]) -> str:
    """The results as a table."""
    heads = ["problem", "log-density (nats)", "true", "difference"]
    heads += ["two-sample accuracy", "of two true sets"]
    heads += [f"coverage of {100 * level:.0f} %" for level in LEVELS]
    heads += ["p-value of ranks"]
    rows = [heads, ["---"] * len(heads)]
    for name, row in found.items():
        coverage = row["calibration"]["coverage"]
        cells = [name, *(_shown(row[k]) for k in ("log_density", "true_log_density"))]
        cells += [_shown(row["difference"])]
        cells += [_shown(row["two_sample_accuracy"])]
        cells += [_shown(row["accuracy_of_two_true_sets"])]
        cells += [_shown(coverage[f"{level:g}"]) for level in LEVELS]
        rows.append([*cells, f"{row['calibration']['p_value']:.2g}"])
    lines = [
        f"Posteriors learned from {settings.simulations:,} simulations in "
        f"{settings.steps:,} steps of 256, MLP of width {settings.width}, VPSDE with a "
        f"denoiser; seed {settings.seed}. Log-densities and ranks: {settings.test} "
        "test pairs, ± standard errors over them. Two-sample tests: "
        f"{settings.samples} samples for each of {settings.observations} "
        "observations, ± standard errors over observations.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, simulations=500, steps=20, test=8, samples=40, observations=2
        )
    facts = common.facts(settings.seed)
    common.show(facts)
    found: dict[str, Any] = {}
    for name in settings.problems:
        found[name] = measured(settings, name)
        print(as_markdown(settings, found), flush=True)
        common.write(settings, facts, problems=found)
        if settings.table is not None:
            settings.table.write_text(as_markdown(settings, found))


if __name__ == "__main__":
    main(tyro.cli(Settings))
