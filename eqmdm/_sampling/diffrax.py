"""Diffrax's solvers as samplers."""

from collections.abc import Callable
from typing import Any, TypeAlias, final

import diffrax as dfx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._core.checks import check_count, check_precision, concrete
from .._core.types import PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion, AbstractProcess
from .._diffusion.nonlinear import check_nonlinear
from .._model.base import AbstractModel, kernel_at_ends
from .._model.diffrax_solvers import check_kind, n_evaluations
from .._model.local_estimate import local_data_estimate
from .._model.terms import Problem, check_countdown, probability_flow, reverse_sde
from .._model.time_change import AbstractNoiseClock, make_timing
from .base import AbstractSampler
from .grids import AbstractGrid, QuadraticGrid, SavedTimes, Times
from .stacks import as_dtype, data_estimate, make_trajectory
from .trajectory import SampleResult, finish


Process: TypeAlias = Callable[..., Problem]

# The first step that a controller tries, as a fraction of the interval.
_FIRST_STEP = 0.01


@final
class DiffraxSampler(AbstractSampler):
    r"""A Diffrax solver for the reverse SDE or the probability flow.

    On a grid the sampler steps the solver in its own loop. The steps are those of
    `diffrax.diffeqsolve`, at the cost of a hand-written loop.

    **Arguments:**

    - `solver`: a Diffrax solver, or one of your own, that suits the process.
    - `process`: [`eqmdm.reverse_sde`][] or [`eqmdm.probability_flow`][].
    - `clock`: the clock of the process, as for [`eqmdm.reverse_sde`][].
    - `grid`: the step grid; by default [`eqmdm.QuadraticGrid`][], whose steps are
        shorter near the data.
    - `stepsize_controller`: an adaptive step size controller, instead of a grid.
    - `max_steps`: the largest number of steps that a controller may try. A sample that
        needs more fails on its own, without affecting the others.

    **Raises:**

    `TypeError` for a solver that does not suit the process, or for both a grid and a
    controller; `ValueError` for any other process, or on a grid for an implicit solver
    whose root finder has no tolerances.

    !!! Example

        ```python
        sampler = eqmdm.DiffraxSampler(
            diffrax.Tsit5(),
            eqmdm.probability_flow,
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
        )
        x = eqmdm.sample(model, (8,), key=key, sampler=sampler)
        ```
    """

    solver: dfx.AbstractSolver
    process: Process
    clock: AbstractNoiseClock | None
    grid: AbstractGrid | None
    stepsize_controller: dfx.AbstractStepSizeController | None
    max_steps: int

    def __init__(
        self,
        solver: dfx.AbstractSolver,
        process: Process = reverse_sde,
        *,
        clock: AbstractNoiseClock | None = None,
        grid: AbstractGrid | None = None,
        stepsize_controller: dfx.AbstractStepSizeController | None = None,
        max_steps: int = 4096,
    ):
        if grid is None and stepsize_controller is None:
            grid = QuadraticGrid()
        self.solver, self.process, self.clock = solver, process, clock
        self.grid, self.stepsize_controller = grid, stepsize_controller
        self.max_steps = max_steps

    def __check_init__(self):
        if self.process not in (reverse_sde, probability_flow):
            raise ValueError(
                "`process` must be `eqmdm.reverse_sde` or `eqmdm.probability_flow`; "
                f"got {self.process}."
            )
        check_kind(self.solver, noise=self.process is reverse_sde)
        check_count("max_steps", self.max_steps)
        if self.grid is not None and self.stepsize_controller is not None:
            raise TypeError(
                "`grid` must be left out if a `stepsize_controller` chooses the "
                f"steps; got {self.grid}."
            )
        if self.grid is not None:
            _check_tolerance(self.solver)

    def times(
        self,
        diffusion: AbstractProcess,
        n_steps: int | None = None,
        dtype: DTypeLike | None = None,
        *,
        through: SavedTimes | None = None,
    ) -> Times:
        """The times of the grid, or only t1 and t0 with a controller.

        **Raises:**

        `ValueError` for a `clock` or a t0 for which [`eqmdm.reverse_sde`][] raises, and
        for `n_steps` with a controller.
        """
        dtype = jnp.result_type(float) if dtype is None else dtype
        dtype = check_precision("dtype", dtype)
        # Checked here, where the values are known and nothing has been compiled.
        timing = make_timing(diffusion, self.clock, dtype)
        check_countdown(timing)
        if self.grid is not None:
            return self.grid(diffusion, n_steps, dtype, through=through)
        if n_steps is not None:
            raise ValueError(
                "`n_steps` must be left out if a `stepsize_controller` chooses the "
                f"steps; got {n_steps}. The sampler's `max_steps` bounds them."
            )
        return jnp.stack([diffusion.t1, diffusion.t0]).astype(dtype)

    def n_evaluations(self, n_steps: int) -> int | None:
        count = n_evaluations(self.solver, n_steps)
        return None if count is None else int(count) + 1

    def solve(
        self,
        model: AbstractModel,
        y: State,
        times: Times,
        *,
        key: PRNGKey,
        saved: SavedTimes | None = None,
    ) -> SampleResult:
        problem = self._problem(model, y, key)
        readings = None if saved is None else _readings(problem, saved)
        if self.stepsize_controller is None:
            steps = _readings(problem, times)
            # Set exactly, regardless of the rounding of the clock.
            t0, t1 = problem.t0[None], problem.t1[None]
            steps = jnp.concatenate([t0, steps[1:-1], t1])
            end = self._step_through(problem, y, steps, readings)
        else:
            end = self._control(problem, y, readings)
        y, states, n_steps, result = end
        diffusion = model.diffusion
        if isinstance(diffusion, AbstractLinearDiffusion):
            at_t0, _ = kernel_at_ends(diffusion)
            x = data_estimate(model, as_dtype(at_t0, y.dtype), y, None)
        else:
            x = local_data_estimate(model, check_nonlinear(diffusion), y)
        count = n_evaluations(self.solver, n_steps)
        count = None if count is None else count + 1
        trajectory = None
        if states is not None and saved is not None:
            kernels_at = jax.vmap(model.linear_diffusion.compute_kernel)
            trajectory = make_trajectory(model, kernels_at(saved), states)
            count = None if count is None else count + len(saved)
        return finish(x, trajectory, count, result)

    def _problem(self, model: AbstractModel, y: State, key: PRNGKey) -> Problem:
        options: dict[str, Any] = {"dtype": y.dtype, "clock": self.clock}
        if self.process is probability_flow:
            return self.process(model, y.shape[1:], **options)
        if self.stepsize_controller is not None:
            return self.process(model, y.shape[1:], key=key, **options)
        levy_area = _least_levy_area(self.solver)

        def path(t0: Scalar, t1: Scalar, structure: Any, key: PRNGKey):
            # A grid evaluates the path once on each interval, which is all that this
            # path supports. With the tree the loop costs 2.8 times a hand-written one.
            del t0, t1
            return dfx.UnsafeBrownianPath(structure, key=key, levy_area=levy_area)

        return self.process(model, y.shape[1:], key=key, path=path, **options)

    def _step_through(
        self, problem: Problem, y: State, readings: Times, saved: SavedTimes | None
    ) -> tuple[State, Float[Array, "..."] | None, int, dfx.RESULTS]:
        solver, terms = self.solver, problem.terms

        # `diffeqsolve` can also step through given times. But it checks them by
        # callbacks to the host, which keep a program out of JAX's persistent cache, and
        # its loop has to allow for rejected steps.
        def step(carry, interval):
            y, state, result = carry
            y, _, _, state, new = solver.step(
                terms, interval[0], interval[1], y, None, state, made_jump=False
            )
            result = dfx.RESULTS.where(result == dfx.RESULTS.successful, new, result)
            return (y, state, result), None if saved is None else y

        state = solver.init(terms, readings[0], readings[1], y, None)
        intervals = jnp.stack([readings[:-1], readings[1:]], axis=1)
        carry = y, state, dfx.RESULTS.successful
        (end, _, result), path = jax.lax.scan(step, carry, intervals)
        n_steps = len(intervals)
        if path is None or saved is None:
            return end, None, n_steps, result
        places = jnp.argmin(jnp.abs(readings[None] - saved[:, None]), axis=1)
        return end, jnp.concatenate([y[None], path])[places], n_steps, result

    def _control(
        self, problem: Problem, y: State, saved: SavedTimes | None
    ) -> tuple[State, Float[Array, "..."] | None, Array, dfx.RESULTS]:
        controller = self.stepsize_controller
        assert controller is not None
        subs = [dfx.SubSaveAt(t1=True)]
        if saved is not None:
            subs.append(dfx.SubSaveAt(ts=saved))
            if isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
                # Diffrax interpolates a noisy path linearly between steps.
                controller = dfx.ClipStepSizeController(controller, step_ts=saved)
        solution = dfx.diffeqsolve(
            problem.terms,
            self.solver,
            *_interval(problem),
            y,
            saveat=dfx.SaveAt(subs=subs),
            stepsize_controller=controller,
            # The cheapest adjoint, which supports forward derivatives; samples are
            # rarely differentiated in reverse mode, and for that there are fixed steps.
            adjoint=dfx.ForwardMode(),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        (end, *states), result = solution.ys, solution.result
        states = states[0] if states else None
        if states is not None:
            # Diffrax fills the times that were not reached with infinity.
            is_done = result == dfx.RESULTS.successful
            states = jnp.where(is_done, states, jnp.nan)
        return end[-1], states, solution.stats["num_steps"], result


def _interval(problem: Problem) -> tuple[Any, Any, Any]:
    """The start, the end and the first step of a solve.

    They are Python numbers where they are known and have JAX's default dtype. Diffrax
    checks traced values at run time by a callback to the host, and JAX's persistent
    cache does not store programs with callbacks.
    """
    t0, t1 = concrete(problem.t0), concrete(problem.t1)
    is_default = problem.t1.dtype == jnp.result_type(float)
    if t0 is None or t1 is None or not is_default:
        return problem.t0, problem.t1, _FIRST_STEP * (problem.t1 - problem.t0)
    return t0, t1, _FIRST_STEP * (t1 - t0)


def _readings(problem: Problem, times: Float[Array, " some"]) -> Float[Array, " some"]:
    """The clock's readings at times, within the interval of the problem."""
    return jnp.clip(jax.vmap(problem.reading)(times), problem.t0, problem.t1)


def _check_tolerance(solver: dfx.AbstractSolver) -> None:
    if not isinstance(solver, dfx.AbstractImplicitSolver):
        return
    tolerance = getattr(solver.root_finder, "rtol", 0.0)
    if not isinstance(tolerance, float | int | jax.Array):
        name = type(solver).__name__
        raise ValueError(
            "`solver` must have a root finder with tolerances on a grid, such as "
            f"`diffrax.{name}(root_finder=diffrax.VeryChord(rtol=1e-5, atol=1e-5))`; "
            "without them it takes those of a `stepsize_controller`."
        )


def _least_levy_area(solver: dfx.AbstractSolver) -> type:
    """The cheapest kind of Brownian increment that a solver can work with."""
    needed = getattr(solver, "minimal_levy_area", dfx.AbstractBrownianIncrement)
    kinds = dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea
    return next(kind for kind in kinds if issubclass(kind, needed))
