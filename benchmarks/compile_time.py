"""How long does the first training step take to compile, beyond its network?

    python benchmarks/compile_time.py

For the default network of each data set and both scores, times the first call of
`eqmdm.train_step`, including tracing, and of the bare step of `training_step.py`, in
turn within one run, with nothing compiled before and no cache on disk. The execution
time is included, since a user waits for both. Prints medians over the repeats; the
ratio is the median of the ratios of neighbouring calls.
"""

import dataclasses
from typing import Any, Literal

import _common as common
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _training_parts import make_bare_step, make_full_step

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.train.options import TrainOptions


_SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times first calls of training steps against those of bare network steps."""

    datasets: tuple[Literal["digits", "mnist", "cifar10"], ...] = ("digits",)
    """Data sets whose shapes and default options are used; the images are random."""
    diffusions: tuple[str, ...] = ("vpsde", "cld", "malda", "learned2", "learned3")
    """Diffusions of `scripts/train.py`; `learned` with its number of variables."""
    scores: tuple[Literal["denoiser", "free"], ...] = ("denoiser", "free")
    """What the network predicts."""
    repeats: int = 3
    """Timed pairs per case, each compiled from scratch."""
    seed: int = 0
    """The seed of data, parameters and draws."""
    quick: bool = False
    """One diffusion with a small network, once."""


def run(settings: Settings, name: str, diffusion_name: str, score: str) -> dict:
    """The row of one case."""
    learned = diffusion_name.startswith("learned")
    options = TrainOptions(
        dataset=name,
        diffusion="learned" if learned else diffusion_name,
        n_vars=int(diffusion_name.removeprefix("learned")) if learned else None,
        score=score,
        seed=settings.seed,
        **({"width": 8, "multipliers": (1,)} if settings.quick else {}),
    ).resolved()
    generator = np.random.default_rng(settings.seed)
    splits = (
        generator.integers(0, 256, (n, *_SHAPES[name]), dtype=np.uint8)
        for n in (options.batch_size, 1, 1)
    )
    dataset = eqmdm.data.Dataset("random", *splits, n_levels=256)
    n_inner = eqmdm.steps_per_call()
    seconds = {"bare": [], "full": []}
    diffusion: Any = None
    for _ in range(settings.repeats):
        key_diffusion, key_network = jr.split(jr.key(settings.seed))
        diffusion = build.build_diffusion(options, key_diffusion)
        data = build.DataFacts.of(options, dataset)
        network = build.build_model(options, data, diffusion, key_network).network
        bare = network.network if score == "denoiser" else network
        shape = 1 if score == "denoiser" else diffusion.n_vars, *dataset.shape
        kind = eqmdm.DenoiserModel if score == "denoiser" else eqmdm.NoiseModel
        calls = {
            "bare": make_bare_step(bare, shape, options, n_inner),
            "full": make_full_step(kind(network, diffusion), dataset, options, n_inner),
        }
        for part, call in calls.items():
            jax.clear_caches()
            # Initialise the device first, since that is no part of the step.
            jnp.zeros(()).block_until_ready()
            seconds[part].append(common.timed(call))
    ratios = np.divide(seconds["full"], seconds["bare"])
    return {
        "dataset": name,
        "diffusion": diffusion_name,
        "n_vars": diffusion.n_vars,
        "score": score,
        "bare_seconds": float(np.median(seconds["bare"])),
        "full_seconds": float(np.median(seconds["full"])),
        "full_over_bare": float(np.median(ratios)),
        "full_over_bare_range": [float(ratios.min()), float(ratios.max())],
        "every_second": seconds,
    }


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, diffusions=("cld",), repeats=1)
    facts = common.facts(settings.seed)
    common.show(facts)
    print(
        f"{'dataset':9}{'diffusion':10}{'K':>2} {'score':9}{'bare/s':>8}{'full/s':>8}"
        f"{'full/bare':>10}  range"
    )
    results = []
    for name in settings.datasets:
        for diffusion in settings.diffusions:
            for score in settings.scores:
                row = run(settings, name, diffusion, score)
                results.append(row)
                low, high = row["full_over_bare_range"]
                print(
                    f"{name:9}{diffusion:10}{row['n_vars']:2} {score:9}"
                    f"{row['bare_seconds']:8.2f}{row['full_seconds']:8.2f}"
                    f"{row['full_over_bare']:10.2f}  {low:.2f} to {high:.2f}",
                    flush=True,
                )
                common.write(settings, facts, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
