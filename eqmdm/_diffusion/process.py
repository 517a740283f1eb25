"""The interface of diffusion processes, linear or not."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .._core.gaussian import PerturbationKernel
from .._core.law import AbstractLaw
from .._core.operator import VarsOperator
from .._core.types import Data, PRNGKey, RankMatrix, Scalar, State, Time
from .interval import Interval


class AbstractProcess(eqx.Module):
    r"""$\mathrm{d}y = f(t, y) \,\mathrm{d}t + G(t) \,\mathrm{d}w$ from the data to a
    prior.

    A state has shape `(vars, *data)`: row 0 is the data, and further rows are auxiliary
    variables. $G$ acts on the `vars` axis.

    This is what terms, reversed processes and their solvers need. Subclass
    [`eqmdm.AbstractLinearDiffusion`][] for a linear drift, which has Gaussian kernels,
    and [`eqmdm.AbstractNonlinearDiffusion`][] for any other.
    """

    @property
    @abc.abstractmethod
    def n_vars(self) -> int:
        """$K$, the number of variables per data coordinate, including the data."""

    @property
    @abc.abstractmethod
    def prior(self) -> AbstractLaw:
        """The law that replaces that of $y(t_1)$ in sampling and in bounds."""

    @property
    @abc.abstractmethod
    def interval(self) -> Interval:
        """The interval that the process is used on; it determines `t0` and `t1`."""

    @property
    @abc.abstractmethod
    def t0(self) -> Scalar:
        """The start time, at which sampling ends and bounds begin."""

    @property
    @abc.abstractmethod
    def t1(self) -> Scalar:
        """The final time, at which sampling starts from the prior."""

    @abc.abstractmethod
    def drift(self, t: Time, y: State, args: Any = None) -> State:
        """$f(t, y)$."""

    @abc.abstractmethod
    def diffusion_matrix(self, t: Scalar) -> RankMatrix:
        """$G(t)$, with one column for each source of noise."""

    @abc.abstractmethod
    def draw_start(self, x: Data, *, key: PRNGKey) -> State:
        """A draw of $y(0)$ given the data: `x` with random auxiliaries."""

    @abc.abstractmethod
    def network_kernel(self, t: Scalar) -> PerturbationKernel:
        """The kernel by which models scale their networks at time `t`.

        For a linear diffusion it is its own; for others that of a linear diffusion of
        about the same size, which is not the law of their states.
        """

    def diffusion_coefficient(
        self, t: Time, y: State, args: Any = None
    ) -> VarsOperator:
        """$G(t)$, a Lineax operator from noise `(rank, *data)` to states."""
        del args
        matrix = self.diffusion_matrix(jnp.asarray(t, y.dtype))
        return VarsOperator(matrix, y.shape[1:])


def no_kernels(process: AbstractProcess, asked: str = "this") -> TypeError:
    """The error for a process that is not linear where kernels are required."""
    return TypeError(
        f"`diffusion` must be linear, because {asked} needs Gaussian transition "
        f"kernels, which {type(process).__name__} does not have. Its model is a "
        "`NoiseModel` or a `FunctionModel`, its bounds are `ImplicitScoreMatching` and "
        "`LocalScoreMatching`, its samplers `DiffraxSampler`s on the default clock and "
        "a grid in time, and its likelihood the `AugmentedRoute`."
    )
