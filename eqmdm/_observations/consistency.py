"""Checks of observations without noise: their range, and the rank of their operator."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float

from .._core.checks import is_known, now_if_known
from .base import AbstractLinearObservation


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
        value = observation.value
        return bool(_is_in_range(observation, value))


def has_independent_rows(observation: AbstractLinearObservation) -> bool:
    """Whether data can give the exact numbers of an observation any values. Not
    checked, and true, if the operator or the noise is traced."""
    operator, noise = observation.operator, observation.noise
    if not (is_known(operator, noise) and noise.has_exact):
        return True
    with now_if_known(operator, noise):
        # Random values are in the range only if all are.
        size = (observation.size,)
        values = jr.normal(jr.key(0), size, operator.out_structure().dtype)
        values = values.reshape(observation.value.shape)
        return bool(_is_in_range(observation, values))


@eqx.filter_jit
def _is_in_range(
    observation: AbstractLinearObservation, value: Float[Array, "*out"]
) -> Bool[Array, ""]:
    structure = observation.operator.in_structure()
    value = observation.noise.exact(value.astype(structure.dtype))
    size = jnp.linalg.norm(value)
    value = value / jnp.where(size > 0, size, 1)
    eps = float(jnp.finfo(structure.dtype).eps)
    # Half way between the two, so that the solver is not what decides.
    tolerance = eps ** (0.5 * (1 + _POWER))
    solution = lx.linear_solve(
        lx.FunctionLinearOperator(
            lambda x: observation.noise.exact(observation.project(x)),
            jax.ShapeDtypeStruct(structure.shape, structure.dtype),
        ),
        value,
        lx.LSMR(rtol=tolerance, atol=tolerance, conlim=0.0),
        throw=False,
    )
    missed = value - observation.noise.exact(observation.project(solution.value))
    return jnp.linalg.norm(missed) <= eps**_POWER
