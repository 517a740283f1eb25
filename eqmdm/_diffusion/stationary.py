"""Diffusions with a Gaussian stationary law, defined by (Q, D) recipes."""

import abc
from collections.abc import Sequence
from typing import final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.blocks import matmul
from .._core.checks import as_scalar, concrete, constant
from .._core.gaussian import Gaussian, PerturbationKernel, Transition
from .._core.types import MatrixLike, RankMatrix, Scalar, VarsMatrix
from . import host
from .base import AbstractLinearDiffusion
from .host import Path
from .interval import Interval
from .kernel import N_DOUBLINGS, SHORT_STEP, constant_transition, operator_norm_bound
from .matrices import as_array
from .recipe import Recipe
from .schedule import AbstractSchedule, end_of
from .text import call_text, is_shown


class AbstractStationaryDiffusion(AbstractLinearDiffusion):
    r"""A linear diffusion with stationary law $\mathcal{N}(0, S)$ and one schedule.

    $$F(t) = -\beta(t) (Q + D) S^{-1}, \qquad G G^\top = 2 \beta(t) D$$

    for skew-symmetric $Q$ and positive semidefinite $D$. Every linear diffusion with
    that law has this form. All its laws are functions of $\tau = B(t)$. To write a
    class, subclass this one and implement `recipe`, an [`eqmdm.Recipe`][].

    **Source:** Ma, Chen & Fox (2015), equation 3; Singhal et al. (2023), section 4.
    """

    @property
    @abc.abstractmethod
    def recipe(self) -> Recipe:
        """The matrices, the schedule and the interval."""

    def __pdoc__(self, **options) -> AbstractDoc | None:
        del options
        if not is_shown(self):
            return None
        recipe = self.recipe
        return call_text(
            self,
            **recipe.texts(),
            schedule=recipe.schedule,
            interval=recipe.interval,
        )

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
    def skew_matrix(self) -> VarsMatrix:
        """$Q$, per unit of the schedule."""
        return self.recipe.skew_matrix(jnp.result_type(float))

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
        dtype, recipe = jnp.result_type(float), self.recipe
        limit = recipe.known_t_limit()
        if limit is not None:
            return as_scalar(limit, dtype)
        F = recipe.drift_matrix(dtype)
        reach = SHORT_STEP * 2.0**N_DOUBLINGS / operator_norm_bound(F)
        return jnp.minimum(self.schedule.inverse(reach), end_of(self.schedule))

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
        )


def known_path(
    diffusion: AbstractLinearDiffusion, times: Float[np.ndarray, " times"]
) -> Path | None:
    """Properties of the kernels at known times, computed on the host.

    `None` if the diffusion is traced, has no recipe, or has a schedule that needs JAX.
    """
    if not isinstance(diffusion, AbstractStationaryDiffusion):
        return None
    return diffusion.recipe.known_path(times)


def known_kernels(
    diffusion: AbstractLinearDiffusion, *times: Scalar
) -> tuple[PerturbationKernel, ...] | None:
    """The kernels at some times, computed on the host; `None` as above, or if they
    are not finite in the dtype of the times."""
    known = [concrete(t) for t in times]
    if None in known or not isinstance(diffusion, AbstractStationaryDiffusion):
        return None
    laws = diffusion.recipe.known_kernels(np.array(known, float))
    if laws is None:
        return None
    step, kernel = laws
    fields = kernel.mean_map[..., 0], kernel.root, *host.factors(kernel)
    kernels = []
    for i, t in enumerate(times):
        arrays = [np.asarray(x[i], t.dtype) for x in (*step, *fields)]
        # Leave the error message to the program.
        if not all(np.all(np.isfinite(array)) for array in arrays):
            return None
        psi, root, *rest = map(constant, arrays)
        kernels.append(PerturbationKernel(t, Transition(psi, root), *rest))
    return tuple(kernels)


def known_times_at(
    diffusion: AbstractLinearDiffusion, log_snrs: Float[np.ndarray, " levels"]
) -> Float[np.ndarray, " levels"] | None:
    """The times of known log-SNRs, searched for on the host; `None` as above."""
    if not isinstance(diffusion, AbstractStationaryDiffusion):
        return None
    return diffusion.recipe.known_times_at(log_snrs)


def known_log_snrs(
    diffusion: AbstractLinearDiffusion, *times: Scalar
) -> tuple[float, ...] | None:
    """The log-SNRs at some times, on the host; `None` as above."""
    known = [concrete(t) for t in times]
    path = None if None in known else known_path(diffusion, np.array(known, float))
    return None if path is None else tuple(path.log_snr.tolist())


class AbstractRecipeDiffusion(AbstractStationaryDiffusion):
    """A stationary diffusion that stores its recipe; all but the learned one do."""

    _recipe: eqx.AbstractVar[Recipe]

    @property
    def recipe(self) -> Recipe:
        return self._recipe


@final
class LinearDiffusion(AbstractRecipeDiffusion):
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
        learn: Sequence[str] = (),
    ):
        r"""**Arguments:**

        - `skew`: $Q$, skew-symmetric, `vars x vars`, per unit of the schedule.
        - `dissipation`: $D$, positive semidefinite. Its rank is fixed here and does
            not change in training.
        - `dissipation_root`: instead of `dissipation`, an $R$ with $R R^\top = D$ and
            one column for each source of noise.
        - `stationary_covariance`: $S$, positive definite; the identity by default.
        - `start_covariance`: the covariance of $y(0)$ given the data, with a zero first
            row and column; by default 0.01 for every auxiliary variable.
        - `schedule`: by default `LinearSchedule()`, from 0.1 to 10.
        - `interval`: the times $[t_0, t_1]$ as an [`eqmdm.TimeInterval`][], by default
            (1e-3, 1), or the log signal-to-noise ratios at $t_1$ and at $t_0$ as an
            [`eqmdm.LogSNRInterval`][], whose times move with the parameters.
        - `learn`: the names of the parameters, which are stored as JAX arrays and
            trained: `"skew"`, `"dissipation"` (its root), `"stationary_covariance"`,
            `"start_covariance"` (their roots), `"schedule"` (its rates). Everything
            else is constant, even if given as a JAX array. Traced values, of a
            diffusion built inside `jax.grad` or `jax.jit`, always keep their
            derivatives.

        **Raises:**

        `ValueError` if `skew` is not skew-symmetric, `dissipation` is not positive
        semidefinite, a covariance is not positive definite, shapes are not square or
        do not match, the noise does not reach a variable, the diffusion does not reach
        the interval, or `learn` has another name. Traced values are not checked.
        """
        self._recipe = Recipe.create(
            skew,
            dissipation,
            dissipation_root=dissipation_root,
            stationary_covariance=stationary_covariance,
            start_covariance=start_covariance,
            schedule=schedule,
            interval=interval,
            learn=learn,
        )
