"""Diffusions and their reversals as Diffrax terms, on clocks that increase."""

from collections.abc import Callable
from typing import Any, TypeAlias, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .._core.blocks import transpose
from .._core.checks import (
    check_finite,
    check_precision,
    check_shape,
    concrete,
    now_if_known,
)
from .._core.gaussian import apply_to_vars
from .._core.operator import VarsOperator
from .._core.types import PRNGKey, Scalar, State, Time
from .._diffusion import AbstractProcess
from .._diffusion.banded import check_data_shape
from .._diffusion.base import check_linear
from .base import AbstractModel, conditioned
from .time_change import AbstractNoiseClock, AbstractTiming, make_timing


PathFunction: TypeAlias = Callable[..., dfx.AbstractBrownianPath]


@final
class Problem(eqx.Module):
    """Diffrax terms with the interval and the initial state to solve them from.

        diffrax.diffeqsolve(
            problem.terms, solver, problem.t0, problem.t1, dt0, problem.initial(key=key)
        )

    The clock of the terms increases from `t0` to `t1` in either direction of the
    process. `time` converts to the diffusion's own time, and `reading` to the clock's.
    """

    terms: dfx.AbstractTerm
    t0: Scalar
    t1: Scalar
    _initial: Callable[[PRNGKey], State]
    _timing: AbstractTiming
    _reversed: bool

    def initial(self, *, key: PRNGKey) -> State:
        """An initial state: a draw from the prior, or the data with auxiliaries."""
        return self._initial(key)

    def time(self, s: Scalar) -> Scalar:
        """The diffusion's time at the clock's reading `s`."""
        reading = self._timing.end - s if self._reversed else s
        return self._timing.time(reading)[0]

    def reading(self, t: Scalar) -> Scalar:
        """The clock's reading at the diffusion's time `t`."""
        reading = self._timing.reading(t)
        return self._timing.end - reading if self._reversed else reading


def _tree_path(
    t0: Scalar, t1: Scalar, shape: jax.ShapeDtypeStruct, key: PRNGKey
) -> dfx.AbstractBrownianPath:
    # The tolerance only limits how small an adaptive step can be.
    return dfx.VirtualBrownianTree(
        t0,
        t1,
        tol=(t1 - t0) * 2.0**-14,
        shape=shape,
        key=key,
        levy_area=dfx.SpaceTimeLevyArea,
    )


def _noise_structure(
    diffusion: AbstractProcess, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.ShapeDtypeStruct:
    rank = diffusion.diffusion_matrix(diffusion.t1).shape[1]
    return jax.ShapeDtypeStruct((rank, *shape), dtype)


def forward_sde(
    diffusion: AbstractProcess,
    x: Float[Array, "*data"],
    *,
    key: PRNGKey,
    clock: AbstractNoiseClock | None = None,
    path: PathFunction = _tree_path,
) -> Problem:
    r"""The noising process $\mathrm{d}y = F y \mathrm{d}t + G \mathrm{d}w$ from data
    `x`, up to t1.

    **Arguments:**

    - `x`: one example, the data row of the initial state.
    - `key`: for the Brownian path.
    - `clock`: `None` for the diffusion's own time, which starts at 0, or a noise clock
        such as [`eqmdm.LogSNRClock`][]. With a noise clock `initial` draws the state at
        t0, because the reading at time 0 is infinite.
    - `path`: a function `(t0, t1, structure, key)` that returns a Diffrax Brownian
        path. The default, a `VirtualBrownianTree` with space-time Levy area, works with
        every solver and step size controller. `UnsafeBrownianPath` is cheaper for fixed
        steps.

    **Raises:**

    `ValueError` if `x` is not finite, or if `clock` is a noise clock and the log-SNR
    of the diffusion is not strictly monotone (`equinox.EquinoxRuntimeError` if the
    diffusion is traced).
    """
    check_precision("x", x.dtype)
    check_finite("x", x)
    check_data_shape(diffusion, x.shape)
    timing = make_timing(diffusion, clock, x.dtype, from_zero=True)
    structure = _noise_structure(diffusion, x.shape, x.dtype)

    def drift(s: Time, y: State, args: Any) -> State:
        t, rate = timing.time(jnp.asarray(s, x.dtype))
        return rate * diffusion.drift(t, y, args)

    def coefficient(s: Time, y: State, args: Any) -> VarsOperator:
        t, rate = timing.time(jnp.asarray(s, x.dtype))
        return _scaled(diffusion.diffusion_coefficient(t, y, args), jnp.sqrt(rate))

    def initial(key: PRNGKey) -> State:
        if clock is None:
            return diffusion.draw_start(x, key=key)
        linear = check_linear(diffusion)
        return linear.compute_kernel(linear.t0.astype(x.dtype)).sample(x, key=key)

    noise = dfx.ControlTerm(coefficient, path(timing.start, timing.end, structure, key))
    terms = dfx.MultiTerm(dfx.ODETerm(drift), noise)
    return Problem(terms, timing.start, timing.end, initial, timing, False)


def reverse_sde(
    model: AbstractModel,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    condition: PyTree = None,
    dtype: DTypeLike | None = None,
    clock: AbstractNoiseClock | None = None,
    path: PathFunction = _tree_path,
) -> Problem:
    r"""The reverse-time process, on the clock $s = t_1 - t$, from the prior to t0.

    $$\mathrm{d}y = (-F y + G G^\top s_\theta) \mathrm{d}s + G \mathrm{d}w$$

    The clock increases because Diffrax's solvers that use Levy areas silently return a
    wrong variance when time decreases.

    **Arguments:**

    - `model`: any of the models, or one of your own.
    - `shape`: the shape of one example of data.
    - `key`: for the Brownian path.
    - `condition`: the condition of the data, for a conditional model; see
        `AbstractModel.with_condition`.
    - `dtype`: the dtype of states and times; JAX's default float if `None`.
    - `clock`: `None` for the diffusion's own time, or a noise clock, whose readings are
        then traversed downwards.
    - `path`: as for [`eqmdm.forward_sde`][].

    **Raises:**

    `ValueError` if `clock` is a noise clock and the log-SNR of the diffusion is not
    strictly monotone (`equinox.EquinoxRuntimeError` if the diffusion is traced), or if
    t0 is too small for the rounding of times near t1.

    **Source:** Anderson (1982); Song et al. (2021), equation 6.
    """
    model = conditioned(model, condition)
    reverse = _Reverse.of(model, shape, dtype, clock)

    @_traced_once
    def drift(s: Time, y: State, args: Any) -> State:
        pull, push, rate = reverse.parts(s, y, args)
        return rate * (push - pull)

    coefficient_of = model.diffusion.diffusion_coefficient

    def coefficient(s: Time, y: State, args: Any) -> VarsOperator:
        t, rate = reverse.timing.time(reverse.clock_reading(s))
        return _scaled(coefficient_of(t, y, args), jnp.sqrt(rate))

    start, length = reverse.interval
    structure = _noise_structure(model.diffusion, shape, length.dtype)
    noise = dfx.ControlTerm(coefficient, path(start, length, structure, key))
    return reverse.problem(dfx.MultiTerm(dfx.ODETerm(drift), noise))


def probability_flow(
    model: AbstractModel,
    shape: tuple[int, ...],
    *,
    condition: PyTree = None,
    dtype: DTypeLike | None = None,
    clock: AbstractNoiseClock | None = None,
) -> Problem:
    r"""The probability-flow ODE, on the clock $s = t_1 - t$, from the prior to t0.

    $$\mathrm{d}y / \mathrm{d}s = -F y + \tfrac12 G G^\top s_\theta$$

    **Arguments:** as for [`eqmdm.reverse_sde`][].

    **Source:** Song et al. (2021), equation 13.
    """
    model = conditioned(model, condition)
    reverse = _Reverse.of(model, shape, dtype, clock)

    @_traced_once
    def drift(s: Time, y: State, args: Any) -> State:
        pull, push, rate = reverse.parts(s, y, args)
        return rate * (0.5 * push - pull)

    return reverse.problem(dfx.ODETerm(drift))


@final
class _Reverse(eqx.Module):
    """The parts that the reverse SDE and the probability flow share."""

    model: AbstractModel
    timing: AbstractTiming
    shape: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(
        cls,
        model: AbstractModel,
        shape: tuple[int, ...],
        dtype: DTypeLike | None,
        clock: AbstractNoiseClock | None,
    ) -> "_Reverse":
        dtype = jnp.result_type(float) if dtype is None else dtype
        dtype, shape = check_precision("dtype", dtype), check_shape(shape)
        check_data_shape(model.diffusion, shape)
        timing = make_timing(model.diffusion, clock, dtype)
        check_countdown(timing)
        return cls(model, timing, shape)

    @property
    def interval(self) -> tuple[Scalar, Scalar]:
        with now_if_known(self.timing.start, self.timing.end):
            length = self.timing.end - self.timing.start
            return jnp.zeros_like(length), length

    def clock_reading(self, s: Time) -> Scalar:
        end = self.timing.end
        return end - jnp.asarray(s, end.dtype)

    def parts(self, s: Time, y: State, args: Any) -> tuple[State, State, Scalar]:
        r"""$F y$, $G G^\top s_\theta$, and the rate at which time decreases."""
        kernel, rate = self.timing.kernel(self.clock_reading(s))
        diffusion = self.model.diffusion
        G = diffusion.diffusion_matrix(kernel.t)
        score = self.model.score_at(kernel, y)
        push = apply_to_vars(G, apply_to_vars(transpose(G), score))
        return diffusion.drift(kernel.t, y, args), push, rate

    def problem(self, terms: dfx.AbstractTerm) -> Problem:
        def initial(key: PRNGKey) -> State:
            dtype = self.timing.end.dtype
            return self.model.draw_prior(self.shape, key=key, dtype=dtype)

        start, length = self.interval
        return Problem(terms, start, length, initial, self.timing, True)


def _traced_once(drift: Callable[..., State]) -> Callable[..., State]:
    """A vector field whose network is traced once, although Diffrax traces the vector
    field several times."""
    jitted = eqx.filter_jit(drift)

    def field(s: Time, y: State, args: Any) -> State:
        # An array, because a Python float would be a constant of the program.
        return jitted(jnp.asarray(s, y.dtype), y, args)

    return field


def check_countdown(timing: AbstractTiming) -> None:
    """**Raises:** `ValueError` if t0 is lost to rounding on a clock that counts down
    from t1, when both are known."""
    start, end = concrete(timing.start), concrete(timing.end)
    if start is None or end is None:
        return
    with now_if_known(timing.start, timing.end):
        reached = concrete(timing.end - (timing.end - timing.start))
    assert reached is not None
    if abs(reached - start) > 0.01 * abs(start):
        raise ValueError(
            f"`diffusion` must have a t0 that {timing.end.dtype} resolves next to its "
            f"t1: t0 is {start}, and counting down to it from t1 = {end} gives "
            f"{reached}. Use `clock=eqmdm.LogSNRClock()`, an `interval` that starts "
            "later, or float64."
        )


def _scaled(operator: VarsOperator, factor: Scalar) -> VarsOperator:
    return VarsOperator(factor * operator.matrix, operator.data_shape)
