"""Linear diffusions whose matrices do not commute across time, by composition."""

import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._core.checks import concrete
from .._core.gaussian import Gaussian, Transition, lq_root, matmul
from .._core.types import MatrixLike, RankMatrix, Scalar, VarsMatrix
from .base import (
    AbstractLinearDiffusion,
    check_schedule_reaches,
    interval_in_time,
)
from .interval import Interval, TimeInterval, as_interval
from .kernel import (
    SHORT_STEP,
    exponential_deviation,
    operator_norm_bound,
    quadrature,
)
from .matrices import (
    Matrix,
    as_array,
    as_matrix,
    check_reached,
    known,
    make_start_root,
    positive_root,
)
from .schedule import AbstractSchedule
from .stationary import Recipe, make_recipe, times_inverse


MatrixFunction = Callable[[Scalar], Float[Array, "rows columns"]]


def composed_transition(
    drift_matrix: MatrixFunction,
    diffusion_matrix: MatrixFunction,
    s: Scalar,
    t: Scalar,
    *,
    n_steps: int = 32,
) -> Transition:
    r"""The transition of $\mathrm{d}y = F(t) y \mathrm{d}t + G(t) \mathrm{d}w$ from `s`
    to `t`, for matrices that need not commute across time.

    `n_steps` equal steps, each with Gauss-Legendre nodes for the covariance and the
    fourth-order Magnus expansion between the nodes, composed pairwise as roots. For
    smooth matrices the error falls as `n_steps` to the power -4.

    **Arguments:**

    - `drift_matrix`, `diffusion_matrix`: functions of a time, which return
        `vars x vars` and `vars x rank`.
    - `s`, `t`: times with $s < t$.
    - `n_steps`: a power of two.

    **Raises:**

    `ValueError` for `n_steps` that is none, and, where they are known, times that are
    not finite or out of order.

    **Source:** Blanes, Casas, Oteo & Ros (2009), section 5.4, for the expansion.
    """
    if n_steps < 1 or n_steps & (n_steps - 1):
        raise ValueError(f"`n_steps` must be a power of two; got {n_steps}.")
    start, end = concrete(s), concrete(t)
    if start is not None and end is not None:
        if not -math.inf < start <= end < math.inf:
            raise ValueError(
                "`s` and `t` must be finite times with s <= t, or the noise would be "
                f"taken away; got s={start} and t={end}."
            )
    h = (t - s) / n_steps
    starts = s + h * jnp.arange(n_steps, dtype=t.dtype)
    step = lambda start: _magnus_step(drift_matrix, diffusion_matrix, start, h)
    steps = jax.vmap(step)(starts)
    while len(steps.root) > 1:
        earlier, later = (jax.tree.map(lambda x, i=i: x[i::2], steps) for i in (0, 1))
        steps = jax.vmap(lambda first, second: first.then(second))(earlier, later)
    return jax.tree.map(lambda x: x[0], steps)


def _magnus_step(
    drift_matrix: MatrixFunction,
    diffusion_matrix: MatrixFunction,
    start: Scalar,
    h: Scalar,
) -> Transition:
    n_vars = len(jax.eval_shape(drift_matrix, start))
    nodes, weights = quadrature(n_vars, h.dtype)
    bounds = np.array([0.0, *nodes, 1.0])
    part = lambda bound, width: _magnus(drift_matrix, start + h * bound, h * width)
    parts = jax.vmap(part)(
        jnp.asarray(bounds[:-1], h.dtype), jnp.asarray(np.diff(bounds), h.dtype)
    )
    noises = jax.vmap(lambda node: diffusion_matrix(start + h * node))(
        jnp.asarray(nodes, h.dtype)
    )
    psi = parts[-1]
    columns = []
    for i in reversed(range(len(nodes))):
        columns.append(jnp.sqrt(h * weights[i]) * matmul(psi, noises[i]))
        psi = matmul(psi, parts[i])
    return Transition(psi, lq_root(jnp.concatenate(columns, axis=1)))


def _magnus(drift_matrix: MatrixFunction, start: Scalar, h: Scalar) -> VarsMatrix:
    offset = math.sqrt(3) / 6
    F1 = drift_matrix(start + h * (0.5 - offset))
    F2 = drift_matrix(start + h * (0.5 + offset))
    commutator = matmul(F2, F1) - matmul(F1, F2)
    exponent = 0.5 * h * (F1 + F2) + (h**2 * (math.sqrt(3) / 12)) * commutator
    one = jnp.ones((), h.dtype)
    return jnp.eye(len(F1), dtype=h.dtype) + exponential_deviation(exponent, one)


def _as_limit(t_limit: float | None, interval: Interval) -> float:
    """`t_limit`, refused unless the kernels reach the ends; or its default."""
    in_time = isinstance(interval, TimeInterval)
    end = concrete(interval.t1) if in_time else None
    if in_time and end is None and t_limit is None:
        raise TypeError(
            "`t_limit` must be given, a number, where the end of `interval` is traced."
        )
    if t_limit is None:
        return 2.0 if end is None else end
    if not (math.isfinite(t_limit) and t_limit > 0 and t_limit >= (end or 0)):
        raise ValueError(
            "`t_limit` must be finite and positive, and not before the end of "
            f"`interval`, {end}; got {t_limit}."
        )
    return t_limit


def _check_steps(diffusion: AbstractLinearDiffusion, n_steps: int) -> None:
    """Refuses what is not reached by noise and steps too long for their series."""
    limit = diffusion.t_limit
    times = [limit * fraction for fraction in np.linspace(0, 1, 17).tolist()]
    drifts = [diffusion.drift_matrix(t) for t in times]
    noises = [diffusion.diffusion_matrix(t) for t in times]
    n_vars = diffusion.n_vars
    for name, matrix in (("drift_matrix", drifts[0]), ("diffusion_matrix", noises[0])):
        square = name == "drift_matrix"
        fits = matrix.ndim == 2 and len(matrix) == n_vars
        if not fits or (square and matrix.shape[1] != n_vars):
            raise ValueError(
                f"`{name}` must return a matrix with {n_vars} rows, as many as the "
                f"prior has{', and columns' if square else ''}; got shape "
                f"{matrix.shape}."
            )
    if any(known(matrix) is None for matrix in (*drifts, *noises)):
        return
    for name, matrices in (("drift_matrix", drifts), ("diffusion_matrix", noises)):
        for t, matrix in zip(times, matrices, strict=True):
            if not np.all(np.isfinite(np.asarray(matrix))):
                raise ValueError(
                    f"`{name}` must be finite up to t = {float(limit)}; at t = "
                    f"{float(t)} it is {np.asarray(matrix).tolist()}. Stop earlier."
                )
    check_reached(
        [(np.asarray(F), np.asarray(G)) for F, G in zip(drifts, noises, strict=True)]
    )
    n_parts = n_steps * (len(quadrature(n_vars, limit.dtype)[0]) + 1)
    longest = max(float(operator_norm_bound(F) * limit) for F in drifts) / n_parts
    # The widest part of a step is up to twice the mean one.
    if 2 * longest > SHORT_STEP:
        raise ValueError(
            f"`n_steps` must be larger: over {n_steps} steps up to t = {float(limit)} "
            f"the drift turns by {2 * longest:.3g} in one part of a step, where "
            f"{SHORT_STEP} is the most that stays accurate. Try n_steps="
            f"{n_steps * 2 ** int(np.ceil(np.log2(2 * longest / SHORT_STEP)))}."
        )


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

        - `drift_matrix`, `diffusion_matrix`: $F$ and $G$, functions (or modules) of a
            time that return `vars x vars` and `vars x rank` in the time's dtype.
        - `prior_covariance`: of the prior $\mathcal{N}(0, \cdot)$ at the horizon,
            positive definite; it also fixes the number of variables.
        - `start_covariance`, `interval`: as for
            [`eqmdm.LinearDiffusion`][].
        - `t_limit`: the latest time at which the functions may be called; the end of
            `interval` by default, or 2 for one in log-SNR, whose lower end must be
            reached by then.
        - `n_steps`: of a composed transition, a power of two.

        **Raises:**

        `ValueError` for a covariance that is none, a variable that the noise does not
        reach, an end that is not reached, or too few steps for the size of the drift.
        """
        prior = as_matrix("prior_covariance", prior_covariance)
        n_vars = len(prior)
        self._drift_matrix = drift_matrix
        self._diffusion_matrix = diffusion_matrix
        self._prior_root = positive_root("prior_covariance", prior, n_vars)
        self._start_root = make_start_root(start_covariance, n_vars)
        self._interval = as_interval(interval)
        self._t_limit = _as_limit(t_limit, self._interval)
        self.n_steps = n_steps
        _check_steps(self, n_steps)
        self._interval = interval_in_time(self)

    @property
    def n_vars(self) -> int:
        return len(self._prior_root)

    @property
    def interval(self) -> Interval:
        return self._interval

    @property
    def t_limit(self) -> Scalar:
        return jnp.asarray(self._t_limit, jnp.result_type(float))

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
    r"""The (Q, D) recipe with a schedule of its own for each of the two.

    $$F(t) = -(\beta_Q(t) Q + \beta_D(t) D) S^{-1}, \qquad G G^\top = 2 \beta_D(t) D$$

    $\mathcal{N}(0, S)$ is stationary whatever the schedules.
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
    ):
        r"""**Arguments:**

        - `skew_schedule`, `dissipation_schedule`: the rates $\beta_Q$ and $\beta_D$.
        - `t_limit`: the latest time at which kernels can be computed; the end of
            `interval` by default, or 2 for one in log-SNR, whose lower end must be
            reached by then.
        - `n_steps`: of a composed transition, a power of two.
        - the rest: as for [`eqmdm.LinearDiffusion`][].

        **Raises:** as for [`eqmdm.LinearDiffusion`][], and `ValueError` for too few
        steps for the size of the drift.
        """
        self._recipe = make_recipe(
            skew,
            dissipation=dissipation,
            stationary_covariance=stationary_covariance,
            start_covariance=start_covariance,
            schedule=dissipation_schedule,
            interval=interval,
            n_doublings=0,
        )
        self.skew_schedule = skew_schedule
        self.dissipation_schedule = dissipation_schedule
        for schedule in (skew_schedule, dissipation_schedule):
            check_schedule_reaches(schedule, self.interval)
        schedule_end = min(skew_schedule.t_limit, dissipation_schedule.t_limit)
        self._t_limit = min(
            _as_limit(t_limit, self.interval), schedule_end * (1 - 1e-6)
        )
        self.n_steps = n_steps
        _check_steps(self, n_steps)
        self._recipe = self._recipe.with_interval(interval_in_time(self))

    @property
    def n_vars(self) -> int:
        return len(self._recipe.skew)

    @property
    def interval(self) -> Interval:
        return self._recipe.interval

    @property
    def t_limit(self) -> Scalar:
        return jnp.asarray(self._t_limit, jnp.result_type(float))

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
        Q = as_array(self._recipe.skew, t.dtype)
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
