"""Run by test_data_files.py: trains on images that memory, as limited, cannot hold."""

import itertools
import resource
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm


# Beyond what is held once all is compiled; the images are 1.5 GB.
N_SPARE_BYTES = 800 * 2**20
BATCH_SIZE = 64
optimiser = eqmdm.make_optimiser()
objective = eqmdm.Objective(grey_levels=eqmdm.GreyLevels(256))


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
    state, _ = train(state, np.zeros((100, 32, 32, 3), np.uint8), 1)
    limit = held_bytes() + N_SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        eqmdm.data.load("imagenet32", data_dir=data_dir)
    except MemoryError:
        print("too large")
    dataset = eqmdm.data.load("imagenet32", data_dir=data_dir, in_memory=False)
    print(len(dataset.train) * 3072 > N_SPARE_BYTES)
    state, metrics = train(state, dataset.train, 20)
    print(bool(jnp.isfinite(metrics["loss"]).all()))


main(sys.argv[1])
