"""A linear diffusion whose auxiliaries start at multiples of the data."""

from collections.abc import Sequence
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.gaussian import Gaussian, Transition
from .._core.types import RankMatrix, Scalar, VarsMatrix
from .base import AbstractLinearDiffusion
from .interval import Interval, LogSNRInterval, as_interval
from .text import call_text


@final
class LinearStart(AbstractLinearDiffusion):
    r"""A linear diffusion whose auxiliaries start at multiples of the data, $v_0 \mid x
    \sim \mathcal{N}(c x, S_v)$, where $S_v$ is its own start covariance.

    The state has the auxiliaries less the same multiples of its data row, $(y_0, v - c
    y_0)$, which again start independent of the data. In these coordinates the process
    is a linear diffusion like any other, with the drift $C^{-1} F C$ and the noise
    $C^{-1} G$, $C = (1, 0; c, I)$. So every model, bound, sampler and likelihood takes
    it, and denoisers too: only the signal-to-noise ratio changes, which is $a^\top
    \Sigma^{-1} a$ with $a = \Psi (1, c)$. For any other mean of the start use an
    [`eqmdm.ConditionedStartModel`][].

    **Arguments:**

    - `diffusion`: any linear diffusion with auxiliary variables.
    - `slopes`: $c$, a number for each auxiliary variable.
    - `learn`: whether the slopes are trained. Everything else stays as it is in
        `diffusion`. An interval in log-SNR is that of the new process.

    **Raises:** `TypeError` unless `diffusion` is a linear diffusion; `ValueError` for
    one without auxiliary variables, or unless there is a finite slope for each.
    """

    diffusion: AbstractLinearDiffusion
    _slopes: tuple[float, ...] | Float[Array, " aux"]

    def __init__(
        self,
        diffusion: AbstractLinearDiffusion,
        slopes: Sequence[float] | Any,
        *,
        learn: bool = False,
    ):
        if not isinstance(diffusion, AbstractLinearDiffusion):
            raise TypeError(
                "`diffusion` must be a linear diffusion, such as `eqmdm.CLD()`; got "
                f"{type(diffusion).__name__}."
            )
        n_aux = diffusion.n_vars - 1
        if n_aux == 0:
            raise ValueError(
                "`diffusion` must have auxiliary variables, whose start is that given "
                f"the data; {type(diffusion).__name__} has none. Use `eqmdm.CLD()`."
            )
        shape = np.shape(slopes)
        if shape != (n_aux,):
            raise ValueError(
                f"`slopes` must be a number for each of the {n_aux} auxiliary "
                f"variables; got shape {shape}."
            )
        self.diffusion = diffusion
        if isinstance(slopes, Tracer):
            self._slopes = slopes
            return
        values = np.asarray(slopes, float)
        if not np.isfinite(values).all():
            raise ValueError(f"`slopes` must be finite; got {values.tolist()}.")
        self._slopes = tuple(values.tolist())
        if learn:
            self._slopes = jnp.asarray(values, jnp.float32)

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        slopes = self._slopes
        if not isinstance(slopes, tuple):
            slopes = "learned"
        return call_text(self, self.diffusion, slopes=slopes)

    @property
    def n_vars(self) -> int:
        return self.diffusion.n_vars

    @property
    def interval(self) -> Interval:
        interval = self.diffusion.interval
        # Its log-SNRs are reached at other times than those of the diffusion.
        is_solved = isinstance(interval, LogSNRInterval)
        return as_interval(interval) if is_solved else interval

    @property
    def t_limit(self) -> Scalar:
        return self.diffusion.t_limit

    @property
    def prior(self) -> Gaussian:
        return Gaussian(self._relative(self.diffusion.prior.root))

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns *coordinates"]:
        # The data row is zero.
        return self.diffusion.start_root(dtype)

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return self._relative(self._absolute(self.diffusion.drift_matrix(t)))

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return self._relative(self.diffusion.diffusion_matrix(t))

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        step = self.diffusion.compute_transition(s, t)
        # The root stays lower triangular, with the same diagonal.
        return Transition(
            self._relative(self._absolute(step.mean_map)), self._relative(step.root)
        )

    def _relative(self, matrix: Array) -> Array:
        r"""$C^{-1} M$."""
        data, aux = matrix[:1], matrix[1:]
        slopes = self._along(matrix.ndim - 1, matrix.dtype)
        return jnp.concatenate([data, aux - slopes * data])

    def _absolute(self, matrix: Array) -> Array:
        """$M C$."""
        slopes = self._along(matrix.ndim - 2, matrix.dtype)[None]
        first = matrix[:, :1] + jnp.sum(slopes * matrix[:, 1:], axis=1, keepdims=True)
        return jnp.concatenate([first, matrix[:, 1:]], axis=1)

    def _along(self, n_more: int, dtype: jnp.dtype) -> Array:
        """The slopes along the first axis, before `n_more` axes."""
        slopes = self._slopes
        # Of constants that may be traced numbers.
        slopes = jnp.stack([jnp.asarray(slope, dtype) for slope in slopes])
        return slopes.reshape(len(slopes), *[1] * n_more)
