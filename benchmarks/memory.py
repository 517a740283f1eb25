"""How much memory does a training step take, with and without rematerialisation?

    python benchmarks/memory.py

Compiles `eqmdm.train_step` for the CIFAR-10 U-Net on the present device, without
running it, and prints the peak memory that XLA plans (arguments, temporaries and
results, less results that reuse arguments) and the number of operations that it counts.
On a CPU this is a plan for a CPU, where convolutions need other scratch space than on a
GPU.

From JAX's trace of the loss, it also prints a quantity that does not depend on the
device: how much the forward pass keeps for the gradient, besides parameters and batch.
XLA may keep less by recomputing what is cheap, and a step also holds its gradients and
scratch space.

With `--run`, on a device that counts its memory, such as a GPU, it also prints the peak
memory that was in use.
"""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
from typing import Any, Literal

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import tyro
from jax.extend import core

import eqmdm
from eqmdm import nn
from eqmdm._training.objective import batch_loss


_N_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Plans the memory of a training step, and measures it on a GPU."""

    batch_sizes: tuple[int, ...] = (128,)
    """Batch sizes, in examples per step."""
    compute_dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """The dtypes that the U-Net computes in."""
    dataset_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels of the images."""
    n_examples: int = 50_000
    """Examples in the training split, which is held on the device."""
    width: int = 128
    """Channels of the U-Net's first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """The width of each level, in multiples of the first."""
    n_blocks: int = 2
    """Residual blocks per level."""
    run: bool = False
    """Also run steps, and ask the device for its peak memory use."""
    seed: int = 0
    """The seed of parameters and draws."""
    quick: bool = False
    """Use a tiny network on 8x8 images, in batches of eight."""


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def make_state(settings: Settings, compute_dtype: str, remat: bool, optimiser: Any):
    network = nn.UNet(
        settings.dataset_shape,
        1,
        width=settings.width,
        multipliers=settings.multipliers,
        n_blocks=settings.n_blocks,
        compute_dtype=None if compute_dtype == "float32" else jnp.bfloat16,
        remat=remat,
        key=jr.key(settings.seed),
    )
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=0.5, log_snr_range=(-10.0, 14.0)
    )
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    return eqmdm.TrainState.create(model, optimiser, key=jr.key(settings.seed))


def measure(settings: Settings, batch_size: int, compute_dtype: str, remat: bool):
    """A row of the results, and the versions and device."""
    optimiser = eqmdm.make_optimiser(warmup=5000)
    objective = eqmdm.Objective(
        time_sampler=eqmdm.LogSNRTimeSampler(),
        levels=eqmdm.GreyLevels(256),
        flip=True,
    )
    make = lambda: make_state(settings, compute_dtype, remat, optimiser)
    step = lambda state, data: eqmdm.train_step(
        state, data, objective, optimiser, batch_size=batch_size
    )
    state = eqx.filter_eval_shape(make)
    data = jax.ShapeDtypeStruct(
        (settings.n_examples, *settings.dataset_shape), jnp.uint8
    )
    row = {
        "batch_size": batch_size,
        "compute_dtype": compute_dtype,
        "remat": remat,
        "n_parameters": sum(
            leaf.size
            for leaf in jax.tree.leaves(state.model.network)
            if _is_shape(leaf)
        ),
        "kept_bytes": kept(state.model, objective, batch_size, data),
        **plan(step, state, data),
    }
    if settings.run:
        row |= held(step, make, data)
    facts = common.facts(settings.seed)
    return row, facts


def plan(step: Any, state: Any, data: Any) -> dict[str, float]:
    """The memory that XLA plans for one step, from the shapes alone."""
    arrays, rest = eqx.partition(state, _is_shape)

    def on_arrays(arrays, data):
        state, metrics = step(eqx.combine(arrays, rest), data)
        return eqx.filter(state, eqx.is_array), metrics

    compiled = jax.jit(on_arrays, donate_argnums=0).lower(arrays, data).compile()
    sizes: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    parts = {
        name: getattr(sizes, f"{name}_size_in_bytes")
        for name in ("argument", "temp", "output", "alias")
    }
    planned = sum(parts.values()) - 2 * parts["alias"]
    parts = {f"{name}_bytes": size for name, size in parts.items()}
    return {"planned_bytes": planned} | parts | {"operations": cost["flops"]}


def kept(model: Any, objective: Any, batch_size: int, data: Any) -> int:
    """The bytes that the forward pass of the loss keeps for its gradient, in JAX's
    trace, without parameters, parts of the batch, or duplicates."""
    arrays, rest = eqx.partition(model, _is_shape)
    examples = jax.ShapeDtypeStruct((batch_size, *data.shape[1:]), data.dtype)
    keys = jax.eval_shape(lambda: jr.split(jr.key(0), batch_size))
    n_reconstruction = max(1, batch_size // 16)
    u = jax.ShapeDtypeStruct((batch_size - n_reconstruction,), jnp.float32)

    def residuals(arrays, *batch):
        def loss_fn(arrays):
            loss, _ = batch_loss(
                eqx.combine(arrays, rest),
                objective,
                *batch,
                n_reconstruction=n_reconstruction,
                check=False,
            )
            return loss

        _, transpose = jax.vjp(loss_fn, arrays)
        return jax.tree.leaves(transpose)

    jaxpr = jax.make_jaxpr(residuals)(arrays, examples, keys, u).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    made = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)} - given
    return sum(v.aval.size * v.aval.dtype.itemsize for v in made)


def held(step: Any, make: Any, data: Any) -> dict[str, Any]:
    """The peak memory that the device used while it ran steps."""
    try:
        state, examples = make(), jnp.zeros(data.shape, data.dtype)
        for _ in range(_N_STEPS):
            state, metrics = step(state, examples)
        jax.block_until_ready((state.step, metrics))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"held_bytes": None, "outcome": "out of memory"}
    stats = jax.devices()[0].memory_stats()
    if not stats:
        return {"held_bytes": None, "outcome": "this device does not count its memory"}
    return {"held_bytes": stats["peak_bytes_in_use"], "outcome": "ran"}


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(
            settings,
            batch_sizes=(8,),
            dataset_shape=(8, 8, 1),
            n_examples=64,
            width=8,
            multipliers=(1, 2),
            n_blocks=1,
        )
    results, facts = [], {}
    spawn = multiprocessing.get_context("spawn")
    choices = (settings.batch_sizes, settings.compute_dtypes, (False, True))
    print(
        f"{'batch':>5} {'computes in':11} {'remat':5} {'kept/MiB':>9} "
        f"{'planned/MiB':>11} {'temporary/MiB':>13} {'held/MiB':>9} {'operations':>10}"
    )
    for choice in itertools.product(*choices):
        # Each runs in a new process, since a device's peak is over its whole process.
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            row, facts = pool.submit(measure, settings, *choice).result()
        results.append(row)
        mib = lambda size: "" if size is None else f"{size / 2**20:,.1f}"
        print(
            f"{row['batch_size']:5} {row['compute_dtype']:11} {row['remat']!s:5} "
            f"{mib(row['kept_bytes']):>9} {mib(row['planned_bytes']):>11} "
            f"{mib(row['temp_bytes']):>13} "
            f"{mib(row.get('held_bytes')):>9} {row['operations']:10.3g} "
            f"{row.get('outcome', '')}",
            flush=True,
        )
    for plain, remat in zip(results[::2], results[1::2], strict=True):
        ratio = {
            name: remat[name] / plain[name]
            for name in ("kept_bytes", "planned_bytes", "temp_bytes", "operations")
        }
        print(
            f"batch {plain['batch_size']}, {plain['compute_dtype']}: with remat "
            f"{ratio['kept_bytes']:.2f} of what is kept for the gradient, "
            f"{ratio['planned_bytes']:.2f} of the memory planned, "
            f"{ratio['temp_bytes']:.2f} of its temporaries, "
            f"{ratio['operations']:.2f} of the operations"
        )
    common.show(facts)
    common.write(settings, facts, results=results)


if __name__ == "__main__":
    main(tyro.cli(Settings))
