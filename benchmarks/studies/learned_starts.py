"""Learned diffusions of two variables from several starts, for mnist-cpu.toml."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

import eqmdm


_Make = Callable[..., eqmdm.LearnedDiffusion]


def _chain(seed: int) -> _Make:
    def make(*, interval: eqmdm.TimeInterval) -> eqmdm.LearnedDiffusion:
        return eqmdm.LearnedDiffusion(2, key=jr.key(seed), interval=interval)

    return make


# Chains with damping 1 whose couplings and damping have different noise.
chain_1, chain_2, chain_3, chain_4, chain_5 = map(_chain, range(1, 6))


def vpsde(*, interval: eqmdm.TimeInterval) -> eqmdm.LearnedDiffusion:
    """From VPSDE: the auxiliary variable is coupled to nothing, and is stationary."""
    diffusion = eqmdm.LearnedDiffusion(
        2, start_variance=1.0, key=jr.key(0), interval=interval
    )
    parameters = lambda d: (d.skew_half, d.dissipation_parameter)
    values = jnp.zeros((2, 2)), jnp.sqrt(0.5) * jnp.eye(2)
    return eqx.tree_at(parameters, diffusion, values)
