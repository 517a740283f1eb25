"""What a run has come to, with the averaged parameters: curves, samples and a bound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import eqmdm

from .. import build, plots
from ..build import Purpose
from ..processes import is_first
from .options import ResolvedTrainOptions
from .records import Records, report


def stages(
    directory: Path,
    options: ResolvedTrainOptions,
    dataset: Any,
    objective: Any,
    state: eqmdm.TrainState,
    records: Records,
    unit: str,
) -> dict[str, Callable[[], None]]:
    """What is left to do after the last step, by name and in order."""
    model = state.ema_model
    key = lambda purpose: build.purpose_key(options.seed, purpose)

    def curves() -> None:
        if not is_first():
            return
        plots.training_curve(directory / "training_curve.png", records.read(), unit)
        if options.diffusion == "learned":
            plots.diffusion_path(directory / "diffusion_path.png", records.read())

    def samples() -> None:
        print(f"drawing {options.n_samples} samples ...", flush=True)
        x = eqmdm.sample(
            eqmdm.make_score(*model),
            model[1],
            dataset.shape,
            key=key(Purpose.SAMPLES),
            n_samples=options.n_samples,
            n_steps=options.sample_steps,
        )
        x = eqmdm.on_host(x)
        if objective.grey_levels is not None:
            x = objective.grey_levels.decode(x)
        if is_first():
            x = np.asarray(x)
            plots.samples(directory / "samples.png", x, dataset.n_levels)

    def bound() -> None:
        test = dataset.test[: options.test_examples]
        print(f"evaluating {len(test)} test examples ...", flush=True)
        summary = eqmdm.evaluate(
            model,
            test,
            objective,
            key=key(Purpose.BOUND),
            n_draws=options.test_draws,
            batch_size=options.batch_size,
        ).summary()
        how = {"step": int(state.step), "examples": len(test)}
        how["draws"] = options.test_draws
        if is_first():
            report(directory / "test_bound.json", summary, unit, how)

    found = {"the curves": curves}
    if options.n_samples:
        found["the samples"] = samples
    if options.test_examples:
        found["the test bound"] = bound
    return found
