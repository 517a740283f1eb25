"""Decoders at the cut, which complete a bound on the data."""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.gaussian import (
    apply_to_vars,
    log_det,
    n_coordinates,
    standard_log_density,
)
from .._core.types import Data, Scalar, State
from .._levels import GreyLevels
from .._model.score import Point


class AbstractDecoder(eqx.Module):
    """The law of the data given the state at the cut, which completes a bound."""

    @property
    @abc.abstractmethod
    def of_whole_start(self) -> bool:
        """Whether it is a law of all of $y(0)$, auxiliaries included."""

    @abc.abstractmethod
    def log_density(self, cut: Point, error: State) -> Scalar:
        """The decoder's log-density (or log-mass) of the truth, in nats.

        **Arguments:**

        - `cut`: a state at the cut, drawn given the whole start for a decoder of that.
        - `error`: the error of the score there, `cut.error(...)`.
        """


@final
class StartDecoder(AbstractDecoder):
    r"""The decoder of the whole start given the state at the cut.

    $$p(y_0 \mid y) = \mathcal{N}(\Psi^{-1} (y + \Sigma s_\theta(y)), \Psi^{-1} \Sigma
    \Psi^{-\top})$$

    with $\Psi$ and $\Sigma$ of the transition from 0 to the cut.

    **Source:** Singhal et al. (2023), theorem 3.
    """

    @property
    def of_whole_start(self) -> bool:
        return True

    def log_density(self, cut: Point, error: State) -> Scalar:
        # In units of the decoder's own root, Psi^-1 L, the residual of the truth is
        # minus the whitened error of the score.
        growth = jnp.linalg.slogdet(cut.laws.step.mean_map)[1] - log_det(cut.root)
        scale = n_coordinates(cut.y) * growth.astype(error.dtype)
        return standard_log_density(error) + scale


@final
class DataDecoder(AbstractDecoder):
    r"""The decoder of the data alone, $p(x \mid y) = \mathcal{N}(\hat x(y), 1 /
    \mathrm{SNR})$.

    Tighter than the decoder of the whole start, and a valid bound without an auxiliary
    term.
    """

    @property
    def of_whole_start(self) -> bool:
        return False

    def log_density(self, cut: Point, error: State) -> Scalar:
        residual = _estimate_error(cut, error)
        half_log_snr = 0.5 * cut.laws.kernel.log_snr.astype(residual.dtype)
        return standard_log_density(residual) + residual.size * half_log_snr


@final
class DiscreteDecoder(AbstractDecoder):
    r"""The mass that $\mathcal{N}(\hat x(y), 1 / \mathrm{SNR})$ gives to the grey level
    of each pixel, the end levels with their tails.

    With it a bound is one of the log-mass of the quantised image, without
    dequantisation: pass the centres of the levels, as `GreyLevels` with
    `CentreDequantiser` encodes them.

    **Arguments:**

    - `levels`: the grey levels and the transform that the data went through.

    **Source:** Ho et al. (2020), equation 13.
    """

    levels: GreyLevels

    @property
    def of_whole_start(self) -> bool:
        return False

    def log_density(self, cut: Point, error: State) -> Scalar:
        x, residual = cut.start[0], _estimate_error(cut, error)
        std = jnp.exp(-0.5 * cut.laws.kernel.log_snr).astype(x.dtype)

        def whitened(edge: Data) -> Data:
            # An infinite edge has no derivative in the noise, which learns with the
            # diffusion; the quotient of infinities would give it a NaN.
            finite = jnp.isfinite(edge)
            inside = (jnp.where(finite, edge, x) - x) / std - residual
            return jnp.where(finite, inside, edge)

        low, high = (whitened(edge) for edge in self.levels.edges(x))
        return jnp.sum(log_normal_mass(low, high))


def _estimate_error(cut: Point, error: State) -> Data:
    r"""$(\hat x - x) \, \mathrm{SNR}^{1/2}$: the error of the data's estimate in units
    of its own standard deviation."""
    b = cut.laws.kernel.whitened_mean_map
    return apply_to_vars((b / jnp.linalg.norm(b))[None], error)[0]


def log_normal_mass(
    low: Float[Array, "*shape"], high: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""$\log(\Phi(\text{high}) - \Phi(\text{low}))$ for low < high, far into the tails;
    infinite ends are allowed."""
    # In the upper tail both are close to 1: reflect it onto the lower one.
    upper = low + high > 0
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    log_high = jax.scipy.stats.norm.logcdf(high)
    finite = jnp.isfinite(low)
    # The double `where` keeps the derivative at an infinite end from being a NaN.
    log_low = jax.scipy.stats.norm.logcdf(jnp.where(finite, low, high - 1))
    gap = jnp.where(finite, log_low - log_high, -jnp.inf)
    near = gap > -math.log(2)
    small = jnp.where(near, gap, -1.0)
    large = jnp.where(near, -1.0, gap)
    complement = jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))
    return log_high + complement
