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

With `--peers gensbi`, GenSBI trains the same network on the same simulations, with its
EDM method and with flow matching. It takes no missing entries.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import _common as common
import _posterior_peers as peers
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _posterior_problems import PROBLEMS, Problem
from scipy.stats import chi2
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import eqmdm
from eqmdm import nn


BATCH_SIZE = 256
N_RANKS = 99
LEVELS = (0.5, 0.9)
N_BINS = 10


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Trains conditional models and compares them with known posteriors."""

    problems: tuple[str, ...] = ("linear", "linear, several", "moons")
    """The problems."""
    simulations: int = 20_000
    """The simulations to train on."""
    steps: int = 3000
    """The steps of training."""
    width: int = 128
    """The width of the network, of three residual layers."""
    test: int = 200
    """The pairs for log-densities and ranks."""
    samples: int = 1000
    """The samples of each posterior for the two-sample tests."""
    observations: int = 5
    """The observations for the two-sample tests."""
    peers: tuple[Literal["gensbi"], ...] = ()
    """The other libraries to measure."""
    seed: int = 0
    """The seed of every random draw."""
    quick: bool = False
    """Few of everything: the results are those of an untrained network."""
    table: Path | None = None
    """A Markdown file for the results."""


def as_condition(x: np.ndarray) -> np.ndarray:
    """Observations as conditions: one vector for each."""
    return x.reshape(len(x), -1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a library has learned, in the units of the parameters."""

    log_density: np.ndarray | None
    """Of each test parameter given its observation, in nats."""
    ranked: np.ndarray
    """Samples for each test pair, of shape (pairs, N_RANKS, dims)."""
    samples: np.ndarray
    """Samples for the two-sample tests, of shape (observations, n, dims)."""
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tests:
    """Test pairs, and observations for the two-sample tests."""

    theta: np.ndarray
    x: np.ndarray
    observed: np.ndarray


def simulated(settings: Settings, problem: Problem) -> eqmdm.data.Dataset:
    """The simulations to train on, with standardised parameters."""
    random = np.random.default_rng(settings.seed)
    theta, x = problem.simulate(random, settings.simulations)
    return eqmdm.data.Dataset.from_arrays(
        theta, conditions=as_condition(x), standardise=True
    )


def trained(settings: Settings, dataset: eqmdm.data.Dataset) -> tuple[Any, float]:
    """The model and the processor seconds of its training."""
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
        batch_size=BATCH_SIZE,
        optimiser=eqmdm.make_optimiser(1e-3, warmup=100),
        validate_every=settings.steps,
    )
    jax.block_until_ready(model)
    return model, time.process_time() - start


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


def by_eqmdm(settings: Settings, dataset: eqmdm.data.Dataset, tests: Tests) -> Learned:
    model, seconds = trained(settings, dataset)
    scale, seed = dataset.standardisation, settings.seed
    return Learned(
        log_densities(model, scale, tests.theta, tests.x),
        posterior_samples(model, scale, tests.x, N_RANKS, seed + 2),
        posterior_samples(model, scale, tests.observed, settings.samples, seed + 3),
        {"processor_seconds": seconds},
    )


def by_gensbi(
    settings: Settings, dataset: eqmdm.data.Dataset, tests: Tests, method: str
) -> Learned:
    scale, conditions = dataset.standardisation, dataset.conditions
    assert scale is not None and conditions is not None
    kind = nn.condition_for(conditions.train)
    assert isinstance(kind, nn.ArrayCondition)
    mean, std = np.asarray(kind.mean), np.asarray(kind.std)
    scaled = lambda x: (x - mean) / std
    x, observed = (scaled(as_condition(x)) for x in (tests.x, tests.observed))
    counts = [(x, N_RANKS), (observed, settings.samples)]
    arrays = {
        "theta": dataset.train,
        "condition": scaled(conditions.train),
        "validation_theta": dataset.validation,
        "validation_condition": scaled(conditions.validation),
        "test_theta": scale.forward(tests.theta),
        "test_condition": x,
        "sampled_condition": np.concatenate([np.repeat(*pair, 0) for pair in counts]),
    }
    options = {"method": method, "steps": settings.steps, "width": settings.width}
    options |= {"batch_size": BATCH_SIZE, "seed": settings.seed}
    parts, facts = peers.gensbi(arrays, options)
    drawn = scale.inverse(parts["samples"])
    split = len(x) * N_RANKS
    log_density = parts.get("log_density")
    return Learned(
        None if log_density is None else log_density + scale.log_jacobian,
        drawn[:split].reshape(len(x), N_RANKS, -1),
        drawn[split:].reshape(len(observed), settings.samples, -1),
        facts,
    )


def measured(settings: Settings, name: str) -> dict[str, dict[str, Any]]:
    """The results of a problem, by problem and library."""
    problem, seed = PROBLEMS[name], settings.seed
    dataset = simulated(settings, problem)
    random = np.random.default_rng(seed + 1)
    theta, x = problem.simulate(random, settings.test)
    _, observed = problem.simulate(random, settings.observations)
    tests, true = Tests(theta, x, observed), problem.log_posterior(theta, x)
    learned = {name: by_eqmdm(settings, dataset, tests)}
    # GenSBI takes no missing entries.
    if "gensbi" in settings.peers and np.isfinite(as_condition(x)).all():
        for method in peers.METHODS:
            row = f"{name}, GenSBI, {method}"
            learned[row] = by_gensbi(settings, dataset, tests, method)
    accuracies, floors = {row: [] for row in learned}, []
    for index, one in enumerate(observed):
        exact, again = (problem.draw(random, one, settings.samples) for _ in range(2))
        floors.append(two_sample_accuracy(again, exact, seed))
        for row, of in learned.items():
            accuracies[row].append(two_sample_accuracy(of.samples[index], exact, seed))
    found = {}
    for row, of in learned.items():
        found[row] = {
            "true_log_density": _estimate(true),
            "two_sample_accuracy": _estimate(np.asarray(accuracies[row])),
            "accuracy_of_two_true_sets": _estimate(np.asarray(floors)),
            "calibration": calibration(
                (of.ranked < theta[:, None]).sum(axis=1), N_RANKS
            ),
            **of.facts,
        }
        if of.log_density is not None:
            found[row]["log_density"] = _estimate(of.log_density)
            found[row]["difference"] = _estimate(of.log_density - true)
    return found


def _estimate(values: np.ndarray) -> dict[str, float]:
    estimate = eqmdm.Estimate.from_mean(values)
    return {"value": estimate.value, "standard_error": estimate.standard_error}


def _shown(estimate: dict[str, float] | None, digits: int = 3) -> str:
    if estimate is None:
        return "none"
    return f"{estimate['value']:.{digits}f} ± {estimate['standard_error']:.{digits}f}"


def as_markdown(settings: Settings, found: dict[str, Any]) -> str:
    """The results as a table."""
    heads = ["problem", "log-density (nats)", "true", "difference"]
    heads += ["two-sample accuracy", "of two true sets"]
    heads += [f"coverage of {100 * level:.0f} %" for level in LEVELS]
    heads += ["p-value of ranks", "processor seconds of training"]
    rows = [heads, ["---"] * len(heads)]
    for name, row in found.items():
        coverage = row["calibration"]["coverage"]
        cells = [name, _shown(row.get("log_density"))]
        cells += [_shown(row["true_log_density"]), _shown(row.get("difference"))]
        cells += [_shown(row["two_sample_accuracy"])]
        cells += [_shown(row["accuracy_of_two_true_sets"])]
        cells += [_shown(coverage[f"{level:g}"]) for level in LEVELS]
        cells += [f"{row['calibration']['p_value']:.2g}"]
        rows.append([*cells, f"{row['processor_seconds']:.0f}"])
    lines = [
        f"Posteriors learned from {settings.simulations:,} simulations in "
        f"{settings.steps:,} steps of 256, MLP of width {settings.width}, VPSDE with a "
        f"denoiser; seed {settings.seed}. Log-densities and ranks: {settings.test} "
        "test pairs, ± standard errors over them. Two-sample tests: "
        f"{settings.samples} samples for each of {settings.observations} "
        "observations, ± standard errors over observations.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        *peers.notes(settings.peers, found),
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
        found |= measured(settings, name)
        print(as_markdown(settings, found), flush=True)
        common.write(settings, facts, problems=found)
        if settings.table is not None:
            settings.table.write_text(as_markdown(settings, found))


if __name__ == "__main__":
    main(tyro.cli(Settings))
