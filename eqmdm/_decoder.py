"""Decoders at the cut, which complete a bound on the data."""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._custom_types import Scalar, State
from ._dequantise import GreyLevels
from ._diffusion import Laws
from ._gaussian import (
    apply_to_vars,
    log_det,
    n_coordinates,
    standard_log_density,
)
from ._score import AbstractScore, error_given_start


@final
class Cut(eqx.Module):
    """A draw of the state at the cut.

    `y` is `laws.step.perturb(start, noise)` for a decoder of the whole start, and
    `laws.kernel.perturb(start[0], noise)` for one of the data.
    """

    t: Scalar
    laws: Laws
    start: State
    noise: State
    y: State


class AbstractDecoder(eqx.Module):
    """The law of the data given the state at the cut, which completes a bound."""

    @property
    @abc.abstractmethod
    def of_whole_start(self) -> bool:
        """Whether it is a law of all of $y(0)$, auxiliaries included."""

    @abc.abstractmethod
    def log_density(self, score: AbstractScore, cut: Cut) -> Scalar:
        """The decoder's log-density (or log-mass) of the truth, in nats."""


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

    def log_density(self, score: AbstractScore, cut: Cut) -> Scalar:
        # In units of the decoder's own root, Psi^-1 L, the residual of the truth is
        # minus the whitened error of the score.
        laws = cut.laws
        residual = error_given_start(score, cut.t, laws, cut.start, cut.noise, cut.y)
        growth = jnp.linalg.slogdet(laws.step.mean_map)[1] - log_det(laws.step.root)
        scale = n_coordinates(cut.y) * growth.astype(residual.dtype)
        return standard_log_density(residual) + scale


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

    def log_density(self, score: AbstractScore, cut: Cut) -> Scalar:
        kernel, x = cut.laws.kernel, cut.start[0]
        half_log_snr = (0.5 * kernel.log_snr).astype(x.dtype)
        error = score.whitened_error(cut.t, kernel, x, cut.noise, cut.y)
        # The error of the estimate, in units of its own standard deviation.
        b = kernel.whitened_mean_map
        direction = (b / jnp.linalg.norm(b))[None]
        residual = apply_to_vars(direction, error)[0]
        return standard_log_density(residual) + x.size * half_log_snr


@final
class DiscreteDecoder(AbstractDecoder):
    r"""The mass that $\mathcal{N}(\hat x(y), 1 / \mathrm{SNR})$ gives to the grey level
    of each pixel, the end levels with their tails.

    With it a bound is one of the log-mass of the quantised image, without
    dequantisation: pass the centres of the levels, as `GreyLevels` with `LevelCentres`
    encodes them.

    **Arguments:**

    - `levels`: the grey levels and the transform that the data went through.

    **Source:** Ho et al. (2020), equation 13.
    """

    levels: GreyLevels

    @property
    def of_whole_start(self) -> bool:
        return False

    def log_density(self, score: AbstractScore, cut: Cut) -> Scalar:
        kernel, x = cut.laws.kernel, cut.start[0]
        std = jnp.exp(-0.5 * kernel.log_snr).astype(x.dtype)
        low, high = self.levels.edges(x)
        estimate = score.data_estimate(cut.t, kernel, cut.y)
        return jnp.sum(log_normal_mass((low - estimate) / std, (high - estimate) / std))


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
