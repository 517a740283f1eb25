"""Linear-Gaussian maps in root form: a covariance $L L^\\top$ is stored as $L$."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .blocks import by_coordinate, lq_root, matmul, solve_lower, transpose
from .law import AbstractLaw
from .random import draw_normal
from .types import (
    Data,
    LogSNR,
    PRNGKey,
    Scalar,
    State,
    VarsMatrix,
    VarsVector,
)


def over_coordinates(value: Float[Array, "..."], y: State) -> Scalar:
    """The sum over the data coordinates of a state of a number for each of them, or of
    one number for all."""
    value = value.astype(y.dtype)
    return n_coordinates(y) * value if value.ndim == 0 else jnp.sum(value)


def apply_to_vars(
    matrix: Float[Array, "rows vars *coordinates"], y: Float[Array, "vars *data"]
) -> Float[Array, "rows *data"]:
    """The product of a matrix with the leading axis of a state.

    It is a sum of `vars` scaled images. XLA fuses it with neighbouring operations,
    unlike a matrix product, and no backend rounds it below the dtype of `y`.
    """
    # A single row or coordinate would broadcast silently.
    assert len(y) == matrix.shape[1] and matrix.shape[2:] in ((), y.shape[1:])
    # Flatten the data to one axis. On a CPU, XLA's sums over one axis crash for arrays
    # of seven or more axes, such as images under a few `vmap`s (JAX 0.10).
    size = math.prod(y.shape[1:])
    flat = y.reshape(1, len(y), size)
    blocks = matrix.reshape(*matrix.shape[:2], size if matrix.ndim > 2 else 1)
    product = jnp.sum(blocks.astype(y.dtype) * flat, axis=1)
    return product.reshape(len(matrix), *y.shape[1:])


def contract(vector: VarsVector, y: State) -> Data:
    """The sum of the variables of a state, weighted by `vector`."""
    return apply_to_vars(vector[None], y)[0]


def contract_rows(matrix: VarsMatrix, vector: VarsVector) -> VarsVector:
    r"""$M^\top v$."""
    return jnp.sum(matrix * vector[:, None], axis=0)


def outer_with_data(vector: VarsVector, x: Data) -> State:
    """The state whose variable `i` is `vector[i] * x`."""
    if vector.ndim == 1:
        vector = vector.reshape(-1, *([1] * x.ndim))
    return vector.astype(x.dtype) * x[None]


# Laws hold a root and not a covariance. The eigenvalues of the covariance of a chain of
# K variables spread like tau^(2 K - 2) over a short time tau, those of a root only like
# tau^(K - 1), so that float32 still resolves the smallest. A sum of covariances is then
# one LQ factorisation of the roots side by side.
@final
class Transition(eqx.Module):
    r"""The law of $y(t)$ given $y(s)$: normal, mean $\Psi y(s)$, covariance $L L^\top$.

    Both matrices act on the `vars` axis, in the same way for every data coordinate
    unless they have the axes of the data last.
    """

    mean_map: VarsMatrix
    root: VarsMatrix

    def mean(self, y: State) -> State:
        return apply_to_vars(self.mean_map, y)

    def perturb(self, y: State, noise: State) -> State:
        r"""$\Psi y + L \epsilon$."""
        return self.mean(y) + apply_to_vars(self.root, noise)

    def sample(self, y: State, *, key: PRNGKey) -> State:
        return self.perturb(y, draw_normal(key, y.shape, y.dtype))

    def then(self, later: "Transition") -> "Transition":
        r"""The law over this interval followed by that of `later`.

        $(\Psi_2, L_2) \circ (\Psi_1, L_1) = (\Psi_2 \Psi_1, \mathrm{LQ}[\Psi_2 L_1,
        L_2])$, which is associative.
        """
        columns = [matmul(later.mean_map, self.root), later.root]
        return Transition(
            matmul(later.mean_map, self.mean_map),
            lq_root(jnp.concatenate(columns, axis=1)),
        )

    def scaled(self, precision: Scalar) -> "Transition":
        """The law with its covariance divided by `precision`."""
        std = jax.lax.rsqrt(precision).astype(self.root.dtype)
        return Transition(self.mean_map, std * self.root)


@final
class PerturbationKernel(eqx.Module):
    r"""The law of $y(t)$ given the data: normal, mean $a x$, covariance $L L^\top$.

    The factors that scores, bounds and samplers need are computed once, when the kernel
    is built. With $b = L^{-1} a$ and $\mathrm{SNR} = |b|^2$, the statistic $z = w \cdot
    y$ is the data plus noise of standard deviation $\sigma = \mathrm{SNR}^{-1/2}$, and
    is sufficient for the data. No factor is as large as the signal-to-noise ratio
    itself, which overflows in float32 beyond a logarithm of 88.

    - `t`: the time.
    - `step`: the law of $y(t)$ given the whole start $y(0)$.
    - `mean_map`, `root`: $a$ and $L$.
    - `whitening`: $L^{-1}$, lower triangular.
    - `direction`: $b / |b|$, the direction of the data among the whitened variables.
    - `sigma`: $\sigma$, the noise level of the sufficient statistic.
    - `data_weights`: $w = \Sigma^{-1} a / \mathrm{SNR}$.
    """

    t: Scalar
    step: Transition
    mean_map: VarsVector
    root: VarsMatrix
    whitening: VarsMatrix
    direction: VarsVector
    sigma: Float[Array, "*coordinates"]
    data_weights: VarsVector

    @classmethod
    def after(
        cls,
        t: Scalar,
        step: Transition,
        start_root: Float[Array, "vars columns *coordinates"],
    ) -> "PerturbationKernel":
        """The kernel at `t`, from the transition from time 0 and the start root."""
        factors = by_coordinate(_factors, step.mean_map, step.root, start_root)
        return cls(t, step, *factors)

    @property
    def log_snr(self) -> LogSNR:
        r"""$\log a^\top \Sigma^{-1} a$ (natural logarithm), for each coordinate if the
        matrices differ; also for stacked kernels."""
        return -2 * jnp.log(self.sigma)

    @property
    def mean_log_snr(self) -> Scalar:
        """The mean log-SNR of the coordinates, of a kernel that is not stacked."""
        log_snr = self.log_snr
        return log_snr if log_snr.ndim == 0 else jnp.mean(log_snr)

    def scaled(self, precision: Scalar) -> "PerturbationKernel":
        """The kernel with its covariance divided by `precision`."""
        std = jax.lax.rsqrt(precision).astype(self.root.dtype)
        return PerturbationKernel(
            self.t,
            self.step.scaled(precision),
            self.mean_map,
            std * self.root,
            self.whitening / std,
            self.direction,
            std * self.sigma,
            self.data_weights,
        )

    def mean(self, x: Data) -> State:
        r"""$a x$."""
        return outer_with_data(self.mean_map, x)

    def perturb(self, x: Data, noise: State) -> State:
        r"""$a x + L \epsilon$."""
        return self.mean(x) + apply_to_vars(self.root, noise)

    def sample(self, x: Data, *, key: PRNGKey) -> State:
        """A draw of the state given the data."""
        noise = draw_normal(key, (len(self.mean_map), *x.shape), x.dtype)
        return self.perturb(x, noise)

    def project(self, y: State) -> Data:
        r"""$z = w \cdot y$, the sufficient statistic of the data in `y`."""
        return contract(self.data_weights, y)

    def whiten(self, y: State) -> State:
        r"""$L^{-1} y$."""
        return apply_to_vars(self.whitening, y)

    def unwhiten_score(self, whitened: State) -> State:
        r"""$L^{-\top} e$: a score from its whitened form."""
        return apply_to_vars(transpose(self.whitening), whitened)

    def along_data(self, whitened: State) -> Data:
        r"""$b \cdot e / |b|$: the part of a whitened state along the data."""
        return contract(self.direction, whitened)


def _factors(
    mean_map: VarsMatrix, root: VarsMatrix, start_root: Float[Array, "vars columns"]
) -> tuple[VarsVector, VarsMatrix, VarsMatrix, VarsVector, Scalar, VarsVector]:
    """The fields of a kernel from the transition from time 0 and the start root.

    The start covariance is included last and as a root. Adding it to the covariance of
    the step would lose digits for three or more variables.
    """
    if start_root.shape[1] > 0:
        columns = [matmul(mean_map, start_root), root]
        root = lq_root(jnp.concatenate(columns, axis=1))
    along_data = mean_map[:, 0]
    # The only solves, of K x K matrices: everything on data axes is then a product. The
    # inverse covariance is never formed, since its entries grow like the SNR.
    whitening = solve_lower(root, jnp.eye(len(root), dtype=root.dtype))
    b = solve_lower(root, along_data)
    # Scale first: the square of the norm may overflow where the norm does not.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(b)))
    scale = jnp.where(scale > 0, scale, 1)
    norm = scale * jnp.sqrt(jnp.sum((b / scale) ** 2))
    direction = b / norm
    data_weights = contract_rows(whitening, direction) / norm
    return along_data, root, whitening, direction, 1 / norm, data_weights


@final
class Gaussian(AbstractLaw):
    r"""$\mathcal{N}(0, L L^\top \otimes I)$ on states, or with a root for every
    coordinate."""

    root: VarsMatrix

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        """A draw of shape `(vars, *shape)`, in the dtype of the root."""
        noise = draw_normal(key, (len(self.root), *shape), self.root.dtype)
        return apply_to_vars(self.root, noise)

    def log_density(self, y: State) -> Scalar:
        """The log-density at `y`, in nats, summed over every data coordinate."""
        volume = over_coordinates(log_det(self.root), y)
        return standard_log_density(apply_to_vars(self._whitening, y)) - volume

    def kl_from(self, root: VarsMatrix, mean: State) -> Scalar:
        r"""$\mathrm{KL}(\mathcal{N}(m, L L^\top \otimes I) \,\|\, \text{self})$, nats.

        Written in $M = L_\pi^{-1} L$, so that all terms are positive and vanish
        together. The textbook form cancels near stationarity.
        """
        per_dim = self.kl_of_root(root.astype(self.root.dtype))
        square = jnp.sum(apply_to_vars(self._whitening, mean) ** 2)
        return over_coordinates(per_dim, mean) + 0.5 * square

    @property
    def _whitening(self) -> VarsMatrix:
        return by_coordinate(
            lambda root: solve_lower(root, jnp.eye(len(root), dtype=root.dtype)),
            self.root,
        )

    def kl_of_root(self, root: VarsMatrix) -> Float[Array, "*coordinates"]:
        r"""$\mathrm{KL}(\mathcal{N}(0, L L^\top) \,\|\, \text{self})$, in nats per data
        coordinate."""
        return by_coordinate(_divergence_of_roots, self.root, root)


def _divergence_of_roots(prior_root: VarsMatrix, root: VarsMatrix) -> Scalar:
    M = solve_lower(prior_root, root)
    gap = jnp.diag(M) - 1
    diagonal = jnp.sum(gap**2 + 2 * (gap - jnp.log1p(gap)))
    return 0.5 * (jnp.sum(jnp.tril(M, -1) ** 2) + diagonal)


def n_coordinates(y: State) -> int:
    """The number of data coordinates of a state."""
    return math.prod(y.shape[1:])


def log_det(root: VarsMatrix) -> Float[Array, "*coordinates"]:
    """The log-determinant of a triangular root with positive diagonal."""
    return by_coordinate(lambda root: jnp.sum(jnp.log(jnp.diag(root))), root)


def standard_log_density(noise: Float[Array, "..."]) -> Scalar:
    """The log-density of a standard normal draw of any shape, in nats."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * noise.size * math.log(2 * math.pi)
