"""Densities in the plane whose logarithm is known exactly."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jaxtyping import Array, Float, Float32

from ._dataset import Dataset


_SIZES = {"train": 100_000, "validation": 10_000, "test": 10_000}


class _Density(NamedTuple):
    """Draws with a NumPy generator, and the log density of one point in nats."""

    draw: Callable[[np.random.Generator, int], Float[np.ndarray, "n 2"]]
    log_density: Callable[[Float[Array, "2"]], Float[Array, ""]]


# The mixture: eight equal Gaussians on a circle whose radius makes the variance one.
_MODES = 8
_MODE_STD = 0.1
_CIRCLE = math.sqrt(2 * (1 - _MODE_STD**2))


def _mixture_means() -> Float[np.ndarray, "modes 2"]:
    angles = 2 * np.pi * np.arange(_MODES) / _MODES
    return _CIRCLE * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _draw_mixture(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n 2"]:
    means = _mixture_means()[rng.integers(_MODES, size=n)]
    return means + _MODE_STD * rng.standard_normal((n, 2))


def _log_mixture(y: Float[Array, "2"]) -> Float[Array, ""]:
    offsets = (y[None, :] - jnp.asarray(_mixture_means(), y.dtype)) / _MODE_STD
    exponents = -jnp.sum(offsets**2, axis=-1) / 2
    log_normaliser = math.log(2 * math.pi * _MODE_STD**2 * _MODES)
    return jsp.special.logsumexp(exponents) - log_normaliser


# The rings: three concentric circles of equal weight, blurred by a Gaussian. Their
# variance, mean(radii**2) / 2 + std**2, is 1.015.
_RADII = (0.6, 1.3, 2.0)
_RING_STD = 0.08


def _draw_rings(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n 2"]:
    radii = np.asarray(_RADII)[rng.integers(len(_RADII), size=n)]
    angles = 2 * np.pi * rng.random(n)
    circle = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return circle + _RING_STD * rng.standard_normal((n, 2))


def _log_rings(y: Float[Array, "2"]) -> Float[Array, ""]:
    # A circle of radius R, blurred, has the density
    #     exp(-(r**2 + R**2) / (2 std**2)) I0(r R / std**2) / (2 pi std**2)
    # and I0(z) = i0e(z) exp(z) completes the square.
    square = jnp.sum(y**2)
    centred = square == 0
    # The square root has no gradient at the centre; by symmetry the density's is zero.
    r = jnp.where(centred, 0, jnp.sqrt(jnp.where(centred, 1, square)))
    radii = jnp.asarray(_RADII, y.dtype)
    log_bessel = jnp.log(jsp.special.i0e(r * radii / _RING_STD**2))
    exponents = -(((r - radii) / _RING_STD) ** 2) / 2 + log_bessel
    log_normaliser = math.log(2 * math.pi * _RING_STD**2 * len(_RADII))
    return jsp.special.logsumexp(exponents) - log_normaliser


# The checkerboard: the 8 black squares of 4 by 4, centred. The variance,
# (4 * side)**2 / 12, is 1.02. The side is exact in binary, and so are the edges.
_SIDE = 0.875


def _draw_checkerboard(rng: np.random.Generator, n: int) -> Float[np.ndarray, "n 2"]:
    row = rng.integers(4, size=n)
    column = 2 * rng.integers(2, size=n) + row % 2
    # A millionth is left out at each edge, so that no draw is rounded across it.
    within = rng.uniform(1e-6, 1 - 1e-6, size=(n, 2))
    return _SIDE * (np.stack([row, column], axis=-1) + within - 2)


def _log_checkerboard(y: Float[Array, "2"]) -> Float[Array, ""]:
    square = jnp.floor(y / _SIDE)
    on_board = jnp.all((square >= -2) & (square < 2))
    black = jnp.sum(square) % 2 == 0
    log_density = jnp.asarray(-math.log(8 * _SIDE**2), y.dtype)
    return jnp.where(on_board & black, log_density, -jnp.inf)


_DENSITIES = {
    "mixture": _Density(_draw_mixture, _log_mixture),
    "rings": _Density(_draw_rings, _log_rings),
    "checkerboard": _Density(_draw_checkerboard, _log_checkerboard),
}
POINT_NAMES = tuple(_DENSITIES)


def _draw(name: str, split: str) -> Float32[np.ndarray, "n 2"]:
    # Seeded by what is drawn, so that no two splits or densities share their noise.
    seed = [*name.encode(), *split.encode()]
    rng = np.random.Generator(np.random.PCG64(seed))
    return _DENSITIES[name].draw(rng, _SIZES[split]).astype(np.float32)


def load_points(name: str) -> Dataset:
    """The same draws from the density `name` each time, with its log density."""
    return Dataset(
        name=name,
        train=_draw(name, "train"),
        validation=_draw(name, "validation"),
        test=_draw(name, "test"),
        log_density=_DENSITIES[name].log_density,
    )
