"""How good are posteriors given a linear observation, by each method?

    python benchmarks/observations.py --output-dir benchmarks/results/observations
    python benchmarks/observations.py --parts images --run runs/digits-vector

Three parts, each a CSV file with a row for each method:

- `mixture`: an exact denoiser of a mixture of three normals in the plane, whose
  posterior is known: the weights of the modes, mean, trace of the covariance, sliced
  Wasserstein distance to draws of the posterior, and the log-evidence. Twisted
  sequential Monte Carlo is one of the methods.
- `images`: a trained network, and observations of test images: their left half, or the
  means of 2x2 blocks, with noise. Against the image: the peak signal-to-noise ratio of
  the posterior mean, the continuous ranked probability score of a pixel, and how often
  the interval from the smallest to the largest of 19 samples covers a pixel, 90 % if
  the posterior is right; also of samples that are rounded to levels and dequantised
  anew, as the images are. All methods take the same steps and noise. Differences from
  moment matching are paired by image. Trains a network on digits, unless `--run` names
  a run; with a network trained by `--snr vector` the exact method takes part. The table
  is named after the data set.
- `cost`: the processor time of sampling given an observation, relative to sampling
  without one, the two alternating.

PiGDM and DPS are baselines. DPS is without the step sizes that are tuned to a problem,
and diverges on the digits, where the noise is small beside the spread of estimates: it
is left out there.
"""

import csv
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _observation_baselines import PIGDM
from _observed_mixture import mixture

import eqmdm
from eqmdm import observe
from eqmdm.cli import build
from eqmdm.cli.parsing import parse
from eqmdm.cli.train import program as train_program
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import TrainedRun, load_trained


# Samples of each image: the range of 19 covers another draw with probability 0.9.
N_SAMPLES = 19


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Settings):
    """Compares methods of conditioning on linear observations."""

    parts: tuple[str, ...] = ("mixture", "images", "cost")
    """The parts to run."""
    tasks: tuple[str, ...] = ("left half", "2x2 means")
    """The observations of images."""
    methods: tuple[str, ...] = ("none", "moment matching", "PiGDM", "exact")
    """The methods for images, where they apply."""
    run: Path | None = None
    """A run of `eqmdm train` on images, in place of training one."""
    data_dir: str | None = None
    """A directory with the image files of that run."""
    steps: int = 2000
    """Training steps of the network."""
    mixture_samples: int = 20_000
    """Samples of the mixture, by each method."""
    mixture_steps: int = 400
    """Steps of the samplers of the mixture."""
    n_images: int = 100
    """Test images."""
    sampling_steps: int = 25
    """Steps of the sampler of images."""
    noise_std: float = 0.1
    """The noise of the observations of images, whose pixels are from -1 to 1."""
    batch_size: int = 10
    """Images conditioned on at once."""
    repeats: int = 7
    """Alternating repeats of the times."""
    seed: int = 0
    """The seed of every random draw."""
    output_dir: Path | None = None
    """A directory for the tables."""
    quick: bool = False
    """Few steps, samples and images."""


# ----- Images


def trained_run(settings: Settings) -> TrainedRun:
    if settings.run is not None:
        return load_trained(settings.run, data_dir=settings.data_dir)
    with tempfile.TemporaryDirectory() as directory:
        every = settings.steps
        arguments = f"--dataset digits --seed {settings.seed} --steps {every} "
        arguments += f"--log-every {every} --validate-every {every} "
        arguments += f"--checkpoint-every {every} --test-examples 0 --n-samples 0 "
        run_dir = Path(directory) / "run"
        arguments += f"--run-dir {run_dir}"
        train_program.run(parse(TrainOptions, arguments.split()))
        return load_trained(run_dir, data_dir=None)


def images(settings: Settings, trained: TrainedRun) -> list[dict[str, Any]]:
    shape, n = trained.dataset.shape, settings.n_images
    key_x, key_noise, key_samples = jr.split(jr.key(settings.seed), 3)
    examples = trained.dataset.test[:n]
    levels = build.build_grey_levels(trained.options, trained.dataset)
    # Dequantised, as the network was trained.
    encode = lambda image, key: levels.encode(image, key=key, check=False)[0]
    x = jax.vmap(encode)(jnp.asarray(examples), jr.split(key_x, n))
    x = x.astype(trained.dtype)
    rows, by_image = [], {}
    for task in settings.tasks:
        operator = operators(shape)[task]
        key = jr.fold_in(key_noise, len(rows))
        clean = jax.vmap(operator.mv)(x)
        noise = jr.normal(key, clean.shape, clean.dtype)
        values = clean + settings.noise_std * noise
        suitable = methods(trained.model, operator, settings)
        for name in filter(suitable.__contains__, settings.methods):
            method = suitable[name]
            clock = time.process_time()
            samples = posterior_samples(
                settings, trained.model, operator, values, method, key_samples
            )
            seconds = time.process_time() - clock
            scores = score(samples, np.asarray(x))
            key_levels = jr.fold_in(key_x, n)
            again = dequantised_anew(levels, samples, key_levels)
            scores["level_coverage"] = coverage(again, np.asarray(x))
            by_image[task, name] = scores
            rows.append({"task": task, "method": name, **summary(scores, images=n)})
            rows[-1]["processor_seconds"] = seconds
            print(rows[-1], flush=True)
    for row in rows:
        reference = by_image.get((row["task"], "moment matching"))
        if reference is None:
            continue
        for name, values in by_image[row["task"], row["method"]].items():
            estimate = eqmdm.Estimate.from_mean(values - reference[name])
            row[f"{name}_less_moment_matching"] = estimate.value
            row[f"{name}_less_moment_matching_error"] = estimate.standard_error
    return rows


def operators(shape: tuple[int, ...]) -> dict[str, Any]:
    seen = np.zeros(shape, bool)
    seen[:, : shape[1] // 2] = True
    return {
        "left half": observe.mask(seen),
        "2x2 means": observe.downsample(shape, 2),
    }


def methods(
    model: eqmdm.AbstractModel, operator: Any, settings: Settings
) -> dict[str, Any]:
    """The methods that suit a model, and none."""
    known: dict[str, Any] = {
        "none": None,
        "moment matching": eqmdm.MomentMatching(),
        "PiGDM": PIGDM,
    }
    value = jnp.zeros(operator.out_structure().shape)
    observation = eqmdm.LinearObservation(operator, value, settings.noise_std)
    try:
        model.given(observation, eqmdm.Exact())
    except ValueError as error:
        print(f"exact left out: {error}", flush=True)
        return known
    return known | {"exact": eqmdm.Exact()}


def posterior_samples(
    settings: Settings,
    model: eqmdm.AbstractModel,
    operator: Any,
    values: jax.Array,
    method: Any,
    key: Any,
) -> np.ndarray:
    """Samples given each value, of shape (images, samples, *data)."""
    shape = operator.in_structure().shape
    parts = []
    for first in range(0, len(values), settings.batch_size):
        batch = values[first : first + settings.batch_size]
        keys = jax.vmap(lambda i: jr.fold_in(key, i))(first + jnp.arange(len(batch)))
        parts.append(_drawn(model, operator, batch, keys, method, shape, settings))
    return np.concatenate(parts)


@eqx.filter_jit
def _drawn(model, operator, values, keys, method, shape, settings):
    def one(value, key):
        given = model
        if method is not None:
            observation = eqmdm.LinearObservation(operator, value, settings.noise_std)
            given = model.given(observation, method)
        return eqmdm.sample(
            given,
            shape,
            key=key,
            n_samples=N_SAMPLES,
            n_steps=settings.sampling_steps,
            dtype=value.dtype,
        )

    return jax.vmap(one)(values, keys)


def score(samples: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of each image; a sample that is not finite makes them NaN."""
    n, m = samples.shape[:2]
    flat, truth = samples.reshape(n, m, -1), x.reshape(n, 1, -1)
    square = ((flat.mean(axis=1) - truth[:, 0]) ** 2).mean(axis=1)
    # The fair score, unbiased in the number of samples: the expected distance to the
    # truth less half of that between samples, from their order.
    ordered = np.sort(flat, axis=1)
    places = 2 * np.arange(1, m + 1) - m - 1
    spread = np.einsum("j,ijk->ik", places, ordered) / (m * (m - 1) / 2)
    crps = np.abs(flat - truth).mean(axis=1) - 0.5 * spread
    return {
        # Pixels have a range of 2.
        "psnr": 10 * np.log10(4 / square),
        "crps": crps.mean(axis=1),
        "coverage": coverage(samples, x),
    }


def coverage(samples: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The share of pixels of each image within the range of its samples."""
    inside = (samples.min(axis=1) <= x) & (x <= samples.max(axis=1))
    inside = np.where(np.isfinite(samples).all(axis=1), inside, np.nan)
    return inside.reshape(len(x), -1).mean(axis=1)


def dequantised_anew(levels: eqmdm.GreyLevels, samples: np.ndarray, key) -> np.ndarray:
    """Samples whose noise within a level is that of the data.

    Sampling ends with a posterior mean, which has less of it. On images that are mostly
    of one level, that narrows the intervals of most pixels.
    """
    found = levels.decode(jnp.asarray(samples))
    encode = lambda found, key: levels.encode(found, key=key, check=False)[0]
    again = np.asarray(jax.vmap(encode)(found, jr.split(key, len(found))))
    return np.where(np.isfinite(samples), again, np.nan)


def summary(scores: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
    row: dict[str, Any] = {"images": images}
    for name, values in scores.items():
        estimate = eqmdm.Estimate.from_mean(values)
        row |= {name: estimate.value, f"{name}_error": estimate.standard_error}
    row["failed_images"] = int((~np.isfinite(scores["crps"])).sum())
    return row


# ----- The cost


def cost(settings: Settings, trained: TrainedRun) -> list[dict[str, Any]]:
    """Processor time given an observation over that without, medians of pairs."""
    shape = trained.dataset.shape
    rows = []
    for task, operator in operators(shape).items():
        values = jnp.zeros((1, *operator.out_structure().shape), trained.dtype)
        calls = {
            name: lambda m=method, v=values, o=operator: _drawn(
                trained.model, o, v, jr.split(jr.key(0), 1), m, shape, settings
            )
            for name, method in methods(trained.model, operator, settings).items()
        }
        for call in calls.values():
            jax.block_until_ready(call())
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(settings.repeats):
            for name, call in calls.items():
                clock = time.process_time()
                jax.block_until_ready(call())
                seconds[name].append(time.process_time() - clock)
        plain = np.asarray(seconds["none"])
        for name, taken in seconds.items():
            low, middle, high = np.quantile(
                np.asarray(taken) / plain, [0.25, 0.5, 0.75]
            )
            rows.append(
                {
                    "task": task,
                    "method": name,
                    "observed_numbers": operator.out_structure().size,
                    "ratio": middle,
                    "lower_quartile": low,
                    "upper_quartile": high,
                    "repeats": settings.repeats,
                    "seconds_without": float(np.median(plain)),
                }
            )
            print(rows[-1], flush=True)
    return rows


# ----- Output


def write_table(
    settings: Settings, name: str, rows: Iterable[Mapping[str, Any]], facts: Any
) -> None:
    if settings.output_dir is None:
        return
    rows = list(rows)
    used = common.record(settings, facts)["settings"]
    used.pop("output_dir")
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    shared = {
        "seed": settings.seed,
        "device": facts["device"]["kind"],
        "versions": json.dumps(facts["versions"]),
        "settings": json.dumps(used),
    }
    columns = dict.fromkeys(column for row in rows for column in (*row, *shared))
    with (settings.output_dir / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            shown = {
                column: f"{value:.6g}" if isinstance(value, float) else value
                for column, value in row.items()
            }
            writer.writerow(shown | shared)


def main(settings: Settings) -> None:
    if settings.quick:
        few = {"steps": 50, "mixture_samples": 500, "mixture_steps": 20}
        few |= {"n_images": 4, "sampling_steps": 3, "batch_size": 4, "repeats": 1}
        settings = dataclasses.replace(settings, **few)
    facts = common.facts(settings.seed)
    common.show(facts)
    results = {}
    if "mixture" in settings.parts:
        with jax.enable_x64(True):
            results["mixture"] = mixture(settings)
        write_table(settings, "mixture", results["mixture"], facts)
    if {"images", "cost"} & set(settings.parts):
        trained = trained_run(settings)
        tables = {"images": trained.dataset.name, "cost": "cost"}
        for name, part in (("images", images), ("cost", cost)):
            if name in settings.parts:
                results[name] = part(settings, trained)
                write_table(settings, tables[name], results[name], facts)
    common.write(settings, facts, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
