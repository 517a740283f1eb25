"""Student-t data and noise, with their denoisers as one-dimensional quadratures."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special


def precisions(nu):
    """Nodes and log-weights of Gamma(nu / 2, nu / 2), by the trapezium rule in the
    logarithm, which converges faster than any power of the step."""
    log_nodes = np.linspace(-30.0, 6.0, 721)
    half = 0.5 * nu
    log_weights = half * (np.log(half) + log_nodes - np.exp(log_nodes))
    log_weights += np.log(log_nodes[1] - log_nodes[0]) - special.gammaln(half)
    return np.exp(log_nodes), log_weights


def log_density(x, nu, scale=1.0):
    """The log-density of the multivariate t law of `x`, whose last axis is the
    dimension."""
    d = x.shape[-1]
    square = np.sum(np.square(x / scale), axis=-1)
    constant = special.gammaln((nu + d) / 2) - special.gammaln(nu / 2)
    constant -= 0.5 * d * np.log(np.pi * nu) + d * np.log(scale)
    return constant - 0.5 * (nu + d) * np.log1p(square / nu)


def _shares(z, data_variance, noise_variance, log_weights):
    """The mean of the data's share of the variance of `z`, over normals of given
    variances and prior weights."""
    total = data_variance + noise_variance
    logs = log_weights - 0.5 * z.size * jnp.log(total) - 0.5 * jnp.sum(z**2) / total
    return jnp.sum(jax.nn.softmax(logs) * data_variance / total)


def t_denoiser(nu, scale=1.0):
    """The denoiser of Student-t data under normal noise."""
    nodes, log_weights = precisions(nu)

    def denoiser(log_snr, z):
        noise = jnp.exp(-jnp.asarray(log_snr, z.dtype))
        variances = jnp.asarray(scale**2 / nodes, z.dtype)
        return z * _shares(z, variances, noise, jnp.asarray(log_weights, z.dtype))

    return denoiser


def hidden_denoiser(nu, variance):
    """The denoiser of normal data under Student-t noise, told the log-ratio of the
    variances."""
    nodes, log_weights = precisions(nu)

    def denoiser(log_snr, z):
        # The variance of the noise is nu / (nu - 2) times its squared scale.
        squared_scale = jnp.exp(-jnp.asarray(log_snr, z.dtype)) * (nu - 2) / nu
        noise = squared_scale / jnp.asarray(nodes, z.dtype)
        data = jnp.full_like(noise, variance)
        return z * _shares(z, data, noise, jnp.asarray(log_weights, z.dtype))

    return denoiser


def normal_denoiser(variance):
    """The denoiser of normal data under normal noise."""
    return lambda log_snr, z: z * variance / (variance + jnp.exp(-log_snr))
