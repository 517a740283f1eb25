"""The law of a diffusion in one dimension towards a target, by finite volumes."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh_tridiagonal


class FokkerPlanck:
    r"""$\partial_\tau q = D \partial_y (\pi \, \partial_y (q / \pi))$ on a grid.

    The fluxes between cells balance for $q = \pi$ exactly, and are symmetric in the
    square root of $\pi$. So the generator has real eigenvalues, and every law is a sum
    of decaying modes: there is an error in the grid, of second order, and none in time.
    """

    def __init__(self, target, data_density, *, dissipation, reach, n_cells):
        self.width = 2 * reach / n_cells
        self.grid = np.linspace(-reach, reach, n_cells, endpoint=False) + self.width / 2
        one = jax.vmap(lambda y: target.log_density(y[None, None]))
        log_root = 0.5 * np.asarray(one(jnp.asarray(self.grid)))
        ratio = np.exp(np.diff(log_root))
        out = np.append(ratio, 0) + np.insert(1 / ratio, 0, 0)
        rate = dissipation / self.width**2
        rates, modes = eigh_tridiagonal(-rate * out, np.full(n_cells - 1, rate))
        self.rates, self.root = rates, np.exp(log_root)
        start = data_density(self.grid)
        self.modes = modes * (
            modes.T @ (start / (start.sum() * self.width) / self.root)
        )

    def density(self, tau):
        """The density in every cell, at one or several times."""
        weights = np.exp(np.multiply.outer(np.atleast_1d(tau), self.rates))
        density = (weights @ self.modes.T) * self.root
        return density if np.ndim(tau) else density[0]

    def mean(self, function, tau):
        """The expectation of a function at a time."""
        return function(self.grid) @ self.density(tau) * self.width

    def divergence_from_target(self, tau):
        """KL(q || target) at a time."""
        density = np.maximum(self.density(tau), 1e-300)
        terms = density * (np.log(density) - 2 * np.log(self.root))
        return terms.sum() * self.width

    def log_density(self, y, tau):
        """The logarithm of the density at points, by cubic interpolation."""
        return _cubic(np.log(self._trusted(tau)), (y - self.grid[0]) / self.width)

    def _trusted(self, tau):
        # Below, a density is rounding error.
        density = self.density(tau)
        return np.maximum(density, 1e-12 * density.max(axis=-1, keepdims=True))

    def score(self, clock, t0, t1, n_times=256):
        """A function `(t, y)`, interpolated in a table, of the time `t` at which the
        clock is `clock(t)`."""
        log_t = np.linspace(np.log(t0), np.log(t1), n_times)
        density = self._trusted(clock(np.exp(log_t)))
        table = jnp.asarray(np.gradient(np.log(density), self.width, axis=1))
        first, step = log_t[0], log_t[1] - log_t[0]

        def score(t, y):
            place = jnp.clip((jnp.log(t) - first) / step, 0, n_times - 1.001)
            row = place.astype(int)
            weight = place - row.astype(place.dtype)
            values = (1 - weight) * table[row] + weight * table[row + 1]
            return _cubic(values, (y - self.grid[0]) / self.width)

        return score


def _cubic(values, place):
    """Catmull-Rom interpolation in a uniform table, at indices that need not be
    whole."""
    xp = jnp if isinstance(place, jax.Array) else np
    place = xp.clip(place, 1.0, len(values) - 2.001)
    i = place.astype(int)
    r = place - i.astype(place.dtype)
    a, b, c, d = (values[i + k] for k in (-1, 0, 1, 2))
    slope, rest = 0.5 * (c - a), 0.5 * (d - b)
    return b + r * (
        slope + r * (3 * (c - b) - 2 * slope - rest + r * (2 * (b - c) + slope + rest))
    )


def mixture_density(weights, means, stds):
    """The density of a normal mixture in one dimension."""
    parts = list(zip(weights, means, stds, strict=True))
    normal = lambda z: np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return lambda y: sum(w * normal((y - m) / s) / s for w, m, s in parts)
