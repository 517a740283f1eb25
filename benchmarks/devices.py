"""Do results depend on the number of devices?

    python benchmarks/devices.py --output FILE

Trains a small U-Net for the digits, as a denoiser under CLD in float64, and compares
the losses and gradient norms of three training steps, and then the bounds of test
images, samples and collapsed likelihoods of the resulting model. It runs on one device,
on several, and in two processes that connect over loopback, with whole and with sharded
parameters, each in new processes. Compared with one device:

- the largest difference of each result, relative to the largest value on one device,
- the floating-point operations of a step on each device, as counted by XLA,
- the share of all parameters that a device holds.

Likelihoods use fixed steps. An adaptive solver's steps follow its error estimate,
which, on a rough network such as one with random parameters, amplifies differences in
rounding by many orders of magnitude, on one device as on several.

Devices are virtual CPU devices, or with `--real` those of the machine. Nothing is
timed. `--write` also writes the table to SCALING.md, between its marks.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
from typing import Any, cast

import _common as common
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from scaling import DOCUMENT, compiled_step, filled

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.train.options import TrainOptions


_N_STEPS = 3
_N_EVALUATED = 8
_N_SOLVER_STEPS = 10
_COMPARED = ("losses", "gradient norms", "bounds", "samples", "likelihoods")
# Far longer than a run takes: ends processes that wait for one that has failed.
_TIMEOUT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Compares the results on several devices with those on one."""

    devices: tuple[int, ...] = (2, 4)
    """The numbers of devices to compare with one, all in a single process."""
    processes: bool = True
    """Whether to also compare two processes with one device each."""
    batch_size: int = 16
    """Images per step; a multiple of all numbers of devices."""
    real: bool = False
    """Use the first GPUs that `CUDA_VISIBLE_DEVICES` shows instead of virtual CPU
    devices."""
    seed: int = 0
    """The seed of parameters, images and draws."""
    write: bool = False
    """Write the table into SCALING.md."""
    quick: bool = False
    """Compare two devices only."""


# --- In the processes with the devices -----------------------------------------------


def results(*, batch_size: int, seed: int, shard_parameters: bool) -> dict[str, Any]:
    """The results to compare, computed on all devices of the process."""
    options = TrainOptions(
        dataset="digits", batch_size=batch_size, width=16, multipliers=(2,), seed=seed
    ).resolved()
    dataset = eqmdm.data.load("digits")
    objective = build.build_objective(options, dataset)
    optimiser = eqmdm.make_optimiser(1e-3)
    mesh = build.build_mesh(batch_size)
    state = eqmdm.TrainState.create(
        new_model(options, dataset), optimiser, key=jr.key(seed)
    )
    state = eqmdm.distribute(state, mesh, shard_parameters=shard_parameters)

    data = build.training_data(options, objective, dataset.train)

    def batches():
        if isinstance(data, eqmdm.TrainingSet):
            return contextlib.nullcontext(itertools.repeat(data))
        return eqmdm.BatchStream(state, data, objective, batch_size=batch_size)

    with batches() as stream:
        program = compiled_step(
            state, next(stream), objective, optimiser, batch_size=batch_size
        )
    logged = []
    with batches() as stream:
        for batch in itertools.islice(stream, _N_STEPS):
            state, metrics = eqmdm.train_step(
                state, batch, objective, optimiser, batch_size=batch_size
            )
            logged.append(metrics)

    key_bound, key_sample, *keys = jr.split(jr.key(seed + 1), 2 + _N_EVALUATED)
    examples = dataset.test[:_N_EVALUATED]
    evaluation = eqmdm.evaluate(
        state.model, examples, objective, key=key_bound, batch_size=_N_EVALUATED
    )
    samples = eqmdm.sample(
        state.model,
        dataset.shape,
        key=key_sample,
        n_samples=_N_EVALUATED,
        n_steps=_N_SOLVER_STEPS,
    )
    x = jnp.asarray(2 * (examples + 0.5) / dataset.n_levels - 1)
    of_likelihood = eqmdm.divide_batch((x, jnp.stack(keys)), mesh)
    found = {
        "losses": jnp.concatenate([metrics["loss"] for metrics in logged]),
        "gradient norms": jnp.concatenate([metrics["grad_norm"] for metrics in logged]),
        "bounds": evaluation.loss,
        "samples": samples,
        "likelihoods": likelihoods(state.model, *of_likelihood),
    }
    values = jax.tree.leaves(state.ema)
    held = sum(value.addressable_shards[0].data.size for value in values)
    return {name: eqmdm.on_host(found[name]).ravel().tolist() for name in found} | {
        "operations": program.cost_analysis()["flops"],
        "share": held / sum(value.size for value in values),
    }


def new_model(options: Any, dataset: Any) -> eqmdm.AbstractModel:
    """A model in float64 without zero parameters, which some initialisers give."""
    key_diffusion, key_network, key_noise = jr.split(jr.key(options.seed), 3)
    diffusion = build.build_diffusion(options, key_diffusion)
    data = build.DataFacts.of(options, dataset)
    network = build.build_model(options, data, diffusion, key_network).network
    arrays, rest = eqx.partition(network, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jr.split(key_noise, len(leaves))
    leaves = [
        leaf.astype(jnp.float64) + 0.02 * jr.normal(key, leaf.shape, jnp.float64)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    network = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
    return eqmdm.DenoiserModel(network, diffusion)


@eqx.filter_jit
def likelihoods(model: Any, x: jax.Array, keys: jax.Array) -> Any:
    """The likelihood of each example, by the collapsed route in fixed log-SNR steps."""
    diffusion = model.diffusion
    ends = -diffusion.log_snr(diffusion.t0), -diffusion.log_snr(diffusion.t1)
    steps = jnp.linspace(*ends, _N_SOLVER_STEPS + 1)

    @jax.vmap
    def one(x, key):
        return eqmdm.log_likelihood(
            model,
            x,
            key=key,
            route=eqmdm.CollapsedRoute(eqmdm.LogSNRClock()),
            divergence=eqmdm.HutchinsonDivergence(),
            solver=dfx.Heun(),
            stepsize_controller=dfx.StepTo(steps),
        ).log_likelihood

    return one(x, keys)


def work(task: dict[str, Any]) -> None:
    """Print the results that the parent process requested in `measure`."""
    if task["address"] is not None:
        jax.distributed.initialize(task["address"], 2, task["index"])
    jax.config.update("jax_enable_x64", True)
    found = {
        sharding: results(
            batch_size=task["batch_size"],
            seed=task["seed"],
            shard_parameters=sharding == "in shares",
        )
        for sharding in task["shardings"]
    }
    facts = common.facts(task["seed"])
    # Marked, since libraries print too.
    print(f"found {json.dumps({'results': found, 'facts': facts})}")


# --- In the comparing process --------------------------------------------------------


def measure(settings: Settings, n_devices: int, n_processes: int) -> list[dict]:
    """The results of each process."""
    # Host 0 is this machine.
    address = f"0:{_free_port()}" if n_processes > 1 else None
    one = n_devices * n_processes == 1
    task = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "shardings": ["whole"] if one else ["whole", "in shares"],
        "address": address,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "work", json.dumps(task | {"index": index})],
            env=os.environ | devices_in_environment(settings.real, n_devices, index),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(n_processes)
    ]
    try:
        printed = [each.communicate(timeout=_TIMEOUT_SECONDS)[0] for each in processes]
    finally:
        # A process that waits for a failed one must not be left running.
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a process with {n_devices} device(s) failed; see above")
    answers = []
    for text in printed:
        (line,) = [line for line in text.splitlines() if line.startswith("found ")]
        answers.append(json.loads(line.removeprefix("found ")))
    assert all(
        a["facts"]["device"]["count"] == n_devices * n_processes for a in answers
    )
    return answers


def devices_in_environment(real: bool, n_devices: int, index: int) -> dict[str, str]:
    """The environment variables that give a process this many devices."""
    if real:
        n_all = n_devices * (index + 1)
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n_all))))
        mine = shown.split(",")[n_devices * index : n_all]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
    flag = f"--xla_force_host_platform_device_count={n_devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    # A program with sharded parameters that is loaded from the disk cache deadlocks on
    # virtual devices, each of which waits at another sum (jaxlib 0.10.2).
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | cache


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def compare(
    answers: list[dict], base: dict[str, Any], n_devices: int
) -> list[dict[str, Any]]:
    """A row for each sharding: the worst process compared with one device."""
    rows = []
    for sharding in answers[0]["results"]:
        found = [answer["results"][sharding] for answer in answers]
        differences = {
            name: max(
                float(np.max(np.abs(np.subtract(each[name], base[name]))))
                / float(np.max(np.abs(base[name])))
                for each in found
            )
            for name in _COMPARED
        }
        rows.append(
            {
                "devices": n_devices * len(answers),
                "processes": len(answers),
                "parameters": sharding,
                "differences": differences,
                "operations_over_one": found[0]["operations"] / base["operations"],
                "share_of_parameters": found[0]["share"],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    head = ["devices", "processes", "parameters", *_COMPARED]
    head += ["operations a device", "parameters a device"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["devices"], row["processes"], row["parameters"]]
        cells += [f"{row['differences'][name]:.0e}" for name in _COMPARED]
        cells += [
            f"{row['operations_over_one']:.3f}",
            f"{row['share_of_parameters']:.3f}",
        ]
        lines.append(list(map(str, cells)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(settings: Settings) -> None:
    if settings.quick:
        settings = dataclasses.replace(settings, devices=(2,), processes=False)
    uneven = [n for n in settings.devices if settings.batch_size % n]
    if uneven:
        raise ValueError(
            "`batch_size` must be a multiple of each number of devices; "
            f"{settings.batch_size} is not of {uneven}."
        )
    ways = [(n, 1) for n in settings.devices]
    ways += [(1, 2)] if settings.processes else []
    [alone] = measure(settings, 1, 1)
    base, facts = alone["results"]["whole"], alone["facts"]
    rows = []
    for n_devices, n_processes in ways:
        answers = measure(settings, n_devices, n_processes)
        rows += compare(answers, base, n_devices)
    print(table(rows))
    common.show(facts)
    common.write(settings, facts, results=rows)
    if settings.write:
        DOCUMENT.write_text(filled(DOCUMENT.read_text(), {"devices": table(rows)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(cast(Any, json.loads(sys.argv[2])))
    else:
        main(tyro.cli(Settings))
