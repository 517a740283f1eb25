"""Drawing samples by solving the reverse-time process with Diffrax."""

from collections.abc import Callable
from typing import TypeAlias

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._custom_types import PRNGKey, Scalar, State
from ._diffusion import AbstractLinearDiffusion
from ._score import as_score, check_trained_range
from ._terms import reverse_sde


ScoreFunction: TypeAlias = Callable[[Scalar, State], State]


def sample(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    n_samples: int = 64,
    solver: dfx.AbstractSolver | None = None,
    n_steps: int = 200,
    dtype: DTypeLike | None = None,
) -> Float[Array, "n_samples *data"]:
    r"""Samples of the data: the reverse-time SDE on a fixed grid, then the exact
    posterior mean at the cut.

    The grid is quadratic in time, fine towards the data. Sample `i` is keyed by `i`, so
    it does not depend on how many are drawn.

    **Arguments:**

    - `score`, `diffusion`, `shape`, `dtype`: as for [`eqmdm.reverse_sde`][].
    - `key`: of starts and noises.
    - `n_samples`: how many.
    - `solver`: any Diffrax SDE solver that works with fixed steps; `SEA` by default,
        which takes one evaluation a step.
    - `n_steps`: of the grid.

    **Raises:**

    `ValueError` if `n_steps` or `n_samples` is below 1, or the diffusion ends below the
    range that a denoiser was trained on.
    """
    if n_steps < 1 or n_samples < 1:
        raise ValueError(
            "`n_steps` and `n_samples` must be at least 1; got "
            f"n_steps={n_steps} and n_samples={n_samples}."
        )
    solver = dfx.SEA() if solver is None else solver
    score = as_score(score)
    numbers = check_trained_range(score, diffusion, jnp.arange(n_samples))
    keys = jax.vmap(lambda i: jr.fold_in(key, i))(numbers)
    return _draw(score, diffusion, keys, tuple(shape), solver, n_steps, dtype)


@eqx.filter_jit
def _draw(score, diffusion, keys, shape, solver, n_steps, dtype):
    levy_area = _least_levy_area(solver)

    def fixed_grid_path(t0, t1, structure, key):
        # On a fixed grid the path is asked for each interval once, which is all that
        # this one supports; the tree costs 2.8 times a hand-written loop.
        del t0, t1
        return dfx.UnsafeBrownianPath(structure, key=key, levy_area=levy_area)

    def one(key):
        key_start, key_path = jr.split(key)
        problem = reverse_sde(
            score, diffusion, shape, key=key_path, dtype=dtype, path=fixed_grid_path
        )
        remaining = jnp.linspace(1, 0, n_steps + 1, dtype=problem.t0.dtype) ** 2
        grid = problem.t1 * (1 - remaining)
        solution = dfx.diffeqsolve(
            problem.terms,
            solver,
            grid[0],
            grid[-1],
            None,
            problem.initial(key=key_start),
            stepsize_controller=dfx.StepTo(grid),
            adjoint=dfx.ForwardMode(),
            max_steps=n_steps,
        )
        assert solution.ys is not None
        y, t0 = solution.ys[-1], diffusion.t0.astype(problem.t0.dtype)
        return score.data_estimate(t0, diffusion.compute_kernel(t0), y)

    return jax.vmap(one)(keys)


def _least_levy_area(solver: dfx.AbstractSolver) -> type:
    """The cheapest kind of Brownian increment that a solver can work with."""
    needed = getattr(solver, "minimal_levy_area", dfx.AbstractBrownianIncrement)
    kinds = dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea
    return next(kind for kind in kinds if issubclass(kind, needed))
