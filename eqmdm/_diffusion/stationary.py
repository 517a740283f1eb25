"""Diffusions with a Gaussian stationary law, written by the (Q, D) recipe."""

import abc
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._core.checks import check_count, concrete
from .._core.gaussian import Gaussian, Transition, matmul, solve_lower
from .._core.types import MatrixLike, RankMatrix, Scalar, VarsMatrix
from .base import (
    AbstractLinearDiffusion,
    check_schedule_reaches,
    find_times,
)
from .interval import Interval, TimeInterval, as_interval
from .kernel import (
    SHORT_STEP,
    constant_transition,
    doublings_needed,
    operator_norm_bound,
)
from .matrices import (
    Matrix,
    as_array,
    as_matrix,
    check_entries,
    check_reached,
    check_skew,
    known,
    make_start_root,
    positive_root,
    semidefinite_root,
)
from .schedule import AbstractSchedule, LinearSchedule


# Doublings where the matrices are traced and their norm is unknown: ||F|| tau <= 2048.
_TRACED_DOUBLINGS = 12
# A learned norm moves: kernels stay accurate while it grows by up to 2^4.
HEADROOM = 4
# Enough for a horizon that is still to be found: ||F|| tau <= 2^23.
_SEARCH_DOUBLINGS = 24


def times_inverse(matrix: VarsMatrix, root: VarsMatrix) -> VarsMatrix:
    r"""$A (L L^\top)^{-1}$ for a lower-triangular root $L$."""
    half = solve_lower(root, matrix.T)
    return solve_lower(root, half, transpose=True).T


@final
class Recipe(eqx.Module):
    r"""What defines a stationary diffusion, per unit of its schedule.

    $F = -(Q + D) S^{-1}$ and $G G^\top = 2 D$, so that $\mathcal{N}(0, S)$ is
    stationary: $F S + S F^\top + G G^\top = 0$.
    """

    skew: Matrix  # Q
    dissipation_root: Matrix  # R with R R^T = D
    stationary_root: Matrix  # of S, lower triangular
    start_root: Matrix  # of the covariance of y(0) given x
    schedule: AbstractSchedule
    interval: Interval
    n_doublings: int = eqx.field(static=True)

    def drift_matrix(self, dtype: jnp.dtype) -> VarsMatrix:
        R = as_array(self.dissipation_root, dtype)
        QD = as_array(self.skew, dtype) + matmul(R, R.T)
        return -times_inverse(QD, as_array(self.stationary_root, dtype))

    def diffusion_matrix(self, dtype: jnp.dtype) -> RankMatrix:
        return math.sqrt(2) * as_array(self.dissipation_root, dtype)

    def known_drift_matrix(self) -> np.ndarray | None:
        """The drift matrix in float64, on the host, or `None` where it is traced."""
        Q, R = known(self.skew), known(self.dissipation_root)
        root = known(self.stationary_root)
        if Q is None or R is None or root is None:
            return None
        return -np.linalg.solve(root @ root.T, (Q + R @ R.T).T).T

    def norm(self) -> float | None:
        """A bound of the norm of the drift matrix, or `None` where it is traced."""
        F = self.known_drift_matrix()
        if F is None:
            return None
        return math.sqrt(np.linalg.norm(F, 1) * np.linalg.norm(F, np.inf))

    def with_doublings(self, n_doublings: int) -> "Recipe":
        return self._with(self.interval, n_doublings)

    def with_interval(self, interval: Interval) -> "Recipe":
        return self._with(interval, self.n_doublings)

    def _with(self, interval: Interval, n_doublings: int) -> "Recipe":
        return Recipe(
            self.skew,
            self.dissipation_root,
            self.stationary_root,
            self.start_root,
            self.schedule,
            interval,
            n_doublings,
        )


class AbstractStationaryDiffusion(AbstractLinearDiffusion):
    r"""A linear diffusion with stationary law $\mathcal{N}(0, S)$ and one schedule.

    $$F(t) = -\beta(t) (Q + D) S^{-1}, \qquad G G^\top = 2 \beta(t) D$$

    for skew-symmetric $Q$ and positive semidefinite $D$: every linear diffusion with
    that law can be written so. Everything is a function of $\tau = B(t)$.

    **Source:** Ma, Chen & Fox (2015), equation 3; Singhal et al. (2023), section 4.
    """

    @property
    @abc.abstractmethod
    def recipe(self) -> Recipe:
        """The matrices, the schedule and the ends."""

    @property
    def n_vars(self) -> int:
        return len(self.recipe.skew)

    @property
    def schedule(self) -> AbstractSchedule:
        return self.recipe.schedule

    @property
    def interval(self) -> Interval:
        return self.recipe.interval

    @property
    def n_doublings(self) -> int:
        """The bound on the doublings of a kernel; static, so a change recompiles."""
        return self.recipe.n_doublings

    @property
    def skew_matrix(self) -> VarsMatrix:
        """$Q$, per unit of the schedule."""
        return as_array(self.recipe.skew, jnp.result_type(float))

    @property
    def dissipation_matrix(self) -> VarsMatrix:
        """$D$, per unit of the schedule."""
        R = as_array(self.recipe.dissipation_root, jnp.result_type(float))
        return matmul(R, R.T)

    @property
    def stationary_covariance(self) -> VarsMatrix:
        """$S$."""
        root = as_array(self.recipe.stationary_root, jnp.result_type(float))
        return matmul(root, root.T)

    @property
    def start_covariance(self) -> VarsMatrix:
        """The covariance of $y(0)$ given the data; its first row is zero."""
        root = self.start_root(jnp.result_type(float))
        return matmul(root, root.T)

    @property
    def prior(self) -> Gaussian:
        return Gaussian(as_array(self.recipe.stationary_root, jnp.result_type(float)))

    @property
    def t_limit(self) -> Scalar:
        dtype = jnp.result_type(float)
        F = self.recipe.drift_matrix(dtype)
        reach = SHORT_STEP * 2.0**self.n_doublings / operator_norm_bound(F)
        # The schedule itself may end, and its integral diverge, a little later.
        schedule_end = self.schedule.t_limit * (1 - 1e-6)
        return jnp.minimum(self.schedule.inverse(reach), schedule_end)

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns"]:
        if self.n_vars == 1:
            return jnp.zeros((1, 0), dtype)
        return as_array(self.recipe.start_root, dtype)

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return self.schedule.rate(t) * self.recipe.drift_matrix(t.dtype)

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return jnp.sqrt(self.schedule.rate(t)) * self.recipe.diffusion_matrix(t.dtype)

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        return constant_transition(
            self.recipe.drift_matrix(t.dtype),
            self.recipe.diffusion_matrix(t.dtype),
            self.schedule.integrated_rate(s, t),
            self.n_doublings,
        )

    def doublings_needed(self) -> int:
        """The doublings that the horizon needs at the present values; on the host.

        Above `n_doublings` kernels lose accuracy without a sign: a training loop asks
        between steps and rebuilds the diffusion with `with_doublings`.
        """
        norm, t1 = self.recipe.norm(), self.t1
        tau = concrete(self.schedule.integrated_rate(jnp.zeros_like(t1), t1))
        if norm is None or tau is None:
            raise TypeError("`doublings_needed` must be called outside JAX transforms.")
        return doublings_needed(norm, tau)


def make_recipe(
    skew: MatrixLike,
    *,
    dissipation: MatrixLike | None = None,
    dissipation_root: MatrixLike | None = None,
    stationary_covariance: MatrixLike | None = None,
    start_covariance: MatrixLike | None = None,
    schedule: AbstractSchedule | None = None,
    interval: Interval | None = None,
    n_doublings: int | None = None,
    headroom: int = 0,
) -> Recipe:
    """A checked recipe; the arguments are those of [`eqmdm.LinearDiffusion`][]."""
    skew = as_matrix("skew", skew)
    n_vars = len(skew)
    identity = np.eye(n_vars)
    check_skew(skew)
    if (dissipation is None) == (dissipation_root is None):
        raise ValueError(
            "Exactly one of `dissipation` and `dissipation_root` must be given."
        )
    if dissipation is not None:
        root = semidefinite_root(
            "dissipation", as_matrix("dissipation", dissipation), n_vars
        )
    else:
        assert dissipation_root is not None
        root = as_matrix("dissipation_root", dissipation_root)
        if len(root) != n_vars:
            raise ValueError(
                f"`dissipation_root` must have a row for each of the {n_vars} "
                f"variables of `skew`; got {len(root)} rows."
            )
        values = known(root)
        if values is not None:
            check_entries("dissipation_root", values)
    stationary = identity if stationary_covariance is None else stationary_covariance
    stationary_root = positive_root(
        "stationary_covariance", as_matrix("stationary_covariance", stationary), n_vars
    )
    start_root = make_start_root(start_covariance, n_vars)
    recipe = Recipe(
        skew,
        root,
        stationary_root,
        start_root,
        LinearSchedule() if schedule is None else schedule,
        as_interval(interval),
        _SEARCH_DOUBLINGS if n_doublings is None else n_doublings,
    )
    check_controllable(recipe)
    return recipe if n_doublings is not None else _fit_doublings(recipe, headroom)


@final
class LinearDiffusion(AbstractStationaryDiffusion):
    r"""The linear diffusion with given $Q$, $D$, stationary law and schedule."""

    _recipe: Recipe

    def __init__(
        self,
        skew: MatrixLike,
        dissipation: MatrixLike | None = None,
        *,
        dissipation_root: MatrixLike | None = None,
        stationary_covariance: MatrixLike | None = None,
        start_covariance: MatrixLike | None = None,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
        n_doublings: int | None = None,
    ):
        r"""**Arguments:**

        - `skew`: $Q$, skew-symmetric, `vars x vars`, per unit of the schedule.
        - `dissipation`: $D$, positive semidefinite. Its rank is fixed here: gradients
            move it within the matrices of that rank.
        - `dissipation_root`: instead of `dissipation`, an $R$ with $R R^\top = D$ and
            as many columns as there are noises.
        - `stationary_covariance`: $S$, positive definite; the identity by default.
        - `start_covariance`: of $y(0)$ given the data, with a zero first row and
            column; by default 0.01 for every auxiliary variable.
        - `schedule`: by default `LinearSchedule()`, from 0.1 to 10.
        - `interval`: the times $[t_0, t_1]$, an [`eqmdm.TimeInterval`][], by default
            (1e-3, 1); or the log signal-to-noise ratios at $t_1$ and at $t_0$, an
            [`eqmdm.LogSNRInterval`][].
        - `n_doublings`: a bound on the doublings of a kernel. Chosen from the values,
            where they are known, with headroom for a drift 16 times as large where one
            is a parameter; 12 where they are traced, which serves for a norm of the
            drift times $B(t_1)$ up to 2048.

        A matrix given as a JAX array is a parameter that can be trained; a list or a
        NumPy array is a constant.

        **Raises:**

        `ValueError` if `skew` is not skew-symmetric, `dissipation` not positive
        semidefinite, a covariance not positive definite, a shape not square or not
        alike, if a variable is not reached by the noise, or for fewer doublings than
        the horizon needs. Values that are traced are not checked.
        """
        given = skew, dissipation, dissipation_root, stationary_covariance
        learned = any(isinstance(x, jax.Array) for x in jax.tree.leaves(given))
        self._recipe = make_recipe(
            skew,
            dissipation=dissipation,
            dissipation_root=dissipation_root,
            stationary_covariance=stationary_covariance,
            start_covariance=start_covariance,
            schedule=schedule,
            interval=interval,
            headroom=HEADROOM if learned else 0,
        )
        if n_doublings is not None:
            self._recipe = _with_given_doublings(self._recipe, n_doublings)

    @property
    def recipe(self) -> Recipe:
        return self._recipe

    def with_doublings(self, n_doublings: int) -> "LinearDiffusion":
        """The same diffusion with another bound on the doublings of its kernels."""
        recipe = self._recipe.with_doublings(n_doublings)
        return eqx.tree_at(lambda diffusion: diffusion._recipe, self, recipe)


@final
class _Resolver(AbstractStationaryDiffusion):
    # A recipe before its ends are known, for the search of them.
    _recipe: Recipe

    @property
    def recipe(self) -> Recipe:
        return self._recipe


def _fit_doublings(recipe: Recipe, headroom: int) -> Recipe:
    norm = recipe.norm()
    if norm is None:
        return recipe.with_doublings(_TRACED_DOUBLINGS)
    if isinstance(recipe.interval, TimeInterval):
        t0, t1 = concrete(recipe.interval.t0), concrete(recipe.interval.t1)
        times = None if t0 is None or t1 is None else (t0, t1)
    else:
        times = find_times(_Resolver(recipe))
    if times is None:
        return recipe.with_doublings(_TRACED_DOUBLINGS)
    with jax.ensure_compile_time_eval():
        check_schedule_reaches(recipe.schedule, TimeInterval(*times))
        tau = _reach(recipe.schedule, times[1])
    if tau is None:
        return recipe.with_doublings(_TRACED_DOUBLINGS)
    needed = doublings_needed(norm, tau)
    if not jax.tree.leaves(eqx.filter(recipe, eqx.is_array)):
        # Nothing can move: solve for the ends once.
        recipe = recipe.with_interval(TimeInterval(*times))
    return recipe.with_doublings(needed + headroom)


def _with_given_doublings(recipe: Recipe, n_doublings: int) -> Recipe:
    hint = " Left out, it is chosen from the values."
    check_count("n_doublings", n_doublings, least=0, hint=hint)
    given = recipe.with_doublings(n_doublings)
    try:
        needed = _Resolver(recipe).doublings_needed()
    except TypeError:  # The values are traced.
        return given
    if n_doublings < needed:
        raise ValueError(
            f"`n_doublings` must be at least {needed}, or kernels at the horizon would "
            f"be wrong; got {n_doublings}.{hint}"
        )
    return given


def _reach(schedule: AbstractSchedule, t1: float) -> float | None:
    """The schedule's integral up to the horizon, or `None` where its rate is traced."""
    end = jnp.asarray(t1, jnp.result_type(float))
    tau = concrete(schedule.integrated_rate(jnp.zeros_like(end), end))
    if tau is not None and not math.isfinite(tau):
        raise ValueError(
            "`interval` must end where the integral of the schedule's rate is still a "
            f"number; got t1 = {t1} and {tau}."
        )
    return tau


def check_controllable(recipe: Recipe) -> None:
    """Refuses a diffusion in which some variable is never reached by noise."""
    F, R = recipe.known_drift_matrix(), known(recipe.dissipation_root)
    if F is not None and R is not None:
        check_reached([(F, R)])
