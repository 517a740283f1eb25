"""Does every diffusion learn, with both scores? The bound before and after a few steps.

    python benchmarks/first_steps.py --dataset mnist --data-dir DIRECTORY

For each diffusion and score of `scripts/train.py`, with its defaults and normal
preconditioning, prints the itemised bound on the same held-out examples with the same
draws before and after `--steps` steps, and the difference in standard errors over the
examples.
"""

import dataclasses
import time

import _common as common
import jax
import jax.random as jr
import numpy as np
import tyro

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.train.options import TrainOptions


_CASES = ("vpsde", "cld", "alda", "malda", "learned:2", "learned:3")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Trains every diffusion with both scores for a few steps."""

    dataset: str = "digits"
    """A data set of `scripts/train.py`."""
    data_dir: str | None = None
    """The directory of its files, if not on the Hub."""
    cases: tuple[str, ...] = _CASES
    """Diffusions; a learned one as name:number of variables."""
    steps: int = 100
    """Optimiser steps of each run."""
    batch_size: int = 32
    """Examples per step."""
    examples: int = 128
    """Held-out examples, from the validation split."""
    draws: int = 2
    """Draws of time and noise for each held-out example."""
    seed: int = 0
    """The seed of every random draw."""
    quick: bool = False
    """Run only two of the diffusions and ten steps."""


def run(settings: Settings, diffusion: str, n_vars: int | None, score: str) -> dict:
    options = TrainOptions(
        dataset=settings.dataset,
        data_dir=settings.data_dir,
        diffusion=diffusion,
        n_vars=n_vars,
        score=score,
        preconditioning="normal",
        warmup=20,
    ).resolved()
    dataset = eqmdm.data.load(settings.dataset, data_dir=settings.data_dir)
    key = jr.key(settings.seed)
    process = build.build_diffusion(options, jr.fold_in(key, 0))
    data = build.DataFacts.of(options, dataset)
    network = build.build_model(options, data, process, jr.fold_in(key, 1)).network
    objective = build.build_objective(options, dataset)
    optimiser = eqmdm.make_optimiser(options.learning_rate, warmup=options.warmup)
    kind = eqmdm.DenoiserModel if score == "denoiser" else eqmdm.NoiseModel
    model = kind(network, process)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.fold_in(key, 2))
    data = eqmdm.TrainingSet(dataset.train, objective)

    def held_out(model) -> np.ndarray:
        evaluation = eqmdm.evaluate(
            model,
            dataset.validation[: settings.examples],
            objective,
            key=jr.fold_in(key, 3),
            n_draws=settings.draws,
            batch_size=settings.batch_size,
        )
        return evaluation.loss

    before = held_out(state.model)
    start = time.perf_counter()
    for _ in range(settings.steps):
        state, metrics = eqmdm.train_step(
            state, data, objective, optimiser, batch_size=settings.batch_size
        )
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - start
    after = held_out(state.model)
    gain = before - after
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return {
        "diffusion": diffusion if n_vars is None else f"{diffusion}, K = {n_vars}",
        "score": score,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": float(gain.mean()),
        "standard_error": float(error),
        "gain_in_standard_errors": float(gain.mean() / error),
        "seconds_with_compilation": seconds,
    }


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings, cases=_CASES[:2], steps=10, examples=32
        )
    results = []
    print(f"{'diffusion':16} {'score':9} {'before':>8} {'after':>8} {'gain/se':>8}")
    for case in settings.cases:
        diffusion, _, n_vars = case.partition(":")
        for score in ("denoiser", "free"):
            row = run(settings, diffusion, int(n_vars) if n_vars else None, score)
            results.append(row)
            print(
                f"{row['diffusion']:16} {row['score']:9} {row['before']:8.3f} "
                f"{row['after']:8.3f} {row['gain_in_standard_errors']:8.1f}",
                flush=True,
            )
            common.write(settings, common.facts(), results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
