"""Runs of small models with saved states."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import eqmdm
from eqmdm import Run, TrainState, nn


OPTIONS = {"dataset": "points", "width": 8, "log_snr_range": (-9.0, 13.3)}
OPTIONS |= {"kind": "noise", "learned": True, "data_std": 0.1}
OPTIMISER = eqmdm.make_optimiser(1e-3)


def build_model(options):
    """The model of a run, from its options: what a program passes as its builder."""
    kind, width = options["kind"], options["width"]
    diffusion = eqmdm.CLD()
    if options["learned"]:
        diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(3))
    n_vars = 1 if kind == "denoiser" else 2
    network = nn.MLP((2,), n_vars, width=width, depth=1, key=jr.key(4))
    if kind == "noise":
        return eqmdm.NoiseModel(network, diffusion)
    network = eqmdm.PreconditionedDenoiser(
        network, data_std=options["data_std"], log_snr_range=(-40.0, 14.0)
    )
    return eqmdm.DenoiserModel(network, diffusion)


def make_model(kind="noise", *, learned=True):
    return build_model(OPTIONS | {"kind": kind, "learned": learned})


def make_state(step=0, model=None):
    model = make_model() if model is None else model
    state = TrainState.create(model, OPTIMISER, key=jr.key(0))
    # Each step has different values, and averages that differ from them.
    shift = lambda tree, by: jax.tree.map(
        lambda v: v + jnp.asarray(by, v.dtype) if eqx.is_inexact_array(v) else v, tree
    )
    return eqx.tree_at(
        lambda s: (s.model, s.ema, s.step),
        state,
        (
            shift(state.model, 1e-3 * step),
            shift(state.ema, 1e-2),
            jnp.asarray(step, jnp.int32),
        ),
    )


def save_states(directory, *steps, model=None, options=OPTIONS, **settings):
    run = Run(directory, **settings)
    run.start(options, {"seed": 0})
    for step in steps:
        run.save(make_state(step, model))
    run.close()
    return run
