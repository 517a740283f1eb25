"""The distribution of a single pixel, some of whose grey levels are frequent."""

import math
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Float

from .._core.checks import as_array, check_levels
from .._core.types import Data, LogSNR
from .._levels import GreyLevels


# The largest log-SNR, of either sign, at which numbers are computed.
_FARTHEST = 40.0
# Standard deviations beyond which tails of the normal distribution do not matter, and
# their derivatives might overflow.
_REACH = 1e3
_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)
# The width of an interval, in units of the noise, below which the difference of the
# distribution function at its ends loses digits, and a series in the width does not.
_NARROW = 0.1


@final
class SpikeAndSlab(eqx.Module):
    r"""The distribution of a single pixel: uniform on the intervals of the frequent
    levels (the spikes), and normal otherwise (the slab).

    $$p(x) = \sum_k \pi_k \, \mathrm{U}(x; c_k \pm \tfrac{1}{2} w_k)
    + \pi_0 \, \mathrm{N}(x; \mu, s^2)$$

    **Arguments:**

    - `centres`, `widths`, `shares`: $c_k$, $w_k$ and $\pi_k$ of every spike, in the
        units of the data. Widths may be 0. The shares are positive and add up to less
        than 1; the rest is $\pi_0$.
    - `mean`, `std`: $\mu$ and $s$.

    **Raises:** `ValueError` for values outside these limits.
    """

    centres: tuple[float, ...] = eqx.field(static=True)
    widths: tuple[float, ...] = eqx.field(static=True)
    shares: tuple[float, ...] = eqx.field(static=True)
    mean: float = eqx.field(static=True)
    std: float = eqx.field(static=True)

    def __init__(
        self,
        centres: Sequence[float],
        widths: Sequence[float],
        shares: Sequence[float],
        mean: float,
        std: float,
    ):
        as_floats = lambda values: tuple(float(value) for value in values)
        self.centres, self.widths = as_floats(centres), as_floats(widths)
        self.shares = as_floats(shares)
        self.mean, self.std = float(mean), float(std)
        lengths = {len(self.centres), len(self.widths), len(self.shares)}
        if len(lengths) > 1:
            raise ValueError(
                "`centres`, `widths` and `shares` must have one entry for each spike; "
                f"got {len(self.centres)}, {len(self.widths)} and {len(self.shares)}."
            )
        if not (all(s > 0 for s in self.shares) and sum(self.shares) < 1):
            raise ValueError(
                "`shares` must be positive and add up to less than 1, because the rest "
                f"is the share of the slab; got {self.shares}."
            )
        if not all(0 <= width < math.inf for width in self.widths):
            raise ValueError(
                f"`widths` must be finite and not negative; got {self.widths}."
            )
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                "`mean` must be finite, and `std` positive and finite; got "
                f"{self.mean} and {self.std}."
            )

    @classmethod
    def of(
        cls, examples: Any, levels: GreyLevels, *, least_share: float = 0.005
    ) -> "SpikeAndSlab":
        """The distribution of the pixels of examples.

        **Arguments:**

        - `examples`: integers from 0 to `levels.n_levels - 1`, of any shape.
        - `levels`: the encoding of the levels as data. With a dequantiser that has no
            density, the spikes have no width.
        - `least_share`: the share of all pixels from which on a level is a spike. At
            most half of the levels are.

        **Raises:** `TypeError` unless `examples` are integers; `ValueError` for levels
        that are out of range, or examples of a single level.
        """
        examples = check_levels(
            "examples", as_array("examples", examples), levels.n_levels
        )
        counts = np.bincount(
            np.asarray(examples).reshape(-1), minlength=levels.n_levels
        )
        shares = counts / counts.sum()
        frequent = np.argsort(-shares, kind="stable")[: levels.n_levels // 2]
        spikes = np.sort(frequent[shares[frequent] >= least_share])
        edges = np.arange(levels.n_levels + 1) / levels.n_levels
        edges = np.asarray(levels.transform.forward(jnp.asarray(edges)), np.float64)
        centres, widths = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
        rest = np.delete(shares, spikes)
        if rest.sum() == 0:
            raise ValueError(
                "`examples` must have other levels than the spikes, which are those of "
                f"at least `least_share`, {least_share}, of all pixels; they have only "
                f"the levels {spikes.tolist()}. Raise `least_share`."
            )
        others, weights = np.delete(centres, spikes), rest / rest.sum()
        mean = float(weights @ others)
        variance = float(
            weights @ ((others - mean) ** 2 + np.delete(widths, spikes) ** 2 / 12)
        )
        return cls(
            centres[spikes].tolist(),
            (widths[spikes] * levels.gives_density).tolist(),
            shares[spikes].tolist(),
            mean,
            math.sqrt(variance),
        )

    @property
    def n_spikes(self) -> int:
        return len(self.shares)

    @property
    def slab_share(self) -> float:
        return 1 - sum(self.shares)

    @property
    def root_mean_square(self) -> float:
        """The root mean square of a pixel, about zero."""
        spikes = zip(self.centres, self.widths, self.shares, strict=True)
        squares = [share * (c**2 + w**2 / 12) for c, w, share in spikes]
        slab = self.slab_share * (self.mean**2 + self.std**2)
        return math.sqrt(sum(squares) + slab)


@final
class Components(eqx.Module):
    r"""The components of a pixel given $z = x + \sigma \epsilon$, the slab first: the
    logarithms of their shares of the density of z, their posterior means, and these
    less z."""

    logits: Float[Array, "components *data"]
    means: Float[Array, "components *data"]
    corrections: Float[Array, "components *data"]

    @classmethod
    def of(
        cls, pixel: SpikeAndSlab, sigma: Float[Array, "..."], z: Data
    ) -> "Components":
        sigma = jnp.broadcast_to(sigma, z.shape)
        total = jnp.sqrt(sigma**2 + pixel.std**2)
        from_mean = z - pixel.mean
        slab = (
            math.log(pixel.slab_share)
            - _LOG_ROOT_TWO_PI
            - jnp.log(total)
            - 0.5 * (from_mean / total) ** 2,
            pixel.mean + (pixel.std / total) ** 2 * from_mean,
            -((sigma / total) ** 2) * from_mean,
        )
        found = [slab]
        spikes = zip(pixel.centres, pixel.widths, pixel.shares, strict=True)
        for centre, width, share in spikes:
            from_z = centre - z
            log_density, shift = uniform_posterior(from_z / sigma, width / sigma)
            logit = math.log(share) - jnp.log(sigma) + log_density
            found.append((logit, centre + sigma * shift, from_z + sigma * shift))
        return cls(*(jnp.stack(parts) for parts in zip(*found, strict=True)))

    @property
    def log_density(self) -> Data:
        """The log-density of z."""
        return logsumexp(self.logits, axis=0)

    @property
    def correction(self) -> Data:
        """The posterior mean of the pixel, less z."""
        return jnp.sum(jax.nn.softmax(self.logits, axis=0) * self.corrections, axis=0)

    def with_slab_moved_by(self, move: Data) -> "Components":
        means, corrections = (
            parts.at[0].add(move) for parts in (self.means, self.corrections)
        )
        return Components(self.logits, means, corrections)


def noise_std(log_snr: LogSNR) -> Float[Array, "..."]:
    r"""$\sigma$, within the range in which the components can be computed."""
    return jnp.exp(-0.5 * jnp.clip(log_snr, -_FARTHEST, _FARTHEST))


def uniform_posterior(middle: Data, width: Data) -> tuple[Data, Data]:
    """For a number that is uniform on an interval, and the sum of it and a standard
    normal one, which is 0: the log-density of that sum, and the posterior mean of the
    number less the middle of the interval."""
    log_normal = lambda e: -0.5 * e**2 - _LOG_ROOT_TWO_PI
    # The mass of the interval in the tail of smaller numbers, which does not cancel.
    distance = jnp.abs(middle)
    resolved = jnp.maximum(width, _NARROW)
    near = jnp.clip(distance - 0.5 * resolved, -_REACH, _REACH)
    far = near + jnp.minimum(resolved, 2 * _REACH)
    log_tail, log_beyond = log_ndtr(-near), log_ndtr(-far)
    log_mass = log_tail + jnp.log(-jnp.expm1(log_beyond - log_tail))
    at_near, at_far = (jnp.exp(log_normal(e) - log_mass) for e in (near, far))
    inside = jnp.clip(at_near - at_far - distance, -0.5 * resolved, 0.5 * resolved)
    # The series of log E exp(-middle u - u^2 / 2) in the moments of u, and its
    # derivative. Elsewhere its powers would overflow, and their derivatives be NaN.
    narrow = width < _NARROW
    width, middle_or_zero = jnp.where(narrow, width, 0), jnp.where(narrow, middle, 0)
    square, fourth = width**2 / 12, width**4 / 80
    powers = middle_or_zero**2
    first = 0.5 * (powers - 1) * square
    second = (powers**2 / 24 - powers / 4 + 1 / 8) * fourth
    series = first + second - 0.5 * first**2
    series_shift = middle_or_zero * (square * (first - 1) - (powers / 6 - 0.5) * fourth)
    log_density = jnp.where(
        narrow, log_normal(middle) + series, log_mass - jnp.log(resolved)
    )
    shift = jnp.where(narrow, series_shift, jnp.sign(middle) * inside)
    return log_density, shift
