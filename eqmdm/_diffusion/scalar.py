"""Diffusions of one variable without a stationary law: VE and sub-VP."""

import math
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.checks import as_scalar, concrete
from .._core.gaussian import Gaussian, Transition
from .._core.types import RankMatrix, Scalar, VarsMatrix
from . import host
from .base import AbstractLinearDiffusion
from .interval import Interval, as_interval, known_times
from .matrices import check_constant
from .schedule import AbstractSchedule, LinearSchedule, end_of, known_inverse
from .settle import (
    KnownLaws,
    check_schedule_reaches,
    has_parameters,
    scheduled_laws,
    settled,
)
from .text import call_text


# Kernels of VE and sub-VP are closed forms. These values only bound the search for a
# time to the range of float32: a noise level of e^40 times the start, a mean of e^-30.
_LARGEST_LOG_GROWTH = 40.0
_LARGEST_INTEGRAL = 60.0


def _one_by_one(value: Scalar) -> Float[Array, "1 1"]:
    return value[None, None]


@final
class VESDE(AbstractLinearDiffusion):
    r"""The variance-exploding diffusion, without drift: $\sigma(t) = \sigma_0 (\sigma_1
    / \sigma_0)^t$ and $G^2 = \mathrm{d} \sigma^2 / \mathrm{d} t$.

    Given the data at time 0, the variance is $\sigma(t)^2 - \sigma_0^2$. The prior is
    $\mathcal{N}(0, \sigma(t_1)^2)$.

    **Arguments:**

    - `sigma0`, `sigma1`: the noise levels at times 0 and 1, in units of the data.
    - `interval`: as for [`eqmdm.LinearDiffusion`][].

    **Source:** Song et al. (2021), equation 9.
    """

    sigma0: float = eqx.field(static=True)
    sigma1: float = eqx.field(static=True)
    _interval: Interval

    def __init__(
        self,
        sigma0: float = 0.01,
        sigma1: float = 50.0,
        *,
        interval: Interval | None = None,
    ):
        check_constant("sigma0", sigma0)
        check_constant("sigma1", sigma1)
        if not 0 < sigma0 < sigma1 < math.inf:
            raise ValueError(
                "`sigma0` and `sigma1` must be finite with 0 < sigma0 < sigma1; got "
                f"sigma0={sigma0} and sigma1={sigma1}."
            )
        self.sigma0, self.sigma1 = sigma0, sigma1
        self._interval = settled(as_interval(interval), self._known_laws(), moves=False)

    def _known_laws(self) -> KnownLaws:
        log_growth = 2 * self._log_growth
        variance = lambda t: self.sigma0**2 * np.expm1(log_growth * t)

        def divergence(t: float) -> float:
            root = np.sqrt([[variance(t)]])
            prior_root = np.array([[self.sigma0 * math.exp(0.5 * log_growth * t)]])
            return host.prior_divergence(prior_root, host.Laws(np.eye(1), root))

        return KnownLaws(
            integral=lambda t: t,
            time=lambda t: t,
            log_snr=lambda t, dtype: -np.log(variance(t)),
            divergence=divergence,
            t_limit=_LARGEST_LOG_GROWTH / self._log_growth,
        )

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(
            self, sigma0=self.sigma0, sigma1=self.sigma1, interval=self._interval
        )

    @property
    def _log_growth(self) -> float:
        return math.log(self.sigma1) - math.log(self.sigma0)

    @property
    def n_vars(self) -> int:
        return 1

    @property
    def interval(self) -> Interval:
        return self._interval

    @property
    def t_limit(self) -> Scalar:
        limit = _LARGEST_LOG_GROWTH / self._log_growth
        return as_scalar(limit, jnp.result_type(float))

    @property
    def prior(self) -> Gaussian:
        times = known_times(self._interval)
        t1 = None if times is None else concrete(times.t1)
        if t1 is None:
            return Gaussian(_one_by_one(self._sigma(self.t1)))
        sigma = self.sigma0 * math.exp(self._log_growth * t1)
        return Gaussian(jnp.asarray(np.array([[sigma]]), jnp.result_type(float)))

    def _sigma(self, t: Scalar) -> Scalar:
        return self.sigma0 * jnp.exp(self._log_growth * t)

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns"]:
        return jnp.zeros((1, 0), dtype)

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return jnp.zeros((1, 1), t.dtype)

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return _one_by_one(math.sqrt(2 * self._log_growth) * self._sigma(t))

    # A closed form is safe with one variable: `expm1` keeps the digits of a short step,
    # and nothing else is subtracted.
    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        growth = jnp.sqrt(jnp.expm1(2 * self._log_growth * (t - s)))
        return Transition(
            jnp.ones((1, 1), t.dtype), _one_by_one(self._sigma(s) * growth)
        )


@final
class SubVPSDE(AbstractLinearDiffusion):
    r"""The sub-variance-preserving diffusion. It has the drift of VPSDE and $G^2 =
    \beta (1 - e^{-2B})$, so that the variance is $(1 - e^{-B})^2$.

    The prior is standard normal.

    **Arguments:**

    - `schedule`, `interval`: as for [`eqmdm.LinearDiffusion`][].

    **Source:** Song et al. (2021), equation 12.
    """

    schedule: AbstractSchedule
    _interval: Interval

    def __init__(
        self,
        *,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        self.schedule = LinearSchedule() if schedule is None else schedule
        self._interval = as_interval(interval)
        check_schedule_reaches(self.schedule, self._interval)
        laws = self._known_laws()
        if laws is not None:
            moves = has_parameters(self.schedule)
            self._interval = settled(self._interval, laws, moves=moves)

    def _known_t_limit(self) -> float | None:
        limit = known_inverse(self.schedule, _LARGEST_INTEGRAL)
        return None if limit is None else min(limit, end_of(self.schedule))

    def _known_laws(self) -> KnownLaws | None:
        limit = self._known_t_limit()
        if limit is None:
            return None

        def divergence(integral: float) -> float:
            mean_map = np.array([[math.exp(-0.5 * integral)]])
            root = np.array([[-math.expm1(-integral)]])
            return host.prior_divergence(np.eye(1), host.Laws(mean_map, root))

        return scheduled_laws(
            self.schedule,
            log_snr=lambda integral, dtype: (
                -integral - 2 * np.log(-np.expm1(-integral))
            ),
            divergence=divergence,
            t_limit=limit,
        )

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, schedule=self.schedule, interval=self._interval)

    @property
    def n_vars(self) -> int:
        return 1

    @property
    def interval(self) -> Interval:
        return self._interval

    @property
    def t_limit(self) -> Scalar:
        limit = self._known_t_limit()
        if limit is not None:
            return as_scalar(limit, jnp.result_type(float))
        integral = jnp.asarray(_LARGEST_INTEGRAL, jnp.result_type(float))
        return jnp.minimum(self.schedule.inverse(integral), end_of(self.schedule))

    @property
    def prior(self) -> Gaussian:
        return Gaussian(jnp.asarray(np.ones((1, 1)), jnp.result_type(float)))

    def _integral(self, t: Scalar) -> Scalar:
        return self.schedule.integrated_rate(jnp.zeros_like(t), t)

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns"]:
        return jnp.zeros((1, 0), dtype)

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return _one_by_one(-0.5 * self.schedule.rate(t))

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        variance_rate = -self.schedule.rate(t) * jnp.expm1(-2 * self._integral(t))
        return _one_by_one(jnp.sqrt(variance_rate))

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        # sigma(t)^2 - Psi^2 sigma(s)^2, factored to avoid cancellation.
        step = self.schedule.integrated_rate(s, t)
        total = self._integral(s) + self._integral(t)
        variance = jnp.expm1(-step) * jnp.expm1(-total)
        return Transition(
            _one_by_one(jnp.exp(-0.5 * step)), _one_by_one(jnp.sqrt(variance))
        )
