"""Control variates of bounds: quantities of known mean, subtracted from an estimate."""

import math

import jax
import jax.numpy as jnp

from .._core.gaussian import PerturbationKernel
from .._core.types import Data, Scalar, State
from .._model.base import AbstractModel
from .._model.denoiser import pixel_law
from .._model.pixel_law import Components, SpikeAndSlab, noise_std


def noise_control(kernel: PerturbationKernel, noise: State, data_std: float) -> Data:
    r"""$\tfrac12 \kappa (\epsilon_\parallel^2 - 1)$, a control variate of mean 0, for
    every coordinate of the data.

    $\epsilon_\parallel$ is the noise of the data's sufficient statistic, and $\kappa =
    (c^2 \mathrm{SNR} / (1 + c^2 \mathrm{SNR}))^2$ with $c$ the scale of the data. At
    high log-SNR the whitened error of an accurate model is that noise itself, so the
    expectation of half its square is known and need not be estimated. Any fixed
    $\kappa$ leaves the mean unchanged.
    """
    along = kernel.along_data(noise)
    gain = jax.nn.sigmoid(kernel.log_snr + 2 * math.log(data_std)).astype(noise.dtype)
    return 0.5 * gain**2 * (along**2 - 1)


def error_control(
    kernel: PerturbationKernel, x: Data, noise: State, model: AbstractModel
) -> Data:
    r"""What half the square of an accurate model's error is nearly, for every
    coordinate of the data.

    For a denoiser with a `pixel_law`, it is $\tfrac12 ((\hat x_0 - x) / \sigma)^2$,
    where $\hat x_0$ is the posterior mean of independent pixels; `known_cost` is its
    integral over log-SNR. For other models, `noise_control`, whose mean is 0.
    """
    law = pixel_law(model)
    if law is None:
        return noise_control(kernel, noise, model.data_std)
    along = kernel.along_data(noise)
    sigma = noise_std(kernel.log_snr.astype(x.dtype))
    correction = Components.of(law, sigma, x + sigma * along).correction
    return 0.5 * (along + correction / sigma) ** 2


def known_cost(
    law: SpikeAndSlab,
    at_start: PerturbationKernel,
    at_end: PerturbationKernel,
    x: Data,
    noise: Data,
) -> Scalar:
    r"""An estimate of the mean of `error_control`, integrated over log-SNR between two
    times, from the ends alone.

    With $q_\lambda$ the density of $z = x + \sigma \epsilon$ under the law,

    $$\tfrac12 \int_{\lambda_1}^{\lambda_0} \mathrm{SNR} \, \mathrm{E} \| x - \hat x_0
    \|^2 \mathrm{d}\lambda = \mathrm{KL}_{\lambda_0} - \mathrm{KL}_{\lambda_1},
    \qquad \mathrm{KL}_\lambda = \mathrm{KL}(\mathcal{N}(x, \sigma^2) \,\|\,
    q_\lambda)$$

    for every $x$, by de Bruijn's identity for relative entropies. The divergences are
    estimated from one standard normal `noise` for every coordinate.

    **Source:** Verdú (2010), mismatched estimation and relative entropy.
    """

    def log_ratio(kernel: PerturbationKernel) -> Data:
        log_snr = kernel.log_snr.astype(x.dtype)
        sigma = noise_std(log_snr)
        log_density = Components.of(law, sigma, x + sigma * noise).log_density
        return 0.5 * log_snr - log_density

    at_ends = log_ratio(at_start) - log_ratio(at_end)
    # At the start the density around x is nearly constant, unless x is a whole spike,
    # so that the square of the noise does not cancel.
    if any(width > 0 for width in law.widths):
        at_ends = at_ends + 0.5 * (noise**2 - 1)
    return jnp.sum(at_ends)
