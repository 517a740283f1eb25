"""Tests of samplers of any diffusion."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st
from random_recipes import (
    CASES,
    Dense,
    NormalDenoiser,
    few,
    normal,
    numbers,
    over,
    recipes,
    seeds,
    stationary_from_the_start,
    variances,
)

import eqmdm
from helpers import slow, within_standard_errors


# Random diffusions end anywhere.
pytestmark = pytest.mark.filterwarnings("ignore:The law of this diffusion")


@final
class Readout(eqx.Module):
    """The denoiser of data that are one point; but at t0 the statistic itself, so that
    samplers return it."""

    point: jax.Array
    threshold: jax.Array

    def __call__(self, log_snr, z):
        point = self.point.astype(z.dtype)
        return jnp.where(log_snr < self.threshold.astype(z.dtype), point, z)


N_STEPS = 3


def make_readout(recipe, point, dtype):
    """A readout for a data point, with the laws at t0 and at t1.

    The grid is uniform in log-SNR: the threshold is in the middle of its last step.
    """
    at_cut, at_end = (Dense(recipe, None, t, dtype) for t in (recipe.t0, recipe.t1))
    high, low = math.log(at_cut.snr), math.log(at_end.snr)
    threshold = high - (high - low) / (2 * N_STEPS)
    readout = Readout(jnp.asarray(point), jnp.asarray(threshold))
    return readout, at_cut, at_end


WITHOUT_NOISE = {
    "order 2": eqmdm.DPMSolver(),
    "order 3": eqmdm.DPMSolver(order=3),
}


@eqx.filter_jit
def read_samples(diffusion, readout, y, times):
    model = eqmdm.DenoiserModel(readout, diffusion)
    return {
        name: sampler(model, y, times, key=jr.key(0))
        for name, sampler in WITHOUT_NOISE.items()
    }


points = numbers(-2, 2)


@over([CASES[3], CASES[4], slow(CASES[7])])
@few
@given(st.data(), points, seeds)
def test_samplers_without_noise_lead_a_state_to_where_one_point_has_it(
    case, data, point, seed
):
    recipe = data.draw(recipes(case))
    readout, at_cut, at_end = make_readout(recipe, point, case.dtype)
    diffusion = recipe.build()
    times = eqmdm.LogSNRGrid()(diffusion, N_STEPS, case.dtype)
    y = normal(seed, (case.n_vars, *case.shape), case.dtype)
    samples = read_samples(diffusion, readout, y, times)
    # The deviation from the point, in units of the root, stays as it is.
    a = at_end.a.reshape(-1, *[1] * len(case.shape))
    noise = at_end.whiten(np.asarray(y, float) - a * point)
    along = np.tensordot(at_end.b, noise, 1) / at_end.snr
    shrunk = point + along * math.sqrt(at_end.snr / at_cut.snr)
    # Of every step: what the coefficients make of the point and of the deviation, and
    # at the cut, where it is read out, and at the horizon, what they made of the state.
    denses = [Dense(recipe, None, float(t), case.dtype) for t in times]
    error = max(dense.data_error + dense.root_error for dense in denses)
    size = np.linalg.norm(noise) + math.sqrt(at_end.snr) * abs(point)
    size = abs(point) + size / math.sqrt(at_cut.snr)
    for name, sample in samples.items():
        assert sample.shape == case.shape and sample.dtype == case.dtype
        distance = np.max(np.abs(np.asarray(sample, float) - shrunk))
        assert distance <= 8 * N_STEPS * error * size, name


SOLVERS = {
    "ancestral": eqmdm.AncestralSampler(),
    "dpm": eqmdm.DPMSolver(),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("ancestral", CASES[2]),
        ("ancestral", CASES[4]),
        pytest.param("ancestral", CASES[6], marks=pytest.mark.slow),
        ("dpm", CASES[3]),
        ("dpm", CASES[4]),
    ],
    ids=lambda value: value if isinstance(value, str) else f"K{value.n_vars}",
)
@few
@given(st.data(), points, seeds)
def test_samples_from_the_prior_have_the_law_that_one_point_gives_them(
    name, case, data, point, seed
):
    recipe = data.draw(recipes(case))
    readout, at_cut, at_end = make_readout(recipe, point, case.dtype)
    diffusion = recipe.build()
    options = {"sampler": SOLVERS[name], "n_samples": 500, "n_steps": N_STEPS}
    options["dtype"] = case.dtype
    model = eqmdm.DenoiserModel(readout, diffusion)
    x = eqmdm.sample(model, case.shape, key=jr.key(seed), **options)
    assert x.shape == (500, *case.shape) and x.dtype == case.dtype
    # The statistic is the point with noise of variance 1 / SNR, which only gains noise
    # with time: given its end, of its variance it keeps the share `ratio`.
    ratio = at_end.snr / at_cut.snr
    of_prior = np.sum((recipe.stationary.T @ at_end.weights) ** 2)
    if name == "ancestral":
        kept, variance = ratio, (1 - ratio) / at_cut.snr + ratio**2 * of_prior
    else:
        kept, variance = math.sqrt(ratio), ratio * of_prior
    gap = np.asarray(x, float).reshape(-1) - (1 - kept) * point
    gap = gap / math.sqrt(variance)
    assert within_standard_errors(gap, 0.0)
    assert within_standard_errors(gap**2, 1.0)


@eqx.filter_jit
def read_splittings(diffusion, variance, y, times, keys):
    model = eqmdm.DenoiserModel(NormalDenoiser(variance), diffusion)
    one = lambda key: eqmdm.SSCS()(model, y, times, key=key)
    return jax.vmap(one)(keys)


@over([CASES[3], CASES[4]])
@few
@given(st.data(), variances, seeds)
def test_splitting_of_stationary_data_is_their_own_process_backwards(
    case, data, variance, seed
):
    recipe = stationary_from_the_start(data.draw(recipes(case)), variance)
    key_start, key_noise = jr.split(jr.key(seed))
    y = jr.normal(key_start, (case.n_vars, *case.shape), case.dtype)
    times = jnp.linspace(recipe.t1, recipe.t0, N_STEPS + 1).astype(case.dtype)
    keys = jr.split(key_noise, 1000)
    variance = jnp.asarray(variance)
    x = read_splittings(recipe.build(), variance, y, times, keys)
    # On any grid: there is nothing left for the score to do.
    at_cut = Dense(recipe, None, recipe.t0, case.dtype)
    backwards = recipe._replace(skew=-recipe.skew)
    backwards = Dense(backwards, recipe.t0, recipe.t1, case.dtype)
    # What is returned is the posterior mean, v z / (v + 1 / SNR).
    weights = at_cut.weights / (1 + 1 / (float(variance) * at_cut.snr))
    mean = np.tensordot(weights @ backwards.psi, np.asarray(y, float), 1)
    gap = np.asarray(x, float) - mean[None]
    gap = gap.reshape(-1) / np.linalg.norm(weights @ backwards.root)
    assert within_standard_errors(gap, 0.0)
    assert within_standard_errors(gap**2, 1.0)
