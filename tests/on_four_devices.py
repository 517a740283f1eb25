"""A program that test_sharding.py runs on four virtual devices; it prints JSON."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import nn
from eqmdm._training.step import lower_step


jax.config.update("jax_enable_x64", True)

N_STEPS = 3
ENDS = (-9.0, 13.3)
optimiser = eqmdm.make_optimiser(1e-3)
objective = eqmdm.Objective(
    time_sampler=eqmdm.LogSNRTimeSampler(), levels=eqmdm.GreyLevels(256), flip=True
)
data = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)


def new_state(convolutional=False):
    """A state with a U-Net, or with the MLP that serves where no convolution is
    tested, since its step takes a third of the time to compile."""
    if convolutional:
        network = nn.UNet(
            (8, 8, 1), 1, width=24, multipliers=(1,), n_blocks=1, key=jr.key(1)
        )
    else:
        network = nn.MLP((8, 8, 1), 1, width=64, depth=1, key=jr.key(1))
    network = jax.tree.map(lambda x: x.astype(float) if _is_float(x) else x, network)
    network = eqmdm.PreconditionedDenoiser(
        network, data_std=0.5, log_snr_range=(-10, 14)
    )
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(*ENDS))
    model = eqmdm.DenoiserModel(network, diffusion)
    return eqmdm.TrainState.create(model, optimiser, key=jr.key(2))


def _is_float(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)


def train(state, data, n_inner=1):
    losses = []
    for _ in range(N_STEPS):
        state, metrics = eqmdm.train_step(
            state, data, objective, optimiser, batch_size=16, n_inner=n_inner
        )
        losses += metrics["loss"].tolist() + metrics["grad_norm"].tolist()
    return state, losses


def train_streamed(state):
    losses = []
    with eqmdm.BatchStream(state, data, objective, batch_size=16) as stream:
        for batches in itertools.islice(stream, N_STEPS):
            state, metrics = eqmdm.train_step(
                state, batches, objective, optimiser, batch_size=16
            )
            losses += metrics["loss"].tolist() + metrics["grad_norm"].tolist()
    return losses


def operations(state, data):
    """Floating-point operations of one step on each device, as XLA counts them."""
    lowered = lower_step(state, data, objective, optimiser, 16)
    return lowered.compile().compiled.cost_analysis()["flops"]


def results(mesh, shard_parameters=False):
    """What training, bounds and samples of a U-Net give, and where its arrays are."""
    state, examples = new_state(convolutional=True), jnp.asarray(data)
    if mesh is not None:
        state = eqmdm.distribute(state, mesh, shard_parameters=shard_parameters)
        examples = eqmdm.distribute(examples, mesh)
    n_operations = operations(state, examples)
    state, losses = train(state, examples)
    where = [x.sharding for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
    largest = max(jax.tree.leaves(state.ema), key=lambda x: x.size)
    evaluation = eqmdm.evaluate(
        state.ema_model, data[:6], objective, key=jr.key(3), n_draws=2, batch_size=4
    )
    x = eqmdm.sample(state.model, (8, 8, 1), key=jr.key(4), n_samples=4, n_steps=3)
    return {
        "operations": n_operations,
        "losses": losses,
        "devices": sorted({len(sharding.device_set) for sharding in where}),
        "share": largest.addressable_shards[0].data.size / largest.size,
        "loss": evaluation.loss.tolist(),
        "samples": x.ravel().tolist(),
        "sample_devices": len(x.sharding.device_set),
    }


def continued(directory, state, mesh):
    """The losses after a checkpoint of `state`, resumed on one device or on a mesh."""
    run = eqmdm.Run(directory)
    run.start({})
    run.save(state)
    run.close()
    state, examples = run.restore().state(new_state()), jnp.asarray(data)
    if mesh is not None:
        state = eqmdm.distribute(state, mesh, shard_parameters=True)
        examples = eqmdm.distribute(examples, mesh)
    return train(state, examples)[1]


def conditional_results(mesh, *, streamed=False):
    """Losses, bounds and samples of a model that is conditioned on a class."""
    random = np.random.default_rng(1)
    classes = random.integers(0, 3, 40)
    x = classes[:, None] + random.normal(size=(40, 2))
    points = eqmdm.Objective(drop_condition=0.3)
    kind = nn.condition_for(classes)
    network = nn.MLP(
        (2,), 1, width=8, depth=1, condition=kind, dtype=float, key=jr.key(5)
    )
    denoiser = eqmdm.PreconditionedDenoiser(network, 1.5, (-10, 14))
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*ENDS))
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(6))
    examples = x if streamed else eqmdm.TrainingSet(x, points, classes)
    if mesh is not None:
        state = eqmdm.distribute(state, mesh)
        examples = x if streamed else eqmdm.distribute(examples, mesh)
    losses = []

    def record(event):
        if event.kind == "log":
            losses.extend(event.metrics["loss"].tolist())

    state = eqmdm.train(
        state,
        examples,
        points,
        optimiser,
        steps=N_STEPS,
        batch_size=16,
        condition=classes if streamed else None,
        log_every=1,
        callbacks=[record],
    )
    evaluation = eqmdm.evaluate(
        state.model, x[:6], points, condition=classes[:6], key=jr.key(7), batch_size=4
    )
    guided = eqmdm.GuidedModel(state.model, 2.0)
    samples = eqmdm.sample(
        guided, (2,), conditions=classes[:8], n_samples=8, n_steps=3, key=jr.key(8)
    )
    return {
        "losses": losses,
        "loss": evaluation.loss.tolist(),
        "samples": samples.ravel().tolist(),
        "sample_devices": len(samples.sharding.device_set),
    }


def main(directory):
    mesh = eqmdm.device_mesh()
    assert mesh.size == 4
    found = {
        "one": results(None),
        "four": results(mesh),
        "sharded": results(mesh, shard_parameters=True),
        "conditional": {
            "one": conditional_results(None),
            "four": conditional_results(mesh),
            "streamed": conditional_results(mesh, streamed=True),
        },
    }
    whole, divided = jnp.asarray(data), eqmdm.distribute(jnp.asarray(data), mesh)
    on_mesh = lambda **options: eqmdm.distribute(new_state(), mesh, **options)
    one, found["three steps"] = train(new_state(), whole)
    found["streamed"] = train_streamed(on_mesh())
    _, found["several steps"] = train(on_mesh(), divided, n_inner=2)
    sharded, _ = train(on_mesh(shard_parameters=True), divided)
    found["4 to 1"] = continued(f"{directory}/sharded", sharded, None)
    found["1 to 4"] = continued(f"{directory}/whole", one, mesh)
    _, found["six steps"] = train(one, whole)
    try:
        eqmdm.train_step(
            on_mesh(),
            data,
            objective,
            optimiser,
            batch_size=6,
        )
    except ValueError as error:
        found["error"] = str(error)
    print(json.dumps(found))


main(sys.argv[1])
