"""Likelihoods of batches, and draws of a mixture with their log-densities."""

import functools
import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.stats import norm
from references import MODE_STD as STD, MODES

import eqmdm
from helpers import OPTIMISED


# Truncation and the prior's mismatch are then below 1e-4 nats.
WIDE = (-13.3, 13.3)
LOOSE, TIGHT = 1e-5, 1e-9


def _compute(denoiser, diffusion, x, keys, tolerance, options, in_turn):
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)

    def one(x, key):
        return eqmdm.log_likelihood(
            model, x, key=key, stepsize_controller=controller, **options
        )

    if in_turn:
        return jax.lax.map(lambda each: one(*each), (x, keys))
    return jax.vmap(one)(x, keys)


_COMPUTE = {
    jnp.dtype("float32"): eqx.filter_jit(_compute, compiler_options=OPTIMISED),
    jnp.dtype("float64"): eqx.filter_jit(_compute),
}


def compute(denoiser, diffusion, x, key, *, tolerance=LOOSE, in_turn=False, **options):
    """The likelihoods of a batch under a denoiser, by `jax.vmap` or one after the
    other, which compiles in half of the time.

    Tolerances share a program.
    """
    tolerance = jnp.asarray(tolerance, x.dtype)
    keys = jr.split(key, len(x))
    run = _COMPUTE[x.dtype]
    return run(denoiser, diffusion, x, keys, tolerance, options, in_turn)


@jax.jit
def ends(diffusion):
    """The log-SNRs at t0 and t1, and the variance of z at t1 under the prior, by dense
    matrices."""

    @jax.vmap
    def at_end(t):
        kernel = diffusion.compute_kernel(t)
        return kernel.log_snr, kernel.mean_map, kernel.root

    log_snrs, a, root = at_end(jnp.stack([diffusion.t0, diffusion.t1]))
    weights = jnp.linalg.solve(root[1] @ root[1].T, a[1])
    root = weights @ diffusion.prior.root
    return *log_snrs, root @ root / (a[1] @ weights) ** 2


@functools.cache
def mixture_draws():
    """Draws of the mixture, with log-densities in closed form."""
    generator = np.random.default_rng(0)
    x = generator.choice(MODES, 512) + STD * generator.standard_normal(512)
    # One reference then serves both precisions.
    x = x.astype(np.float32).astype(np.float64)
    components = -0.5 * ((x[:, None] - MODES) / STD) ** 2
    closed = np.log(np.mean(np.exp(components), axis=1) / (STD * math.sqrt(2 * np.pi)))
    return x, closed


@functools.cache
def mixture_case():
    """The draws and log-densities, and those by a tight solve between the wide
    log-SNRs.

    The solve takes the divergence from the posterior variance of the data, not from a
    derivative of the denoiser. At its t1 the prior of z has the variance 1 / SNR, to
    some parts in a million, for every stationary diffusion.
    """
    log_snr0, log_snr1 = WIDE[1], WIDE[0]
    modes = jnp.asarray(MODES)

    def field(s, state, args):
        z, _ = state
        noise = jnp.exp(s - log_snr0)
        spread = STD**2 + noise
        gap = z - modes
        weights = jax.nn.softmax(-0.5 * gap**2 / spread)
        means = modes + gap * STD**2 / spread
        mean = weights @ means
        variance = STD**2 * noise / spread + weights @ (means - mean) ** 2
        return 0.5 * (z - mean), 0.5 * (1 - variance / noise)

    @jax.jit
    @jax.vmap
    def solve(x):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Dopri8(),
            jnp.zeros(()),
            jnp.asarray(log_snr0 - log_snr1),
            None,
            (x, jnp.zeros(())),
            stepsize_controller=dfx.PIDController(rtol=1e-10, atol=1e-10),
            adjoint=dfx.ForwardMode(),
        )
        z, change = solution.ys[0][-1], solution.ys[1][-1]
        return norm.logpdf(z, 0.0, math.exp(-0.5 * log_snr1)) + change

    x, closed = mixture_draws()
    return jnp.asarray(x), closed, np.asarray(solve(x))


def rms(error):
    return np.sqrt(np.mean(np.asarray(error, np.float64) ** 2))
