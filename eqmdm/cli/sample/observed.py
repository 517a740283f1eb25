"""Samples of the images that an observation leaves possible."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import eqmdm

from .. import build, plots
from ..bases import basis_of, to_pixels
from ..build import Purpose
from ..errors import clean_errors
from ..outputs import PICTURE_FORMATS
from ..trained import TrainedRun
from .files import write
from .observing import Observed, given, observations
from .options import SampleOptions
from .settings import given_condition, guided, sampling_arguments


# The part of a pixel's samples that the interval for its coverage holds.
_COVERED = 0.9
# The most samples of an image in the picture.
_MOST_SHOWN = 4


def run_observed(options: SampleOptions, trained: TrainedRun, directory: Path) -> None:
    with clean_errors(options):
        found = observations(options, trained)
        size = min(options.batch_size, options.n_samples)
        trained = trained.over_devices(size)
        models = [given(options, guided(options, trained.model), o) for o in found]
    parts, clock = [], time.perf_counter()
    bar = tqdm(found, unit="image", desc="sampling")
    try:
        for observed, model in zip(bar, models, strict=True):
            with clean_errors(options):
                parts.append(_draw(options, trained, observed, model))
    except KeyboardInterrupt:
        sys.exit("stopped: nothing is written")
    finally:
        bar.close()
    seconds = (time.perf_counter() - clock) / (len(found) * options.n_samples)
    x = np.stack(parts)
    kept = np.atleast_1d(np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if not kept.all():
        print(
            f"samples of {(~kept).sum()} of {len(x)} images are not finite and left "
            "out: raise --steps or --observe-noise, or try another --solver."
        )
    if not kept.any():
        sys.exit("error: there are no samples to write")
    found = [o for o, keep in zip(found, kept, strict=True) if keep]
    x, method = x[kept], models[0].method_name
    scores = [_score(samples, o.truth) for samples, o in zip(x, found, strict=True)]
    _write(options, trained, directory, found, x, method, scores, seconds)
    for observed, score in zip(found, scores, strict=True):
        name = options.observe if observed.image is None else f"image {observed.image}"
        print(f"{name}: {_text(score)}")
    print(
        f"{options.n_samples} samples of each given {options.observe} by {method}, "
        f"{options.solver}, {options.steps} steps; {seconds:.3g} s per sample with "
        f"compilation\nwritten to {directory}: samples.npz, "
        f"samples.{options.picture_format}"
    )


def _draw(
    options: SampleOptions,
    trained: TrainedRun,
    observed: Observed,
    model: eqmdm.AbstractModel,
) -> np.ndarray:
    """The samples of one image, as pixels in the units of the model."""
    condition = given_condition(options, trained)
    if condition is None and trained.condition is not None:
        # That of the image, whose number is known unless it is from a file.
        conditions = trained.dataset.conditions
        assert conditions is not None
        if observed.image is None:
            raise ValueError(
                "`condition` must be given for this run, whose model has one, with an "
                "observation from a file."
            )
        condition = conditions.test[observed.image]
    key = build.purpose_key(options.seed, Purpose.SAMPLES)
    size, parts = min(options.batch_size, options.n_samples), []
    # Batches of equal size, so that only one program is compiled.
    for first in range(0, options.n_samples, size):
        x = eqmdm.sample(
            model,
            trained.dataset.shape,
            key=key,
            n_samples=size,
            first=first,
            dtype=trained.dtype,
            condition=condition,
            **sampling_arguments(options),
        )
        parts.append(to_pixels(basis_of(trained.model), x))
    return np.concatenate(parts)[: options.n_samples]


def _score(samples: np.ndarray, truth: np.ndarray | None) -> dict[str, float] | None:
    """How close the mean of samples is to the truth, and how often they enclose it."""
    if truth is None:
        return None
    square = float(np.mean((samples.mean(axis=0) - truth) ** 2))
    n = len(samples)
    # Between these two of the sorted samples lies a further draw with this probability.
    place = max(1, round((1 - _COVERED) / 2 * (n + 1)))
    ordered = np.sort(samples, axis=0)
    low, high = ordered[place - 1], ordered[n - place]
    return {
        # Pixels have a range of 2.
        "psnr": 10 * np.log10(4 / square),
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "nominal_coverage": max(0.0, (n + 1 - 2 * place) / (n + 1)),
    }


def _text(score: dict[str, float] | None) -> str:
    if score is None:
        return "no image to compare with"
    return (
        f"the mean has a PSNR of {score['psnr']:.2f} dB; intervals of "
        f"{score['nominal_coverage']:.0%} hold {score['coverage']:.0%} of the pixels"
    )


def _write(
    options: SampleOptions,
    trained: TrainedRun,
    directory: Path,
    found: list[Observed],
    x: np.ndarray,
    method: str,
    scores: list[dict[str, float] | None],
    seconds: float,
) -> None:
    for name in PICTURE_FORMATS:
        (directory / f"samples.{name}").unlink(missing_ok=True)
    which = "EMA" if options.ema else "last"
    caption = (
        f"{trained.name}, step {trained.step}: samples of {trained.dataset.name} given "
        f"{options.observe} by {method}, {options.solver}, {options.steps} steps, "
        f"{which} parameters, seed {options.seed}"
    )
    picture = directory / f"samples.{options.picture_format}"
    rows = [_row(o, samples) for o, samples in zip(found, x, strict=True)]
    plots.posteriors(picture, rows, caption)
    settings: dict[str, Any] = {
        "run": trained.name,
        "dataset": trained.dataset.name,
        "step": trained.step,
        **options.identity(),
        "method": method,
        "scores": scores,
        "parameters": trained.parameters,
        "seconds_per_sample": seconds,
        "versions": build.facts(trained.options.seed)["versions"],
    }
    flat = x.reshape(-1, *x.shape[2:])
    decoded = build.decode(trained.options, trained.dataset, flat).reshape(x.shape)
    write(directory / "samples.npz", decoded, np.arange(x.shape[1]), settings)


def _row(observed: Observed, samples: np.ndarray) -> dict[str, np.ndarray]:
    """The images of a row of the picture, from 0 to 1; NaN where nothing is seen."""
    grey = lambda image: (image + 1) / 2
    row = {} if observed.truth is None else {"truth": grey(observed.truth)}
    row["observation"] = grey(observed.shown)
    for i, sample in enumerate(samples[:_MOST_SHOWN]):
        row[f"sample {i + 1}"] = grey(sample)
    row["mean"] = grey(samples.mean(axis=0))
    # In the units of the others: half of the range of a pixel is 1.
    row["std"] = samples.std(axis=0)
    return row
