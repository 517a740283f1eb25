"""Composed transitions, for matrices that do not commute across time."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._core.blocks import lq_root, matmul
from .._core.checks import concrete
from .._core.gaussian import Transition
from .._core.types import Scalar, VarsMatrix
from .kernel import exponential_deviation, quadrature


MatrixFunction = Callable[[Scalar], Float[Array, "rows columns"]]


def composed_transition(
    drift_matrix: MatrixFunction,
    diffusion_matrix: MatrixFunction,
    s: Scalar,
    t: Scalar,
    *,
    n_steps: int = 32,
) -> Transition:
    r"""The transition of $\mathrm{d}y = F(t) y \mathrm{d}t + G(t) \mathrm{d}w$ from `s`
    to `t`, for matrices that need not commute across time.

    It takes `n_steps` equal steps, each with Gauss-Legendre nodes for the covariance
    and the fourth-order Magnus expansion between the nodes. They are composed pairwise,
    with the covariances as roots. For smooth matrices the error decreases as `n_steps`
    to the power -4.

    **Arguments:**

    - `drift_matrix`, `diffusion_matrix`: functions of time, which return `vars x vars`
        and `vars x rank`.
    - `s`, `t`: times with $s < t$.
    - `n_steps`: a power of two.

    **Raises:**

    `ValueError` if `n_steps` is not a power of two, or if known times are not finite or
    out of order.

    **Source:** Blanes, Casas, Oteo & Ros (2009), section 5.4, for the expansion.
    """
    if n_steps < 1 or n_steps & (n_steps - 1):
        raise ValueError(f"`n_steps` must be a power of two; got {n_steps}.")
    start, end = concrete(s), concrete(t)
    if start is not None and end is not None:
        if not -math.inf < start <= end < math.inf:
            raise ValueError(
                "`s` and `t` must be finite times with s <= t, because noise cannot be "
                f"removed; got s={start} and t={end}."
            )
    # Diffrax could solve the moment equations instead. But the covariance that they
    # follow loses digits at short times, the number of their steps depends on the
    # values, and steps in sequence do not use a parallel device. Composition is
    # associative, so that pairs are composed at once.
    h = (t - s) / n_steps
    starts = s + h * jnp.arange(n_steps, dtype=t.dtype)
    step = lambda start: _magnus_step(drift_matrix, diffusion_matrix, start, h)
    steps = jax.vmap(step)(starts)
    while len(steps.root) > 1:
        earlier, later = (jax.tree.map(lambda x, i=i: x[i::2], steps) for i in (0, 1))
        steps = jax.vmap(lambda first, second: first.then(second))(earlier, later)
    return jax.tree.map(lambda x: x[0], steps)


def _magnus_step(
    drift_matrix: MatrixFunction,
    diffusion_matrix: MatrixFunction,
    start: Scalar,
    h: Scalar,
) -> Transition:
    n_vars = len(jax.eval_shape(drift_matrix, start))
    nodes, weights = quadrature(n_vars, h.dtype)
    bounds = np.array([0.0, *nodes, 1.0])
    part = lambda bound, width: _magnus(drift_matrix, start + h * bound, h * width)
    parts = jax.vmap(part)(
        jnp.asarray(bounds[:-1], h.dtype), jnp.asarray(np.diff(bounds), h.dtype)
    )
    noises = jax.vmap(lambda node: diffusion_matrix(start + h * node))(
        jnp.asarray(nodes, h.dtype)
    )
    psi = parts[-1]
    columns = []
    for i in reversed(range(len(nodes))):
        columns.append(jnp.sqrt(h * weights[i]) * matmul(psi, noises[i]))
        psi = matmul(psi, parts[i])
    return Transition(psi, lq_root(jnp.concatenate(columns, axis=1)))


def _magnus(drift_matrix: MatrixFunction, start: Scalar, h: Scalar) -> VarsMatrix:
    offset = math.sqrt(3) / 6
    F1 = drift_matrix(start + h * (0.5 - offset))
    F2 = drift_matrix(start + h * (0.5 + offset))
    # The midpoint alone would be of second order, and need about 32 times as many steps
    # for the error of the default of 32. The commutator costs two small products.
    commutator = matmul(F2, F1) - matmul(F1, F2)
    exponent = 0.5 * h * (F1 + F2) + (h**2 * (math.sqrt(3) / 12)) * commutator
    one = jnp.ones((), h.dtype)
    return jnp.eye(len(F1), dtype=h.dtype) + exponential_deviation(exponent, one)
