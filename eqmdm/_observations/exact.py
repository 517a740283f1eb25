"""Exact conditioning, by telling the denoiser the precision of every coordinate."""

import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float

from .._core.checks import is_known, now_if_known, raise_or_error_if
from .._core.types import Data, LogSNR, Scalar
from .._model.base import AbstractModel
from .base import (
    AbstractConditioning,
    AbstractLinearObservation,
    AbstractObservationMethod,
    apply_operator,
    check_data_shape,
    check_has_denoiser,
)
from .levels import normal_shares
from .noise import AbstractNoise
from .posterior import ObservedModel


# How many rounding errors, of the largest entry of a product with the operator and its
# transpose, a zero may differ from zero: at least, beside the square root of the size,
# and where a larger one shows that a matrix is not diagonal.
_N_ROUNDINGS, _N_OFF_DIAGONAL = 8, 256


@final
class Exact(AbstractObservationMethod):
    r"""Exact conditioning, for observations that are diagonal in model space.

    The statistic $z$ of the state and the observation $o$ are together one observation
    of the data with normal noise, of precision $P$ and mean $m$:

    $$P = \mathrm{SNR}\, I + A^\top R^{-1} A, \qquad m = P^{-1} (\mathrm{SNR}\, z +
    A^\top R^{-1} o), \qquad \mathrm{E}[x \mid z, o] = \hat x(\log P, m)$$

    As exact as the denoiser, at one evaluation and without derivatives. It needs a
    denoiser that is told the log-SNR of every coordinate, and an $A^\top R^{-1} A$ that
    is diagonal: for masks in pixels, for block averages in the Haar basis, for circular
    blurs and Fourier coefficients in a Fourier basis. If it is a multiple of the
    identity, as for noisy data, any denoiser serves.

    Numbers without noise make the precision of their coordinates infinite. A network
    that was trained up to a log-SNR takes what is above it as the top of its range.

    **Raises:** when given, `ValueError` for an observation that is not diagonal
    (`equinox.EquinoxRuntimeError` if its operator or noise is traced); `TypeError` for
    a model without a denoiser, or one that takes a single log-SNR where there are
    several.
    """

    def condition(
        self, model: AbstractModel, observation: AbstractLinearObservation
    ) -> ObservedModel:
        check_has_denoiser(model)
        found = precisions(observation)
        log_precision, target = found.log_precision, target_of(observation, found)
        target = raise_or_error_if(
            target,
            ~found.is_diagonal,
            "`observation` must be diagonal in the space of the model's data for "
            "`eqmdm.Exact()`; its A^T R^-1 A has entries off the diagonal. Use a model "
            "of coefficients in a basis where it has none (masks: pixels; block "
            "averages: Haar; circular blurs: Fourier) and pass that `basis` to the "
            "operator, or `eqmdm.MomentMatching()`, which is approximate.",
        )
        if model.takes_snr_vector:
            return ObservedModel(model, ExactConditioning(log_precision, target))
        target = raise_or_error_if(
            target,
            ~found.is_uniform,
            "`model` must have a denoiser that is told the log-SNR of every coordinate "
            "for this observation, which has another precision for each; that of this "
            f"{type(model).__name__} takes one number. Train one with `--snr vector`, "
            "or use `eqmdm.MomentMatching()`, which is approximate.",
        )
        level = log_precision.reshape(-1)[0]
        return ObservedModel(model, ExactConditioning(level, target))


@final
class ExactConditioning(AbstractConditioning):
    r"""An observation of single coordinates.

    - `log_precision`: the logarithm of the diagonal of $A^\top R^{-1} A$, $\infty$ for
        coordinates that are known exactly and $-\infty$ for those that are not
        observed; or one number for all.
    - `target`: the observed values of the coordinates, 0 for those not observed.
    """

    log_precision: Float[Array, "..."]
    target: Float[Array, "*data"]

    @property
    def method_name(self) -> str:
        return "exact"

    def residual(self, model: AbstractModel, log_snr: LogSNR, z: Data) -> Data:
        check_data_shape(self.target.shape, z.shape)
        dtype, data_std = z.dtype, model.data_std
        log_snr = jnp.asarray(log_snr, dtype)
        log_precision, target = (
            leaf.astype(dtype) for leaf in (self.log_precision, self.target)
        )
        total = jnp.logaddexp(log_snr, log_precision)
        weight, rest = _weights(log_snr, log_precision)
        m = rest * z + weight * target
        residual = model.denoiser_residual(total, m)
        kept, lost = normal_shares(log_snr, z, data_std)
        kept_in_all, lost_in_all = normal_shares(total, z, data_std)
        # Two forms of residual + kept_in_all m - kept z. Near the data z, m and the
        # estimate agree, and far from them z is large.
        near = kept_in_all * weight * (target - z) + (lost - lost_in_all) * z
        far = kept_in_all * m - kept * z
        return residual + jnp.where(lost < 0.5, near, far)


def _weights(
    log_snr: LogSNR, log_precision: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The weights of the observation and of the state in the mean of both."""
    # Where both are infinite, neither or both are known exactly: the state serves.
    gap = log_precision - log_snr
    gap = jnp.where(jnp.isnan(gap), -jnp.inf, gap)
    return jax.nn.sigmoid(gap), jax.nn.sigmoid(-gap)


@final
class Precisions(eqx.Module):
    r"""The diagonal of $A^\top R^{-1} A$, and whether it is all of it.

    - `exact`, `noisy`: the parts of the exact numbers, with precision 1, and of those
        with noise, in units of `std`.
    - `std`: the standard deviation that all numbers share.
    - `is_uniform`: whether it is a multiple of the identity.
    """

    exact: Float[Array, "*data"]
    noisy: Float[Array, "*data"]
    std: Scalar
    is_diagonal: Bool[Array, ""]
    is_uniform: Bool[Array, ""]

    @property
    def log_precision(self) -> Float[Array, "*data"]:
        """The logarithm of the diagonal, which may be infinite."""
        shared = -2 * jnp.log(self.std.astype(self.noisy.dtype))
        # Not observed, whatever the noise.
        noisy = jnp.where(self.noisy > 0, jnp.log(self.noisy) + shared, -jnp.inf)
        return jnp.where(self.exact > 0, jnp.inf, noisy)


def precisions(observation: AbstractLinearObservation) -> Precisions:
    """The precisions of the coordinates, whose pattern is known if the operator is, and
    the noise but for a standard deviation that all numbers share."""
    std, noise = observation.noise.factored()
    with now_if_known(observation.operator, noise):
        parts = _precisions(observation.operator, noise)
    return Precisions(*parts[:2], std, *parts[2:])


@eqx.filter_jit
def _precisions(
    operator: lx.AbstractLinearOperator, noise: AbstractNoise
) -> tuple[Data, Data, Bool[Array, ""], Bool[Array, ""]]:
    structure = operator.in_structure()
    size, eps = math.prod(structure.shape), jnp.finfo(structure.dtype).eps
    ones = jnp.ones(structure.shape, structure.dtype)
    # A matrix M is diagonal if M v = (M 1) v for every v. For any other matrix a random
    # v gives equality with probability 0. No entry of it is small.
    key_size, key_sign = jr.split(jr.key(0))
    probe = jr.uniform(key_size, (size,), structure.dtype, 0.5, 1.5)
    probe = probe * jr.rademacher(key_sign, (size,), structure.dtype)
    probe = probe.reshape(structure.shape)

    def normal(v: Data, weigh: Callable[[Array], Array]) -> Data:
        products = weigh(apply_operator(operator, v))
        return apply_operator(operator.transpose(), products)

    def diagonal(
        weigh: Callable[[Array], Array], unit_weights: Callable[[Array], Array]
    ) -> tuple[Data, Bool[Array, ""]]:
        entries, products = normal(ones, weigh), normal(probe, weigh)
        scale = jnp.maximum(jnp.max(jnp.abs(entries)), jnp.max(jnp.abs(products)))
        error = jnp.max(jnp.abs(products - entries * probe))
        # Smaller entries are rounding errors of zero. With unit weights, because the
        # precisions of two numbers may differ by more than that of floats.
        unit = jnp.abs(normal(probe, unit_weights))
        seen = unit > (_N_ROUNDINGS + math.sqrt(size)) * eps * jnp.max(unit)
        entries = jnp.where(seen, jnp.maximum(entries, 0), 0)
        return entries, error <= _N_OFF_DIAGONAL * eps * scale

    exact, exact_is_diagonal = diagonal(noise.exact, noise.exact)
    noisy, noisy_is_diagonal = diagonal(noise.precision, lambda u: u - noise.exact(u))
    spread = jnp.max(noisy) - jnp.min(noisy)
    is_uniform = jnp.where(
        jnp.any(exact > 0),
        jnp.all(exact > 0),
        spread <= _N_OFF_DIAGONAL * eps * jnp.max(noisy),
    )
    return exact, noisy, exact_is_diagonal & noisy_is_diagonal, is_uniform


def target_of(
    observation: AbstractLinearObservation, found: Precisions
) -> Float[Array, "*data"]:
    """The observed values of the coordinates."""
    _, noise = observation.noise.factored()
    with now_if_known(observation.operator, noise, observation.value):
        return _target(
            observation.operator, noise, observation.value, found.exact, found.noisy
        )


@eqx.filter_jit
def _target(
    operator: lx.AbstractLinearOperator,
    noise: AbstractNoise,
    value: Float[Array, "*out"],
    exact: Data,
    noisy: Data,
) -> Float[Array, "*data"]:
    value = value.astype(operator.out_structure().dtype)
    back = lambda u: apply_operator(operator.transpose(), u)
    of_exact = back(noise.exact(value)) / jnp.where(exact > 0, exact, 1)
    of_noisy = back(noise.precision(value)) / jnp.where(noisy > 0, noisy, 1)
    unobserved = (exact == 0) & (noisy == 0)
    return jnp.where(unobserved, 0, jnp.where(exact > 0, of_exact, of_noisy))


def exact_applies(model: AbstractModel, observation: AbstractLinearObservation) -> bool:
    """Whether `Exact` supports a model and an observation.

    **Raises:** `ValueError` if that depends on traced numbers.
    """
    found = precisions(observation)
    if not is_known(found.is_diagonal, found.is_uniform):
        raise ValueError(
            "`method` must be given where the operator or the noise of single numbers "
            "is traced, because the choice depends on them: `eqmdm.Exact()` or "
            "`eqmdm.MomentMatching()`. Or build the observation with a known operator, "
            "and batch over values only."
        )
    suits = model.takes_snr_vector or bool(found.is_uniform)
    return bool(found.is_diagonal) and suits
