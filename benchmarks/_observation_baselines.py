"""Guidance by gradients, which other libraries condition with, as baselines."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp

import eqmdm
from eqmdm._observations.base import (
    AbstractConditioning,
    AbstractLinearObservation,
    AbstractObservationMethod,
)
from eqmdm._observations.moment_matching import Moments


@final
class Guidance(AbstractObservationMethod):
    """D + V A^T (R + r^2 A A^T)^-1 (o - A D), where r^2 replaces the covariance of the
    estimate: sigma^2 s^2 / (sigma^2 + s^2), that of normal data of standard deviation
    s, for PiGDM (Song et al. 2023), and 0 for DPS (Chung et al. 2023), whose tuned step
    sizes are left out."""

    has_spread: bool = eqx.field(static=True)

    def condition(self, model, observation):
        return eqmdm.ObservedModel(model, _Conditioning(observation, self.has_spread))


@final
class _Conditioning(AbstractConditioning):
    observation: AbstractLinearObservation
    has_spread: bool = eqx.field(static=True)

    @property
    def method_name(self):
        return "PiGDM, approximate" if self.has_spread else "DPS, approximate"

    def residual(self, model, log_snr, z):
        observation, size = self.observation, self.observation.size
        moments = Moments.of(model, log_snr, z, observation)
        units = jnp.eye(size, dtype=z.dtype).reshape(size, *observation.value.shape)
        rows = jax.vmap(observation.adjoint)(units)
        products = jax.vmap(observation.project)(rows).reshape(size, size)
        spread = moments.normal_variance if self.has_spread else jnp.zeros((), z.dtype)
        matrix = observation.noise.as_matrix(size, z.dtype) + spread * products
        gap = observation.value.astype(z.dtype) - observation.project(moments.mean)
        solved = jnp.linalg.solve(matrix, gap.reshape(-1)).reshape(gap.shape)
        return moments.residual + moments.covariance(observation.adjoint(solved))


PIGDM, DPS = Guidance(True), Guidance(False)
