"""What a run has come to, with the averaged parameters: curves, samples and a bound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _build
import _plots
import _records
import numpy as np
from _build import Purpose
from _options import ResolvedOptions
from _processes import is_first

import eqmdm


def stages(
    directory: Path,
    options: ResolvedOptions,
    dataset: Any,
    objective: Any,
    state: eqmdm.TrainState,
    records: _records.Records,
    unit: str,
) -> dict[str, Callable[[], None]]:
    """What is left to do after the last step, by name and in order."""
    model = state.ema_model
    key = lambda purpose: _build.purpose_key(options.seed, purpose)

    def curves() -> None:
        if not is_first():
            return
        _plots.training_curve(directory / "training_curve.png", records.read(), unit)
        if options.diffusion == "learned":
            _plots.diffusion_path(directory / "diffusion_path.png", records.read())

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
            _plots.samples(directory / "samples.png", x, dataset.n_levels)

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
            _records.report(directory / "test_bound.json", summary, unit, how)

    found = {"the curves": curves}
    if options.n_samples:
        found["the samples"] = samples
    if options.test_examples:
        found["the test bound"] = bound
    return found
