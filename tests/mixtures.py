"""A mixture in the plane, with its denoiser and its posteriors in closed form."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqmdm


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of normals."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def rotated(self, U):
        """The law of U x."""
        return Mixture(self.weights, self.means @ U.T, U @ self.covariances @ U.T)

    def given(self, A, R, o):
        """The law of x given A x + N(0, R) = o, and the log-density of o."""
        A, R, o = np.atleast_2d(A), np.atleast_2d(R), np.atleast_1d(o)
        means, covariances, logs = [], [], []
        parts = zip(self.weights, self.means, self.covariances, strict=True)
        for weight, mean, C in parts:
            S = A @ C @ A.T + R
            gap = o - A @ mean
            gain = np.linalg.solve(S, A @ C).T
            means.append(mean + gain @ gap)
            covariances.append(C - gain @ A @ C)
            _, log_det = np.linalg.slogdet(2 * np.pi * S)
            square = gap @ np.linalg.solve(S, gap)
            logs.append(np.log(weight) - 0.5 * (log_det + square))
        total = np.logaddexp.reduce(logs)
        weights = np.exp(np.asarray(logs) - total)
        return Mixture(weights, np.stack(means), np.stack(covariances)), total

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        gaps = self.means - self.mean
        spread = np.einsum("k,ki,kj->ij", self.weights, gaps, gaps)
        return spread + np.einsum("k,kij->ij", self.weights, self.covariances)

    def draw(self, n, seed):
        generator = np.random.default_rng(seed)
        components = generator.choice(len(self.weights), n, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)[components]
        noise = generator.standard_normal((n, self.means.shape[1]))
        return self.means[components] + np.einsum("nij,nj->ni", roots, noise)

    def responsibilities(self, x):
        """The probability of each component given points. Over draws of a posterior
        they average to its weights."""
        logs = []
        parts = zip(self.weights, self.means, self.covariances, strict=True)
        for weight, mean, C in parts:
            gap = np.asarray(x) - mean
            _, log_det = np.linalg.slogdet(C)
            square = np.einsum("ni,ij,nj->n", gap, np.linalg.inv(C), gap)
            logs.append(np.log(weight) - 0.5 * (log_det + square))
        logs = np.stack(logs, axis=1)
        return np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))

    def denoiser(self):
        return MixtureDenoiser(*map(jnp.asarray, dataclasses.astuple(self)))

    def model(self, diffusion, *, vector=True):
        """The model with the exact denoiser, told one log-SNR or one for each
        coordinate."""
        denoiser = self.denoiser()
        network = eqmdm.VectorDenoiser(denoiser) if vector else denoiser
        return eqmdm.DenoiserModel(network, diffusion)


class MixtureDenoiser(eqx.Module):
    """E[x | z] for z = x + noise of precision exp(log_snr), which may be infinite."""

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array

    def __call__(self, log_snr, z):
        # The inverse of C + N is diag(w) B^-1 with B = C diag(w) + diag(1 - w) and w =
        # 1 / (1 + N), which is finite. Written out, because a library call for each
        # matrix of two rows takes ten times as long.
        w = jax.nn.sigmoid(jnp.broadcast_to(log_snr, z.shape))
        parts = self.weights, self.means, self.covariances
        weights, means, C = (part.astype(z.dtype) for part in parts)
        B = C * w[None, None] + jnp.diag(1 - w)[None]
        det = B[:, 0, 0] * B[:, 1, 1] - B[:, 0, 1] * B[:, 1, 0]
        gap = z[None] - means
        first = B[:, 1, 1] * gap[:, 0] - B[:, 0, 1] * gap[:, 1]
        second = B[:, 0, 0] * gap[:, 1] - B[:, 1, 0] * gap[:, 0]
        solved = w[None] * jnp.stack([first, second], axis=1) / det[:, None]
        logs = jnp.log(weights) - 0.5 * (jnp.log(det) + jnp.sum(gap * solved, axis=1))
        posterior = means + jnp.sum(C * solved[:, None], axis=2)
        return jnp.sum(jax.nn.softmax(logs)[:, None] * posterior, axis=0)


def _covariance(first, second, angle):
    U = rotation(angle)
    return U @ np.diag([first**2, second**2]) @ U.T


def rotation(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray([[c, -s], [s, c]])


PLANE = Mixture(
    np.asarray([0.5, 0.3, 0.2]),
    np.asarray([[-2.0, 1.0], [2.0, -1.0], [1.5, 2.5]]),
    np.stack(
        [
            _covariance(0.7, 0.3, 0.3),
            _covariance(0.5, 0.5, 0.0),
            _covariance(0.9, 0.2, 1.2),
        ]
    ),
)
# An observation of the plane, and the rotation that makes its operator diagonal.
OPERATOR, VARIANCE, VALUE = np.asarray([[1.0, 0.5]]), 0.09, 1.2
TURN = np.asarray([[1.0, 0.5], [-0.5, 1.0]]) / np.sqrt(1.25)


class Turned:
    """The basis whose coefficients are TURN times the pixels."""

    def forward(self, pixels):
        return jnp.asarray(TURN, pixels.dtype) @ pixels

    def inverse(self, coefficients):
        return jnp.asarray(TURN.T, coefficients.dtype) @ coefficients

    def __eq__(self, other):
        return isinstance(other, Turned)

    def __hash__(self):
        return hash(Turned)
