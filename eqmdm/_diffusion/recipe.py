"""The (Q, D) recipe, which defines a diffusion with a Gaussian stationary law."""

import math
from collections.abc import Callable, Sequence
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._core.blocks import matmul, solve_lower
from .._core.types import MatrixLike, RankMatrix, VarsMatrix
from . import host
from .interval import Interval, as_interval
from .kernel import N_DOUBLINGS, SHORT_STEP
from .matrices import (
    Matrix,
    as_array,
    as_matrix,
    check_controllable,
    check_entries,
    check_skew,
    known,
    make_start_root,
    positive_root,
    semidefinite_root,
    smallest_pivot,
)
from .schedule import (
    AbstractSchedule,
    LinearSchedule,
    as_parameters,
    computes_on_host,
    end_of,
    known_integral,
    known_inverse,
)
from .settle import (
    KnownLaws,
    check_schedule_reaches,
    has_parameters,
    scheduled_laws,
    settled,
)
from .text import matrix_text


# The names that `learn` accepts.
PARTS = (
    "skew",
    "dissipation",
    "stationary_covariance",
    "start_covariance",
    "schedule",
)


def times_inverse(matrix: VarsMatrix, root: VarsMatrix) -> VarsMatrix:
    r"""$A (L L^\top)^{-1}$ for a lower-triangular root $L$."""
    # Two substitutions, since an inverse would mix rows of very different size.
    half = solve_lower(root, matrix.T)
    return solve_lower(root, half, transpose=True).T


@final
class Recipe(eqx.Module):
    r"""The definition of a stationary diffusion, per unit of its schedule.

    $F = -(Q + D) S^{-1}$ and $G G^\top = 2 D$, so that $\mathcal{N}(0, S)$ is
    stationary: $F S + S F^\top + G G^\top = 0$. Matrices are JAX arrays if they are
    parameters or traced, and nested tuples of floats if they are constants.

    Build it with `Recipe.create`, which takes the arguments of
    [`eqmdm.LinearDiffusion`][] and checks them, or from its fields if these are valid
    by construction, like those of a learned diffusion.
    """

    skew: Matrix  # only its skew-symmetric part, Q, is used
    dissipation_root: Matrix  # R with R R^T = D
    stationary_root: Matrix  # of S, lower triangular
    start_root: Matrix  # of the covariance of y(0) given x
    schedule: AbstractSchedule
    interval: Interval

    @staticmethod
    def create(
        skew: MatrixLike,
        dissipation: MatrixLike | None = None,
        *,
        dissipation_root: MatrixLike | None = None,
        stationary_covariance: MatrixLike | None = None,
        start_covariance: MatrixLike | None = None,
        schedule: AbstractSchedule | None = None,
        interval: Interval | None = None,
        learn: Sequence[str] = (),
    ) -> "Recipe":
        """A checked recipe, with the arguments and errors of
        [`eqmdm.LinearDiffusion`][]."""
        recipe = matrices_only(
            skew,
            dissipation,
            dissipation_root=dissipation_root,
            stationary_covariance=stationary_covariance,
            start_covariance=start_covariance,
            schedule=LinearSchedule() if schedule is None else schedule,
            interval=as_interval(interval),
            learn=learn,
        )
        check_schedule_reaches(recipe.schedule, recipe.interval)
        laws = recipe.known_laws()
        if laws is not None:
            # A user's schedule may hold parameters that are not named in `learn`.
            moves = "schedule" in learn or has_parameters(recipe)
            recipe = recipe.with_interval(settled(recipe.interval, laws, moves=moves))
        if "schedule" in learn:
            schedule = as_parameters(recipe.schedule)
            recipe = eqx.tree_at(lambda recipe: recipe.schedule, recipe, schedule)
        return recipe

    def skew_matrix(self, dtype: jnp.dtype) -> VarsMatrix:
        Q = as_array(self.skew, dtype)
        # Exact for a skew-symmetric matrix, which gradient steps keep skew-symmetric.
        return 0.5 * (Q - Q.T)

    def drift_matrix(self, dtype: jnp.dtype) -> VarsMatrix:
        parts = self.skew, self.dissipation_root, self.stationary_root
        if all(isinstance(part, tuple) for part in parts):
            F = self.known_drift_matrix()
            if F is not None:
                return jnp.asarray(F, dtype)
        R = as_array(self.dissipation_root, dtype)
        QD = self.skew_matrix(dtype) + matmul(R, R.T)
        return -times_inverse(QD, as_array(self.stationary_root, dtype))

    def diffusion_matrix(self, dtype: jnp.dtype) -> RankMatrix:
        return math.sqrt(2) * as_array(self.dissipation_root, dtype)

    def known_drift_matrix(self) -> np.ndarray | None:
        """The drift matrix in float64, on the host, or `None` if it is traced."""
        Q, R = known(self.skew), known(self.dissipation_root)
        root = known(self.stationary_root)
        if Q is None or R is None or root is None:
            return None
        QD = 0.5 * (Q - Q.T) + R @ R.T
        return -np.linalg.solve(root @ root.T, QD.T).T

    def known_t_limit(self) -> float | None:
        """The latest time of kernels, on the host, or `None` if it is traced."""
        F = self.known_drift_matrix()
        if F is None:
            return None
        reach = SHORT_STEP * 2.0**N_DOUBLINGS / float(host.operator_norm_bound(F))
        limit = known_inverse(self.schedule, reach)
        return None if limit is None else min(limit, end_of(self.schedule))

    def known_laws(self) -> KnownLaws | None:
        """The laws of the diffusion on the host, or `None` if any value is traced."""
        kernel, prior_root = self._known_kernel(), known(self.stationary_root)
        limit = self.known_t_limit()
        if kernel is None or prior_root is None or limit is None:
            return None

        def divergence(tau: float) -> float:
            law = kernel(np.array([tau]), np.dtype(float))
            return host.prior_divergence(prior_root, host.at(law, 0))

        return scheduled_laws(
            self.schedule,
            log_snr=lambda tau, dtype: host.log_snr(kernel(tau, dtype)),
            divergence=divergence,
            t_limit=limit,
        )

    def known_path(self, times: Float[np.ndarray, " times"]) -> host.Path | None:
        """The kernels at known times, on the host, or `None` if that needs JAX."""
        kernels, F = self.known_kernels(times), self.known_drift_matrix()
        if kernels is None or F is None:
            return None
        _, laws = kernels
        tau = np.array([known_integral(self.schedule, t) for t in times], float)
        # By Liouville's formula, because the determinant of a decayed mean map is lost
        # to rounding.
        return host.Path(host.log_det(laws.root), np.trace(F) * tau, host.log_snr(laws))

    def known_kernels(
        self, times: Float[np.ndarray, " times"]
    ) -> tuple[host.Laws, host.Laws] | None:
        """The laws at known times given the whole start and given only the data, on the
        host, or `None` if that needs JAX."""
        laws = self._known_laws_after()
        if laws is None or not computes_on_host(self.schedule):
            return None
        tau = np.array([known_integral(self.schedule, t) for t in times], float)
        return laws(tau, np.dtype(float))

    def known_times_at(
        self, log_snrs: Float[np.ndarray, " levels"]
    ) -> Float[np.ndarray, " levels"] | None:
        """The times of known log-SNRs, on the host, or `None` if that needs JAX."""
        laws = self.known_laws() if computes_on_host(self.schedule) else None
        return None if laws is None else laws.times_at(log_snrs)

    def _known_kernel(self) -> Callable[[host.Numbers, np.dtype], host.Laws] | None:
        laws = self._known_laws_after()
        return None if laws is None else lambda tau, dtype: laws(tau, dtype)[1]

    def _known_laws_after(
        self,
    ) -> Callable[[host.Numbers, np.dtype], tuple[host.Laws, host.Laws]] | None:
        F, R = self.known_drift_matrix(), known(self.dissipation_root)
        start = known(self.start_root)
        if F is None or R is None or start is None:
            return None
        G, start = math.sqrt(2) * R, start.reshape(len(F), -1)

        def laws(tau: host.Numbers, dtype: np.dtype) -> tuple[host.Laws, host.Laws]:
            step = host.transition(F.astype(dtype), G.astype(dtype), tau.astype(dtype))
            return step, host.kernel_after(step, start.astype(dtype))

        return laws

    def texts(self) -> dict[str, str]:
        """Q, D and, unless it is the identity, S, as text."""
        Q, R, root = (
            np.asarray(known(part))
            for part in (self.skew, self.dissipation_root, self.stationary_root)
        )
        matrices = {"skew": 0.5 * (Q - Q.T), "dissipation": R @ R.T}
        if not np.array_equal(root, np.eye(len(Q))):
            matrices["stationary_covariance"] = root @ root.T
        parts = self.skew, self.dissipation_root, self.stationary_root
        constant = all(isinstance(part, tuple) for part in parts)
        # Learned values keep changing, so three digits are enough.
        digits = 12 if constant else 3
        return {name: matrix_text(M, digits) for name, M in matrices.items()}

    def with_interval(self, interval: Interval) -> "Recipe":
        return Recipe(
            self.skew,
            self.dissipation_root,
            self.stationary_root,
            self.start_root,
            self.schedule,
            interval,
        )


def matrices_only(
    skew: MatrixLike,
    dissipation: MatrixLike | None = None,
    *,
    dissipation_root: MatrixLike | None = None,
    stationary_covariance: MatrixLike | None = None,
    start_covariance: MatrixLike | None = None,
    schedule: AbstractSchedule,
    interval: Interval,
    learn: Sequence[str] = (),
) -> Recipe:
    """A recipe with checked matrices, but an unchecked schedule and interval."""
    check_parts(learn, PARTS)
    matrix = as_matrix("skew", skew, learn="skew" in learn)
    n_vars = len(matrix)
    check_skew(matrix)
    root = _dissipation_root(
        dissipation, dissipation_root, n_vars, learn="dissipation" in learn
    )
    name = "stationary_covariance"
    covariance = (
        np.eye(n_vars) if stationary_covariance is None else stationary_covariance
    )
    stationary = as_matrix(name, covariance, learn=name in learn)
    learn_start = "start_covariance" in learn
    recipe = Recipe(
        matrix,
        root,
        positive_root(name, stationary, n_vars),
        make_start_root(start_covariance, n_vars, learn=learn_start),
        schedule,
        interval,
    )
    F, R = recipe.known_drift_matrix(), known(root)
    if F is not None and R is not None:
        check_controllable([(F, R)])
    return recipe


def check_parts(learn: Sequence[str], parts: Sequence[str]) -> None:
    """**Raises:** `TypeError` or `ValueError` unless `learn` is a subset of `parts`."""
    if isinstance(learn, str):
        raise TypeError(f"`learn` must be a sequence of names; got {learn!r}.")
    for name in learn:
        if name not in parts:
            raise ValueError(
                f"`learn` must contain only {', '.join(parts)}; got {name!r}."
            )


def _dissipation_root(
    dissipation: MatrixLike | None,
    dissipation_root: MatrixLike | None,
    n_vars: int,
    *,
    learn: bool,
) -> Matrix:
    if (dissipation is None) == (dissipation_root is None):
        raise ValueError(
            "Exactly one of `dissipation` and `dissipation_root` must be given."
        )
    if dissipation is not None:
        name = "dissipation"
        matrix = as_matrix(name, dissipation, learn=learn)
        smallest = smallest_pivot(dissipation)
        return semidefinite_root(name, matrix, n_vars, smallest_pivot=smallest)
    assert dissipation_root is not None
    root = as_matrix("dissipation_root", dissipation_root, learn=learn)
    if len(root) != n_vars:
        raise ValueError(
            f"`dissipation_root` must have a row for each of the {n_vars} variables of "
            f"`skew`; got {len(root)} rows."
        )
    values = known(root)
    if values is not None:
        check_entries("dissipation_root", values)
    return root
