"""Gaussian steps of a process that is linearised at a state."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.blocks import lq_root, matmul, solve_lower, transpose
from .._core.gaussian import (
    PerturbationKernel,
    Transition,
    apply_to_vars,
)
from .._core.types import Data, Scalar, State, VarsMatrix
from .kernel import orders as series_orders, quadrature
from .nonlinear import AbstractNonlinearDiffusion


# A step is divided into panels, in each of which the series of the exponential and the
# quadrature of the covariance are exact to rounding if ||F h|| is up to 1. A transition
# over any time would double instead, which takes ten times as long for every
# coordinate.
_N_PANELS = 4


@final
class LocalStep(eqx.Module):
    r"""The law of the state a step after another, if the process were linear with the
    drift's value and derivative at the state `about`.

    Normal, with mean $\Psi (y - \mathrm{about}) + \mathrm{about} + \mathrm{shift}$ and
    covariance $L L^\top$, for each coordinate of the data.
    """

    about: State
    shift: State
    transition: Transition

    def change(self, noise: State, root: VarsMatrix) -> State:
        """The change of a state that starts at `about`, from noise and a root."""
        # The change and not the new state, which would lose the digits of a small step.
        return self.shift + apply_to_vars(root, noise)

    def root_after(self, start_root: Float[Array, "vars columns"]) -> VarsMatrix:
        """The root of the covariance if the start is normal about `about` with
        covariance `start_root @ start_root.T`."""
        step, start_root = self.transition, by_data(start_root, self.about)
        columns = [matmul(step.mean_map, start_root), step.root]
        return lq_root(jnp.concatenate(columns, axis=1))


def differentiate(
    function: Callable[[State], State], y: State
) -> tuple[State, VarsMatrix]:
    """The value of a function that acts on every coordinate of the data by itself, and
    its derivative for each coordinate.

    One forward derivative for each variable, for all coordinates at once.
    """
    value, derivative = jax.linearize(function, y)
    tangents = by_data(jnp.eye(len(y), dtype=y.dtype), y)
    return value, jax.vmap(derivative, out_axes=1)(tangents)


def linearise(
    process: AbstractNonlinearDiffusion, t: Scalar, y: State
) -> tuple[State, VarsMatrix]:
    """The drift, and its derivative for each coordinate of the data."""
    return differentiate(lambda y: process.drift(t, y, None), y)


def prior_score(
    process: AbstractNonlinearDiffusion, y: State
) -> tuple[State, VarsMatrix]:
    r"""$\nabla \log \pi$ of the prior, and its derivative for each coordinate."""
    return differentiate(jax.grad(process.prior.log_density), y)


def prior_defect(process: AbstractNonlinearDiffusion, t: Scalar, y: State) -> Scalar:
    r"""$\nabla \cdot f + f \cdot \nabla \log \pi - \tfrac12 \| G^\top \nabla \log \pi
    \|^2 - \tfrac12 \mathrm{tr}(G G^\top \nabla^2 \log \pi)$.

    It is 0 everywhere if the prior is stationary for the coefficients at `t`.
    """
    drift, jacobian = linearise(process, t, y)
    score, hessian = prior_score(process, y)
    G = by_data(process.diffusion_matrix(t), y)
    along_noise = apply_to_vars(transpose(G), score)
    spread = jnp.sum(G * matmul(hessian, G), axis=(0, 1))
    # Summed by coordinate first, since the terms cancel there.
    terms = jnp.sum(drift * score, axis=0) - 0.5 * jnp.sum(along_noise**2, axis=0)
    return jnp.sum(terms + jnp.trace(jacobian) - 0.5 * spread)


def noise_rate(process: AbstractNonlinearDiffusion, t: Scalar) -> Scalar:
    r"""$\mathrm{tr}(G^\top S^{-1} G) / 2 K$, the rate at which noise arrives relative
    to the covariance $S$ of the prior of the reference."""
    G = process.diffusion_matrix(t)
    root = process.reference.prior.root.astype(t.dtype)
    if G.ndim > root.ndim:
        G = jnp.mean(G, axis=tuple(range(2, G.ndim)))
    return 0.5 * jnp.sum(solve_lower(root, G) ** 2) / len(root)


def local_step(
    process: AbstractNonlinearDiffusion, s: Scalar, t: Scalar, about: State
) -> LocalStep:
    """The step from `s` to `t` of the process linearised at `about`, with the
    coefficients at the middle of the step.

    To rounding for a derivative of the drift up to `_N_PANELS` per step. Beyond that,
    where a linearised step is no approximation any more, digits are lost.
    """
    middle, panel_width = 0.5 * (s + t), (t - s) / _N_PANELS
    drift, jacobian = linearise(process, middle, about)
    G = by_data(process.diffusion_matrix(middle), about)
    n_vars, rank = len(about), G.shape[1]
    nodes, weights = quadrature(n_vars, about.dtype)
    # One series gives the noise and the drift after each node of a panel, and the mean
    # map over the panel.
    psi = by_data(jnp.eye(n_vars, dtype=about.dtype), about)
    columns = jnp.concatenate([G, drift[:, None], psi], axis=1)
    times = panel_width * jnp.asarray([*nodes, 1.0], about.dtype)
    after = jax.vmap(lambda time: _exponential(time * jacobian, columns))(times)
    panel_map = after[-1][:, rank + 1 :]
    widths = panel_width * jnp.asarray(weights, about.dtype)
    widths = widths.reshape(-1, *[1] * (after.ndim - 1))
    shift = jnp.sum(widths * after[:-1, :, rank : rank + 1], axis=0)
    noise = jnp.moveaxis(jnp.sqrt(widths) * after[:-1, :, :rank], 0, 1)
    noise = noise.reshape(n_vars, -1, *about.shape[1:])
    panels, total = [noise], jnp.zeros_like(shift)
    for _ in range(_N_PANELS):
        total = shift + matmul(panel_map, total)
        psi = matmul(panel_map, psi)
        panels.append(matmul(panel_map, panels[-1]))
    root = lq_root(jnp.concatenate(panels[:-1], axis=1))
    return LocalStep(about, total[:, 0], Transition(psi, root))


def _exponential(
    F: VarsMatrix, columns: Float[Array, "vars columns *coordinates"]
) -> Float[Array, "vars columns *coordinates"]:
    r"""$e^F$ times columns, by its series."""
    term = lambda factor, k: (columns + matmul(F / k, factor), None)
    # A loop, because unrolled it takes longer to compile.
    return jax.lax.scan(term, columns, series_orders(F.dtype, down_to=1))[0]


def data_state(process: AbstractNonlinearDiffusion, x: Data) -> State:
    """The start with its auxiliaries at their mean, 0."""
    return jnp.concatenate(
        [x[None], jnp.zeros((process.n_vars - 1, *x.shape), x.dtype)]
    )


def kernel_of(
    process: AbstractNonlinearDiffusion, step: LocalStep, t: Scalar
) -> PerturbationKernel:
    """The law that a step from time 0 to `t` leaves of the state given the data, but
    for its shift."""
    start_root = by_data(process.start_root(step.about.dtype), step.about)
    return PerturbationKernel.after(t, step.transition, start_root)


def by_data(
    matrix: Float[Array, "rows columns ..."], y: State
) -> Float[Array, "rows columns ..."]:
    """A matrix on the variables, with the axes of the data last."""
    coordinates = y.shape[1:]
    if matrix.ndim == 2:
        matrix = matrix.reshape(*matrix.shape, *[1] * len(coordinates))
    return jnp.broadcast_to(matrix, (*matrix.shape[:2], *coordinates))
