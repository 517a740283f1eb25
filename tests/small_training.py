"""Small models, data and runs for tests of training."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import eqmdm
from eqmdm import Objective, TrainState, nn, train_step


GREY = eqmdm.GreyLevels(17)
# One optimiser and one diffusion for most tests, so that the step compiles once.
OPTIMISER = eqmdm.make_optimiser(1e-3)


def small_points(n=50):
    return jr.normal(jr.key(7), (n, 2), jnp.float32)


def small_model(kind="noise", diffusion=None):
    diffusion = (
        eqmdm.LearnedDiffusion(2, key=jr.key(3)) if diffusion is None else diffusion
    )
    n_vars = 1 if kind == "denoiser" else diffusion.n_vars
    network = nn.MLP((2,), n_vars, width=8, depth=1, key=jr.key(4))
    # Perturbed from its zero initialisation, so that every gradient is nonzero.
    last = lambda net: net.linear_out.weight
    network = eqx.tree_at(
        last, network, 0.1 * jr.normal(jr.key(5), last(network).shape, jnp.float32)
    )
    if kind == "noise":
        return eqmdm.NoiseModel(network, diffusion)
    network = eqmdm.PreconditionedDenoiser(
        network, data_std=1.0, log_snr_range=(-40.0, 14.0)
    )
    return eqmdm.DenoiserModel(network, diffusion)


def trainable(tree):
    return eqx.filter(tree, eqx.is_inexact_array)


def in_float64(model):
    cast = lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x
    return jax.tree.map(cast, model)


def small_state(model=None, optimiser=OPTIMISER):
    model = small_model(diffusion=eqmdm.VPSDE()) if model is None else model
    return TrainState.create(model, optimiser, key=jr.key(0)), optimiser


def run_steps(state, optimiser, n_steps, *, objective=None, data=None, **settings):
    objective = Objective() if objective is None else objective
    data = small_points() if data is None else data
    losses = []
    for _ in range(n_steps):
        state, metrics = train_step(
            state, data, objective, optimiser, **({"batch_size": 8} | settings)
        )
        losses.extend(np.asarray(metrics["loss"]).tolist())
    return state, losses
