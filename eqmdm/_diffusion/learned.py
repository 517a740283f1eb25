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

from .._checks import check_count
from .._clock import AbstractClock, LinearClock
from .._custom_types import PRNGKey
from .base import Ends, make_ends
from .matrices import as_matrix
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
    auxiliaries at time 0, and a linear clock's rates are parameters too.

    **Source:** Singhal et al. (2023), section 4.3.
    """

    skew_half: Float[Array, "vars vars"]  # q
    dissipation_parameter: Float[Array, "vars vars"] | Float[Array, " vars"]  # B
    stationary_parameter: Float[Array, "vars vars"] | None
    start_parameter: Float[Array, " aux"] | None
    clock_parameter: Float[Array, "2"] | None
    start_variance: float
    fixed_clock: AbstractClock | None
    _ends: Ends
    _n_doublings: int = eqx.field(static=True)

    def __init__(
        self,
        n_vars: int,
        *,
        key: PRNGKey,
        diagonal: bool = False,
        learn_stationary: bool = False,
        learn_start: bool = False,
        learn_clock: bool = False,
        start_variance: float = 0.01,
        clock: AbstractClock | None = None,
        t_range: tuple[float, float] | None = None,
        log_snr_range: tuple[float, float] | None = None,
    ):
        r"""**Arguments:**

        - `n_vars`: $K$, the data included.
        - `key`: draws the start: the couplings and the factor of $D$ are those of a
            chain with damping 1, plus normal noise of standard deviation 0.1.
        - `diagonal`: a diagonal $D$ instead of a full one.
        - `learn_stationary`, `learn_start`, `learn_clock`: what else is a parameter;
            the clock must then be linear.
        - `start_variance`, `clock`, `t_range`, `log_snr_range`: as for the other
            diffusions. With a `log_snr_range` the ends stay at their log-SNR, and their
            times move with the parameters.
        """
        hint = " 1, the data, learns a rate alone; 2 adds a velocity."
        check_count("n_vars", n_vars, hint=hint)
        if not (math.isfinite(start_variance) and start_variance > 0):
            raise ValueError(
                f"`start_variance` must be positive and finite; got {start_variance}."
            )
        clock = LinearClock() if clock is None else clock
        self.clock_parameter, self.fixed_clock = None, clock
        if learn_clock and isinstance(clock, LinearClock):
            rates = [float(clock.rate0), float(clock.rate1) - float(clock.rate0)]
            if min(rates) <= 0:
                raise ValueError(
                    "`clock` must have 0 < rate0 < rate1 where `learn_clock` is set, "
                    "for what is learned are the logarithms of the first rate and of "
                    f"the rise; got {clock.rate0} and {clock.rate1}."
                )
            self.clock_parameter = jnp.stack([_softplus_inverse(r) for r in rates])
            self.fixed_clock = None
        elif learn_clock:
            raise ValueError(
                "`clock` must be a `LinearClock` where `learn_clock` is set; got "
                f"{type(clock).__name__}."
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
        self._ends = make_ends(t_range, log_snr_range)
        self._n_doublings = make_recipe(
            self._skew(),
            dissipation_root=self._dissipation_root(),
            start_covariance=start_variance * np.diag([0.0] + [1.0] * (n_vars - 1)),
            clock=self._clock(),
            t_range=t_range,
            log_snr_range=log_snr_range,
            headroom=HEADROOM,
        ).n_doublings

    def _skew(self) -> Float[Array, "vars vars"]:
        return self.skew_half - self.skew_half.T

    def _dissipation_root(self) -> Float[Array, "vars vars"]:
        if self.dissipation_parameter.ndim == 1:
            return jnp.diag(jnp.sqrt(jax.nn.softplus(self.dissipation_parameter)))
        return self.dissipation_parameter

    def _clock(self) -> AbstractClock:
        if self.clock_parameter is None:
            assert self.fixed_clock is not None
            return self.fixed_clock
        rate0, slope = jax.nn.softplus(self.clock_parameter)
        return LinearClock(rate0, rate0 + slope)

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
            self._clock(),
            self._ends,
            self._n_doublings,
        )

    def with_doublings(self, n_doublings: int) -> "LearnedDiffusion":
        """The same diffusion with another bound on the doublings of its kernels."""
        # The field is static, so it is no leaf that `eqx.tree_at` could replace.
        new = copy.copy(self)
        object.__setattr__(new, "_n_doublings", n_doublings)
        return new
