"""What would a step cost on many devices, and when does each sharding pay off?

    python benchmarks/scaling.py --write

An estimate without timing: counts the parameters and operations of the networks, from
which the traffic of the two shardings follows, and takes rates that are quoted from
vendors or assumed. Also counts the actual traffic of the compiled `eqmdm.train_step` on
eight virtual CPU devices, or on the devices of the platform in `JAX_PLATFORMS`.
`--write` writes the tables to SCALING.md, between its marks.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )

import _common as common
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import eqmdm
from eqmdm._training.step import lower_step


DOCUMENT = Path(__file__).parent / "SCALING.md"
COUNTS = Path(__file__).parent / "results" / "scaling_counts.json"
_MARK = "<!-- {} -->"

# Quoted from NVIDIA for an H200: dense bfloat16, and NVLink in one direction.
_MATRIX_RATE = 989e12
_NVLINK = 450e9
# Assumed: 400 Gbit/s of network per device, and the share of the matrix rate.
_NETWORK = 50e9
_UTILISATION = 0.4

_PER_NODE = 8
_DEVICES = (1, 8, 64, 512)
_BATCHES = {"16 images a device": lambda n: 16, "1,024 in all": lambda n: 1024 / n}
_SHAPE = (32, 32, 3)
_NETWORKS = {"Ho et al.'s": 128, "of 0.5 billion": 480}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Counts the quantities that scaling depends on."""

    write: bool = False
    """Count again, and write SCALING.md and its counts."""
    output: Path | None = None
    """Count again, and write the counts to this JSON file."""
    quick: bool = False
    """Only print the tables, from the existing counts."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """The parameters of a network, and its training operations per image."""

    n_parameters: int
    training_flops: float

    @property
    def gradient_bytes(self) -> int:
        """The bytes of the gradient in float32, the dtype of all parameters."""
        return 4 * self.n_parameters


def count(width: int) -> Counts:
    """The counts of the U-Net of a width; training takes three forward passes."""
    make = lambda: eqmdm.nn.UNet(
        _SHAPE, 1, width=width, multipliers=(1, 2, 2, 2), key=jr.key(0)
    )
    network = eqx.filter_eval_shape(make)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    arrays, static = eqx.partition(network, is_shape)
    forward = lambda arrays, t, y: eqx.combine(arrays, static)(t, y)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    y = jax.ShapeDtypeStruct((1, *_SHAPE), jnp.float32)
    cost: Any = jax.jit(forward).lower(arrays, t, y).cost_analysis()
    n_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(arrays))
    return Counts(n_parameters, 3 * cost["flops"])


def traffic(n_bytes: float, n_devices: int, passes: int) -> tuple[float, float]:
    """The bytes that each device sends in `passes` over `n_bytes` of data.

    A pass is an all-gather or a reduce-scatter; an all-reduce is two. Within a node the
    fraction 1 - 1 / `_PER_NODE` goes over NVLink. Between nodes each device moves its
    own part over the network, less a fraction of 1 / (number of nodes).

    **Returns:** bytes over NVLink and over the network.
    """
    per_node = min(n_devices, _PER_NODE)
    n_nodes = n_devices // per_node
    nvlink = passes * n_bytes * (per_node - 1) / per_node
    network = passes * n_bytes / per_node * (n_nodes - 1) / n_nodes
    return nvlink, network


def rows(counts: Counts) -> Iterator[dict[str, Any]]:
    """The cost of a step for each number of devices, batch and sharding."""
    for n_devices in _DEVICES:
        for batch, per_device in _BATCHES.items():
            images = per_device(n_devices)
            compute = counts.training_flops * images / (_UTILISATION * _MATRIX_RATE)
            for sharding, passes in (("whole", 2), ("in shares", 3)):
                nvlink, network = traffic(counts.gradient_bytes, n_devices, passes)
                moved = nvlink / _NVLINK + network / _NETWORK
                share = n_devices if sharding == "in shares" else 1
                yield {
                    "devices": n_devices,
                    "batch": batch,
                    "sharding": sharding,
                    "images": images,
                    "compute": compute,
                    "nvlink": nvlink,
                    "network": network,
                    "moved": moved,
                    # Parameters, gradient, average and Adam's two moments.
                    "held": 5 * counts.gradient_bytes / share,
                }


def table(counts: Counts) -> str:
    lines = [
        "| devices | batch | parameters | images a device | compute, ms "
        "| over NVLink, MB | over the network, MB | moving, ms | moving / compute "
        "| state, GB |",
        "| --- " * 10 + "|",
    ]
    for row in rows(counts):
        ratio = row["moved"] / row["compute"]
        lines.append(
            f"| {row['devices']} | {row['batch']} | {row['sharding']} | "
            f"{row['images']:g} | {1e3 * row['compute']:.3g} | "
            f"{row['nvlink'] / 1e6:.0f} | {row['network'] / 1e6:.0f} | "
            f"{1e3 * row['moved']:.3g} | {ratio:.2g} | {row['held'] / 1e9:.2g} |"
        )
    return "\n".join(lines)


# --- Traffic of the compiled step ----------------------------------------------------


def collectives(program: str) -> dict[str, int]:
    """The total bytes of the results of each kind of collective in a program."""
    found: dict[str, int] = {}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= (.+?) ({kinds})(-start)?\("
    for shapes, kind, start in re.findall(pattern, program):
        arrays = re.findall(r"[fsu](\d+)\[([\d,]*)\]", shapes)
        if start and kind == "all-gather":
            # An asynchronous start lists its operands before as many results.
            arrays = arrays[len(arrays) // 2 :]
        size = sum(
            int(bits) // 8 * math.prod(int(n) for n in sides.split(",") if n)
            for bits, sides in arrays
        )
        found[kind] = found.get(kind, 0) + size
    return found


def compiled_step(
    state: Any, data: Any, objective: Any, optimiser: Any, *, batch_size: int
) -> Any:
    """The text of the compiled program of one `eqmdm.train_step`."""
    lowered = lower_step(state, data, objective, optimiser, batch_size)
    return lowered.compile().compiled


def moved(*, shard_parameters: bool) -> dict[str, float]:
    """The bytes of each collective in the step of a small network on all devices, over
    the bytes of its parameters."""
    optimiser = eqmdm.make_optimiser(1e-3)
    objective = eqmdm.Objective(
        time_sampler=eqmdm.LogSNRTimeSampler(), levels=eqmdm.GreyLevels(256)
    )
    network = eqmdm.nn.UNet((8, 8, 1), 1, width=64, multipliers=(1, 2), key=jr.key(0))
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=0.5, log_snr_range=(-10.0, 14.0)
    )
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(1))
    mesh = eqmdm.device_mesh()
    state = eqmdm.distribute(state, mesh, shard_parameters=shard_parameters)
    data = eqmdm.distribute(jnp.zeros((64, 8, 8, 1), jnp.uint8), mesh)
    program = compiled_step(state, data, objective, optimiser, batch_size=16)
    n_bytes = 4 * sum(v.size for v in jax.tree.leaves(state.ema))
    found = collectives(program.as_text())
    return {kind: size / n_bytes for kind, size in sorted(found.items())}


def measure() -> dict[str, Any]:
    """All counts, for the document and its test."""
    facts = common.facts()
    return {
        "networks": {
            name: dataclasses.asdict(count(width)) for name, width in _NETWORKS.items()
        },
        "moved_over_parameters": {
            "whole": moved(shard_parameters=False),
            "in shares": moved(shard_parameters=True),
        },
    } | facts


def tables(counted: dict[str, Any]) -> dict[str, str]:
    """The generated parts of the document, by their marks."""
    parts = {}
    for number, (name, values) in enumerate(counted["networks"].items(), start=1):
        counts = Counts(**values)
        parts[f"network {number}"] = (
            f"The U-Net {name}: {counts.n_parameters:,} parameters, "
            f"{counts.training_flops / 1e9:.3g} GFLOP an image in training, "
            f"{counts.gradient_bytes / 1e6:,.0f} MB of gradient.\n\n{table(counts)}"
        )
    lines = ["| parameters | collective | bytes over those of the parameters |"]
    lines.append("| --- | --- | --- |")
    for sharding, found in counted["moved_over_parameters"].items():
        lines += [f"| {sharding} | {kind} | {x:.3f} |" for kind, x in found.items()]
    parts["moved"] = "\n".join(lines)
    return parts


def filled(document: str, parts: dict[str, str]) -> str:
    """The document with each part inserted between its marks."""
    for name, part in parts.items():
        start, end = _MARK.format(name), _MARK.format(f"end of {name}")
        before, rest = document.split(start)
        document = f"{before}{start}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return document


def main(settings: Settings) -> None:
    anew = settings.write or settings.output is not None
    counted = measure() if anew else json.loads(COUNTS.read_text())
    parts = tables(counted)
    print("\n\n".join(parts.values()))
    common.show(counted)
    outputs = [settings.output, COUNTS if settings.write else None]
    for output in filter(None, outputs):
        output.write_text(json.dumps(counted, indent=1) + "\n")
    if settings.write:
        DOCUMENT.write_text(filled(DOCUMENT.read_text(), parts))


if __name__ == "__main__":
    main(tyro.cli(Settings))
