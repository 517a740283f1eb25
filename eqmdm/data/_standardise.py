"""Standardisation of continuous examples, with the Jacobian that likelihoods need."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Real


@dataclasses.dataclass(frozen=True, eq=False)
class Standardisation:
    r"""The map from examples as they are stored to examples of mean 0 and variance 1.

    $$z = (x - m) / s, \qquad \log p(x) = \log p(z) - \sum_i \log s_i$$

    It is computed in float64 when data are loaded: in float32, in which models
    compute, a mean that is large beside the standard deviation would take the digits.

    **Arguments:**

    - `mean`, `std`: $m$ and $s$, of the shape of an example.
    - `columns`: the name of each coordinate, where it has one.
    - `whole`: which coordinates are integers $k$. They are stored as $k + u$ with $u$
        uniform on $[0, 1)$, so that their density bounds, on average, the probability
        of $k$ (Theis, van den Oord & Bethge, 2016).
    """

    mean: Float[np.ndarray, "*shape"]
    std: Float[np.ndarray, "*shape"]
    columns: tuple[str, ...] | None = None
    whole: Bool[np.ndarray, "*shape"] | None = None

    @functools.cached_property
    def log_jacobian(self) -> float:
        r"""$\log \lvert \det \mathrm{d}z / \mathrm{d}x \rvert$ in nats, which is added
        to the log-density of $z$ to give that of $x$."""
        return float(-np.sum(np.log(self.std)))

    def forward(self, x: Real[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n *shape"]:
        """Standardised examples, in float32."""
        return ((np.asarray(x, np.float64) - self.mean) / self.std).astype(np.float32)

    def inverse(self, z: Real[np.ndarray, "n *shape"]) -> Float[np.ndarray, "n *shape"]:
        """Examples in their own units, in float64; coordinates that are integers are
        rounded down to them."""
        x = np.asarray(z, np.float64) * self.std + self.mean
        return x if self.whole is None else np.where(self.whole, np.floor(x), x)


def standardisation(
    train: Real[np.ndarray, "n *shape"],
    where: str,
    *,
    columns: tuple[str, ...] | None = None,
    whole: Bool[np.ndarray, "*shape"] | None = None,
) -> Standardisation:
    """That of each coordinate of points; of all coordinates alike where an example has
    several axes, whose values share a unit.

    **Raises:** `ValueError` for a coordinate that is constant.
    """
    axes = 0 if train.ndim == 2 else None
    mean = np.mean(train, axis=axes, dtype=np.float64)
    std = np.std(train, axis=axes, dtype=np.float64)
    # Rounding leaves a constant a standard deviation of some units in its last place.
    least = 8 * np.finfo(np.float64).eps * np.abs(mean)
    if np.any(std <= least):
        index = int(np.argmax(np.atleast_1d(std <= least)))
        what = (
            f"coordinate {index}" if columns is None else f"column `{columns[index]}`"
        )
        what = "`train`" if axes is None else f"{what} of the training split"
        raise ValueError(
            f"{what} must vary; in {where} it is "
            f"{np.atleast_1d(mean)[index]:g} in all {len(train):,} examples, which has "
            "no density. Leave it out."
        )
    shape = train.shape[1:]
    full = lambda value: np.broadcast_to(value, shape)
    return Standardisation(full(mean), full(std), columns, whole)
