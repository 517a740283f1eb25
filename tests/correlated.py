"""Correlated normal data, with the exact denoiser at log-SNRs of every coordinate."""

import jax.numpy as jnp
import numpy as np

import eqmdm


# A covariance whose coordinates are far from independent.
COVARIANCE = np.array([[1.5, 0.9, 0.2], [0.9, 1.0, -0.3], [0.2, -0.3, 0.5]])


def exact_denoiser(log_snr, z):
    """E[x | z] for normal data of the covariance, at any log-SNRs."""
    root = jnp.linalg.cholesky(jnp.asarray(COVARIANCE, z.dtype))
    # With C = L L^T and the SNRs S: L (I + L^T S L)^-1 L^T S z.
    snr = jnp.exp(log_snr)
    inner = jnp.eye(len(z), dtype=z.dtype) + root.T @ (snr[:, None] * root)
    return root @ jnp.linalg.solve(inner, root.T @ (snr * z))


def model_of(diffusion):
    return eqmdm.DenoiserModel(eqmdm.VectorDenoiser(exact_denoiser), diffusion)


def two_speeds(kind, slow=20.0, fast=28.0):
    interval = eqmdm.TimeInterval(1e-4, 1.0)
    of_rate = lambda rate: kind(
        schedule=eqmdm.LinearSchedule(0.2, rate), interval=interval
    )
    return [of_rate(slow), of_rate(fast)]


def mmse(log_snr):
    """The posterior variances of the coordinates."""
    precision = np.linalg.inv(COVARIANCE) + np.diag(np.exp(log_snr))
    return np.diag(np.linalg.inv(precision))
