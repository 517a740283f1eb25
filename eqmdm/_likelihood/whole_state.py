"""The probability flow of the whole state, and the states at t0 with given data."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.blocks import by_coordinate, matmul, transpose
from .._core.gaussian import (
    PerturbationKernel,
    apply_to_vars,
    log_det,
    over_coordinates,
)
from .._core.types import Data, Scalar, State, VarsMatrix, VarsVector
from .._diffusion import AbstractLinearDiffusion, AbstractNonlinearDiffusion
from .._diffusion.local import (
    data_state,
    differentiate,
    kernel_of,
    linearise,
    local_step,
)
from .._model.base import AbstractModel
from .._model.ends import kernel_at_ends
from .._model.start import mean_start
from .._model.time_change import AbstractTiming
from .flow import Flow


def linear_flow(
    model: AbstractModel, diffusion: AbstractLinearDiffusion, timing: AbstractTiming
) -> Flow:
    def flow(s: Scalar):
        t, rate = timing.time(s)
        A = rate * diffusion.drift_matrix(t)
        G = jnp.sqrt(0.5 * rate) * diffusion.diffusion_matrix(t)
        kernel = diffusion.compute_kernel(t)
        return A, G, lambda y: -model.score_at(kernel, y)

    return flow


def nonlinear_flow(model: AbstractModel, process: AbstractNonlinearDiffusion) -> Flow:
    def flow(t: Scalar):
        def drift(y: State) -> tuple[State, Scalar]:
            value, jacobian = linearise(process, t, y)
            return value, over_coordinates(jnp.trace(jacobian), y)

        G = math.sqrt(0.5) * process.diffusion_matrix(t)
        kernel = process.network_kernel(t)
        return drift, G, lambda y: -model.score_at(kernel, y)

    return flow


def linear_chart(
    model: AbstractModel, diffusion: AbstractLinearDiffusion, x: Data
) -> Callable[[State], tuple[State, Scalar]]:
    """The states at t0 with data `x`, as a function of their auxiliaries, and the
    logarithm of the volume of that map."""
    kernel, _ = kernel_at_ends(diffusion)
    across = _across_data(kernel)
    volume = log_det(kernel.root) - jnp.log(kernel.sigma)
    volume = over_coordinates(volume, x[None])
    centre = _centre(model, kernel, across, x)

    def place(aux: Float[Array, "aux *data"]) -> tuple[State, Scalar]:
        shifted = aux if centre is None else aux + centre
        return kernel.mean(x) + apply_to_vars(across, shifted), volume

    return place


def nonlinear_chart(
    process: AbstractNonlinearDiffusion, x: Data, aux: Float[Array, "aux *data"]
) -> tuple[State, Scalar]:
    """The state at t0 with data `x` and given auxiliaries, and the logarithm of the
    volume of the map from both to it.

    The map is that of a linear diffusion, for the process linearised about the data.
    """
    t0 = process.t0.astype(x.dtype)

    def place(coordinates: State) -> State:
        about = data_state(process, coordinates[0])
        step = local_step(process, jnp.zeros_like(t0), t0, about)
        across = _across_data(kernel_of(process, step, t0))
        return about + step.shift + apply_to_vars(across, coordinates[1:])

    y, jacobian = differentiate(place, jnp.concatenate([x[None], aux]))
    log_volume = by_coordinate(lambda J: jnp.linalg.slogdet(J)[1], jacobian)
    return y, over_coordinates(log_volume, y)


def _across_data(kernel: PerturbationKernel) -> Float[Array, "vars aux *coordinates"]:
    r"""$L N$, for an orthonormal basis $N$ orthogonal to $L^{-1} a$."""
    return by_coordinate(_across, kernel.root, kernel.direction)


def _across(root: VarsMatrix, b: VarsVector) -> Float[Array, "vars aux"]:
    # All columns but the first of the reflection that maps b to the first axis. Unlike
    # I - b b^T this does not cancel.
    sign = jnp.where(b[0] < 0, -1, 1).astype(b.dtype)
    normal = jnp.concatenate([b[:1] + sign, b[1:]])
    outer = normal[:, None] * normal[None]
    reflection = jnp.eye(len(b), dtype=b.dtype) - 2 * outer / jnp.sum(normal**2)
    return matmul(root, reflection[:, 1:])


def _centre(
    model: AbstractModel,
    kernel: PerturbationKernel,
    across: Float[Array, "vars aux *coordinates"],
    x: Data,
) -> Float[Array, "aux *data"] | None:
    r"""The mean of $\eta$ given the data; `None` for 0."""
    mean = mean_start(model, x)
    if mean is None:
        return None
    offset = kernel.whiten(kernel.step.mean(mean) - kernel.mean(x))
    directions = transpose(matmul(kernel.whitening, across))
    return apply_to_vars(directions, offset)
