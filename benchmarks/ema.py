"""What does the bound gain from averages of another length, and what do they cost?

    python benchmarks/ema.py --output FILE --table FILE

Trains the digits demo with `--ema-profiles` for several seeds, and evaluates the bound
of the test examples with averages of many lengths, the average with the fixed decay of
training, and the last parameters. All are evaluated with the same draws, so that their
differences have small standard errors. The cost of the two running averages is that of
a training step with them, relative to one without, the two alternating.
"""

import dataclasses
import math
import tempfile
from pathlib import Path

import _common as common
import jax
import jax.random as jr
import numpy as np
import tyro

import eqmdm
from eqmdm._training.posthoc import profile_error
from eqmdm.cli import build
from eqmdm.cli.parsing import parse
from eqmdm.cli.train import program as train_program
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import load_trained


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Measures the bound against the length of the average, and the cost of a step."""

    steps: int = 2000
    """Steps of every training run."""
    snapshots: int = 20
    """Snapshots of each run."""
    seeds: int = 3
    """Training runs."""
    lengths: tuple[float, ...] = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
    """Lengths of the average, relative to the training."""
    draws: int = 16
    """Draws of time and noise for each test example."""
    repeats: int = 200
    """Steps with and without averages for their cost."""
    table: Path | None = None
    """A Markdown file for the table."""
    quick: bool = False
    """Run with few steps, one seed and few repeats."""


def train(settings: Settings, seed: int, run_dir: Path) -> None:
    every = settings.steps // settings.snapshots
    arguments = f"--dataset digits --seed {seed} --steps {settings.steps} "
    arguments += f"--log-every {every} --validate-every {settings.steps} "
    arguments += f"--checkpoint-every {every} --test-examples 0 --n-samples 0 "
    arguments += "--ema-profiles --run-dir"
    train_program.run(parse(TrainOptions, [*arguments.split(), str(run_dir)]))


def bounds(settings: Settings, run_dir: Path) -> dict[str, np.ndarray]:
    """The loss of each test example in bits per dimension, by the average."""
    trained = load_trained(run_dir, data_dir=None)
    objective = build.build_objective(trained.options, trained.dataset)
    models = {
        "last parameters": eqmdm.load_run(run_dir, ema=False),
        f"decay {trained.options.ema_decay:g}": trained.model,
    }
    for length in settings.lengths:
        models[f"{length:g}"] = eqmdm.posthoc_ema(run_dir, length)
    losses = {}
    for name, model in models.items():
        evaluation = eqmdm.evaluate(
            model,
            trained.dataset.test,
            objective,
            key=jr.key(0),
            n_draws=settings.draws,
            batch_size=64,
        )
        losses[name] = np.asarray(evaluation.loss, float)
    return losses


def step_cost(settings: Settings) -> dict[str, float]:
    """The time of a step with the averages, relative to one without: the median and
    the quartiles over pairs of neighbouring steps."""
    options = parse(TrainOptions, ["--dataset=digits"]).resolved()
    dataset = build.load_data(options)
    facts = build.DataFacts.of(options, dataset)
    diffusion = build.build_diffusion(options, jr.key(0))
    model = build.build_model(options, facts, diffusion, jr.key(1))
    objective = build.build_objective(options, dataset)
    optimiser = eqmdm.make_optimiser(options.learning_rate)
    data = eqmdm.TrainingSet(dataset.train, objective)
    states = {
        profiles: eqmdm.TrainState.create(
            model, optimiser, key=jr.key(2), ema_profiles=profiles
        )
        for profiles in (False, True)
    }

    def step(profiles: bool) -> jax.Array:
        states[profiles], metrics = eqmdm.train_step(
            states[profiles], data, objective, optimiser, batch_size=options.batch_size
        )
        return metrics["loss"]

    calls = {profiles: lambda p=profiles: step(p) for profiles in states}
    common.interleaved(calls, 5)
    seconds = common.interleaved(calls, settings.repeats)
    ratios = np.array(seconds[True]) / np.array(seconds[False])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "ratio": float(middle),
        "lower_quartile": float(low),
        "upper_quartile": float(high),
        # The medians of either, which a slow spell affects equally.
        "ratio_of_medians": float(np.median(seconds[True]) / np.median(seconds[False])),
        "seconds_without": float(np.median(seconds[False])),
    }


def summarised(losses: list[dict[str, np.ndarray]]) -> list[dict[str, object]]:
    """Means over seeds and examples, and their differences from the fixed decay."""
    stacked = {name: np.stack([run[name] for run in losses]) for name in losses[0]}
    reference = next(name for name in stacked if name.startswith("decay"))
    rows = []
    for name, values in stacked.items():
        mean, error = _mean(values)
        difference, spread = _mean(values - stacked[reference])
        rows.append(
            {
                "average": name,
                "bits_per_dim": mean,
                "standard_error": error,
                "less_fixed_decay": difference,
                "standard_error_of_difference": spread,
                "less_fixed_decay_by_seed": (values - stacked[reference])
                .mean(axis=1)
                .tolist(),
            }
        )
    return rows


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean, and its standard error over examples, each averaged over the seeds."""
    of_examples = values.mean(axis=0)
    error = of_examples.std(ddof=1) / math.sqrt(len(of_examples))
    return float(of_examples.mean()), float(error)


def as_table(settings: Settings, facts: dict, rows: list, cost: dict, n: int) -> str:
    versions = facts["versions"]
    lines = [
        "# The bound of the digits demo against the length of the average",
        "",
        f"{settings.seeds} runs of the demo's model (digits, CLD with a denoiser, "
        f"{settings.steps:,} steps, seeds 0 to {settings.seeds - 1}) with "
        f"{settings.snapshots} snapshots each; {n} test examples, {settings.draws} "
        "draws each, the same for all. Bits per dimension, lower is better; ± standard "
        "errors over the examples, each averaged over the runs. float32 on "
        f"{facts['device']['kind']}, Python {versions['python']}, JAX "
        f"{versions['jax']}, Equinox {versions['equinox']}.",
        "",
        "| average | bound | less the fixed decay | by seed | error of the weighting |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        error = row["profile_error"]
        by_seed = " ".join(f"{v:+.4f}" for v in row["less_fixed_decay_by_seed"])
        lines.append(
            f"| {row['average']} | {row['bits_per_dim']:.4f} ± "
            f"{row['standard_error']:.4f} | {row['less_fixed_decay']:+.4f} ± "
            f"{row['standard_error_of_difference']:.4f} | {by_seed} | "
            f"{'' if error is None else f'{error:.1%}'} |"
        )
    lines += [
        "",
        "Numbers are lengths: standard deviations of the weighting of the steps, as "
        "fractions of the training.",
        "",
        f"A step with the two running averages takes {cost['ratio']:.3f} times one "
        f"without, quartiles {cost['lower_quartile']:.3f} to "
        f"{cost['upper_quartile']:.3f} over {settings.repeats} pairs of neighbouring "
        f"steps of {1e3 * cost['seconds_without']:.0f} ms; the ratio of the medians is "
        f"{cost['ratio_of_medians']:.3f}.",
        "",
        "By `python benchmarks/ema.py --output FILE --table FILE`.",
    ]
    return "\n".join(lines) + "\n"


def main(settings: Settings) -> None:
    if settings.quick:
        few = {"steps": 100, "snapshots": 10, "seeds": 1, "draws": 2, "repeats": 10}
        settings = dataclasses.replace(settings, **few)
    facts = common.facts()
    common.show(facts)
    cost = step_cost(settings)
    print(cost, flush=True)
    losses = []
    for seed in range(settings.seeds):
        with tempfile.TemporaryDirectory() as directory:
            run_dir = Path(directory) / "run"
            train(settings, seed, run_dir)
            losses.append(bounds(settings, run_dir))
    rows = summarised(losses)
    every = settings.steps // settings.snapshots
    steps = range(every, settings.steps + 1, every)
    lengths = {f"{length:g}": length for length in settings.lengths}
    for row in rows:
        length = lengths.get(str(row["average"]))
        error = None if length is None else profile_error(list(steps), length)
        row["profile_error"] = error
    n_examples = len(next(iter(losses[0].values())))
    table = as_table(settings, facts, rows, cost, n_examples)
    print(table)
    if settings.table is not None:
        settings.table.write_text(table)
    common.write(
        settings, facts, results=rows, step_cost=cost, test_examples=n_examples
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
