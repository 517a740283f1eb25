"""Posteriors learned by GenSBI: its conditional pipeline with eqmdm's network.

    python posterior_gensbi.py INPUT.npz OUTPUT.npz

`benchmarks/posteriors.py` writes the input, which is standardised already: parameters
and conditions of training and validation, pairs for log-densities, and one condition
for each sample. The output has the same order.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import gensbi  # noqa: F401  (before JAX, as its own examples do)
import jax
import jax.numpy as jnp
import jax.random as jr
import jax_shared as shared
import numpy as np
from flax import nnx
from gensbi.core import DiffusionEDMMethod, FlowMatchingMethod
from gensbi.recipes import ConditionalPipeline

from eqmdm import nn


METHODS = {"EDM": DiffusionEDMMethod, "flow matching": FlowMatchingMethod}


class Network(nnx.Module):
    """eqmdm's conditional network with parameters that GenSBI manages."""

    def __init__(self, network: nn.MLP, time_range: tuple[float, float]):
        arrays, apply = shared.as_conditional_arrays(network)
        leaves, treedef = jax.tree.flatten(arrays)
        self.leaves = nnx.List([nnx.Param(leaf) for leaf in leaves])
        low, high = time_range
        # The network's embedding is made for times from 0 to 1.
        self.apply = lambda leaves, t, y, c: apply(
            treedef.unflatten(leaves), (t - low) / (high - low), y, c
        )

    def __call__(self, obs, t, cond, **ignored):
        return self.apply([leaf[...] for leaf in self.leaves], t, obs, cond)


def batches(
    arrays: tuple[np.ndarray, ...], size: int, seed: int
) -> Iterator[tuple[jax.Array, ...]]:
    """Endless batches of rows, each epoch in a new order."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(arrays[0]))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield tuple(jnp.asarray(array[rows]) for array in arrays)


def as_tokens(x: np.ndarray) -> np.ndarray:
    """GenSBI's form of vectors: one channel for each entry."""
    return x.astype(np.float32)[..., None]


def trained(data: Any, settings: dict[str, Any], rate: float) -> tuple[Any, float]:
    """The trained pipeline and the processor seconds of its training."""
    train = as_tokens(data["theta"]), as_tokens(data["condition"])
    validation = tuple(
        as_tokens(data[f"validation_{name}"]) for name in ("theta", "condition")
    )
    dims = [array.shape[1] for array in train]
    network = nn.MLP(
        (dims[0],),
        1,
        width=settings["width"],
        condition=nn.condition_for(data["condition"]),
        key=jr.key(settings["seed"]),
    )
    method = METHODS[settings["method"]]()
    config = ConditionalPipeline.get_default_training_config()
    config |= method.get_extra_training_config()
    time_range = 0.0, 1.0
    if "sigma_max" in config:
        # EDM gives the network a quarter of the logarithm of the noise.
        low, high = 0.25 * np.log([config["sigma_min"], config["sigma_max"]])
        time_range = float(low), float(high)
    config |= {
        "nsteps": settings["steps"],
        "max_lr": rate,
        # Once, as for eqmdm.
        "val_every": settings["steps"],
        "early_stopping": False,
    }
    with tempfile.TemporaryDirectory() as directory:
        pipeline = ConditionalPipeline(
            Network(network, time_range),
            batches(train, settings["batch_size"], settings["seed"]),
            batches(validation, len(validation[0]), settings["seed"]),
            *dims,
            method,
            training_config=config | {"checkpoint_dir": directory},
        )
        start = time.process_time()
        pipeline.train(nnx.Rngs(settings["seed"]), save_model=False)
        jax.block_until_ready(nnx.state(pipeline.ema_model))
    return pipeline, time.process_time() - start


def validation_loss(pipeline: Any, data: Any) -> float:
    """The loss of the average over training, from 16 draws of noise for each pair."""
    pairs = tuple(
        jnp.asarray(as_tokens(np.repeat(data[f"validation_{name}"], 16, axis=0)))
        for name in ("theta", "condition")
    )
    return float(pipeline.get_loss_fn()(pipeline.ema_model, pairs, jr.key(0)))


def extras(pipeline: Any, condition: Any) -> dict[str, Any]:
    return {
        "cond": condition,
        "obs_ids": pipeline.obs_ids,
        "cond_ids": pipeline.cond_ids,
    }


def samples(pipeline: Any, conditions: np.ndarray, seed: int) -> np.ndarray:
    """A sample given each of the conditions, by the method's default sampler."""
    draw = pipeline.get_sampler(conditions[:1])
    given = extras(pipeline, jnp.asarray(as_tokens(conditions)))
    drawn = draw(jr.key(seed), len(conditions), model_extras=given)
    return np.asarray(drawn)[..., 0]


def log_densities(pipeline: Any, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The log-density of each parameter given its condition, in nats."""
    # With the default tolerances of 1e-5 an example is off by up to 0.01 nats.
    evaluate = pipeline.get_log_prob_fn(x[:1], rtol=1e-6, atol=1e-6)

    # GenSBI takes the divergence of one example at a time, but given the conditions of
    # all, so each pair is evaluated on its own.
    def one(theta, condition):
        return evaluate(theta[None], extras(pipeline, condition[None]))[0]

    pairs = jnp.asarray(as_tokens(theta)), jnp.asarray(as_tokens(x))
    return np.asarray(jax.jit(jax.vmap(one))(*pairs))


def main(source: str, target: str) -> None:
    data = np.load(source)
    settings = json.loads(str(data["settings"]))
    losses, chosen = {}, None
    for rate in settings["rates"]:
        pipeline, seconds = trained(data, settings, rate)
        losses[rate] = validation_loss(pipeline, data)
        if losses[rate] == min(losses.values()):
            chosen = pipeline, rate, seconds
    assert chosen is not None
    pipeline, rate, seconds = chosen
    found: dict[str, Any] = {}
    found["samples"] = samples(pipeline, data["sampled_condition"], settings["seed"])
    # The EDM method has no log-density.
    if settings["method"] == "flow matching":
        pairs = data["test_theta"], data["test_condition"]
        found["log_density"] = log_densities(pipeline, *pairs)
    facts = {
        "learning_rate": rate,
        "validation_losses": {f"{rate:g}": loss for rate, loss in losses.items()},
        "processor_seconds": seconds,
        "versions": shared.versions("gensbi", "jax", "jaxlib", "flax", "optax"),
    }
    np.savez(target, facts=json.dumps(facts), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
