"""A program that test_distributed.py runs in each of two processes, and in one.

It prints its results as JSON; they must agree in all processes, except for the points
that each process reads.
"""

import itertools
import json
import sys

import equinox as eqx
import jax
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import nn
from eqmdm._training.checkpoint import named_arrays


BATCH_SIZE = 8
optimiser = eqmdm.make_optimiser(1e-3)
objective = eqmdm.Objective()
points = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


class Source:
    """Points that record which of them are read."""

    shape = points.shape

    def __init__(self):
        self.read = []

    def __getitem__(self, indices):
        self.read += indices.tolist()
        return points[indices]


def new_state():
    # The middle layers are large enough to be sharded.
    network = nn.MLP((2,), 1, width=64, depth=2, key=jr.key(1))
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    model = jax.tree.map(
        lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, model
    )
    return eqmdm.TrainState.create(model, optimiser, key=jr.key(2))


def train(state, n_steps, source):
    losses = []
    with eqmdm.BatchStream(
        state, source, objective, batch_size=BATCH_SIZE, n_ahead=1, n_threads=1
    ) as stream:
        for batches in itertools.islice(stream, n_steps):
            state, metrics = eqmdm.train_step(
                state, batches, objective, optimiser, batch_size=BATCH_SIZE
            )
            losses += metrics["loss"].tolist() + metrics["grad_norm"].tolist()
    return state, losses


def results(directory, shard_parameters):
    mesh = eqmdm.device_mesh()
    place = lambda state: eqmdm.distribute(
        state, mesh, shard_parameters=shard_parameters
    )
    source = Source()
    state, losses = train(place(new_state()), 3, source)
    run = eqmdm.Run(directory)
    if jax.process_index() == 0:
        run.start({})
    run.save(state)
    restored = run.restore()
    arrays = eqmdm.on_host(named_arrays(state))
    same = all(np.array_equal(arrays[n], restored.arrays[n]) for n in arrays)
    run.close()
    state, more = train(place(restored.state(new_state())), 2, source)
    largest = max(jax.tree.leaves(state.ema), key=lambda x: x.size)
    return state, {
        "losses": losses + more,
        "restored": restored.skipped == {} and same,
        "share": largest.addressable_shards[0].data.size / largest.size,
        "read": source.read,
    }


def main(directory, *where):
    if where:
        address, index = where
        jax.distributed.initialize(address, 2, int(index))
    jax.config.update("jax_enable_x64", True)
    _, whole = results(f"{directory}/whole", False)
    state, sharded = results(f"{directory}/sharded", True)
    evaluation = eqmdm.evaluate(
        state.ema_model, points[:6], objective, key=jr.key(3), batch_size=4
    )
    x = eqmdm.sample(state.model, (2,), key=jr.key(4), n_samples=4, n_steps=3)
    found = {
        "devices": jax.device_count(),
        "whole": whole,
        "sharded": sharded
        | {
            "evaluation": evaluation.loss.tolist(),
            "samples": eqmdm.on_host(x).ravel().tolist(),
        },
    }
    print("found " + json.dumps(found))


main(*sys.argv[1:])
