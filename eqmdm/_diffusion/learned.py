"""The diffusion that is learned together with its score."""

import copy
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._core.checks import check_count
from .._core.types import PRNGKey
from .interval import Interval, as_interval
from .matrices import as_matrix
from .schedule import AbstractSchedule, LinearSchedule
from .stationary import (
    HEADROOM,
    AbstractStationaryDiffusion,
    Recipe,
    make_recipe,
)


def _softplus_inverse(value: float) -> Array:
    # log(exp(value) - 1), which overflows.
    return jnp.asarray(value + np.log(-np.expm1(-value)), jnp.float32)


@final
class LearnedDiffusion(AbstractStationaryDiffusion):
    r"""A stationary diffusion whose matrices are parameters.

    $Q = q - q^\top$ and $D = B B^\top$, or $D$ diagonal with entries
    $\mathrm{softplus}$ of a parameter: every value of the parameters is a diffusion.
    By switch, the stationary covariance $S = L L^\top$, the variances of the
    auxiliaries at time 0, and a linear schedule's rates are parameters too.

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
    _n_doublings: int = eqx.field(static=True)

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

        - `n_vars`: $K$, the data included.
        - `key`: draws the start: the couplings and the factor of $D$ are those of a
            chain with damping 1, plus normal noise of standard deviation 0.1.
        - `diagonal`: a diagonal $D$ instead of a full one.
        - `learn_stationary`, `learn_start`, `learn_schedule`: what else is a parameter;
            the schedule must then be linear.
        - `start_variance`, `schedule`, `interval`: as for the other
            diffusions. With a [`eqmdm.LogSNRInterval`][] the ends stay at their
            log-SNR, and their times move with the parameters.
        """
        hint = " 1, the data, learns a rate alone; 2 adds a velocity."
        check_count("n_vars", n_vars, hint=hint)
        if not (math.isfinite(start_variance) and start_variance > 0):
            raise ValueError(
                f"`start_variance` must be positive and finite; got {start_variance}."
            )
        schedule = LinearSchedule() if schedule is None else schedule
        self.schedule_parameter, self.fixed_schedule = None, schedule
        if learn_schedule and isinstance(schedule, LinearSchedule):
            rates = [
                float(schedule.rate0),
                float(schedule.rate1) - float(schedule.rate0),
            ]
            if min(rates) <= 0:
                raise ValueError(
                    "`schedule` must have 0 < rate0 < rate1 where `learn_schedule` is "
                    "set, for what is learned are the logarithms of the first rate "
                    f"and of the rise; got {schedule.rate0} and {schedule.rate1}."
                )
            self.schedule_parameter = jnp.stack([_softplus_inverse(r) for r in rates])
            self.fixed_schedule = None
        elif learn_schedule:
            raise ValueError(
                "`schedule` must be a `LinearSchedule` where `learn_schedule` is set; "
                f"got {type(schedule).__name__}."
            )
        key_skew, key_dissipation = jr.split(key)
        chain = np.tril(np.ones((n_vars, n_vars)), -1)
        chain = chain - np.tril(chain, -2)
        noise = jr.normal(key_skew, (n_vars, n_vars), jnp.float32)
        self.skew_half = jnp.asarray(chain, jnp.float32) + 0.1 * noise
        if diagonal:
            noise = jr.normal(key_dissipation, (n_vars,), jnp.float32)
            self.dissipation_parameter = _softplus_inverse(1.0) + 0.1 * noise
        else:
            noise = jr.normal(key_dissipation, (n_vars, n_vars), jnp.float32)
            self.dissipation_parameter = (
                jnp.eye(n_vars, dtype=jnp.float32) + 0.1 * noise
            )
        # A lower-triangular root whose diagonal goes through softplus.
        root = jnp.eye(n_vars, dtype=jnp.float32) * _softplus_inverse(1.0)
        self.stationary_parameter = root if learn_stationary else None
        self.start_parameter = (
            jnp.full((n_vars - 1,), _softplus_inverse(start_variance))
            if learn_start and n_vars > 1
            else None
        )
        self.start_variance = start_variance
        self._interval = as_interval(interval)
        self._n_doublings = make_recipe(
            self._skew(),
            dissipation_root=self._dissipation_root(),
            start_covariance=start_variance * np.diag([0.0] + [1.0] * (n_vars - 1)),
            schedule=self._schedule(),
            interval=interval,
            headroom=HEADROOM,
        ).n_doublings

    def _skew(self) -> Float[Array, "vars vars"]:
        return self.skew_half - self.skew_half.T

    def _dissipation_root(self) -> Float[Array, "vars vars"]:
        if self.dissipation_parameter.ndim == 1:
            return jnp.diag(jnp.sqrt(jax.nn.softplus(self.dissipation_parameter)))
        return self.dissipation_parameter

    def _schedule(self) -> AbstractSchedule:
        if self.schedule_parameter is None:
            assert self.fixed_schedule is not None
            return self.fixed_schedule
        rate0, slope = jax.nn.softplus(self.schedule_parameter)
        return LinearSchedule(rate0, rate0 + slope)

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
            self._skew(),
            self._dissipation_root(),
            stationary,
            start,
            self._schedule(),
            self._interval,
            self._n_doublings,
        )

    def with_doublings(self, n_doublings: int) -> "LearnedDiffusion":
        """The same diffusion with another bound on the doublings of its kernels."""
        # The field is static, so it is no leaf that `eqx.tree_at` could replace.
        new = copy.copy(self)
        object.__setattr__(new, "_n_doublings", n_doublings)
        return new
