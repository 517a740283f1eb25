"""Checks of observations without noise: their range, and the rank of their operator."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float

from .._core.checks import is_known, now_if_known
from .._core.random import draw_normal
from .base import AbstractLinearObservation, apply_operator
from .noise import AbstractNoise


# The part of an observation that data cannot give, relative to the observation, is
# zero up to this power of the rounding error. Least squares of an operator with small
# singular values, such as a blur, do not come closer.
_POWER = 1 / 3


def is_in_range(observation: AbstractLinearObservation) -> bool:
    """Whether some data give the exact numbers of an observation. Not checked, and
    true, if the observation is traced."""
    if not (is_known(observation) and observation.noise.has_exact):
        return True
    with now_if_known(observation):
        operator, noise = observation.operator, observation.noise
        return bool(_is_in_range(operator, noise, observation.value))


def has_independent_rows(observation: AbstractLinearObservation) -> bool:
    """Whether data can give the exact numbers of an observation any values. Not
    checked, and true, if the operator or the noise is traced."""
    operator, noise = observation.operator, observation.noise
    if not (is_known(operator, noise) and noise.has_exact):
        return True
    with now_if_known(operator, noise):
        # Random values are in the range only if all are.
        structure = operator.out_structure()
        values = draw_normal(jr.key(0), structure.shape, structure.dtype)
        return bool(_is_in_range(operator, noise, values))


@eqx.filter_jit
def _is_in_range(
    operator: lx.AbstractLinearOperator,
    noise: AbstractNoise,
    value: Float[Array, "*out"],
) -> Bool[Array, ""]:
    structure = operator.in_structure()
    exact_rows = lambda x: noise.exact(apply_operator(operator, x))
    value = noise.exact(value.astype(structure.dtype))
    size = jnp.linalg.norm(value)
    value = value / jnp.where(size > 0, size, 1)
    eps = float(jnp.finfo(structure.dtype).eps)
    # Half way between the two, so that the solver is not what decides.
    tolerance = eps ** (0.5 * (1 + _POWER))
    solution = lx.linear_solve(
        lx.FunctionLinearOperator(
            exact_rows, jax.ShapeDtypeStruct(structure.shape, structure.dtype)
        ),
        value,
        lx.LSMR(rtol=tolerance, atol=tolerance, conlim=math.inf),
        throw=False,
    )
    missed = value - exact_rows(solution.value)
    return jnp.linalg.norm(missed) <= eps**_POWER
