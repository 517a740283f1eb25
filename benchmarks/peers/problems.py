"""The problems that all peers solve: process, data, and laws with known densities.

Uses NumPy alone, in float64.
"""

import dataclasses
import math

import numpy as np


# dy = -beta y dt / 2 + sqrt(beta) dw with beta from 0.1 to 20 in time 0 to 1, as in
# Song et al. (2021), from the start time t0 in GenSBI's code.
RATES = (0.1, 20.0)
T_RANGE = (1e-3, 1.0)

IMAGE_SHAPE = (28, 28, 1)


def mean_coefficient(t: float) -> float:
    """The factor of the data in the state at time `t`."""
    low, high = RATES
    return math.exp(-0.5 * (low * t + 0.5 * (high - low) * t**2))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """An equal mixture of normal laws with one covariance and several means.

    The covariance is `basis @ diag(variances) @ basis.T`.
    """

    means: np.ndarray
    basis: np.ndarray
    variances: np.ndarray

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def draw(self, n: int, seed: int) -> np.ndarray:
        generator = np.random.default_rng(seed)
        noise = generator.standard_normal((n, self.dim)) * np.sqrt(self.variances)
        which = generator.integers(len(self.means), size=n)
        return self.means[which] + noise @ self.basis.T

    def log_density(
        self, y: np.ndarray, coefficient: float = 1.0, noise: float = 0.0
    ) -> np.ndarray:
        """The log-density of `coefficient * x` plus noise, at each row of `y`."""
        variances = coefficient**2 * self.variances + noise
        gaps = (y[:, None] - coefficient * self.means) @ self.basis
        squares = np.sum(gaps**2 / variances, axis=-1)
        constant = np.sum(np.log(2 * np.pi * variances)) + 2 * np.log(len(self.means))
        return np.logaddexp.reduce(-0.5 * (squares + constant), axis=1)


def points() -> Mixture:
    """Four modes in two dimensions, with a mean of zero."""
    means = np.array([[1.0, 0.6], [-1.0, 0.4], [0.6, -0.9], [-0.6, -0.1]])
    return Mixture(means, np.eye(2), np.full(2, 0.15**2))


def correlated(dim: int) -> Mixture:
    """One normal law with variances from 0.1 to 2 along random directions."""
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.standard_normal((dim, dim)))
    return Mixture(np.zeros((1, dim)), basis, np.geomspace(0.1, 2.0, dim))


def images(n: int, seed: int) -> np.ndarray:
    """Random 8-bit grey levels, on which the cost of a step does not depend."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, *IMAGE_SHAPE), dtype=np.uint8)


def as_data(levels: np.ndarray) -> np.ndarray:
    """Grey levels in [-1, 1], in float32."""
    return (levels.astype(np.float32) + 0.5) / 128 - 1


def likelihood_errors(
    law: Mixture, x: np.ndarray, found: np.ndarray, *, of_statistic: bool
) -> dict[str, float]:
    """The root mean square errors of log-densities at the rows of `x`, in nats.

    `cut_error` compares with the law at t0, which an ODE that starts there gives;
    `data_error` compares with the law of the data, and includes the effect of t0.

    **Arguments:**

    - `of_statistic`: whether the density is of the state at t0 divided by the factor of
        the data in it, rather than of the state.
    """
    a = mean_coefficient(T_RANGE[0])
    noise = -math.expm1(2 * math.log(a))
    coefficient, noise = (1.0, noise / a**2) if of_statistic else (a, noise)
    x, found = np.asarray(x, np.float64), np.asarray(found, np.float64)
    rms = lambda exact: float(np.sqrt(np.mean((found - exact) ** 2)))
    return {
        "cut_error": rms(law.log_density(x, coefficient, noise)),
        "data_error": rms(law.log_density(x)),
    }


def sample_distance(law: Mixture, samples: np.ndarray) -> dict[str, float]:
    """The sliced Wasserstein distance of samples to many exact ones, and its value for
    equally many exact samples, below which distances mean nothing."""
    n = len(samples)
    exact = law.draw(64 * n, seed=1)
    angles = np.linspace(0, np.pi, 64, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    reference = np.sort(exact @ directions, axis=0).reshape(n, 64, -1).mean(axis=1)

    def distance(points: np.ndarray) -> float:
        along = np.sort(np.asarray(points, np.float64) @ directions, axis=0)
        return float(np.mean(np.abs(along - reference)))

    floor = np.mean([distance(law.draw(n, seed=seed)) for seed in range(2, 10)])
    return {"distance": distance(samples), "distance_of_exact": float(floor)}


LIKELIHOODS = (
    "likelihood mixture",
    "likelihood correlated",
    "likelihood correlated, one probe",
)


def law_of(task: str, settings: dict) -> tuple[Mixture, int]:
    """The law of a likelihood task, and the number of examples to evaluate."""
    if task == "likelihood mixture":
        return points(), settings["likelihood_points"]
    return correlated(64), settings["likelihood_correlated"]
