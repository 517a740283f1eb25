"""The data estimate of a process without kernels, at the start time."""

from .._core.blocks import transpose
from .._core.gaussian import apply_to_vars
from .._core.types import Data, State
from .._diffusion.local import kernel_of, local_step
from .._diffusion.nonlinear import AbstractNonlinearDiffusion
from .base import AbstractModel


def local_data_estimate(
    model: AbstractModel, process: AbstractNonlinearDiffusion, y: State
) -> Data:
    r"""$E[x \mid y]$ at t0 by Tweedie's formula, for the process linearised at `y`."""
    t0 = process.t0.astype(y.dtype)
    step = local_step(process, 0 * t0, t0, y)
    kernel = kernel_of(process, step, t0)
    # The state that a linear process without shift would have.
    centred = step.transition.mean(y) - step.shift
    score = model.score_at(process.network_kernel(t0), y)
    whitened = apply_to_vars(transpose(kernel.root), score)
    return kernel.project(centred) + kernel.sigma * kernel.along_data(whitened)
