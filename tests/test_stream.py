import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from eqmdm import nn
from helpers import slow, tree_allclose


BATCH_SIZE = 8
EXAMPLES = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
OPTIMISER = eqmdm.make_optimiser(1e-3)
OBJECTIVE = eqmdm.Objective()
# Of float64 sums, after some steps of Adam.
ROUNDING = 1e-9


def new_state():
    network = nn.MLP((2,), 1, width=8, depth=1, key=jr.key(1))
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    model = jax.tree.map(
        lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, model
    )
    return eqmdm.TrainState.create(model, OPTIMISER, key=jr.key(2))


def step(state, data, n_inner=1):
    return eqmdm.train_step(
        state, data, OBJECTIVE, OPTIMISER, batch_size=BATCH_SIZE, n_inner=n_inner
    )


def train(state, stream, n_calls, n_inner=1):
    losses = []
    for batches in itertools.islice(stream, n_calls):
        state, metrics = step(state, batches, n_inner)
        losses += metrics["loss"].tolist()
    return state, losses


@pytest.mark.parametrize("n_inner", [slow(1), 2])
def test_training_from_a_stream_ends_alike(n_inner):
    state, losses = new_state(), []
    for _ in range(5):
        state, metrics = step(state, jnp.asarray(EXAMPLES), n_inner)
        losses += metrics["loss"].tolist()
    # With two steps a call, into the second epoch of 50 examples.
    streamed = new_state()
    counts = {"batch_size": BATCH_SIZE, "n_inner": n_inner}
    with eqmdm.BatchStream(streamed, EXAMPLES, OBJECTIVE, **counts) as stream:
        streamed, streamed_losses = train(streamed, stream, 5, n_inner)
    # Two programs, whose sums may be in another order.
    np.testing.assert_allclose(streamed_losses, losses, rtol=ROUNDING)
    assert tree_allclose(streamed, state, rtol=ROUNDING, atol=ROUNDING)


def test_resumed_run_goes_on_with_the_batch_it_would_have_come_to():
    stream_of = lambda state: eqmdm.BatchStream(
        state, EXAMPLES, OBJECTIVE, batch_size=BATCH_SIZE
    )
    state = new_state()
    with stream_of(state) as stream:
        _, losses = train(state, stream, 6)
    state = new_state()
    with stream_of(state) as stream:
        state, before = train(state, stream, 4)
    resumed = jax.tree.map(
        lambda x: jnp.array(np.asarray(x)) if eqx.is_array(x) else x, state
    )
    with stream_of(resumed) as stream:
        _, after = train(resumed, stream, 2)
    assert before + after == losses


class Source:
    """Examples that record which of them are read."""

    shape = (20, 2)

    def __init__(self):
        self.read = []

    def __getitem__(self, indices):
        self.read.append(indices)
        return EXAMPLES[:20][indices]


def test_stream_reads_ahead_as_far_as_it_is_told():
    source = Source()
    with eqmdm.BatchStream(
        new_state(), source, OBJECTIVE, batch_size=5, n_ahead=3
    ) as stream:
        next(stream)
        # It is asked for three calls at first, and one more for each it gives.
        next(stream)
    assert 2 <= len(source.read) <= 4


def test_every_epoch_has_each_example_once():
    source = Source()
    with eqmdm.BatchStream(
        new_state(), source, OBJECTIVE, batch_size=5, n_ahead=1, n_threads=1
    ) as stream:
        for _ in range(8):
            next(stream)
    for epoch in np.reshape(source.read, (2, 20)):
        assert sorted(epoch) == list(range(20))


def test_failure_to_read_is_raised_where_the_batch_is_asked_for():
    class Broken(Source):
        def __getitem__(self, indices):
            raise OSError("the disk is gone")

    with eqmdm.BatchStream(new_state(), Broken(), OBJECTIVE, batch_size=5) as stream:
        with pytest.raises(OSError, match="the disk is gone"):
            next(stream)


@pytest.mark.parametrize("name", ["batch_size", "n_inner", "n_ahead", "n_threads"])
def test_stream_refuses_a_count_below_one(name):
    counts = {"batch_size": BATCH_SIZE} | {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        eqmdm.BatchStream(new_state(), EXAMPLES, OBJECTIVE, **counts)


def test_step_refuses_batches_of_another_size():
    state = new_state()
    with eqmdm.BatchStream(state, EXAMPLES, OBJECTIVE, batch_size=4) as stream:
        with pytest.raises(ValueError, match=r"1 x 8; its shape is \[1, 4, 2\]"):
            step(state, next(stream))
