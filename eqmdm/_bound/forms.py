"""Forms of the bound: the integrand over time, and what its kernels condition on."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._core.blocks import matmul, solve_lower, transpose
from .._core.gaussian import apply_to_vars, over_coordinates
from .._core.types import PRNGKey, RankMatrix, Scalar, State
from .._diffusion import AbstractLinearDiffusion
from .._diffusion.nonlinear import check_nonlinear
from .._model.base import AbstractModel
from .._model.divergence import AbstractDivergence, ExactDivergence
from .._model.point import Point
from .._model.simulated_point import SimulatedPoint
from .control import error_control


class AbstractForm(eqx.Module):
    r"""A way to write the bound on $\log p$ at the start time t0.

    Every form bounds the same quantity, and all agree in expectation. The diffusion
    term is an integral over time, estimated at one time.
    """

    @property
    @abc.abstractmethod
    def conditions_on_start(self) -> bool:
        """Whether the kernels condition on the whole start, not on the data alone."""

    @property
    @abc.abstractmethod
    def is_direct(self) -> bool:
        """Whether the prior term is a cross-entropy rather than a divergence.

        The reconstruction then includes the entropy of the state at t0."""

    @abc.abstractmethod
    def integrand(
        self,
        point: Point,
        error: State,
        model: AbstractModel,
        *,
        key: PRNGKey,
    ) -> Scalar:
        """The integrand of the diffusion term at one time.

        **Arguments:**

        - `point`: a state, drawn given the whole start if the form conditions on it.
        - `error`: the model's error at `point`, `point.error(model)`.
        - `model`: for its diffusion, and for forms that need more than `error`.
        - `key`: for forms that need more random draws.
        """


class AbstractSimulatedForm(AbstractForm):
    """A form that also serves processes without kernels, whose states are simulated."""

    @property
    @abc.abstractmethod
    def last_step(self) -> float:
        """The length of the last step to a simulated state, which is a step of the
        process linearised at the state before it; 0 for none.

        In units of the noise that the prior of the process's reference takes, relative
        to its covariance: for a VPSDE, half the integral of its schedule."""

    @abc.abstractmethod
    def simulated_integrand(
        self, point: SimulatedPoint, score: State, model: AbstractModel, *, key: PRNGKey
    ) -> Scalar:
        r"""The integrand of the diffusion term at a simulated state, but for
        `prior_defect`: that of $r = s_\theta - \nabla \log \pi$,

        $$-\tfrac12 \| G^\top r \|^2 - \nabla \log \pi \cdot G G^\top r - \nabla \cdot
        (G G^\top r).$$

        **Arguments:**

        - `score`: the model's score at `point`.
        - `model`, `key`: as for `integrand`.
        """


@final
class LowVariance(AbstractForm):
    r"""The form whose terms are all divergences, that of the prior in closed form.

    $$-\tfrac12 \int \mathrm{E} \| G^\top (s_\theta - \nabla \log q(y \mid x)) \|^2
    \mathrm{d}t$$

    No large terms cancel, so it has the lowest variance of all forms.

    For an [`eqmdm.SpikeAndSlabDenoiser`][] the integral without its network, that of
    independent pixels, is a difference of two relative entropies, and only the change
    that the network makes is estimated along the path.

    **Arguments:**

    - `given_start`: condition on the data and the initial auxiliaries (denoising)
        rather than on the data alone (hybrid).
    """

    given_start: bool = False

    @property
    def conditions_on_start(self) -> bool:
        return self.given_start

    @property
    def is_direct(self) -> bool:
        return False

    def integrand(
        self,
        point: Point,
        error: State,
        model: AbstractModel,
        *,
        key: PRNGKey,
    ) -> Scalar:
        del key
        noise_map = _whitened_noise_map(model.linear_diffusion, point)
        costs = 0.5 * jnp.sum(apply_to_vars(transpose(noise_map), error) ** 2, axis=0)
        if self.given_start:
            return -jnp.sum(costs)
        kernel = point.kernel
        rate = jnp.sum(matmul(kernel.direction[None], noise_map) ** 2, axis=(0, 1))
        control = error_control(kernel, point.x, point.noise, model)
        # The two nearly agree in each coordinate. The difference of two sums would
        # carry the rounding error of the sums, which are large.
        return jnp.sum(rate.astype(costs.dtype) * control - costs)


@final
class DenoisingScoreMatching(AbstractForm):
    r"""The paper's form with kernels given the data and the initial auxiliaries.

    $$\int \mathrm{E} \big[ -\tfrac12 \| G^\top (s_\theta - \nabla \log q) \|^2 +
    \tfrac12 \| G^\top \nabla \log q \|^2 + \nabla \cdot f \big] \mathrm{d}t$$

    **Source:** Singhal et al. (2023), theorem 1.
    """

    @property
    def conditions_on_start(self) -> bool:
        return True

    @property
    def is_direct(self) -> bool:
        return True

    def integrand(
        self,
        point: Point,
        error: State,
        model: AbstractModel,
        *,
        key: PRNGKey,
    ) -> Scalar:
        del key
        return _direct_integrand(model.linear_diffusion, point, error)


@final
class HybridScoreMatching(AbstractForm):
    """The paper's form with kernels given the data alone; otherwise the same as
    [`eqmdm.DenoisingScoreMatching`][].

    **Source:** Singhal et al. (2023), section 5, after Dockhorn et al. (2022).
    """

    @property
    def conditions_on_start(self) -> bool:
        return False

    @property
    def is_direct(self) -> bool:
        return True

    def integrand(
        self,
        point: Point,
        error: State,
        model: AbstractModel,
        *,
        key: PRNGKey,
    ) -> Scalar:
        del key
        return _direct_integrand(model.linear_diffusion, point, error)


@final
class ImplicitScoreMatching(AbstractSimulatedForm):
    r"""The paper's form without a conditional score.

    $$\int \mathrm{E} \big[ -\tfrac12 \| G^\top s_\theta \|^2 - \nabla \cdot (G G^\top
    s_\theta - f) \big] \mathrm{d}t$$

    It needs no kernel, and so also serves processes whose drift is not linear.

    **Arguments:**

    - `divergence`: the exact divergence, or Hutchinson's estimate.

    **Source:** Singhal et al. (2023), theorem 1.
    """

    divergence: AbstractDivergence = ExactDivergence()

    @property
    def conditions_on_start(self) -> bool:
        return False

    @property
    def is_direct(self) -> bool:
        return True

    def integrand(
        self,
        point: Point,
        error: State,
        model: AbstractModel,
        *,
        key: PRNGKey,
    ) -> Scalar:
        del error
        kernel, y = point.kernel, point.y
        G = model.diffusion.diffusion_matrix(kernel.t)
        score, derivative = jax.linearize(lambda y: model.score_at(kernel, y), y)
        square = jnp.sum(apply_to_vars(transpose(G), score) ** 2)
        estimates = self.divergence(derivative, G, y, key=key)
        drift = _drift_divergence(model.linear_diffusion, point)
        return -0.5 * square - jnp.mean(estimates) + drift

    @property
    def last_step(self) -> float:
        return 0.0

    def simulated_integrand(
        self, point: SimulatedPoint, score: State, model: AbstractModel, *, key: PRNGKey
    ) -> Scalar:
        del score
        process, y = check_nonlinear(model.diffusion), point.y
        G = process.diffusion_matrix(point.t)
        kernel = process.network_kernel(point.t)
        at_prior = jax.grad(process.prior.log_density)
        difference = lambda y: model.score_at(kernel, y) - at_prior(y)
        r, derivative = jax.linearize(difference, y)
        estimates = self.divergence(derivative, G, y, key=key)
        along_noise = apply_to_vars(transpose(G), r)
        along_prior = apply_to_vars(transpose(G), at_prior(y))
        gain = jnp.sum(along_noise * (0.5 * along_noise + along_prior))
        return -gain - jnp.mean(estimates)


def _whitened_noise_map(diffusion: AbstractLinearDiffusion, point: Point) -> RankMatrix:
    """$L^{-1} G$, where $L$ is the root of the law that the point is drawn from."""
    G = diffusion.diffusion_matrix(point.kernel.t)
    if point.given_start:
        return solve_lower(point.root, G)
    return matmul(point.kernel.whitening, G)


def _drift_divergence(diffusion: AbstractLinearDiffusion, point: Point) -> Scalar:
    trace = jnp.trace(diffusion.drift_matrix(point.kernel.t))
    return over_coordinates(trace, point.y)


def _direct_integrand(
    diffusion: AbstractLinearDiffusion, point: Point, error: State
) -> Scalar:
    noise_map = transpose(_whitened_noise_map(diffusion, point))
    target = jnp.sum(apply_to_vars(noise_map, point.noise) ** 2)
    gain = 0.5 * (target - jnp.sum(apply_to_vars(noise_map, error) ** 2))
    return gain + _drift_divergence(diffusion, point)
