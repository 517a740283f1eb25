"""Estimates from importance weights, and their standard errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._core.types import Scalar


# With fewer effective draws the spread of the weights is unknown.
_FEWEST_EFFECTIVE = 10.0
# The number of draws from which the largest show a tail, and the fraction of effective
# draws above which the tail does not matter.
_FEWEST_FOR_TAIL, _NEARLY_EQUAL = 100, 0.95


def log_mean_weight(
    log_weights: Float[Array, " draws"],
) -> tuple[Scalar, Scalar, Scalar]:
    r"""$\log \frac1n \sum_i w_i$, its standard error and the effective sample size.

    The standard error is that of the mean weight, divided by the mean weight. It is NaN
    for a single weight, and infinite if it is unknown: if the weights are worth fewer
    than 10 draws, or if there are 100 or more that are not nearly equal, and the
    largest have a tail index of 1/2 or more, which belongs to a law without a variance.
    The spread of such weights is not informative: with a tail index of 0.8 and 1024
    weights, an interval of two such errors either side holds the truth in 64 % of
    cases.

    **Source:** Kong (1992) for the effective sample size; Vehtari et al. (2024) for the
    tail index as a diagnostic.
    """
    n = len(log_weights)
    largest = jax.lax.stop_gradient(jnp.max(log_weights))
    weights = jnp.exp(log_weights - largest)
    mean = jnp.mean(weights)
    value = largest + jnp.log(mean)
    effective = jnp.sum(weights) ** 2 / jnp.sum(weights**2)
    if n == 1:
        return value, jnp.full_like(value, jnp.nan), effective
    error = jnp.std(weights, ddof=1) / (math.sqrt(n) * mean)
    unknown = effective < _FEWEST_EFFECTIVE
    if n >= _FEWEST_FOR_TAIL:
        heavy = ~(tail_index(weights) < 0.5)
        unknown = unknown | (heavy & (effective < _NEARLY_EQUAL * n))
    return value, jnp.where(unknown, jnp.inf, error), effective


def tail_index(weights: Float[Array, " draws"]) -> Scalar:
    r"""The shape $k$ of a generalised Pareto law fitted to the largest weights.

    A law with this tail has moments of order below $1 / k$. A prior worth ten draws
    shrinks the estimate towards 1/2.

    **Source:** Zhang & Stephens (2009), section 3, for the mean over a profile of the
    likelihood; Vehtari et al. (2024), appendix G, for the prior and the number of
    largest weights.
    """
    n = len(weights)
    n_tail = int(min(n / 5, 3 * math.sqrt(n)))
    ordered = jnp.sort(weights)
    excess = ordered[-n_tail:] - ordered[-n_tail - 1]
    quartile = excess[int(n_tail / 4 + 0.5) - 1]
    n_grid = 30 + int(math.sqrt(n_tail))
    places = 1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))
    theta = 1 / excess[-1] + jnp.asarray(places, weights.dtype) / (3 * quartile)
    shape = jnp.mean(jnp.log1p(-theta[:, None] * excess[None]), axis=1)
    log_likelihood = n_tail * (jnp.log(-theta / shape) - shape - 1)
    mean = jnp.sum(theta * jax.nn.softmax(log_likelihood))
    index = jnp.mean(jnp.log1p(-mean * excess))
    return (n_tail * index + 5) / (n_tail + 10)
