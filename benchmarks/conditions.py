"""What does a condition tell a model, and what does guidance do to its samples?

    python scripts/train.py --data digits --condition label --run-dir runs/digits-label
    python benchmarks/conditions.py runs/digits-label

For a run that is conditioned on labels: the bound of the test images given their
labels and without them, with common draws, and their paired difference; the fraction of
samples of each class that a classifier of the data recognises, at several scales of
guidance, and the distance of these samples from the held-out images; and the classes of
test images by the posterior that follows from the bound.

Also checks that guidance of scale 1 leaves the samples of the conditional model
unchanged to the bit.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import _common as common
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _short_run import given_or_short

import eqmdm
from eqmdm import nn
from eqmdm.cli import build
from eqmdm.cli.train_classifier import classifier
from eqmdm.cli.trained import load_trained


_TRAINED = "--data digits --condition label"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Settings):
    """Measures conditions and guidance on a run of `eqmdm train --condition label`."""

    run: tyro.conf.Positional[Path | None] = None
    """The directory of the run; with --quick, by default a short one."""
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    """The scales of guidance."""
    per_class: int = 100
    """The number of samples of each class."""
    n_draws: int = 64
    """The draws of time and noise for each bound."""
    batch_size: int = 100
    """Samples drawn at once."""
    seed: int = 0
    """The seed of every random draw."""
    quick: bool = False
    """One scale beside 1, and few samples, draws and images."""
    table: Path | None = None
    """A Markdown file for the results."""


def bounds(settings: Settings, trained: Any) -> dict[str, Any]:
    """The bounds with and without labels, their difference, and the classes."""
    dataset = trained.dataset
    n = 20 if settings.quick else len(dataset.test)
    images, labels = dataset.test[:n], dataset.labels.test[:n]
    objective = build.build_objective(trained.options, dataset)

    def losses(condition: np.ndarray) -> np.ndarray:
        found = eqmdm.evaluate(
            trained.model,
            images,
            objective,
            condition=condition,
            key=jr.key(settings.seed),
            n_draws=settings.n_draws,
            batch_size=settings.batch_size,
        )
        return found.loss

    given, missing = losses(labels), losses(np.asarray(nn.missing_like(labels)))
    n_classes = trained.condition.n_classes
    by_class = np.stack([losses(np.full_like(labels, c)) for c in range(n_classes)])
    # Bits per dimension to nats.
    log_joint = -by_class.T * math.prod(dataset.shape) * math.log(2)
    log_p = log_joint - np.logaddexp.reduce(log_joint, axis=1, keepdims=True)
    right = (log_p.argmax(axis=1) == labels).astype(float)
    gain = missing - given
    parts = {"given labels": given, "without": missing, "gain": gain}
    found = {name: _estimate(values) for name, values in parts.items()}
    found["gain_in_standard_errors"] = float(
        gain.mean() / (gain.std(ddof=1) / math.sqrt(n))
    )
    found["classification_accuracy"] = _estimate(right)
    found["classification_log_loss"] = _estimate(-log_p[np.arange(n), labels])
    return found | {"examples": n}


def samples(settings: Settings, trained: Any, scale: float | None) -> np.ndarray:
    """Decoded samples, of each class in turn; a scale of `None` is no guidance."""
    model = trained.model
    if scale is not None:
        model = eqmdm.GuidedModel(model, scale)
    n_classes = trained.condition.n_classes
    n, size = n_classes * settings.per_class, settings.batch_size
    parts = []
    for first in range(0, n, size):
        x = eqmdm.sample(
            model,
            trained.dataset.shape,
            key=jr.key(settings.seed),
            conditions=np.arange(first, first + size) % n_classes,
            n_samples=size,
            first=first,
        )
        parts.append(np.asarray(x))
    return np.concatenate(parts)[:n]


def recognised(
    trained: Any, model: classifier.Classifier, x: np.ndarray
) -> dict[str, Any]:
    """How many of the samples a classifier recognises, and their distance from data."""
    dataset = trained.dataset
    images = build.decode(trained.options, dataset, x)
    wanted = np.arange(len(x)) % trained.condition.n_classes
    batched = jax.jit(jax.vmap(lambda image: jnp.argmax(model(image))))
    right = classifier.in_batches(batched, images) == wanted
    flat = lambda images: images.reshape(len(images), -1) / (dataset.n_levels - 1)
    held_out = np.concatenate([dataset.validation, dataset.test])
    distance = eqmdm.sliced_wasserstein(flat(images), flat(held_out), key=jr.key(0))
    rows = [right[wanted == c].mean() for c in range(trained.condition.n_classes)]
    n = len(right)
    p = right.mean()
    return {
        "recognised": {"value": float(p), "standard_error": math.sqrt(p * (1 - p) / n)},
        "by_class": [float(row) for row in rows],
        "sliced_wasserstein": {
            "value": float(distance.value),
            "standard_error": float(distance.standard_error),
        },
    }


def _estimate(values: np.ndarray) -> dict[str, float]:
    estimate = eqmdm.Estimate.from_mean(values)
    return {"value": estimate.value, "standard_error": estimate.standard_error}


def _shown(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f} ± {estimate['standard_error']:.4f}"


def as_markdown(found: dict[str, Any]) -> str:
    """The results as tables."""
    bound, rows = found["bounds"], found["guidance"]
    accuracy = found["classifier"]
    lines = [
        f"Conditional model of {found['dataset']}, step {found['step']}, "
        f"{bound['examples']} test images, {found['settings']['n_draws']} draws each, "
        f"seed {found['settings']['seed']}; ± standard errors over images.",
        "",
        "| bound (bits per dimension) | |",
        "| --- | --- |",
        *(
            f"| {name} | {_shown(bound[name])} |"
            for name in ("given labels", "without")
        ),
        f"| gain, paired ({bound['gain_in_standard_errors']:.1f} standard errors) | "
        f"{_shown(bound['gain'])} |",
        "",
        "| classes by the posterior from the bound | |",
        "| --- | --- |",
        f"| accuracy | {_shown(bound['classification_accuracy'])} |",
        f"| log loss (nats) | {_shown(bound['classification_log_loss'])} |",
        "",
        f"{found['settings']['per_class']} samples of each class, "
        "`DPMSolver` with 50 steps. The classifier recognises "
        f"{accuracy['accuracy']:.4f} ± {accuracy['standard_error']:.4f} of the test "
        "images. At scale 1 the samples of the guided and of the conditional model are "
        f"{'equal to the bit' if found['unchanged_at_1'] else 'NOT equal'}.",
        "",
        "| guidance | recognised | worst class | sliced Wasserstein distance |",
        "| --- | --- | --- | --- |",
        *(
            f"| {scale} | {_shown(row['recognised'])} | {min(row['by_class']):.2f} | "
            f"{_shown(row['sliced_wasserstein'])} |"
            for scale, row in rows.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, scales=(1.0, 2.0), per_class=10, n_draws=4
        )
    with given_or_short(settings.run, _TRAINED, quick=settings.quick) as run:
        trained = load_trained(run, data_dir=None)
    facts = common.facts(settings.seed)
    common.show(facts)
    model, of_classifier = classifier.train(trained.dataset)
    found: dict[str, Any] = {
        "dataset": trained.dataset.name,
        "step": trained.step,
        "parameters": trained.parameters,
        "classifier": {
            name: of_classifier[name]
            for name in ("accuracy", "standard_error", "examples", "steps", "seed")
        },
        "bounds": bounds(settings, trained),
        "guidance": {},
    }
    plain = samples(settings, trained, None)
    for scale in settings.scales:
        x = samples(settings, trained, scale)
        if scale == 1:
            found["unchanged_at_1"] = bool(np.array_equal(x, plain))
        found["guidance"][f"{scale:g}"] = recognised(trained, model, x)
    used = {"n_draws": settings.n_draws, "per_class": settings.per_class}
    shown = found | {"settings": used | {"seed": settings.seed}}
    text = as_markdown(shown)
    print(text)
    if settings.table is not None:
        settings.table.write_text(text)
    common.write(settings, facts, **found)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
