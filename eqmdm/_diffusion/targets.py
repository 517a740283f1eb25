"""Laws that a process can have as its target: products over the data coordinates."""

import abc
import functools
import math
from collections.abc import Sequence
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._core.checks import check_count, constant
from .._core.gaussian import apply_to_vars
from .._core.law import AbstractLaw
from .._core.random import draw_normal, draw_uniform
from .._core.types import MatrixLike, PRNGKey, Scalar, State


class AbstractTarget(AbstractLaw):
    r"""A law $\pi$ of states under which the data coordinates are independent, and have
    the same `n_vars`-variate density.

    A new target implements the four abstract members, `log_density` in `jax.numpy`, and
    holds its constants as Python numbers.
    """

    @property
    @abc.abstractmethod
    def n_vars(self) -> int:
        """The number of variables of each data coordinate."""

    @property
    @abc.abstractmethod
    def covariance(self) -> Float[np.ndarray, "vars vars"]:
        """The covariance of the variables of one coordinate, on the host; not finite if
        there is none."""


def _positive(name: str, value: float) -> float:
    value = float(value)
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be positive and finite; got {value}.")
    return value


@final
class LogisticTarget(AbstractTarget):
    r"""One variable with density $\operatorname{sech}^2(y / 2 s) / 4 s$, whose tails
    decay like $e^{-|y| / s}$.

    **Arguments:**

    - `scale`: $s$. The default gives a variance of 1.
    """

    scale: float = math.sqrt(3) / math.pi

    def __check_init__(self):
        _positive("scale", self.scale)

    @property
    def n_vars(self) -> int:
        return 1

    @property
    def covariance(self) -> Float[np.ndarray, "vars vars"]:
        return np.array([[(self.scale * math.pi) ** 2 / 3]])

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        u = draw_uniform(key, (1, *shape), jnp.result_type(float))
        # The logarithm of 0 is not finite.
        u = jnp.maximum(u, jnp.finfo(u.dtype).tiny)
        return self.scale * (jnp.log(u) - jnp.log1p(-u))

    def log_density(self, y: State) -> Scalar:
        size = jnp.abs(y) / self.scale
        log_densities = -size - 2 * jnp.log1p(jnp.exp(-size)) - math.log(self.scale)
        return jnp.sum(log_densities)


@final
class DoubleWellTarget(AbstractTarget):
    r"""One variable with density proportional to $\exp(-b ((y / m)^2 - 1)^2)$: two
    modes, with a barrier between them.

    **Arguments:**

    - `mode`: $m$; the modes are at $\pm m$.
    - `barrier`: $b$, the height of the barrier in nats.
    """

    mode: float = 1.0
    barrier: float = 2.0

    def __check_init__(self):
        _positive("mode", self.mode)
        _positive("barrier", self.barrier)

    @property
    def n_vars(self) -> int:
        return 1

    @property
    def covariance(self) -> Float[np.ndarray, "vars vars"]:
        _, second_moment, _ = _double_well(self.barrier)
        return np.array([[self.mode**2 * second_moment]])

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        dtype = jnp.result_type(float)
        _, _, (edges, cumulative) = _double_well(self.barrier)
        edges, cumulative = (constant(v.astype(dtype)) for v in (edges, cumulative))
        key_size, key_sign = jr.split(key)
        # Only positive values are tabulated, since u resolves them best near 0.
        u = draw_uniform(key_size, (1, *shape), dtype)
        size = jnp.interp(u.reshape(-1), cumulative, edges).reshape(u.shape)
        sign = jr.rademacher(key_sign, (u.size,), dtype).reshape(u.shape)
        return self.mode * sign * size

    def log_density(self, y: State) -> Scalar:
        log_volume, _, _ = _double_well(self.barrier)
        energies = self.barrier * ((y / self.mode) ** 2 - 1) ** 2
        return jnp.sum(-energies - (log_volume + math.log(self.mode)))


@functools.lru_cache
def _double_well(
    barrier: float,
) -> tuple[float, float, tuple[np.ndarray, np.ndarray]]:
    """For modes at -1 and 1: the logarithm of the normalising constant, the second
    moment, and a table of the cumulative law of the absolute value."""
    # Beyond the last edge the density is below 1e-17 of its largest value.
    last = math.sqrt(1 + math.sqrt(40 / barrier))
    edges = np.linspace(0, last, 2**14 + 1)
    density = np.exp(-barrier * (edges**2 - 1) ** 2)
    width = edges[1]
    # The trapezium rule, of spectral accuracy for a smooth even function that decays.
    half = width * (density.sum() - 0.5 * density[0])
    second_moment = width * (edges**2 * density).sum() / half
    # The law of the table has a relative error of its density of about width^2.
    cumulative = np.cumsum(0.5 * width * (density[:-1] + density[1:]))
    cumulative = np.concatenate([[0.0], cumulative]) / cumulative[-1]
    return math.log(2 * half), float(second_moment), (edges, cumulative)


@final
class GaussianMixtureTarget(AbstractTarget):
    """A mixture of normal laws of `n_vars` variables.

    **Arguments:**

    - `weights`: the weight of each component; they must add up to 1.
    - `means`: a mean of `n_vars` numbers for each component.
    - `covariances`: a positive definite matrix for each component.
    """

    weights: tuple[float, ...]
    means: tuple[tuple[float, ...], ...]
    # Lower-triangular roots of the covariances.
    roots: tuple[tuple[tuple[float, ...], ...], ...]

    def __init__(
        self,
        weights: ArrayLike | Sequence[float],
        means: MatrixLike,
        covariances: ArrayLike | Sequence[MatrixLike],
    ):
        probabilities = np.asarray(weights, float)
        if not (
            probabilities.ndim == 1
            and np.all(probabilities > 0)
            and abs(probabilities.sum() - 1) < 1e-6
        ):
            raise ValueError(
                "`weights` must be positive and add up to 1; got "
                f"{probabilities.tolist()}."
            )
        n = len(probabilities)
        centres, matrices = np.asarray(means, float), np.asarray(covariances, float)
        if centres.ndim != 2 or len(centres) != n or not np.isfinite(centres).all():
            raise ValueError(
                f"`means` must have a finite row for each of the {n} components; got "
                f"{centres.tolist()}."
            )
        n_vars = centres.shape[1]
        symmetric = matrices.shape == (n, n_vars, n_vars) and np.allclose(
            matrices, np.swapaxes(matrices, 1, 2)
        )
        if not symmetric or np.linalg.eigvalsh(matrices).min() <= 0:
            raise ValueError(
                f"`covariances` must be {n} positive definite matrices of {n_vars} x "
                f"{n_vars}; got {matrices.tolist()}."
            )
        self.weights = tuple((probabilities / probabilities.sum()).tolist())
        self.means = tuple(map(tuple, centres.tolist()))
        roots = np.linalg.cholesky(matrices).tolist()
        self.roots = tuple(tuple(map(tuple, root)) for root in roots)

    @property
    def n_vars(self) -> int:
        return len(self.means[0])

    @property
    def covariance(self) -> Float[np.ndarray, "vars vars"]:
        weights, means, roots = map(np.asarray, (self.weights, self.means, self.roots))
        inner = np.einsum("c,cik,cjk->ij", weights, roots, roots)
        centred = means - weights @ means
        return inner + np.einsum("c,ci,cj->ij", weights, centred, centred)

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        dtype = jnp.result_type(float)
        key_component, key_noise = jr.split(key)
        size = math.prod(shape)
        log_weights = constant(np.log(self.weights).astype(dtype))
        component = jr.categorical(key_component, log_weights, shape=(size,))
        means, roots = (
            constant(np.asarray(v, dtype)) for v in (self.means, self.roots)
        )
        noise = draw_normal(key_noise, (self.n_vars, size), dtype)
        y = jnp.sum(roots[component] * noise.T[:, None], axis=2) + means[component]
        return y.T.reshape(self.n_vars, *shape)

    def log_density(self, y: State) -> Scalar:
        components = zip(self.weights, self.means, self.roots, strict=True)
        flat = y.reshape(self.n_vars, -1)
        logs = jnp.stack([_log_component(flat, *part) for part in components])
        return jnp.sum(jax.nn.logsumexp(logs, axis=0))


def _log_component(
    y: Float[Array, "vars coordinates"],
    weight: float,
    mean: tuple[float, ...],
    root: tuple[tuple[float, ...], ...],
) -> Float[Array, " coordinates"]:
    # The inverse is computed on the host, where all of it is known.
    whitening = np.linalg.solve(np.asarray(root), np.eye(len(root)))
    centred = y - constant(np.asarray(mean, y.dtype))[:, None]
    whitened = apply_to_vars(constant(whitening.astype(y.dtype)), centred)
    log_volume = float(np.log(np.diag(root)).sum())
    constants = math.log(weight) - log_volume - 0.5 * len(root) * math.log(2 * math.pi)
    return constants - 0.5 * jnp.sum(whitened**2, axis=0)


@final
class ProductTarget(AbstractTarget):
    """Independent variables, each with a law of its own or several with a joint one.

    The position and the velocity of a particle in a double well have the law

        normal = GaussianMixtureTarget([1.0], [[0.0]], [[[1.0]]])
        ProductTarget([DoubleWellTarget(), normal])

    **Arguments:**

    - `parts`: the laws of the variables, in their order.
    """

    parts: tuple[AbstractTarget, ...]

    def __init__(self, parts: Sequence[AbstractTarget]):
        self.parts = tuple(parts)
        check_count("parts", len(self.parts), hint=" Pass a list of targets.")
        for part in self.parts:
            check_target(part, "parts")

    @property
    def n_vars(self) -> int:
        return sum(part.n_vars for part in self.parts)

    @property
    def covariance(self) -> Float[np.ndarray, "vars vars"]:
        covariance, first = np.zeros((self.n_vars, self.n_vars)), 0
        for part in self.parts:
            own = slice(first, first + part.n_vars)
            covariance[own, own] = part.covariance
            first += part.n_vars
        return covariance

    def sample(self, shape: tuple[int, ...], *, key: PRNGKey) -> State:
        keys = jr.split(key, len(self.parts))
        draws = [p.sample(shape, key=k) for p, k in zip(self.parts, keys, strict=True)]
        return jnp.concatenate(draws)

    def log_density(self, y: State) -> Scalar:
        total, first = jnp.zeros((), y.dtype), 0
        for part in self.parts:
            total = total + part.log_density(y[first : first + part.n_vars])
            first += part.n_vars
        return total


def check_target(target: object, name: str = "target") -> AbstractTarget:
    """**Raises:** `TypeError` unless `target` is a target."""
    if not isinstance(target, AbstractTarget):
        raise TypeError(
            f"`{name}` must be an `eqmdm.AbstractTarget`, such as "
            f"`eqmdm.LogisticTarget()`; got {type(target).__name__}."
        )
    return target


# Jitted here, so that a check takes one compilation.
@eqx.filter_jit
def target_at_draws(
    target: AbstractTarget, n: int, key: PRNGKey
) -> tuple[State, Float[Array, " n"], Float[Array, "vars n"]]:
    """Draws from the target, and the log-density and its gradient at each of them."""
    draws = target.sample((n,), key=key)
    one = lambda y: target.log_density(y[:, None])
    values, gradients = jax.vmap(jax.value_and_grad(one), 1, (0, 1))(draws)
    return draws, values, gradients
