"""The learned diffusion, which is trained together with its score."""

import math
from typing import TYPE_CHECKING, Any, TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._core.checks import check_count, namespace
from .._core.types import PRNGKey
from .interval import Interval, as_interval
from .matrices import as_matrix
from .recipe import Recipe
from .schedule import AbstractSchedule, LinearSchedule
from .stationary import AbstractStationaryDiffusion


# Known values are NumPy arrays, which compile nothing; traced ones are JAX arrays.
if TYPE_CHECKING:
    Values: TypeAlias = Array
else:
    Values = Array | np.ndarray


def _softplus_inverse(value: float) -> float:
    # log(exp(value) - 1), rearranged so that exp does not overflow.
    return value + math.log(-math.expm1(-value))


def _parameter(values: Any) -> Array:
    # With the dtype given, JAX compiles no program for the copy.
    return jnp.asarray(values, jnp.float32)


def _dissipation_root(parameter: Values) -> Values:
    """The root of D: the parameter itself, or the root of its softplus if diagonal."""
    xp = namespace(parameter)
    if parameter.ndim == 2:
        return parameter
    return xp.diag(xp.sqrt(xp.logaddexp(parameter, 0)))


@final
class LearnedDiffusion(AbstractStationaryDiffusion):
    r"""A stationary diffusion whose matrices are parameters.

    $Q = q - q^\top$ and $D = B B^\top$, or $D$ is diagonal with entries
    $\mathrm{softplus}$ of a parameter. Every value of the parameters gives a valid
    diffusion. The stationary covariance $S = L L^\top$, the variances of the
    auxiliaries at time 0, and the rates of a linear schedule are optional parameters.

    **Source:** Singhal et al. (2023), section 4.3.
    """

    skew_half: Float[Array, "vars vars"]  # q
    dissipation_parameter: Float[Array, "vars vars"] | Float[Array, " vars"]  # B
    stationary_parameter: Float[Array, "vars vars"] | None
    start_parameter: Float[Array, " aux"] | None
    schedule_parameter: Float[Array, "2"] | None
    start_variance: float
    fixed_schedule: AbstractSchedule | None
    _interval: Interval

    def __init__(
        self,
        n_vars: int,
        *,
        key: PRNGKey,
        diagonal: bool = False,
        learn_stationary: bool = False,
        learn_start: bool = False,
        learn_schedule: bool = False,
        start_variance: float = 0.01,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
    ):
        r"""**Arguments:**

        - `n_vars`: $K$, including the data.
        - `key`: for the initial values. The couplings and the factor of $D$ are those
            of a chain with damping 1, plus normal noise of standard deviation 0.1.
        - `diagonal`: whether $D$ is diagonal rather than full.
        - `learn_stationary`, `learn_start`, `learn_schedule`: whether $S$, the start
            variances and the schedule are learned too. A learned schedule must be
            linear.
        - `start_variance`, `schedule`, `interval`: as for the other diffusions. With an
            [`eqmdm.LogSNRInterval`][] the log-SNRs are fixed, and their times move with
            the parameters.
        """
        hint = " 1, the data alone, only learns a rate; 2 adds a velocity."
        check_count("n_vars", n_vars, hint=hint)
        if not (math.isfinite(start_variance) and start_variance > 0):
            raise ValueError(
                f"`start_variance` must be positive and finite; got {start_variance}."
            )
        schedule = LinearSchedule() if schedule is None else schedule
        self.schedule_parameter, self.fixed_schedule = None, schedule
        if learn_schedule:
            self.schedule_parameter = _parameter(_schedule_start(schedule))
            self.fixed_schedule = None
        skew_half, dissipation = _initial_values(n_vars, diagonal, key=key)
        self.skew_half = _parameter(skew_half)
        self.dissipation_parameter = _parameter(dissipation)
        unit, aux = _softplus_inverse(1.0), n_vars - 1
        # A lower-triangular root whose diagonal goes through softplus.
        root = np.eye(n_vars, dtype=np.float32) * np.float32(unit)
        self.stationary_parameter = _parameter(root) if learn_stationary else None
        start = np.full(aux, _softplus_inverse(start_variance), np.float32)
        self.start_parameter = _parameter(start) if learn_start and aux else None
        self.start_variance = start_variance
        self._interval = as_interval(interval)
        # Check the initial values as constants, because they must reach the interval.
        Recipe.create(
            skew_half - skew_half.T,
            dissipation_root=_dissipation_root(dissipation),
            start_covariance=start_variance * np.diag([0.0] + [1.0] * aux),
            schedule=schedule,
            interval=interval,
        )

    def _schedule(self) -> AbstractSchedule:
        if self.schedule_parameter is None:
            assert self.fixed_schedule is not None
            return self.fixed_schedule
        # Softplus and not the exponential, here and below: a gradient step then adds to
        # a large value and does not multiply it.
        rate0, slope = jax.nn.softplus(self.schedule_parameter)
        rates = rate0, rate0 + slope
        # Not by its constructor, which turns known values into constants.
        return eqx.tree_at(lambda s: (s.rate0, s.rate1), LinearSchedule(), rates)

    @property
    def recipe(self) -> Recipe:
        n_vars = len(self.skew_half)
        if self.stationary_parameter is None:
            stationary = as_matrix("stationary_covariance", np.eye(n_vars))
        else:
            raw = self.stationary_parameter
            diagonal = jnp.diag(jax.nn.softplus(jnp.diag(raw)))
            stationary = jnp.tril(raw, -1) + diagonal
        if self.start_parameter is None:
            deviation, aux = self.start_variance**0.5, range(1, n_vars)
            start = tuple(
                tuple(deviation if row == column else 0.0 for column in aux)
                for row in range(n_vars)
            )
        else:
            deviation = jnp.sqrt(jax.nn.softplus(self.start_parameter))
            zero = jnp.zeros((1, n_vars - 1), deviation.dtype)
            start = jnp.concatenate([zero, jnp.diag(deviation)])
        return Recipe(
            self.skew_half - self.skew_half.T,
            _dissipation_root(self.dissipation_parameter),
            stationary,
            start,
            self._schedule(),
            self._interval,
        )


def _initial_values(
    n_vars: int, diagonal: bool, *, key: PRNGKey
) -> tuple[Values, Values]:
    """The parameters of Q and D for a chain with damping 1, plus noise."""
    n_skew, n_dissipation = n_vars**2, n_vars if diagonal else n_vars**2
    # A single draw, with the rest on the host, so that only one program is compiled.
    noise: Any = jr.normal(key, (n_skew + n_dissipation,), jnp.float32)
    if not isinstance(noise, Tracer):
        noise = np.asarray(noise)
    noise = np.float32(0.1) * noise
    chain = np.eye(n_vars, k=-1, dtype=np.float32)
    skew_half: Any = chain + noise[:n_skew].reshape(n_vars, n_vars)
    if diagonal:
        return skew_half, np.float32(_softplus_inverse(1.0)) + noise[n_skew:]
    identity = np.eye(n_vars, dtype=np.float32)
    return skew_half, identity + noise[n_skew:].reshape(n_vars, n_vars)


def _schedule_start(schedule: AbstractSchedule) -> np.ndarray:
    """The parameters at which a learned schedule has the rates of a linear one."""
    if not isinstance(schedule, LinearSchedule):
        raise ValueError(
            "`schedule` must be a `LinearSchedule` if `learn_schedule` is set; "
            f"got {type(schedule).__name__}."
        )
    rates = [float(schedule.rate0), float(schedule.rate1) - float(schedule.rate0)]
    if min(rates) <= 0:
        raise ValueError(
            "`schedule` must have 0 < rate0 < rate1 if `learn_schedule` is set, "
            "because its parameters are the logarithms of rate0 and of rate1 - "
            f"rate0; got {schedule.rate0} and {schedule.rate1}."
        )
    return np.array([_softplus_inverse(rate) for rate in rates], np.float32)
