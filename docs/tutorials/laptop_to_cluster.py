# %% [markdown]
# # From laptop to cluster
#
# The same program trains on a laptop, on several GPUs and on several hosts. On the way, machines
# are taken away and come back. This page stops a run and resumes it to the same bits, divides
# work over devices, and ends with a job script.

# %%
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm


# %% [markdown]
# ## A run is a directory
#
# Everything that a training needs to go on is in its `run_dir`: options, metrics, checkpoints.
# Call [`eqmdm.fit`][] again with the same arguments, and it continues. Below, one run takes 60
# steps at once, and another 30 and then, as if in another session, the rest.

# %%
directory = Path(tempfile.mkdtemp())
x = np.asarray(jr.normal(jr.key(0), (2000, 2)))
np.save(directory / "points.npy", x)


def trained(name, steps):
    network = eqmdm.nn.MLP((2,), 1, width=32, depth=2, key=jr.key(1))
    model = eqmdm.DenoiserModel.for_data(network, eqmdm.CLD(), x)
    return eqmdm.fit(
        model, x, key=jr.key(2), steps=steps, batch_size=64, run_dir=directory / name
    )


at_once = trained("at-once", 60)
trained("in-two-parts", 30)
in_two_parts = trained("in-two-parts", 60)
same = jax.tree.map(
    lambda a, b: bool(jnp.all(a == b)),
    jax.tree.leaves(eqmdm.on_host(at_once.network.network)),
    jax.tree.leaves(eqmdm.on_host(in_two_parts.network.network)),
)
print("bitwise the same parameters:", all(same))
assert all(same)

# %% [markdown]
# That holds because every random draw is keyed by its purpose and its step or example, never by
# the state of a generator, and the order of examples is a function of the step.
#
# ## Stopped from outside
#
# Clusters send SIGTERM before they take a machine back. A program that trains then saves its
# present step and exits with status 75, which schedulers understand as "try again". Here it is
# with a run of the command line, stopped as soon as it has logged something.

# %%
command = [sys.executable, "-m", "eqmdm.cli", "train", "--data", "points.npy"]
command += ["--run-dir", "stopped", "--width", "32", "--steps", "100000"]
command += ["--log-every", "10", "--validate-every", "100000"]
command += ["--checkpoint-every", "100000", "--test-examples", "0", "--n-samples", "0"]
metrics = directory / "stopped" / "metrics.jsonl"
with subprocess.Popen(
    command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
) as process:
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output = process.stdout.read()
print(output.splitlines()[-1].split(":")[0], "- exit status", process.returncode)
logged = [json.loads(line) for line in metrics.read_text().splitlines()]
print("metrics of step", logged[0]["step"], "and later are in metrics.jsonl")
assert process.returncode == 75

# %% [markdown]
# To go on, give the same command with `--resume`:
#
# ```console
# $ eqmdm train --data points.npy --run-dir stopped --width 32 --steps 100000 --resume
# ```
#
# [Faults and consequences](../benchmarks/FAULTS.md) lists what was broken on purpose, killed and
# filled up, and what each costs.
#
# ## Several devices
#
# All visible devices divide each batch, without an option. To see that nothing changes, this
# starts a process that is told to see four devices on this CPU.

# %%
program = """
import jax
import jax.random as jr
import eqmdm

x = jr.normal(jr.key(0), (2000, 2))
network = eqmdm.nn.MLP((2,), 1, width=32, depth=2, key=jr.key(1))
model = eqmdm.DenoiserModel.for_data(network, eqmdm.CLD(), x)
losses = []


def keep(event):
    if event.kind == "log":
        losses.extend(event.metrics["loss"])


eqmdm.fit(model, x, key=jr.key(2), steps=5, batch_size=64, log_every=5, callbacks=[keep])
print(jax.device_count(), *(f"{loss:.5f}" for loss in losses))
"""
for n_devices in (1, 4):
    flags = f"--xla_force_host_platform_device_count={n_devices}"
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    n, *losses = finished.stdout.split()
    print(f"{n} device(s): losses {' '.join(losses)}")

# %% [markdown]
# They are those of one device up to the rounding of sums. For a network that does not fit on
# one device, `--shard-parameters` (in Python, [`eqmdm.distribute`][]) lets each hold only a share
# of the large parameters; [Scaling](../benchmarks/SCALING.md) estimates when that pays.
#
# ## Several hosts
#
# Give every process the same command with `--distributed`. Under Slurm the processes find one
# another. A script that survives being stopped:
#
# ```bash
# #!/bin/bash
# #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8
# #SBATCH --signal=TERM@120 --requeue
#
# [ -e runs/cifar10/options.json ] && resume=--resume
# srun eqmdm train --dataset cifar10 --run-dir runs/cifar10 --distributed \
#     --compute-dtype bfloat16 $resume
# status=$?
# if [ $status -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
# exit $status
# ```
#
# All processes save the same step and end together, and the directory has to be on a file
# system that they share. Elsewhere than on a cluster that JAX detects, add `--coordinator HOST:PORT --n-processes 2 --process-index 0`, and
# 1 for the other.
#
# What has been measured on GPUs, and what is outstanding, is in
# [Measurements on a GPU](../benchmarks/GPU.md).
