"""Decoders, which give the data from the state at the start time."""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.blocks import by_coordinate
from .._core.gaussian import log_det, over_coordinates, standard_log_density
from .._core.types import Data, Scalar, State
from .._levels import GreyLevels
from .._model.base import AbstractModel
from .._model.point import Point
from .control import noise_control


class AbstractDecoder(eqx.Module):
    """The law of the data given the state at the start time.

    It gives the reconstruction term of a bound.
    """

    @property
    @abc.abstractmethod
    def of_whole_start(self) -> bool:
        """Whether it decodes the whole of $y(0)$, including the auxiliaries."""

    @abc.abstractmethod
    def log_density(self, point: Point, error: State, model: AbstractModel) -> Scalar:
        """An unbiased estimate of the decoder's log-density (or log-mass), in nats.

        **Arguments:**

        - `point`: a state at the start time, drawn given the whole start if
            `of_whole_start`.
        - `error`: the model's error at `point`, `point.error(model)`.
        - `model`: for its `data_std`.
        """


@final
class StartDecoder(AbstractDecoder):
    r"""The decoder of the whole start given the state at the start time.

    $$p(y_0 \mid y) = \mathcal{N}(\Psi^{-1} (y + \Sigma s_\theta(y)), \Psi^{-1} \Sigma
    \Psi^{-\top})$$

    where $\Psi$ and $\Sigma$ belong to the transition from 0 to the start time.

    **Source:** Singhal et al. (2023), theorem 3.
    """

    @property
    def of_whole_start(self) -> bool:
        return True

    def log_density(self, point: Point, error: State, model: AbstractModel) -> Scalar:
        # In units of the decoder's root, Psi^-1 L, the residual of the true start is
        # minus the whitened error of the score.
        del model
        # By LU, because the mean map is not triangular. Near the start time it is close
        # to the identity, so that its determinant loses no digits.
        mean_map = point.kernel.step.mean_map
        log_volume = by_coordinate(lambda Psi: jnp.linalg.slogdet(Psi)[1], mean_map)
        growth = log_volume - log_det(point.root)
        return standard_log_density(error) + over_coordinates(growth, point.y)


@final
class DataDecoder(AbstractDecoder):
    r"""The decoder of the data alone, $p(x \mid y) = \mathcal{N}(\hat x(y), 1 /
    \mathrm{SNR})$.

    The bound is tighter than with the decoder of the whole start, and valid without an
    auxiliary term.
    """

    @property
    def of_whole_start(self) -> bool:
        return False

    def log_density(self, point: Point, error: State, model: AbstractModel) -> Scalar:
        kernel, residual = point.kernel, point.data_residual(error)
        half_log_snr = 0.5 * kernel.log_snr.astype(residual.dtype)
        control = noise_control(kernel, point.kernel_noise, model.data_std)
        # The terms nearly cancel, so they are subtracted before the sum, as in
        # `LowVariance`.
        quadratic = jnp.sum(control - 0.5 * residual**2)
        log_scale = half_log_snr - 0.5 * math.log(2 * math.pi)
        return quadratic + over_coordinates(log_scale, residual[None])


@final
class DiscreteDecoder(AbstractDecoder):
    r"""The mass that $\mathcal{N}(\hat x(y), 1 / \mathrm{SNR})$ gives to the grey level
    of each pixel. The lowest and the highest level include the tails.

    The bound is then one on the log-mass of the quantised image, and needs no
    dequantisation: pass the centres of the levels, as encoded by `GreyLevels` with
    `CentreDequantiser`.

    **Arguments:**

    - `levels`: the grey levels and the transform of the data.

    **Source:** Ho et al. (2020), equation 13.
    """

    levels: GreyLevels

    @property
    def of_whole_start(self) -> bool:
        return False

    def log_density(self, point: Point, error: State, model: AbstractModel) -> Scalar:
        del model
        x, residual = point.x, point.data_residual(error)
        std = point.kernel.sigma.astype(x.dtype)

        def whitened(edge: Data) -> Data:
            # At an infinite edge the derivative with respect to `std`, which a learned
            # diffusion needs, would be NaN.
            finite = jnp.isfinite(edge)
            inside = (jnp.where(finite, edge, x) - x) / std - residual
            return jnp.where(finite, inside, edge)

        low, high = (whitened(edge) for edge in self.levels.edges(x))
        return jnp.sum(log_normal_mass(low, high))


def log_normal_mass(
    low: Float[Array, "*shape"], high: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    r"""$\log(\Phi(\text{high}) - \Phi(\text{low}))$ for low < high, accurate far into
    the tails. The limits may be infinite."""
    # In the upper tail both values are close to 1: reflect it onto the lower tail.
    upper = low + high > 0
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    log_high = jax.scipy.stats.norm.logcdf(high)
    finite = jnp.isfinite(low)
    # The double `where` avoids a NaN in the derivative at an infinite limit.
    log_low = jax.scipy.stats.norm.logcdf(jnp.where(finite, low, high - 1))
    gap = jnp.where(finite, log_low - log_high, -jnp.inf)
    near = gap > -math.log(2)
    small = jnp.where(near, gap, -1.0)
    large = jnp.where(near, -1.0, gap)
    complement = jnp.where(near, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large)))
    return log_high + complement
