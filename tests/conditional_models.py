"""Conditional models of known laws, and small conditional networks."""

import jax.numpy as jnp
from small_networks import perturbed

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


def conditional_mlp(key):
    condition = nn.ClassCondition(3)
    network = nn.MLP((2,), 1, width=8, depth=1, condition=condition, key=key)
    # With random parameters in the last layer too, which starts at 0.
    return model_of(perturbed(network, key))


def model_of(network):
    """A model of points, whose network is told the condition."""
    denoiser = eqmdm.PreconditionedDenoiser(network, 1.0, (-18.01, 13.01))
    return eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
