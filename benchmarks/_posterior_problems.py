"""Simulators with known posteriors, after sbibm (Lueckmann et al. 2021)."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


VARIANCE = 0.1
MOST_OBSERVATIONS = 5


@dataclasses.dataclass(frozen=True)
class Problem:
    """A simulator with its posterior. Parameters and observations are NumPy arrays."""

    simulate: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    """Pairs of parameters and observations; missing entries are NaN."""
    log_posterior: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """The log-density of each parameter given its observation, in nats."""
    draw: Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
    """Samples of the posterior given one observation."""


def linear(most: int) -> Problem:
    """Normal parameters with up to `most` independent observations of each."""

    def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = np.sum(np.isfinite(x[..., 0]), axis=-1)[..., None]
        # Prior and noise have the same variance.
        return np.nansum(x, axis=-2) / (count + 1), VARIANCE / (count + 1)

    def simulate(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = math.sqrt(VARIANCE) * random.normal(size=(n, 10))
        noise = math.sqrt(VARIANCE) * random.normal(size=(n, most, 10))
        count = random.integers(1, most + 1, size=n)
        absent = np.arange(most) >= count[:, None]
        x = np.where(absent[..., None], np.nan, theta[:, None] + noise)
        return theta, x

    def log_posterior(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        mean, variance = moments(x)
        squares = (theta - mean) ** 2 / variance + np.log(2 * np.pi * variance)
        return -0.5 * squares.sum(axis=-1)

    def draw(random: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        mean, variance = moments(x)
        return mean + np.sqrt(variance) * random.normal(size=(n, 10))

    return Problem(simulate, log_posterior, draw)


def moons() -> Problem:
    """Two moons: parameters uniform on a square, two crescents as their posterior."""

    def arc(random: np.random.Generator, n: int) -> np.ndarray:
        angle = random.uniform(-np.pi / 2, np.pi / 2, n)
        radius = 0.1 + 0.01 * random.normal(size=n)
        point = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return point + np.asarray([0.25, 0.0])

    def shift(theta: np.ndarray) -> np.ndarray:
        total, gap = theta.sum(axis=-1), theta[..., 1] - theta[..., 0]
        return np.stack([-np.abs(total), gap], axis=-1) / math.sqrt(2)

    def simulate(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = random.uniform(-1, 1, (n, 2))
        return theta, arc(random, n) + shift(theta)

    def log_likelihood(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        point = x - shift(theta) - np.asarray([0.25, 0.0])
        radius = np.linalg.norm(point, axis=-1)
        normal = -0.5 * ((radius - 0.1) / 0.01) ** 2 - math.log(0.01)
        normal -= 0.5 * math.log(2 * np.pi)
        inside = point[..., 0] > 0
        return np.where(inside, normal - np.log(np.pi * radius), -np.inf)

    def log_posterior(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        # By quadrature over the prior's square, in the coordinates of the simulator in
        # which each half of the square is moved rigidly onto the arc.
        edges = np.linspace(-1, 1, 801)
        grid = 0.5 * (edges[1:] + edges[:-1])
        points = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)
        log_area = 2 * math.log(grid[1] - grid[0])
        evidence = [
            np.logaddexp.reduce(log_likelihood(points, one).ravel()) + log_area
            for one in x
        ]
        return log_likelihood(theta, x) - np.asarray(evidence)

    def draw(random: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        kept = np.zeros((0, 2))
        while len(kept) < n:
            along, across = (arc(random, 4 * n) - x).T
            sign = random.choice([-1.0, 1.0], 4 * n)
            total, gap = math.sqrt(2) * sign * along, -math.sqrt(2) * across
            theta = 0.5 * np.stack([total - gap, total + gap], axis=1)
            valid = (along > 0) & (np.abs(theta) < 1).all(axis=1)
            kept = np.concatenate([kept, theta[valid]])
        return kept[:n]

    return Problem(simulate, log_posterior, draw)


PROBLEMS = {
    "linear": linear(1),
    "linear, several": linear(MOST_OBSERVATIONS),
    "moons": moons(),
}
