"""Diffusions and their reversals as Diffrax terms, on clocks that increase."""

from collections.abc import Callable
from typing import Any, TypeAlias, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._custom_types import PRNGKey, Scalar, State, Time
from ._diffusion import AbstractLinearDiffusion
from ._gaussian import apply_to_vars
from ._operator import VarsOperator


ScoreFunction: TypeAlias = Callable[[Scalar, State], State]
PathFunction: TypeAlias = Callable[..., dfx.AbstractBrownianPath]


@final
class Problem(eqx.Module):
    """Terms with the interval and the start that they are to be solved from.

        diffrax.diffeqsolve(
            problem.terms, solver, problem.t0, problem.t1, dt0, problem.initial(key=key)
        )

    The clock of the terms increases from `t0` to `t1` whatever the direction of the
    process; `time` gives the diffusion's own time.
    """

    terms: dfx.AbstractTerm
    t0: Scalar
    t1: Scalar
    reversed_from: Scalar | None
    _initial: Callable[[PRNGKey], State]

    def initial(self, *, key: PRNGKey) -> State:
        """A state to start from: the prior's, or the data with drawn auxiliaries."""
        return self._initial(key)

    def time(self, s: Scalar) -> Scalar:
        """The diffusion's time at the clock's reading `s`."""
        return s if self.reversed_from is None else self.reversed_from - s


def _tree_path(
    t0: Scalar, t1: Scalar, shape: jax.ShapeDtypeStruct, key: PRNGKey
) -> dfx.AbstractBrownianPath:
    # The resolution only bounds how small an adaptive step may get.
    return dfx.VirtualBrownianTree(
        t0,
        t1,
        tol=(t1 - t0) * 2.0**-14,
        shape=shape,
        key=key,
        levy_area=dfx.SpaceTimeLevyArea,
    )


def _noise_structure(
    diffusion: AbstractLinearDiffusion, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.ShapeDtypeStruct:
    rank = diffusion.diffusion_matrix(diffusion.t1).shape[1]
    return jax.ShapeDtypeStruct((rank, *shape), dtype)


def forward_sde(
    diffusion: AbstractLinearDiffusion,
    x: Float[Array, "*data"],
    *,
    key: PRNGKey,
    path: PathFunction = _tree_path,
) -> Problem:
    r"""The noising process $\mathrm{d}y = F y \mathrm{d}t + G \mathrm{d}w$ from data
    `x`, from time 0 to the horizon.

    **Arguments:**

    - `x`: one example, where `initial` starts the data row.
    - `key`: of the Brownian path.
    - `path`: a function `(t0, t1, structure, key)` that returns a Diffrax Brownian
        path; a `VirtualBrownianTree` with space-time Levy area by default, which serves
        every solver and step controller.
    """
    t0, t1 = jnp.zeros((), x.dtype), diffusion.t1.astype(x.dtype)
    structure = _noise_structure(diffusion, x.shape, x.dtype)
    noise = dfx.ControlTerm(
        diffusion.diffusion_coefficient, path(t0, t1, structure, key)
    )

    def initial(key: PRNGKey) -> State:
        return diffusion.draw_start(x, key=key)

    terms = dfx.MultiTerm(dfx.ODETerm(diffusion.drift), noise)
    return Problem(terms, t0, t1, None, initial)


def reverse_sde(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    shape: tuple[int, ...],
    *,
    key: PRNGKey,
    dtype: DTypeLike | None = None,
    path: PathFunction = _tree_path,
) -> Problem:
    r"""The reverse-time process, on the clock $s = t_1 - t$, from the prior to the cut.

    $$\mathrm{d}y = (-F y + G G^\top s_\theta) \mathrm{d}s + G \mathrm{d}w$$

    The clock increases: solved with decreasing time, Diffrax's solvers that use Levy
    areas return a wrong variance without an error.

    **Arguments:**

    - `score`: a callable `(t, y) -> score` on one example, in the diffusion's time.
    - `shape`: of one example of data.
    - `key`: of the Brownian path.
    - `dtype`: of states and times; JAX's default by default.
    - `path`: as for [`eqmdm.forward_sde`][].

    **Source:** Anderson (1982); Song et al. (2021), equation 6.
    """
    t1, length, initial, dtype = _reversed(diffusion, shape, dtype)
    start = jnp.zeros((), dtype)

    def drift(s: Time, y: State, args: Any) -> State:
        t = t1 - jnp.asarray(s, t1.dtype)
        G = diffusion.diffusion_matrix(t)
        push = apply_to_vars(G, apply_to_vars(G.T, score(t, y)))
        return push - diffusion.drift(t, y, args)

    def coefficient(s: Time, y: State, args: Any) -> VarsOperator:
        return diffusion.diffusion_coefficient(t1 - s, y, args)

    structure = _noise_structure(diffusion, shape, dtype)
    noise = dfx.ControlTerm(coefficient, path(start, length, structure, key))
    return Problem(dfx.MultiTerm(dfx.ODETerm(drift), noise), start, length, t1, initial)


def probability_flow(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    shape: tuple[int, ...],
    *,
    dtype: DTypeLike | None = None,
) -> Problem:
    r"""The probability-flow ODE, on the clock $s = t_1 - t$, from the prior to the cut.

    $$\mathrm{d}y / \mathrm{d}s = -F y + \tfrac12 G G^\top s_\theta$$

    **Arguments:** as for [`eqmdm.reverse_sde`][].

    **Source:** Song et al. (2021), equation 13.
    """
    t1, length, initial, dtype = _reversed(diffusion, shape, dtype)

    def drift(s: Time, y: State, args: Any) -> State:
        t = t1 - jnp.asarray(s, t1.dtype)
        G = diffusion.diffusion_matrix(t)
        push = apply_to_vars(G, apply_to_vars(G.T, score(t, y)))
        return 0.5 * push - diffusion.drift(t, y, args)

    start = jnp.zeros((), dtype)
    return Problem(dfx.ODETerm(drift), start, length, t1, initial)


def _reversed(
    diffusion: AbstractLinearDiffusion,
    shape: tuple[int, ...],
    dtype: DTypeLike | None,
) -> tuple[Scalar, Scalar, Callable[[PRNGKey], State], jnp.dtype]:
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    t0, t1 = diffusion.t0.astype(dtype), diffusion.t1.astype(dtype)

    def initial(key: PRNGKey) -> State:
        return diffusion.prior.sample(key, shape).astype(dtype)

    return t1, t1 - t0, initial, dtype
