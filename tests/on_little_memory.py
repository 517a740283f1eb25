"""A program of test_data_files.py that trains on more images than fit in memory."""

import itertools
import resource
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import eqmdm


# The memory allowed after compilation; the images take 180 MB, encoded or decoded.
N_SPARE_BYTES = 120 * 2**20
BATCH_SIZE = 64
optimiser = eqmdm.make_optimiser()
objective = eqmdm.Objective(levels=eqmdm.GreyLevels(256))


class Scale(eqx.Module):
    factor: jax.Array

    def __call__(self, t, y):
        return self.factor * y


def held_bytes():
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
    )
    return int(fields["VmData"].split()[0]) * 1024


def train(state, images, n_steps):
    with eqmdm.BatchStream(state, images, batch_size=BATCH_SIZE) as stream:
        for batches in itertools.islice(stream, n_steps):
            state, metrics = eqmdm.train_step(
                state, batches, objective, optimiser, batch_size=BATCH_SIZE
            )
    return state, metrics


def main(data_dir):
    model = Scale(jnp.ones(())), eqmdm.VPSDE()
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(0))
    # Memory that imports and compilation take, however few the images.
    few = eqmdm.data.load("imagenet32", data_dir=f"{data_dir}/few", in_memory=False)
    state, _ = train(state, few.train, 20)
    limit = held_bytes() + N_SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        eqmdm.data.load("imagenet32", data_dir=data_dir)
    except MemoryError:
        print("too large")
    n_encoded = sum(file.stat().st_size for file in Path(data_dir).glob("train-*"))
    print(n_encoded > 1.4 * N_SPARE_BYTES)
    dataset = eqmdm.data.load("imagenet32", data_dir=data_dir, in_memory=False)
    # Every image once, so that images cannot all be kept, encoded or decoded.
    n_steps = len(dataset.train) // BATCH_SIZE
    print(n_steps * BATCH_SIZE * 3072 > 1.4 * N_SPARE_BYTES)
    state, metrics = train(state, dataset.train, n_steps)
    print(bool(jnp.isfinite(metrics["loss"]).all()))


main(sys.argv[1])
