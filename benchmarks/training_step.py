"""What does a training step cost beyond its network, and in which parts?

    python benchmarks/training_step.py --batch-size 64

For one, two and three variables and both scores, times two steps on random images,
interleaved in one run: the bare step (forward and backward pass of a mean-square loss
on the network's output, with the same clipping, Adam and averaging) and
`eqmdm.train_step`. Also times its parts, each compiled alone, on a fixed batch:

- `data`: drawing the batch: its order, examples, keys and dequantisation,
- `bound`: the loss, forward and backward, with a network of one parameter; it includes
- `kernels`: the kernels at as many times as there are examples, and their derivatives
    if the diffusion is learned (`--diffusions learned`), and
- `score`: the computation around the network, from states to the errors of the score,
    forward and backward,
- `optimiser`: clipping, Adam and averaging of the network's parameters, which are also
    part of the bare step,
- `rest`: the whole step with a network of one parameter: data and bound in one.

The parts add up neither exactly nor to the difference of the two steps: XLA fuses what
is compiled together, and a separate part also dispatches a call, reads its inputs and
writes its results.

Prints medians over the repeats; the ratio is the median of the ratios of neighbours.
Utilisation is the rate of the network's operations (three times those of its forward
pass) in a full step, over the rate of a large matrix product in the same precision.
"""

import dataclasses
from typing import Any, Literal

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from _training_parts import (
    Scale,
    make_bare_step,
    make_full_step,
    make_optimiser_step,
    make_parts,
)

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.train.options import TrainOptions


_N_EXAMPLES = 1024
_PARTS = ("data", "bound", "kernels", "score", "optimiser", "rest")


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times training steps against bare network steps."""

    batch_size: int = 64
    """Examples per step."""
    dataset_shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of the images."""
    width: int = 32
    """Channels of the U-Net's first level."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """The width of each level, in multiples of the first."""
    n_blocks: int = 2
    """Residual blocks per level."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype that the U-Net computes in."""
    diffusions: tuple[str, ...] = ("vpsde", "cld", "malda")
    """Diffusions of `scripts/train.py`, by default of one, two and three variables."""
    scores: tuple[str, ...] = ("denoiser", "free")
    """What the network predicts."""
    steps_per_call: int | None = None
    """Steps per call, by default as in `scripts/train.py`."""
    repeats: int = 15
    """Timed calls of each step and part, after one that compiles."""
    seed: int = 0
    """The seed of data, parameters and draws."""
    quick: bool = False
    """Use a tiny network on 8x8 images, and two repeats."""


def network_flops(network: Any, shape: tuple[int, ...]) -> float:
    """The operations of the forward pass of one example, as counted by XLA."""
    t, y = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct(shape, "float32")
    arrays, static = eqx.partition(network, eqx.is_array)
    forward = lambda arrays, t, y: eqx.combine(arrays, static)(t, y)
    return jax.jit(forward).lower(arrays, t, y).cost_analysis()["flops"]


def matmul_flops_per_second(dtype: str, side: int) -> float:
    """The rate that the device reaches in a product of square matrices."""
    a = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)
    common.timed(lambda: product(a, a))
    return 2 * side**3 / min(common.timed(lambda: product(a, a)) for _ in range(9))


def run(
    settings: Settings, name: str, score: str, dataset: Any, matmul_rate: float
) -> dict:
    options = TrainOptions(
        dataset="mnist",
        diffusion=name,
        score=score,
        batch_size=settings.batch_size,
        width=settings.width,
        multipliers=settings.multipliers,
        n_blocks=settings.n_blocks,
        preconditioning="normal",
        compute_dtype=settings.compute_dtype,
        seed=settings.seed,
    ).resolved()
    key_diffusion, key_network = jr.split(jr.key(settings.seed))
    diffusion = build.build_diffusion(options, key_diffusion)
    data = build.DataFacts.of(options, dataset)
    network = build.build_model(options, data, diffusion, key_network).network
    bare = network.network if score == "denoiser" else network
    n_inner = settings.steps_per_call or eqmdm.steps_per_call()
    shape = 1 if score == "denoiser" else diffusion.n_vars, *dataset.shape
    scale = Scale(jnp.ones((), jnp.float32))
    kind = eqmdm.NoiseModel
    if score == "denoiser":
        kind = eqmdm.DenoiserModel
        scale = eqx.tree_at(lambda denoiser: denoiser.network, network, scale)
    calls = {
        "bare": make_bare_step(bare, shape, options, n_inner),
        "full": make_full_step(kind(network, diffusion), dataset, options, n_inner),
        "rest": make_full_step(kind(scale, diffusion), dataset, options, n_inner),
        "optimiser": make_optimiser_step(bare, options, n_inner),
        **make_parts(kind(scale, diffusion), dataset, options, n_inner),
    }
    flops = 3 * settings.batch_size * network_flops(bare, shape)
    compilation = {part: common.timed(call) for part, call in calls.items()}
    # It has been called before, for the batch of the other parts.
    compilation.pop("data")
    times = common.interleaved(calls, settings.repeats)
    seconds = {part: np.divide(of, n_inner).tolist() for part, of in times.items()}
    median = {part: float(np.median(values)) for part, values in seconds.items()}
    ratios = np.divide(seconds["full"], seconds["bare"])
    return {
        "diffusion": name,
        "n_vars": diffusion.n_vars,
        "score": score,
        "n_parameters": sum(
            x.size for x in jax.tree.leaves(eqx.filter(bare, eqx.is_inexact_array))
        ),
        "steps_per_call": n_inner,
        **{f"{part}_seconds": value for part, value in median.items()},
        "full_over_bare": float(np.median(ratios)),
        "full_over_bare_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
        "shares": {part: median[part] / median["full"] for part in _PARTS},
        "network_flops": flops,
        "utilisation": flops / median["full"] / matmul_rate,
        "steps_per_second": 1 / median["full"],
        "first_call_seconds": compilation,
        "every_second": seconds,
    }


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings,
            batch_size=8,
            dataset_shape=(8, 8, 1),
            multipliers=(1,),
            n_blocks=1,
            diffusions=("vpsde",),
            repeats=2,
        )
    generator = np.random.default_rng(settings.seed)
    splits = (
        generator.integers(0, 256, (n, *settings.dataset_shape), dtype=np.uint8)
        for n in (_N_EXAMPLES, 1, 1)
    )
    dataset = eqmdm.data.Dataset("random", *splits, n_levels=256)
    facts = common.facts(settings.seed)
    common.show(facts)
    print(
        f"batch {settings.batch_size} of {settings.dataset_shape}, "
        f"{settings.compute_dtype}"
    )
    side = 1024 if settings.quick else 2048 if jax.default_backend() == "cpu" else 8192
    matmul_rate = matmul_flops_per_second(settings.compute_dtype, side)
    print(f"matrix product: {matmul_rate / 1e12:.3g} TFLOP/s")
    print(
        f"{'diffusion':10} {'K':>2} {'score':9} {'parameters':>10} {'bare/ms':>9} "
        f"{'full/ms':>9} {'full/bare':>9} "
        + " ".join(f"{part:>9}" for part in _PARTS)
        + f" {'utilisation':>11}"
    )
    results = []
    for name in settings.diffusions:
        for score in settings.scores:
            row = run(settings, name, score, dataset, matmul_rate)
            shares = " ".join(f"{row['shares'][part]:9.2%}" for part in _PARTS)
            results.append(row)
            print(
                f"{name:10} {row['n_vars']:2} {score:9} {row['n_parameters']:10,} "
                f"{1e3 * row['bare_seconds']:9.2f} {1e3 * row['full_seconds']:9.2f} "
                f"{row['full_over_bare']:9.3f} {shares} {row['utilisation']:11.1%}",
                flush=True,
            )
            common.write(
                settings,
                facts,
                results=results,
                matmul_flops_per_second=matmul_rate,
            )


if __name__ == "__main__":
    main(tyro.cli(Settings))
