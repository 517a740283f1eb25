"""Grey levels as continuous data: transforms, dequantisation and bits per dimension."""

import abc
import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int, Shaped

from ._core.checks import (
    as_array,
    check_count,
    check_finite,
    check_integers,
    check_levels,
    check_precision,
)
from ._core.random import draw_uniform
from ._core.types import Data, PRNGKey, Scalar


class AbstractTransform(eqx.Module):
    """An increasing map of each coordinate from $[0, 1]$ to the units of the data."""

    @abc.abstractmethod
    def forward(self, p: Data) -> Data:
        """$x(p)$, for `p` in $[0, 1]$."""

    @abc.abstractmethod
    def inverse(self, x: Data) -> Data:
        """$p(x)$, which is outside $[0, 1]$ for `x` outside the image of $[0, 1]$."""

    @abc.abstractmethod
    def log_jacobian(self, p: Data) -> Scalar:
        r"""$\log \lvert \det \mathrm{d}x / \mathrm{d}p \rvert$, in nats."""


@final
class ScaleTransform(AbstractTransform):
    """$x = 2 p - 1$."""

    def forward(self, p: Data) -> Data:
        return 2 * p - 1

    def inverse(self, x: Data) -> Data:
        return (x + 1) / 2

    def log_jacobian(self, p: Data) -> Scalar:
        return jnp.asarray(p.size * math.log(2), p.dtype)


@final
class LogitTransform(AbstractTransform):
    r"""$x = \log(s / (1 - s))$ with $s = \alpha + (1 - 2 \alpha) p$.

    It maps $[0, 1]$ onto an interval about 0, which is bounded because of `alpha`.

    **Arguments:**

    - `alpha`: the distance of $s$ from 0 and 1; in $(0, 1/2)$.

    **Raises:**

    `ValueError` if `alpha` is outside $(0, 1/2)$.

    **Source:** Dinh, Sohl-Dickstein & Bengio (2017), section 4.1, where `alpha` is 0.05
    and keeps a distance from 0 only.
    """

    alpha: float = eqx.field(default=0.05, static=True)

    def __check_init__(self):
        if not 0 < self.alpha < 0.5:
            raise ValueError(
                "`alpha` must be strictly between 0 and 1/2; got "
                f"{self.alpha}. 0.05 is usual."
            )

    def _shares(self, p: Data) -> tuple[Data, Data]:
        # `s` and `1 - s`. The second is computed by symmetry, because subtracting from
        # 1 loses the digits of a small `1 - s`.
        slope = 1 - 2 * self.alpha
        return self.alpha + slope * p, self.alpha + slope * (1 - p)

    def forward(self, p: Data) -> Data:
        s, rest = self._shares(p)
        return jnp.log(s) - jnp.log(rest)

    def inverse(self, x: Data) -> Data:
        return (jax.nn.sigmoid(x) - self.alpha) / (1 - 2 * self.alpha)

    def log_jacobian(self, p: Data) -> Scalar:
        s, rest = self._shares(p)
        log_slope = math.log1p(-2 * self.alpha)
        return jnp.sum(log_slope - jnp.log(s) - jnp.log(rest))


class AbstractDequantiser(eqx.Module):
    r"""The choice of a point within the interval of each level.

    A random offset $o$ with density $q$ turns a log-density into a bound on a log-mass,

    $$\log P(k) \geq \mathbb{E}_{o \sim q}[\log p(k + o) - \log q(o)]$$

    where levels $k$ have unit width.
    """

    @property
    @abc.abstractmethod
    def gives_density(self) -> bool:
        """Whether the offset has a density, so that the bound above applies."""

    @abc.abstractmethod
    def __call__(
        self, levels: Int[Array, "*data"], *, key: PRNGKey, dtype: DTypeLike
    ) -> tuple[Data, Scalar]:
        r"""**Arguments:**

        - `levels`: the grey levels of one example.
        - `key`: the key for the draw.
        - `dtype`: the dtype of the results.

        **Returns:**

        The offset of each level, in $[0, 1)$, and their total $\log q$, in nats.
        """


@final
class UniformDequantiser(AbstractDequantiser):
    """Offsets uniform on $[0, 1)$.

    **Source:** Theis, van den Oord & Bethge (2016), section 3.1.
    """

    @property
    def gives_density(self) -> bool:
        return True

    def __call__(
        self, levels: Int[Array, "*data"], *, key: PRNGKey, dtype: DTypeLike
    ) -> tuple[Data, Scalar]:
        return draw_uniform(key, levels.shape, dtype), jnp.zeros((), dtype)


@final
class TruncatedNormalDequantiser(AbstractDequantiser):
    r"""Offsets normal about the middle of the level, truncated to $[0, 1)$.

    $$q(o) = \frac{e^{-(o - 1/2)^2 / 2 \sigma^2}}
    {\sigma \sqrt{2 \pi} \operatorname{erf}(1 / (2 \sqrt{2} \sigma))}$$

    The data look like the middle of a level with added noise, which a diffusion model
    has learned to remove, so the bound is tighter than with uniform offsets.

    **Arguments:**

    - `std`: $\sigma$, before truncation, in units of one level; positive.

    **Raises:**

    `ValueError` if `std` is not positive and finite.

    **Source:** Zheng, Lu, Chen & Zhu (2023), where $\sigma$ is the noise level of the
    diffusion at its start time.
    """

    std: float = eqx.field(static=True)

    @property
    def gives_density(self) -> bool:
        return True

    def __check_init__(self):
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"`std` must be positive and finite; got {self.std}. It is in units of "
                "one grey level; use `CentreDequantiser()` to put all offsets at the "
                "middle and `UniformDequantiser()` for uniform ones."
            )

    def log_density(self, offset: Data) -> Scalar:
        r"""The sum of $\log q$ over offsets in $[0, 1)$."""
        probability = math.erf(0.5 / (math.sqrt(2) * self.std))
        normaliser = self.std * math.sqrt(2 * math.pi) * probability
        z = (offset - 0.5) / self.std
        return jnp.sum(-0.5 * z**2 - math.log(normaliser))

    def __call__(
        self, levels: Int[Array, "*data"], *, key: PRNGKey, dtype: DTypeLike
    ) -> tuple[Data, Scalar]:
        limit = jnp.asarray(0.5 / self.std, dtype)
        z = jr.truncated_normal(key, -limit, limit, (levels.size,), dtype)
        # Rounding may give 1, which belongs to the next level.
        below_one = 1 - float(jnp.finfo(dtype).epsneg)
        offset = jnp.clip(0.5 + self.std * z, 0, below_one).reshape(levels.shape)
        return offset, self.log_density(offset)


@final
class CentreDequantiser(AbstractDequantiser):
    """Offsets of 1/2, for a bound whose decoder gives the log-mass of the levels.

    The bound needs no correction: that of `GreyLevels.encode` is 0.
    """

    @property
    def gives_density(self) -> bool:
        return False

    def __call__(
        self, levels: Int[Array, "*data"], *, key: PRNGKey, dtype: DTypeLike
    ) -> tuple[Data, Scalar]:
        del key
        return jnp.full(levels.shape, 0.5, dtype), jnp.zeros((), dtype)


@final
class GreyLevels(eqx.Module):
    r"""Encoding of `n_levels` grey levels as continuous data, and decoding.

    Level $k$ is the interval $[k, k + 1) / n$ of $p$, and $x$ is the transform of $p$.

    **Arguments:**

    - `n_levels`: the number of levels; 256 for 8-bit images. At least 2.
    - `transform`: the transform from $p$ to $x$.
    - `dequantiser`: the choice of the point within the interval of a level.

    **Raises:**

    `ValueError` if `n_levels` is less than 2.
    """

    n_levels: int = eqx.field(static=True)
    transform: AbstractTransform = ScaleTransform()
    dequantiser: AbstractDequantiser = UniformDequantiser()

    def __check_init__(self):
        hint = " 8-bit images have 256."
        check_count("n_levels", self.n_levels, least=2, hint=hint)

    @property
    def gives_density(self) -> bool:
        """Whether encoded levels have a density. The centres of levels have none."""
        return self.dequantiser.gives_density

    def check(
        self, levels: Shaped[Array | np.ndarray, "..."]
    ) -> Shaped[Array | np.ndarray, "..."]:
        """`levels` as an array, with its range checked.

        Under a trace the check becomes a callback to Python. A GPU waits for it, and
        JAX's persistent cache does not store the program. So check a whole data set
        first, and `encode` its examples with `check=False`.

        **Arguments:**

        - `levels`: integers, for any number of examples.

        **Raises:**

        `TypeError` unless `levels` are integers; `ValueError`, or
        `equinox.EquinoxRuntimeError` if they are traced, unless all are from 0 to
        `n_levels - 1`.
        """
        return check_levels("levels", as_array("levels", levels), self.n_levels)

    def encode(
        self,
        levels: Shaped[Array | np.ndarray, "*data"],
        *,
        key: PRNGKey,
        dtype: DTypeLike = float,
        check: bool = True,
    ) -> tuple[Data, Scalar]:
        r"""Continuous data for one example, and the correction that turns a bound on
        the data into a bound on the levels.

        $$\log P(\text{levels}) \geq \mathbb{E}[\log p(x) + \text{correction}], \qquad
        \text{correction} = \log \left\lvert \det \frac{\mathrm{d}x}{\mathrm{d}p}
        \right\rvert - d \log n - \log q$$

        **Arguments:**

        - `levels`: integers from 0 to `n_levels - 1`.
        - `key`: the key for the offsets.
        - `dtype`: the dtype of the result; by default JAX's default float. It has to
            resolve the levels: float32 resolves the 65,536 levels of 16-bit images.
        - `check`: whether to check the range. Pass `False` after the method `check`.

        **Returns:**

        The data, and the correction in nats: 0 for a dequantiser without a density.

        **Raises:**

        As for `check`; at trace time `ValueError` if `dtype` cannot resolve the levels.
        """
        if check:
            levels = self.check(levels)
        else:
            levels = as_array("levels", levels)
            check_integers("levels", levels, self.n_levels)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        # Rounding in the transform and its inverse may move a point across an edge that
        # is closer than this, in units of a level.
        margin = 16 * self.n_levels * float(jnp.finfo(dtype).eps)
        if margin > 1 / 8:
            raise ValueError(
                f"`dtype` must resolve {self.n_levels} levels; {dtype} cannot. Encode "
                "in float32 or float64."
            )
        # So that users' dequantisers need not care about arithmetic in uint8.
        wide = jnp.asarray(levels).astype(jnp.int32)
        offset, log_q = self.dequantiser(wide, key=key, dtype=dtype)
        # The margin guarantees that `decode` inverts `encode`. Its bias is third order:
        # 7e-4 nats for the largest, 1/8, if the density varies over a single level.
        offset = jnp.clip(offset, margin, 1 - margin)
        p = (wide.astype(dtype) + offset) / self.n_levels
        x = self.transform.forward(p)
        if not self.dequantiser.gives_density:
            return x, jnp.zeros((), dtype)
        log_levels = levels.size * math.log(self.n_levels)
        return x, self.transform.log_jacobian(p) - log_levels - log_q

    def log_jacobian(self, x: Data) -> Scalar:
        r"""The part $\log \lvert \det \mathrm{d}x / \mathrm{d}p \rvert$ of the
        correction of `encode`, in nats; 0 for a dequantiser without a density."""
        if not self.dequantiser.gives_density:
            return jnp.zeros((), x.dtype)
        return self.transform.log_jacobian(self.transform.inverse(x))

    def decode(self, x: Data) -> Int[Array, "*data"]:
        """The levels that contain `x`, or the nearest level if `x` is outside all."""
        x = jnp.asarray(as_array("x", x))
        scaled = jnp.floor(self.transform.inverse(x) * self.n_levels)
        return jnp.clip(scaled, 0, self.n_levels - 1).astype(jnp.int32)

    def edges(self, x: Data) -> tuple[Data, Data]:
        """The lower and upper edges, in units of `x`, of the levels that contain it.

        The first and last levels extend to minus and plus infinity.
        """
        levels = self.decode(x)
        lower = levels.astype(x.dtype) / self.n_levels
        upper = (levels + 1).astype(x.dtype) / self.n_levels
        low = jnp.where(levels == 0, -jnp.inf, self.transform.forward(lower))
        last = levels == self.n_levels - 1
        high = jnp.where(last, jnp.inf, self.transform.forward(upper))
        return low, high


def as_dequantised(x: Any, figure: str) -> Data:
    """`x` as a JAX array of continuous data.

    **Raises:** `TypeError` unless `x` has real numbers in float32 or float64, with
    `figure` in the message for integers; `ValueError` if known values are not finite.
    """
    x = as_array("x", x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"`x` must be floating-point data; got {x.dtype}. Integers have no "
            "density: dequantise them with `eqmdm.GreyLevels(...).encode`, and add the "
            f"correction that it returns to the {figure}."
        )
    check_precision("x", x.dtype)
    check_finite("x", x)
    # `jnp.asarray` would compile a program for each shape.
    return x if isinstance(x, jax.Array) else jax.device_put(x)


def bits_per_dim(
    log_likelihood: Float[Array | np.ndarray, "*batch"], *, n_dims: int
) -> Float[Array | np.ndarray, "*batch"]:
    r"""Bits per dimension of discrete data.

    $$\mathrm{bpd} = -\frac{\log P}{d \log 2}$$

    **Arguments:**

    - `log_likelihood`: $\log P$, or a lower bound on it, in nats, summed over every
        dimension of an example. For dequantised data it is the log-density with the
        correction of `GreyLevels.encode` added.
    - `n_dims`: $d$, the number of data dimensions. Auxiliary variables do not count.

    **Returns:**

    Bits per dimension. Lower is better.

    **Raises:**

    `ValueError` if `n_dims` is less than 1.
    """
    check_count("n_dims", n_dims)
    return -as_array("log_likelihood", log_likelihood) / (n_dims * math.log(2))
