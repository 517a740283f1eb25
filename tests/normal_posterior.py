"""Normal data, observed, with their posterior in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqmdm
from eqmdm import observe


ENDS = eqmdm.LogSNRInterval(-10.0, 13.0)
MATRIX = np.asarray([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]])
MEAN = np.asarray([0.5, -1.0, 2.0])
ROOT = np.asarray([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.5, 0.3, 0.4]])
COVARIANCE = ROOT @ ROOT.T


def normal_denoiser(log_snr, z):
    """The posterior mean of N(MEAN, COVARIANCE), for one log-SNR or one for each."""
    noise = jnp.broadcast_to(jnp.exp(-log_snr), z.shape)
    C, gap = jnp.asarray(COVARIANCE, z.dtype), z - MEAN.astype(z.dtype)
    return MEAN.astype(z.dtype) + C @ jnp.linalg.solve(C + jnp.diag(noise), gap)


def kalman(log_snr, z, A, R, o):
    """The mean and covariance of x given z = x + noise, and A x + N(0, R) = o.

    First given z by precisions, then given o by the gain. The gain for both at once
    would lose seven digits where z has little noise and o none.
    """
    snr = np.diag(np.broadcast_to(np.exp(np.asarray(log_snr)), z.shape))
    prior = np.linalg.inv(COVARIANCE)
    covariance = np.linalg.inv(prior + snr)
    mean = covariance @ (prior @ MEAN + snr @ z)
    gain = np.linalg.solve(A @ covariance @ A.T + R, A @ covariance).T
    return mean + gain @ (o - A @ mean), covariance - gain @ A @ covariance


def normal_model(diffusion, *, vector=False):
    network = eqmdm.VectorDenoiser(normal_denoiser) if vector else normal_denoiser
    return eqmdm.DenoiserModel(network, diffusion)


def observed(noise):
    return eqmdm.LinearObservation(observe.dense(MATRIX, (3,)), [0.7, -0.2], **noise)


# Of any model, compiled once for equal shapes.
@eqx.filter_jit
def denoise(model, log_snr, z):
    return model.denoise(log_snr, z)


@eqx.filter_jit
def denoise_all(model, log_snrs, z):
    return jax.vmap(model.denoise, (0, None))(log_snrs, z)
