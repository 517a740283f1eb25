"""Tests of users' own networks, in training and evaluation, against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm
from helpers import estimate_within_standard_errors, slow


DIFFUSION = eqmdm.VPSDE()
# Of standard normal data in two dimensions: -1 - log(2 pi), -2.84 nats.
MEAN_LOG_DENSITY = -1 - np.log(2 * np.pi)


class _Denoiser(eqx.Module):
    """Exact for standard normal data with scale 1."""

    scale: jax.Array

    def __call__(self, log_snr, z):
        return self.scale * z / (1 + jnp.exp(-log_snr))


class _Noise(eqx.Module):
    scale: jax.Array

    def __call__(self, t, y):
        root = DIFFUSION.compute_kernel(t).root[0, 0].astype(y.dtype)
        return self.scale * root * y


class _Score(eqx.Module):
    scale: jax.Array

    def __call__(self, t, y):
        del t
        return -self.scale * y


MODELS = {
    "denoiser": lambda scale: eqmdm.DenoiserModel(_Denoiser(scale), DIFFUSION),
    "noise": lambda scale: eqmdm.NoiseModel(_Noise(scale), DIFFUSION),
    "score": lambda scale: eqmdm.FunctionModel(_Score(scale), DIFFUSION),
}


@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_of_ones_own_network_is_the_log_density(kind, key):
    x = np.asarray(jr.normal(key, (2000, 2), jnp.float64))
    model = MODELS[kind](jnp.ones(()))
    found = eqmdm.evaluate(model, x, eqmdm.Objective(), key=key, batch_size=2000)
    log_density = -0.5 * np.sum(x**2, axis=1) - np.log(2 * np.pi)
    assert log_density.mean() == pytest.approx(MEAN_LOG_DENSITY, abs=0.1)
    gap = found.terms["total"] - log_density
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    # The truncation at t0 and t1 costs 6e-6 nats in two dimensions.
    assert abs(gap.mean()) < 5 * error + 2e-5


@pytest.mark.parametrize("kind", ["denoiser", slow("noise"), slow("score")])
def test_step_trains_ones_own_network_towards_the_exact_one(kind, key):
    x = jr.normal(key, (2000, 2), jnp.float64)
    optimiser = optax.adam(0.02)
    model = MODELS[kind](jnp.asarray(0.8))
    state = eqmdm.TrainState.create(model, optimiser, key=key)
    data = eqmdm.TrainingSet(x, eqmdm.Objective())
    step = lambda state: eqmdm.train_step(
        state, data, eqmdm.Objective(), optimiser, batch_size=256
    )
    losses = []
    for _ in range(60):
        state, metrics = step(state)
        losses.append(float(metrics["loss"][0]))
    assert float(state.model.network.scale) == pytest.approx(1.0, abs=0.1)
    # Within what a batch of 256 tells, from the last 20 of them.
    last = np.asarray(losses[-20:])
    error = last.std(ddof=1) / np.sqrt(len(last))
    assert estimate_within_standard_errors(-last.mean(), MEAN_LOG_DENSITY, error)
