"""Linear diffusions whose matrices do not commute across time."""

from collections.abc import Sequence
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.blocks import matmul
from .._core.checks import as_scalar
from .._core.gaussian import Gaussian, Transition
from .._core.types import MatrixLike, RankMatrix, Scalar, VarsMatrix
from .base import AbstractLinearDiffusion
from .composed_checks import as_limit, settled_composed
from .interval import Interval, as_interval
from .magnus import MatrixFunction, composed_transition
from .matrices import Matrix, as_array, as_matrix, known, make_start_root, positive_root
from .recipe import PARTS, Recipe, check_parts, matrices_only, times_inverse
from .schedule import AbstractSchedule, as_parameters
from .settle import check_schedule_reaches
from .text import call_text, is_shown, matrix_text


@final
class TimeVaryingDiffusion(AbstractLinearDiffusion):
    r"""The linear diffusion with arbitrary matrices $F(t)$ and $G(t)$."""

    _drift_matrix: MatrixFunction
    _diffusion_matrix: MatrixFunction
    _prior_root: Matrix
    _start_root: Matrix
    _interval: Interval
    _t_limit: float
    n_steps: int = eqx.field(static=True)

    def __init__(
        self,
        drift_matrix: MatrixFunction,
        diffusion_matrix: MatrixFunction,
        *,
        prior_covariance: MatrixLike,
        start_covariance: MatrixLike | None = None,
        interval: Interval | None = None,
        t_limit: float | None = None,
        n_steps: int = 32,
    ):
        r"""**Arguments:**

        - `drift_matrix`, `diffusion_matrix`: $F$ and $G$, as functions (or modules) of
            time that return `vars x vars` and `vars x rank` in the dtype of the time.
        - `prior_covariance`: the covariance of the prior $\mathcal{N}(0, \cdot)$ at the
            final time, positive definite. It also sets the number of variables.
        - `start_covariance`, `interval`: as for
            [`eqmdm.LinearDiffusion`][].
        - `t_limit`: the latest time at which the functions may be called. By default
            the end of `interval`, or 2 for an interval in log-SNR, whose lower limit
            must be reached by then.
        - `n_steps`: the number of steps of a composed transition, a power of two.

        **Raises:**

        `ValueError` for an invalid covariance, a variable that the noise does not
        reach, an interval that is not reached, or too few steps for the size of the
        drift.
        """
        prior = as_matrix("prior_covariance", prior_covariance)
        n_vars = len(prior)
        self._drift_matrix = drift_matrix
        self._diffusion_matrix = diffusion_matrix
        self._prior_root = positive_root("prior_covariance", prior, n_vars)
        self._start_root = make_start_root(start_covariance, n_vars)
        self._interval = as_interval(interval)
        self._t_limit = as_limit(t_limit, self._interval)
        self.n_steps = n_steps
        self._interval = settled_composed(self, t_limit=self._t_limit, n_steps=n_steps)

    def __pdoc__(self, **options) -> AbstractDoc | None:
        del options
        root = known(self._prior_root)
        if root is None or not is_shown(self):
            return None
        return call_text(
            self,
            drift_matrix=self._drift_matrix,
            diffusion_matrix=self._diffusion_matrix,
            prior_covariance=matrix_text(root @ root.T, 12),
            interval=self._interval,
        )

    @property
    def n_vars(self) -> int:
        return len(self._prior_root)

    @property
    def interval(self) -> Interval:
        return self._interval

    @property
    def t_limit(self) -> Scalar:
        return as_scalar(self._t_limit, jnp.result_type(float))

    @property
    def prior(self) -> Gaussian:
        return Gaussian(as_array(self._prior_root, jnp.result_type(float)))

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns"]:
        if self.n_vars == 1:
            return jnp.zeros((1, 0), dtype)
        return as_array(self._start_root, dtype)

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return self._drift_matrix(t)

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return self._diffusion_matrix(t)

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        return composed_transition(
            self.drift_matrix, self.diffusion_matrix, s, t, n_steps=self.n_steps
        )


@final
class TwoScheduleDiffusion(AbstractLinearDiffusion):
    r"""The (Q, D) recipe with separate schedules for Q and D.

    $$F(t) = -(\beta_Q(t) Q + \beta_D(t) D) S^{-1}, \qquad G G^\top = 2 \beta_D(t) D$$

    $\mathcal{N}(0, S)$ is stationary for any schedules.
    """

    _recipe: Recipe
    skew_schedule: AbstractSchedule
    dissipation_schedule: AbstractSchedule
    _t_limit: float
    n_steps: int = eqx.field(static=True)

    def __init__(
        self,
        skew: MatrixLike,
        dissipation: MatrixLike,
        *,
        skew_schedule: AbstractSchedule,
        dissipation_schedule: AbstractSchedule,
        stationary_covariance: MatrixLike | None = None,
        start_covariance: MatrixLike | None = None,
        interval: Interval | None = None,
        t_limit: float | None = None,
        n_steps: int = 32,
        learn: Sequence[str] = (),
    ):
        r"""**Arguments:**

        - `skew_schedule`, `dissipation_schedule`: the rates $\beta_Q$ and $\beta_D$.
        - `t_limit`: the latest time at which kernels can be computed. By default the
            end of `interval`, or 2 for an interval in log-SNR, whose lower limit must
            be reached by then.
        - `n_steps`: the number of steps of a composed transition, a power of two.
        - `learn`: names as for [`eqmdm.LinearDiffusion`][], with `"skew_schedule"` and
            `"dissipation_schedule"` in place of `"schedule"`.
        - the rest: as for [`eqmdm.LinearDiffusion`][].

        **Raises:** as for [`eqmdm.LinearDiffusion`][], and `ValueError` for too few
        steps for the size of the drift.
        """
        check_parts(learn, (*PARTS[:-1], "skew_schedule", "dissipation_schedule"))
        self._recipe = matrices_only(
            skew,
            dissipation,
            stationary_covariance=stationary_covariance,
            start_covariance=start_covariance,
            schedule=dissipation_schedule,
            interval=as_interval(interval),
            learn=[name for name in learn if name in PARTS],
        )
        if "skew_schedule" in learn:
            skew_schedule = as_parameters(skew_schedule)
        if "dissipation_schedule" in learn:
            dissipation_schedule = as_parameters(dissipation_schedule)
        self.skew_schedule = skew_schedule
        self.dissipation_schedule = dissipation_schedule
        for schedule in (skew_schedule, dissipation_schedule):
            check_schedule_reaches(schedule, self.interval)
        schedule_end = min(skew_schedule.t_limit, dissipation_schedule.t_limit)
        self._t_limit = min(as_limit(t_limit, self.interval), schedule_end * (1 - 1e-6))
        self.n_steps = n_steps
        interval = settled_composed(self, t_limit=self._t_limit, n_steps=n_steps)
        self._recipe = self._recipe.with_interval(interval)

    def __pdoc__(self, **options) -> AbstractDoc | None:
        del options
        if not is_shown(self):
            return None
        return call_text(
            self,
            **self._recipe.texts(),
            skew_schedule=self.skew_schedule,
            dissipation_schedule=self.dissipation_schedule,
            interval=self.interval,
        )

    @property
    def n_vars(self) -> int:
        return len(self._recipe.skew)

    @property
    def interval(self) -> Interval:
        return self._recipe.interval

    @property
    def t_limit(self) -> Scalar:
        return as_scalar(self._t_limit, jnp.result_type(float))

    @property
    def prior(self) -> Gaussian:
        root = as_array(self._recipe.stationary_root, jnp.result_type(float))
        return Gaussian(root)

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns"]:
        if self.n_vars == 1:
            return jnp.zeros((1, 0), dtype)
        return as_array(self._recipe.start_root, dtype)

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        R = as_array(self._recipe.dissipation_root, t.dtype)
        Q = self._recipe.skew_matrix(t.dtype)
        D = matmul(R, R.T)
        QD = self.skew_schedule.rate(t) * Q + self.dissipation_schedule.rate(t) * D
        return -times_inverse(QD, as_array(self._recipe.stationary_root, t.dtype))

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        rate = jnp.sqrt(self.dissipation_schedule.rate(t))
        return rate * self._recipe.diffusion_matrix(t.dtype)

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        return composed_transition(
            self.drift_matrix, self.diffusion_matrix, s, t, n_steps=self.n_steps
        )
