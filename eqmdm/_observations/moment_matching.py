"""Approximate conditioning, by the moments of the data given the state."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import lineax as lx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from .._core.blocks import matmul
from .._core.checks import check_count
from .._core.types import Data, LogSNR
from .._model.base import AbstractModel
from .base import (
    AbstractConditioning,
    AbstractLinearObservation,
    AbstractObservationMethod,
    check_has_denoiser,
)
from .consistency import has_independent_rows
from .levels import normal_shares
from .posterior import ObservedModel


# GMRES takes whole cycles of products, and at least two before it knows that it has
# converged. For a trained network on 64 numbers it did not converge in 16 cycles of 16,
# so that the matrix takes fewer products up to their number.
_CYCLE = 16
_MOST_DIRECT = 16 * _CYCLE
# Derivatives of the network that are taken in one batch, for the memory that they take.
_BATCH = 32
# The least variance of a direction without noise, relative to the largest. The errors
# of a trained network's derivative are of this order.
_LEAST_SPREAD = 1e-3


@final
class MomentMatching(AbstractObservationMethod):
    r"""Approximate conditioning on any linear observation, for any denoiser.

    The law of the data given the state is replaced by the normal one of the same mean
    $\hat x$ and covariance $V = \sigma^2 \, \partial \hat x / \partial z$:

    $$\mathrm{E}[x \mid z, o] \approx \hat x + V A^\top (R + A V A^\top)^{-1} (o - A
    \hat x)$$

    Exact for normal data. For others it is approximate, and its samples are not those
    of the posterior: given a mixture with an exact denoiser, it may give a mode of
    weight 0.007 the weight 0.2. Where [`eqmdm.Exact`][] does not apply,
    [`eqmdm.TwistedSMC`][] corrects it.

    Products with $V$ are directional derivatives of the denoiser in forward mode, whose
    cost is that of an evaluation; reverse mode in a compiled loop on a CPU costs 17 to
    29 of convolutions. For up to 256 observed numbers the matrix $A V A^\top$ is formed
    from as many products. That of a trained network is neither symmetric nor positive
    definite, and may make the sum with $R$ nearly singular: its symmetric part is
    taken, and directions in which its variance is negative (or, if some numbers have no
    noise, below a thousandth of the largest) change nothing. For more numbers the
    system is solved as it is, by GMRES, which takes any matrix. For `lineax.CG` $V$ is
    symmetrised, at one derivative in each mode.

    **Arguments:**

    - `solver`: in place of the default, any Lineax solver of square systems. It is
        given one whose right-hand side has a root mean square of 1 and whose solution
        is of the same order. If it fails the estimate is NaN, and so is the sample.
    - `rtol`: the tolerance of GMRES, relative to the root mean square.
    - `max_steps`: the largest number of its cycles, of 16 products. Where they do not
        suffice, as they may not for a trained network, the last is used.

    **Raises:** `ValueError` for an `rtol` that is not positive; when given, `TypeError`
    for a model without a denoiser, `ValueError` for numbers without noise that depend
    on each other.

    **Source:** Boys et al. (2023), equation 11; Rozet et al. (2024), section 4.
    """

    solver: lx.AbstractLinearSolver | None = None
    rtol: float = 1e-3
    max_steps: int = 4

    def __check_init__(self):
        if not self.rtol > 0:
            raise ValueError(f"`rtol` must be positive; got {self.rtol}.")
        check_count("max_steps", self.max_steps)

    def __repr__(self) -> str:
        return (
            f"MomentMatching(approximate, solver={self.solver}, rtol={self.rtol}, "
            f"max_steps={self.max_steps})"
        )

    def condition(
        self, model: AbstractModel, observation: AbstractLinearObservation
    ) -> ObservedModel:
        check_has_denoiser(model)
        if not has_independent_rows(observation):
            raise ValueError(
                "`observation` must have noise for `eqmdm.MomentMatching()` where its "
                "numbers depend on each other: the covariance A V A^T is singular. "
                "Give `noise_std` a positive value, or leave out rows of the operator."
            )
        solver, must_converge = self.solver, self.solver is not None
        if solver is None and observation.size > _MOST_DIRECT:
            # Lineax counts a first step that only computes the residual.
            n_steps = self.max_steps + 1
            solver = lx.GMRES(
                rtol=0.0, atol=self.rtol, max_steps=n_steps, restart=_CYCLE
            )
        conditioning = ApproximateConditioning(observation, solver, must_converge)
        return ObservedModel(model, conditioning)


@final
class ApproximateConditioning(AbstractConditioning):
    """An observation of data whose law given the state is taken for normal."""

    observation: AbstractLinearObservation
    # `None` to form the matrix.
    solver: lx.AbstractLinearSolver | None
    must_converge: bool = eqx.field(static=True)

    @property
    def method_name(self) -> str:
        return "moment matching, approximate"

    def residual(self, model: AbstractModel, log_snr: LogSNR, z: Data) -> Data:
        moments = Moments.of(model, log_snr, z, self.observation)
        if self.solver is None:
            matrices = Matrices.of(self.observation, z.dtype)
            return moments.residual + matrices.update(moments)[0]
        return moments.residual + self._iterated(moments, z, self.solver)

    def _iterated(
        self, moments: "Moments", z: Data, solver: lx.AbstractLinearSolver
    ) -> Data:
        observation = self.observation
        covariance = moments.covariance
        if isinstance(solver, lx.CG):
            covariance = moments.symmetric_covariance

        def matrix(u: Float[Array, "*out"]) -> Float[Array, "*out"]:
            spread = observation.project(covariance(observation.adjoint(u)))
            return observation.noise.covariance(u) + spread

        gap = observation.value.astype(z.dtype) - observation.project(moments.mean)
        size = self._size_of_matrix(moments, gap)
        solved, success = _solve(solver, matrix, gap, size)
        if self.must_converge:
            solved = jnp.where(success, solved, jnp.nan)
        return covariance(observation.adjoint(solved))

    def _size_of_matrix(
        self, moments: "Moments", gap: Float[Array, "*out"]
    ) -> Float[Array, ""]:
        """The size of the matrix for normal data, which needs no derivative."""
        observation = self.observation
        spread = observation.adjoint(gap) * moments.normal_variance
        spread = observation.project(spread) + observation.noise.covariance(gap)
        return _root_mean_square(spread) / _root_mean_square(gap)


def _root_mean_square(values: Float[Array, "..."]) -> Float[Array, ""]:
    square = jnp.mean(jax.lax.stop_gradient(values) ** 2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 1)


def _solve(
    solver: lx.AbstractLinearSolver,
    matrix: Callable[[Float[Array, "*out"]], Float[Array, "*out"]],
    vector: Float[Array, "*out"],
    size: Float[Array, ""],
) -> tuple[Float[Array, "*out"], Bool[Array, ""]]:
    """The solution of a system, and whether the solver succeeded."""
    # The entries of a solver's tolerance are absolute: scale both sides to 1.
    scale = _root_mean_square(vector)
    tags = lx.positive_semidefinite_tag if isinstance(solver, lx.CG) else ()
    structure = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
    operator = lx.FunctionLinearOperator(lambda u: matrix(u) / size, structure, tags)
    solution = lx.linear_solve(operator, vector / scale, solver, throw=False)
    success = solution.result == lx.RESULTS.successful
    return solution.value * (scale / size), jnp.asarray(success)


@final
class Moments(eqx.Module):
    r"""The mean and the covariance $V$ of the data given a state, for a denoiser.

    $V = \partial \hat x / \partial z \, \sigma^2$ is kept as the part for normal data
    and the rest, because at high SNR the derivative is the identity to all digits.
    """

    residual: Data
    mean: Data
    noise: LogSNR
    normal_variance: LogSNR
    _push: Callable[[Data], Data]

    @classmethod
    def of(
        cls,
        model: AbstractModel,
        log_snr: LogSNR,
        z: Data,
        observation: AbstractLinearObservation,
    ) -> "Moments":
        observation.check_data_shape(z.shape)
        log_snr = jnp.asarray(log_snr, z.dtype)
        residual, push = jax.linearize(lambda z: model.denoiser_residual(log_snr, z), z)
        kept, lost = normal_shares(log_snr, z, model.data_std)
        normal_variance = model.data_std**2 * lost
        mean = residual + kept * z
        return cls(residual, mean, jnp.exp(-log_snr), normal_variance, push)

    def covariance(self, v: Data) -> Data:
        r"""$V v$, by one derivative in forward mode."""
        return self.normal_variance * v + self._push(self.noise * v)

    def symmetric_covariance(self, v: Data) -> Data:
        r"""$(V + V^\top) v / 2$, by a derivative in each mode."""
        (pulled,) = jax.linear_transpose(self._push, v)(v)
        both = self._push(self.noise * v) + self.noise * pulled
        return self.normal_variance * v + 0.5 * both


@final
class Matrices(eqx.Module):
    """The matrices of an observation of few numbers: the rows of A, and R."""

    observation: AbstractLinearObservation
    rows: Float[Array, "size *data"]
    noise: Float[Array, "size size"]

    @classmethod
    def of(cls, observation: AbstractLinearObservation, dtype: DTypeLike) -> "Matrices":
        size, shape = observation.size, observation.value.shape
        units = jnp.eye(size, dtype=dtype).reshape(size, *shape)
        rows = jax.vmap(observation.adjoint)(units)
        return cls(observation, rows, observation.noise.as_matrix(size, dtype))

    def update(
        self, moments: Moments
    ) -> tuple[Data, Float[Array, " size"], Float[Array, "size size"]]:
        r"""$V A^\top (R + A V A^\top)^{-1} (o - A \hat x)$, the gap in parentheses, and
        the triangular root of the matrix."""
        observation, size = self.observation, len(self.rows)
        spread = jax.lax.map(moments.covariance, self.rows, batch_size=_BATCH)
        matrix = jax.vmap(observation.project)(spread).reshape(size, size)
        values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        # Without noise a small variance would be sure of a great change.
        has_exact = jnp.min(jnp.diag(self.noise)) == 0
        least = jnp.where(has_exact, _LEAST_SPREAD * jnp.max(values), 0)
        matrix = matmul(vectors * jnp.maximum(values, least)[None], vectors.T)
        root = jnp.linalg.cholesky(matrix + self.noise)
        value = observation.value.astype(self.rows.dtype)
        gap = (value - observation.project(moments.mean)).reshape(-1)
        solved = jsp.linalg.cho_solve((root, True), gap)
        # Where A V A^T has no variance V A^T is zero, but not that of a network.
        along = jnp.where(values > least, matmul(vectors.T, solved), 0)
        solved = matmul(vectors, along)
        shift = matmul(solved, spread.reshape(size, -1))
        return shift.reshape(moments.mean.shape), gap, root
