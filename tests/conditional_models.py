"""Conditional models of known laws, and small conditional networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import eqmdm
from eqmdm import nn


# Data of law N(c, STD^2) in every coordinate, where c is the condition, and N(0, STD^2)
# without one.
STD = 0.5
INTERVAL = eqmdm.LogSNRInterval(-18.0, 13.0)
DIFFUSIONS = {
    "vpsde": eqmdm.VPSDE(interval=INTERVAL),
    "cld": eqmdm.CLD(interval=INTERVAL),
}


def denoiser(log_snr, z, condition):
    noise = jnp.exp(-log_snr)
    return (STD**2 * z + noise * jnp.nan_to_num(condition)) / (STD**2 + noise)


def score_function(diffusion):
    def score(t, y, condition):
        kernel = diffusion.compute_kernel(t)
        a = kernel.mean(jnp.ones(()))
        covariance = kernel.root @ kernel.root.T + STD**2 * jnp.outer(a, a)
        mean = kernel.mean(jnp.full(y.shape[1:], jnp.nan_to_num(condition)))
        return -jnp.linalg.solve(covariance, y - mean)

    return score


def noise_network(diffusion):
    def noise(t, y, condition):
        root = diffusion.compute_kernel(t).root
        return -root.T @ score_function(diffusion)(t, y, condition)

    return noise


KINDS = {
    "denoiser": lambda d: eqmdm.DenoiserModel(denoiser, d),
    "noise": lambda d: eqmdm.NoiseModel(noise_network(d), d),
    "score": lambda d: eqmdm.FunctionModel(score_function(d), d),
}
MODELS = {
    "denoiser": KINDS["denoiser"](DIFFUSIONS["cld"]),
    "noise": KINDS["noise"](DIFFUSIONS["vpsde"]),
    "score": KINDS["score"](DIFFUSIONS["vpsde"]),
}


def untrained(make, key):
    """A network with random parameters, also in the last layer, which starts at 0."""
    network = make(key)
    trainable, static = eqx.partition(network, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(trainable)
    keys = jr.split(key, len(leaves))
    drawn = [
        leaf + 0.1 * jr.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(treedef, drawn), static)


def conditional_mlp(key):
    kind = nn.ClassCondition(3)
    network = untrained(
        lambda key: nn.MLP((2,), 1, width=8, depth=1, condition=kind, key=key), key
    )
    denoiser = eqmdm.PreconditionedDenoiser(network, 1.0, (-18.01, 13.01))
    return eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
