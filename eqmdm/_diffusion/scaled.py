"""A linear diffusion with more or less noise."""

import math
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from wadler_lindig import AbstractDoc

from .._core.checks import as_array, as_scalar, concrete
from .._core.gaussian import Gaussian, Transition
from .._core.types import RankMatrix, Scalar, VarsMatrix
from .base import AbstractLinearDiffusion
from .interval import Interval, TimeInterval, known_times
from .text import call_text


@final
class ScaledDiffusion(AbstractLinearDiffusion):
    r"""A linear diffusion whose noise has a given precision: its drift is that of
    another diffusion, and the covariances of its noise, of its start and of its prior
    are divided by $\kappa$.

    $$\mathrm{d}y = F(t) y \,\mathrm{d}t + \kappa^{-1/2} G(t) \,\mathrm{d}w$$

    The signal-to-noise ratio is $\kappa$ times that of the other diffusion at every
    time. It runs on the same times: an interval in log-SNR is that of the other.

    **Arguments:**

    - `diffusion`: any linear diffusion.
    - `precision`: $\kappa$, positive. It is not trained.

    **Raises:** `TypeError` unless `diffusion` is a linear diffusion; `ValueError`
    unless `precision` is a positive number. A traced one is not checked.
    """

    diffusion: AbstractLinearDiffusion
    _precision: Scalar

    def __init__(self, diffusion: AbstractLinearDiffusion, precision: Any):
        if not isinstance(diffusion, AbstractLinearDiffusion):
            raise TypeError(
                "`diffusion` must be a linear diffusion, such as `eqmdm.CLD()`; got "
                f"{type(diffusion).__name__}."
            )
        precision = as_array("precision", precision)
        if precision.shape != ():
            raise ValueError(
                f"`precision` must be a number; got shape {precision.shape}. Batch "
                "diffusions with `jax.vmap`."
            )
        # A JAX array, so that another precision does not compile another program.
        number = precision if isinstance(precision, jax.Array) else float(precision)
        precision = as_scalar(number, jnp.result_type(float))
        known = concrete(precision)
        if known is not None and not 0 < known < math.inf:
            raise ValueError(f"`precision` must be positive and finite; got {known}.")
        self.diffusion, self._precision = diffusion, precision

    def __pdoc__(self, **options) -> AbstractDoc:
        del options
        return call_text(self, self.diffusion, precision=self._precision)

    @property
    def precision(self) -> Scalar:
        r"""$\kappa$."""
        return jax.lax.stop_gradient(self._precision)

    @property
    def n_vars(self) -> int:
        return self.diffusion.n_vars

    @property
    def interval(self) -> Interval:
        times = known_times(self.diffusion.interval)
        if times is not None:
            return times
        return TimeInterval(self.diffusion.t0, self.diffusion.t1)

    @property
    def t_limit(self) -> Scalar:
        return self.diffusion.t_limit

    @property
    def prior(self) -> Gaussian:
        return Gaussian(self._divided(self.diffusion.prior.root))

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns *coordinates"]:
        return self._divided(self.diffusion.start_root(dtype))

    def drift_matrix(self, t: Scalar) -> VarsMatrix:
        return self.diffusion.drift_matrix(t)

    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        return self._divided(self.diffusion.diffusion_matrix(t))

    def compute_transition(self, s: Scalar, t: Scalar) -> Transition:
        return self.diffusion.compute_transition(s, t).scaled(self.precision)

    def _divided(self, root: Array) -> Array:
        return root * jax.lax.rsqrt(self.precision).astype(root.dtype)
