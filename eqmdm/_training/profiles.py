"""Averages of the parameters with power-function profiles, of any length afterwards."""

from collections.abc import Sequence
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._core.types import IntScalar


# The lengths of the two running averages (Karras et al., appendix C): between and
# around them any other profile is close to a combination of a few of these.
LENGTHS = (0.05, 0.10)
# The length of the uniform average. A longer profile would have a pole at the start.
_LONGEST = 12**-0.5


def profile_exponent(length: float) -> float:
    r"""The exponent $\gamma$ of the profile $\tau^\gamma$ whose standard deviation is a
    given fraction of the training.

    It is the largest root of $(\gamma + 2)^2 (\gamma + 3) = (\gamma + 1) / \sigma^2$.

    **Arguments:**

    - `length`: $\sigma$, the standard deviation of the profile relative to the length
        of the training, above 0 and below 0.288, the length of a uniform average.

    **Raises:** `ValueError` for a length outside of this range.

    **Source:** Karras et al. (2024), equations 123 to 126, arXiv 2312.02696.
    """
    if not 0 < length < _LONGEST:
        raise ValueError(
            "`length` must be above 0 and below 0.288, the fraction of the training "
            f"that a uniform average has as its standard deviation; got {length:g}."
        )
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


@final
class PowerAverages(eqx.Module):
    r"""Running averages of the parameters with the profiles $\tau^\gamma$.

    After step $t$ an average is the mean of the parameters after the steps $1, \dots,
    t$, weighted in proportion to $s^{\gamma + 1} - (s - 1)^{\gamma + 1}$. The initial
    parameters have no weight.

    - `averages`: a tree of the parameters, whose first axis numbers the exponents. Each
        parameter has its averages in one array, since a step on a CPU spends more time
        on the number of arrays than on their size.
    - `exponents`: $\gamma$.
    """

    averages: PyTree
    exponents: tuple[float, ...] = eqx.field(static=True)

    @classmethod
    def create(cls, trainable: PyTree) -> "PowerAverages":
        """The averages before the first step, of the lengths 0.05 and 0.10."""
        exponents = tuple(profile_exponent(length) for length in LENGTHS)
        return cls(_stacked(trainable), exponents)

    def updated(self, trainable: PyTree, step: IntScalar) -> "PowerAverages":
        """The averages after step number `step`, counted from 1."""
        weights = _new_weights(step, self.exponents)

        def mixed(old: Array, new: Array) -> Array:
            column = weights.astype(old.dtype).reshape(-1, *(1,) * new.ndim)
            return old + column * (new[None] - old)

        # Without the barrier XLA computes the new parameters again for the averages.
        trainable = jax.lax.optimization_barrier(trainable)
        averages = jax.tree.map(mixed, self.averages, trainable)
        return PowerAverages(averages, self.exponents)


# One program: called eagerly, each copy would be compiled separately.
@eqx.filter_jit
def _stacked(trainable: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.stack([x] * len(LENGTHS)), trainable)


def _new_weights(
    step: IntScalar, exponents: tuple[float, ...]
) -> Float[Array, " exponents"]:
    # 1 - (1 - 1/t)^(gamma + 1), which has no digits left in float32 for large t if it
    # is computed as written. At the first step it is 1.
    dtype = jnp.result_type(float)
    log_kept = jnp.log1p(-1 / step.astype(dtype))
    return -jnp.expm1((jnp.array(exponents, dtype) + 1) * log_kept)


def reconstruction_weights(
    steps: Sequence[int] | np.ndarray,
    exponents: Sequence[float] | np.ndarray,
    step: int,
    exponent: float,
) -> tuple[Float[np.ndarray, " n"], float]:
    r"""The weights of stored averages in the best approximation of another profile, and
    its relative error in the $L^2$ norm over training time.

    The profile of an average stored at step $t$ is $p(\tau) = (\gamma + 1) \tau^\gamma
    / t^{\gamma + 1}$ up to $t$ and zero beyond. Among the weights that add up to one,
    these minimise the distance of the combination to the profile with `exponent` at
    `step`.

    **Arguments:**

    - `steps`, `exponents`: $t$ and $\gamma$ of each stored average.

    **Source:** Karras et al. (2024), section 3.2 and algorithm 3, arXiv 2312.02696,
    there without the constraint.
    """
    t, gamma = np.asarray(steps, float), np.asarray(exponents, float)
    products = _inner_product(t[:, None], gamma[:, None], t, gamma)
    target = _inner_product(t, gamma, float(step), exponent)
    # Unit profiles, so that one cut-off suits all of them.
    norms = np.sqrt(np.diagonal(products))
    square = float(_inner_product(float(step), exponent, float(step), exponent))
    matrix, goal = products / (norms[:, None] * norms), target / norms
    # Karras et al. leave the sum of the weights free. With their hundreds of snapshots
    # it is one within 1e-4, but with four and a length of 0.2 it is 0.9, which would
    # shrink every parameter. So move only within the plane on which it is one.
    start, plane = _plane(1 / norms)
    reduced = plane.T @ matrix @ plane
    # Neighbours are nearly the same profile. The solution of the least norm does not
    # amplify the rounding of what is stored, as the exact one does.
    moved, *_ = np.linalg.lstsq(reduced, plane.T @ (goal - matrix @ start), rcond=1e-10)
    weights = (start + plane @ moved) / norms
    missed = square - 2 * weights @ target + weights @ products @ weights
    return weights, float(np.sqrt(max(missed, 0.0) / square))


def _plane(normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A point of the plane of all `z` with `normal @ z == 1`, and a basis of it."""
    basis, _ = np.linalg.qr(normal[:, None], mode="complete")
    return normal / (normal @ normal), basis[:, 1:]


def _inner_product(t_a, gamma_a, t_b, gamma_b):
    # The powers of each time are of ratios below 1, so that none overflows.
    earlier = np.minimum(t_a, t_b)
    ratio_a, ratio_b = (earlier / t_a) ** gamma_a, (earlier / t_b) ** gamma_b
    factor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * ratio_a * ratio_b * earlier / (t_a * t_b)
