"""Drawing samples: a process solved by Diffrax, or one of the library's samplers."""

from collections.abc import Callable
from typing import TypeAlias

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._core.checks import check_count, check_precision, check_shape
from .._core.sharding import divide_batch, mesh_of
from .._core.types import PRNGKey, State
from .._diffusion import AbstractLinearDiffusion
from .._model.diffrax_solvers import check_kind
from .._model.score import AbstractScore, ScoreFunction, as_score, check_trained_range
from .._model.terms import Problem, check_countdown, probability_flow, reverse_sde
from .._model.time_change import AbstractNoiseClock, make_timing
from . import SSCS, AbstractSampler, LangevinCorrector
from .grids import AbstractGrid, LogSNRGrid, QuadraticGrid


Solver: TypeAlias = dfx.AbstractSolver | AbstractSampler
Process: TypeAlias = Callable[..., Problem]


def sample(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    n_samples: int = 64,
    first: int = 0,
    solver: Solver | None = None,
    n_steps: int = 200,
    grid: AbstractGrid | None = None,
    process: Process = reverse_sde,
    clock: AbstractNoiseClock | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n_samples *data"]:
    r"""Samples of the data: a process from the prior to the cut, then the exact
    posterior mean there.

    Sample `i` is keyed by `first + i`, so it does not depend on how many are drawn, and
    starts from the same draw of the prior with every solver.

    **Arguments:**

    - `score`, `diffusion`, `shape`, `dtype`: as for [`eqmdm.reverse_sde`][].
    - `key`: of starts and noises.
    - `n_samples`: how many.
    - `first`: the number of the first of them.
    - `solver`: one of the library's samplers, such as [`eqmdm.Collapsed`][] for
        denoisers, or any of Diffrax's solvers that suits the process; by default
        Diffrax's `SEA`, an SDE solver that takes one evaluation a step.
    - `n_steps`: of the grid.
    - `grid`: the times that are stepped to. By default [`eqmdm.LogSNRGrid`][] for the
        library's samplers, and [`eqmdm.QuadraticGrid`][], fine towards the data, for
        `SSCS` and Diffrax's solvers.
    - `process`: for Diffrax's solvers: [`eqmdm.reverse_sde`][] or
        [`eqmdm.probability_flow`][].
    - `clock`: that the process runs on, as for [`eqmdm.reverse_sde`][].
    - `stepsize_controller`: an adaptive one for Diffrax's solvers, instead of a grid.
        `n_steps` is then the most steps that may be tried.

    **Returns:**

    The samples. One whose adaptive solve does not reach the cut within `n_steps` is
    NaN, and the others are kept.

    **Raises:**

    `ValueError` if a count is out of range, the diffusion ends below the range that a
    denoiser was trained on, or the clock cannot tell its time; `TypeError` if the
    solver does not suit the process or the score, or comes with an option that it has
    no use for.
    """
    check_count("n_steps", n_steps)
    check_count("n_samples", n_samples)
    check_count("first", first, least=0)
    shape = check_shape(shape)
    dtype = jnp.result_type(float) if dtype is None else dtype
    dtype = check_precision("dtype", dtype)
    solver = dfx.SEA() if solver is None else solver
    _check_options(solver, process, clock, grid, stepsize_controller)
    score = as_score(score, diffusion)
    numbers = check_trained_range(score, diffusion, first + jnp.arange(n_samples))
    keys = jax.vmap(lambda i: jr.fold_in(key, i))(numbers)
    keys = divide_batch(keys, mesh_of((score, diffusion)))
    # Refuses a clock before anything is compiled.
    timing = make_timing(diffusion, clock, dtype)
    if isinstance(solver, dfx.AbstractSolver):
        check_countdown(timing)
    if stepsize_controller is not None:
        assert isinstance(solver, dfx.AbstractSolver)
        how = process, clock, solver, stepsize_controller, n_steps
        return _draw_adaptively(score, diffusion, keys, shape, dtype, *how)
    grid = _default_grid(solver) if grid is None else grid
    times = grid(diffusion, n_steps, dtype)
    if isinstance(solver, AbstractSampler):
        return _draw_by_sampler(score, diffusion, keys, shape, times, solver)
    return _draw_on_grid(score, diffusion, keys, shape, times, process, clock, solver)


def _check_options(
    solver: Solver,
    process: Process,
    clock: AbstractNoiseClock | None,
    grid: AbstractGrid | None,
    stepsize_controller: dfx.AbstractStepSizeController | None,
) -> None:
    if process not in (reverse_sde, probability_flow):
        raise ValueError(
            "`process` must be `eqmdm.reverse_sde` or `eqmdm.probability_flow`; got "
            f"{process}."
        )
    if isinstance(solver, dfx.AbstractSolver):
        check_kind(solver, noise=process is reverse_sde)
        if stepsize_controller is not None and grid is not None:
            raise TypeError(
                "`grid` must be left out where a `stepsize_controller` chooses the "
                f"steps; got {grid}."
            )
        return
    given = {"clock": clock, "stepsize_controller": stepsize_controller}
    given["process"] = None if process is reverse_sde else process
    for name, value in given.items():
        if value is not None:
            raise TypeError(
                f"`{name}` must be left out for `{type(solver).__name__}`, which "
                f"defines its own steps on a `grid`; got {value}. It is for Diffrax's "
                "solvers."
            )


def _default_grid(solver: Solver) -> AbstractGrid:
    while isinstance(solver, LangevinCorrector):
        solver = solver.sampler
    coarse_in_noise = isinstance(solver, SSCS | dfx.AbstractSolver)
    return QuadraticGrid() if coarse_in_noise else LogSNRGrid()


@eqx.filter_jit
def _draw_by_sampler(score, diffusion, keys, shape, times, sampler):
    def one(key):
        key_start, key_noise = jr.split(key)
        y = diffusion.prior.sample(shape, key=key_start).astype(times.dtype)
        return sampler(score, diffusion, y, times, key=key_noise)

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _draw_on_grid(score, diffusion, keys, shape, times, process, clock, solver):
    n_steps = len(times) - 1
    levy_area = _least_levy_area(solver)

    def fixed_grid_path(t0, t1, structure, key):
        # On a fixed grid the path is asked for each interval once, which is all that
        # this one supports; the tree costs 2.8 times a hand-written loop.
        del t0, t1
        return dfx.UnsafeBrownianPath(structure, key=key, levy_area=levy_area)

    def one(key):
        key_start, key_path = jr.split(key)
        options = {"dtype": times.dtype, "clock": clock}
        if process is reverse_sde:
            options |= {"key": key_path, "path": fixed_grid_path}
        problem = process(score, diffusion, shape, **options)
        steps = jax.vmap(problem.reading)(times)
        steps = steps.at[0].set(problem.t0).at[-1].set(problem.t1)
        solution = dfx.diffeqsolve(
            problem.terms,
            solver,
            problem.t0,
            problem.t1,
            None,
            problem.initial(key=key_start),
            stepsize_controller=dfx.StepTo(steps),
            adjoint=dfx.ForwardMode(),
            max_steps=n_steps,
        )
        assert solution.ys is not None
        return _posterior_mean(score, diffusion, solution.ys[-1])

    return jax.vmap(one)(keys)


@eqx.filter_jit
def _draw_adaptively(
    score,
    diffusion,
    keys,
    shape,
    dtype,
    process,
    clock,
    solver,
    stepsize_controller,
    max_steps,
):
    def one(key):
        key_start, key_path = jr.split(key)
        options = {"key": key_path} if process is reverse_sde else {}
        problem = process(score, diffusion, shape, dtype=dtype, clock=clock, **options)
        solution = dfx.diffeqsolve(
            problem.terms,
            solver,
            problem.t0,
            problem.t1,
            0.01 * (problem.t1 - problem.t0),
            problem.initial(key=key_start),
            stepsize_controller=stepsize_controller,
            adjoint=dfx.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        assert solution.ys is not None
        x = _posterior_mean(score, diffusion, solution.ys[-1])
        return jnp.where(solution.result == dfx.RESULTS.successful, x, jnp.nan)

    return jax.vmap(one)(keys)


def _posterior_mean(
    score: AbstractScore, diffusion: AbstractLinearDiffusion, y: State
) -> Float[Array, "*data"]:
    t0 = diffusion.t0.astype(y.dtype)
    return score.data_estimate(t0, diffusion.compute_kernel(t0), y)


def _least_levy_area(solver: dfx.AbstractSolver) -> type:
    """The cheapest kind of Brownian increment that a solver can work with."""
    needed = getattr(solver, "minimal_levy_area", dfx.AbstractBrownianIncrement)
    kinds = dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea
    return next(kind for kind in kinds if issubclass(kind, needed))
