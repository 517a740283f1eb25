"""A state drawn for a bound, with the noise that it was drawn with."""

from typing import final

import equinox as eqx
import jax.numpy as jnp

from .._core.blocks import matmul, transpose
from .._core.gaussian import PerturbationKernel, apply_to_vars, contract
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, State, VarsMatrix
from .base import AbstractModel
from .start import data_row


@final
class Point(eqx.Module):
    r"""A state drawn at one time from its law given the data, or given the whole start.

    $y = \mathrm{mean} + L \epsilon$, where $L$ is the root of that law. Models work
    with the law given the data; errors for the other law are converted from it.

    - `kernel`: the perturbation kernel at the time, `kernel.t`.
    - `start`: the state at time 0, whose row 0 is the data.
    - `noise`: $\epsilon$.
    - `y`: the state.
    - `given_start`: whether `y` is drawn given the whole start.
    - `mean_start`: the mean of the start given the data; `None` if the auxiliaries have
        mean 0.
    """

    kernel: PerturbationKernel
    start: State
    noise: State
    y: State
    given_start: bool = eqx.field(static=True)
    mean_start: State | None = None

    @classmethod
    def at(
        cls,
        kernel: PerturbationKernel,
        start: State,
        noise: State,
        *,
        given_start: bool,
        mean_start: State | None = None,
    ) -> "Point":
        """The point at the kernel's time with a given noise."""
        if given_start:
            y = kernel.step.perturb(start, noise)
        elif mean_start is not None:
            y = kernel.step.mean(mean_start) + apply_to_vars(kernel.root, noise)
        else:
            y = kernel.perturb(start[0], noise)
        return cls(kernel, start, noise, y, given_start, mean_start)

    @classmethod
    def draw(
        cls,
        kernel: PerturbationKernel,
        start: State,
        *,
        given_start: bool,
        key: PRNGKey,
    ) -> "Point":
        """A point at the kernel's time."""
        noise = draw_normal(key, start.shape, start.dtype)
        return cls.at(kernel, start, noise, given_start=given_start)

    @property
    def x(self) -> Data:
        """The data."""
        return self.start[0]

    @property
    def root(self) -> VarsMatrix:
        """$L$."""
        return self.kernel.step.root if self.given_start else self.kernel.root

    @property
    def kernel_noise(self) -> State:
        """The noise with which the perturbation kernel takes the data to `y`."""
        if not self.given_start:
            return self.noise
        aux = self.start[1:]
        if self.mean_start is not None:
            aux = aux - self.mean_start[1:]
        aux_only = jnp.concatenate([jnp.zeros_like(self.start[:1]), aux])
        return self.kernel.whiten(self.kernel.step.perturb(aux_only, self.noise))

    @property
    def arguments(self) -> tuple[PerturbationKernel, Data, State, State]:
        """The arguments of `AbstractModel.whitened_error` at this point."""
        return self.kernel, self.x, self.kernel_noise, self.y

    def error(self, model: AbstractModel) -> State:
        r"""$L^\top (s_\theta - \nabla \log q)$ for the law $q$ of this point."""
        return self.own_error(model.whitened_error(*self.arguments))

    def data_residual(self, error: State) -> Data:
        r"""$(\hat x - x) / \sigma$ from the model's error: how far its data estimate is
        from the data, in units of the noise of the sufficient statistic.

        A function of the state and the data alone: what the data estimate is computed
        from does not depend on the data.
        """
        if self.mean_start is None:
            return self.kernel.along_data(error)
        # The first variable of Psi^-1 (y + Sigma s), from the error, since the
        # estimate and the data agree to all digits at high log-SNR.
        row = data_row(self.kernel).astype(error.dtype)
        sigma = self.kernel.sigma.astype(error.dtype)
        return contract(row, apply_to_vars(self.kernel.root, error)) / sigma

    def own_error(self, kernel_error: State) -> State:
        """The error for this point's law, from that for the perturbation kernel."""
        if not self.given_start:
            return kernel_error
        ratio = matmul(self.kernel.whitening, self.root)
        return self.noise + apply_to_vars(
            transpose(ratio), kernel_error - self.kernel_noise
        )
