"""Do results depend on the number of devices?

    python benchmarks/devices.py --output FILE

A small U-Net for the digits, as a denoiser under CLD, in float64: the losses and
gradient norms of three steps of training; then the bounds of test images, samples and
collapsed likelihoods of the model trained so far. On one device, on more, and on two
processes that find each other over loopback, with the parameters whole on each device
and in shares, each in processes of its own. Against one device:

- the largest difference in each, relative to the largest value on one device,
- the floating-point operations of a step on each device, as XLA counts them,
- the share of all parameters that a device holds.

Likelihoods are solved in steps that are given. An adaptive solver's follow its estimate
of its error, and on a rough network, which random parameters make, that enlarges a
difference in rounding by many orders, on one device as on several.

Devices are virtual ones of the CPU, or with `--real` those of the machine. Nothing is
timed. With `--write` the table goes to SCALING.md too, between its marks.
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
# Far longer than it takes, for processes that wait for one that is gone.
_TIMEOUT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Compares the results of several devices with those of one."""

    devices: tuple[int, ...] = (2, 4)
    """How many, beside one; of a process that has them all."""
    processes: bool = True
    """Whether two processes with a device each are compared too."""
    batch_size: int = 16
    """Images a step; a multiple of all numbers of devices."""
    real: bool = False
    """The GPUs of this machine, the first so many that `CUDA_VISIBLE_DEVICES` shows,
    instead of virtual devices of its CPU."""
    seed: int = 0
    """Of parameters, images and draws."""
    write: bool = False
    """Write the table into SCALING.md."""
    quick: bool = False
    """Two devices alone."""


# --- In a process with the devices ---------------------------------------------------


def results(*, batch_size: int, seed: int, shard_parameters: bool) -> dict[str, Any]:
    """What is compared, on all the devices there are."""
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
    """A model in float64, with no parameter at zero, where some begin."""
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
    """Of each example, by the collapsed route in given steps of log-SNR."""
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
    """Prints what `measure` asks for, for the process that it has started."""
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
    # Libraries print too.
    print(f"found {json.dumps({'results': found, 'facts': facts})}")


# --- In the process that compares ----------------------------------------------------


def measure(settings: Settings, n_devices: int, n_processes: int) -> list[dict]:
    """What each of the processes finds."""
    # Address 0 is this machine.
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
        # One that waits for another must not be left.
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
    """What shows a process so many devices."""
    if real:
        n_all = n_devices * (index + 1)
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n_all))))
        mine = shown.split(",")[n_devices * index : n_all]
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
    flag = f"--xla_force_host_platform_device_count={n_devices}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    # Loaded from the cache on the disk, a program with parameters in shares leaves
    # virtual devices waiting for each other, each at another sum (jaxlib 0.10.2).
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | cache


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def compare(
    answers: list[dict], base: dict[str, Any], n_devices: int
) -> list[dict[str, Any]]:
    """A row for each sharding: the worst of the processes, against one device."""
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
