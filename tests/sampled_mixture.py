"""Samples of a mixture in one dimension, and the samplers that draw them."""

import diffrax as dfx
import jax.numpy as jnp

import eqmdm


MEANS = jnp.asarray([-1.0, 1.5])
STD = 0.3


def mixture_denoiser(log_snr, z):
    """The posterior mean of a mixture of two normals in every coordinate."""
    noise = jnp.exp(-log_snr)
    total = STD**2 + noise
    gap = z[..., None] - MEANS.astype(z.dtype).reshape(*([1] * z.ndim), 2)
    logits = -0.5 * gap**2 / total
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    posterior = z[..., None] - gap * (noise / total)
    return jnp.sum(weights * posterior, axis=-1)


def sample(diffusion, shape=(), **options):
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    return eqmdm.sample(model, shape, **options)


def flow(solver, **options):
    return eqmdm.DiffraxSampler(solver, eqmdm.probability_flow, **options)


def adaptive(tolerance, **options):
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    return flow(dfx.Tsit5(), stepsize_controller=controller, **options)


SAMPLERS = {
    "SEA": dfx.SEA(),
    "SEA-clock": eqmdm.DiffraxSampler(dfx.SEA(), clock=eqmdm.LogSNRClock()),
    "Heun": flow(dfx.Heun()),
    "Tsit5-adaptive": adaptive(1e-3),
    "Tsit5-adaptive-clock": adaptive(1e-3, clock=eqmdm.AngleClock()),
    "DPMSolver": eqmdm.DPMSolver(),
    "DPMSolver-3": eqmdm.DPMSolver(order=3),
    "EDMHeun": eqmdm.EDMHeun(),
    "ancestral": eqmdm.AncestralSampler(),
    "SSCS": eqmdm.SSCS(),
    "Langevin": eqmdm.LangevinCorrector(eqmdm.DPMSolver()),
}
