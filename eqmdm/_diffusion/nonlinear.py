"""The interface of diffusions whose drift is not linear, and of their simulation."""

from typing import final

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._core.checks import as_scalar, check_count
from .._core.gaussian import PerturbationKernel
from .._core.types import Data, PRNGKey, Scalar, State
from .base import AbstractLinearDiffusion
from .interval import Interval, TimeInterval
from .process import AbstractProcess, no_kernels


@final
class Simulation(eqx.Module):
    """The simulation of the states of a nonlinear diffusion, forward from the data.

    **Arguments:**

    - `n_steps`: the number of equal steps from t0 to the time of a state. The error of
        the law of the states that it leaves is part of every bound.
    - `solver`: a Diffrax solver for SDEs with additive noise. The default, of strong
        order 1.5, evaluates the drift twice in a step.
    """

    n_steps: int = 64
    solver: dfx.AbstractSolver = eqx.field(default_factory=dfx.ShARK)

    def __check_init__(self):
        check_count("n_steps", self.n_steps)
        solver = self.solver
        if not isinstance(
            solver, dfx.AbstractItoSolver | dfx.AbstractStratonovichSolver
        ):
            raise TypeError(
                "`solver` must be a Diffrax solver for SDEs, such as "
                f"`diffrax.ShARK()`; got {type(solver).__name__}."
            )


class AbstractNonlinearDiffusion(AbstractProcess):
    r"""$\mathrm{d}y = f(t, y) \,\mathrm{d}t + G(t) \,\mathrm{d}w$ for any $f$ that acts
    on every data coordinate by itself.

    There is no transition kernel. In bounds, states are simulated forward from the
    data, in the steps of `simulation`, after a first step from time 0 to t0 of the
    process linearised about the data, whose law is normal. So t0 should be small
    beside the time in which the drift changes.

    To write a class, subclass this one, implement `drift` and `diffusion_matrix`, and
    give it the three fields:

    - `reference`: a linear diffusion of about the same noise, for example
        `eqmdm.VPSDE()`. It gives the interval in time, the number of variables, the law
        of the auxiliaries at the start, the scale of the noise that a
        [`eqmdm.NoiseModel`][] predicts, and the times at which bounds are estimated. No
        bound depends on it in expectation, but its variance and training do.
    - `prior`: the law at t1, an [`eqmdm.AbstractLaw`][] such as `eqmdm.Gaussian`, under
        which the data coordinates are independent, with a smooth density.
    - `simulation`: an [`eqmdm.Simulation`][].

        class Cubic(eqmdm.AbstractNonlinearDiffusion):
            prior: eqmdm.AbstractLaw
            reference: eqmdm.AbstractLinearDiffusion = eqmdm.VPSDE()
            simulation: eqmdm.Simulation = eqmdm.Simulation()

            def drift(self, t, y, args=None):
                return -(y**3)

            def diffusion_matrix(self, t):
                return jnp.ones((1, 1), t.dtype)

    `drift` is called as `drift(t, y, args)` on one state, and must be written in
    `jax.numpy`. For a given stationary law, there is [`eqmdm.TargetDiffusion`][].
    """

    reference: eqx.AbstractVar[AbstractLinearDiffusion]
    simulation: eqx.AbstractVar[Simulation]

    def __check_init__(self):
        interval = self.reference.interval
        if not isinstance(interval, TimeInterval):
            raise ValueError(
                "`interval` must be an `eqmdm.TimeInterval` for a process that is not "
                f"linear, because it has no log-SNR; got {interval!r}."
            )

    @property
    def n_vars(self) -> int:
        return self.reference.n_vars

    @property
    def interval(self) -> Interval:
        return self.reference.interval

    @property
    def t0(self) -> Scalar:
        return as_scalar(self._times.t0, jnp.result_type(float))

    @property
    def t1(self) -> Scalar:
        return as_scalar(self._times.t1, jnp.result_type(float))

    @property
    def _times(self) -> TimeInterval:
        interval = self.reference.interval
        assert isinstance(interval, TimeInterval)
        return interval

    def start_root(self, dtype: jnp.dtype) -> Float[Array, "vars columns *coordinates"]:
        """A root of the covariance of $y(0)$ given the data; its row 0 is zero."""
        return self.reference.start_root(dtype)

    def draw_start(self, x: Data, *, key: PRNGKey) -> State:
        return self.reference.draw_start(x, key=key)

    def network_kernel(self, t: Scalar) -> PerturbationKernel:
        return self.reference.compute_kernel(t)

    def compute_kernel(self, t: Scalar) -> PerturbationKernel:
        """**Raises:** `TypeError`, because there is none."""
        raise no_kernels(self, "`compute_kernel`")

    def perturbation_kernel(self, t: Scalar) -> PerturbationKernel:
        """**Raises:** `TypeError`, because there is none."""
        raise no_kernels(self, "`perturbation_kernel`")

    def transition(self, s: Scalar, t: Scalar) -> PerturbationKernel:
        """**Raises:** `TypeError`, because there is none."""
        raise no_kernels(self, "`transition`")

    def log_snr(self, t: Scalar) -> Scalar:
        """**Raises:** `TypeError`, because there is none."""
        raise no_kernels(self, "`log_snr`")


def check_nonlinear(process: AbstractProcess) -> AbstractNonlinearDiffusion:
    """**Raises:** `TypeError` unless the process is simulated."""
    if not isinstance(process, AbstractNonlinearDiffusion):
        raise TypeError(
            "`diffusion` must be linear or an `eqmdm.AbstractNonlinearDiffusion`; got "
            f"{type(process).__name__}."
        )
    return process
