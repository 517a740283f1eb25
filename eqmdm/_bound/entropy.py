"""The entropy of a normal law."""

import math

from jaxtyping import Array, Float

from .._core.gaussian import log_det, over_coordinates
from .._core.types import Scalar, State


def normal_entropy(root: Float[Array, "rows rows *coordinates"], like: State) -> Scalar:
    r"""The entropy of $\mathcal{N}(\cdot, L L^\top \otimes I)$, in nats."""
    per_dim = 0.5 * len(root) * (1 + math.log(2 * math.pi)) + log_det(root)
    return over_coordinates(per_dim, like)
