"""Tests of trajectories, and of the times at which they are saved."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from references import VARIANCE, normal_denoiser
from sampled_mixture import SAMPLERS, mixture_denoiser, sample

import eqmdm
from helpers import slow_but, tree_allclose, within_standard_errors


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["Tsit5-adaptive", "DPMSolver-3", "SSCS"],
        ["SEA", "Heun", "Tsit5-adaptive", "DPMSolver-3", "EDMHeun", "SSCS"],
    ),
)
def test_trajectories_have_the_law_of_the_process(name, key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-7.0, 9.0))
    model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
    log_snrs = jnp.asarray([4.0, -7.0, -2.0, 9.0, 0.5])
    result = eqmdm.sample(
        model,
        (4,),
        key=key,
        n_samples=1000,
        n_steps=None if "adaptive" in name else 150,
        sampler=SAMPLERS[name],
        save_at=eqmdm.SaveAt(log_snrs=log_snrs),
        full_output=True,
    )
    path = result.trajectory
    # From noise to data, exactly at the requested times.
    assert tree_allclose(path.log_snrs, jnp.sort(log_snrs), rtol=0, atol=1e-6)
    n_rows = 1 if name in ("DPMSolver-3", "EDMHeun") else 2
    assert path.states.shape == (1000, 5, n_rows, 4)
    kernels = jax.jit(jax.vmap(diffusion.compute_kernel))(path.times)
    for i in range(len(path.times)):
        kernel = jax.tree.map(lambda leaf, i=i: leaf[i], kernels)
        states = path.states[:, i]
        z = states[:, 0] if n_rows == 1 else jax.vmap(kernel.project)(states)
        spread = VARIANCE + kernel.sigma**2
        # Little remains of the prior, in which z has the variance of N(0, 1) data.
        assert within_standard_errors(z.reshape(-1) ** 2, spread, n=6.0)
        expected = normal_denoiser(kernel.log_snr, z)
        assert tree_allclose(path.estimates[:, i], expected, rtol=1e-9, atol=1e-9)
    # The sample is the estimate at the end of its trajectory.
    assert tree_allclose(result.x, path.estimates[:, -1], rtol=1e-9, atol=1e-9)


EXACT = {"rtol": 0.0, "atol": 0.0}


def test_saved_states_are_those_of_the_steps(key):
    diffusion = eqmdm.VPSDE()
    times = [1.0, 0.7, 0.4, 0.1, 0.001]
    sampler = eqmdm.DPMSolver(grid=eqmdm.CustomGrid(times))
    options = {"key": key, "n_samples": 2, "full_output": True}
    plain = sample(diffusion, (3,), sampler=sampler, **options)
    assert plain.trajectory is None and jnp.all(plain.n_evaluations == 5)
    saved = sample(
        diffusion,
        (3,),
        sampler=sampler,
        save_at=eqmdm.SaveAt(times=[0.1, 0.7]),
        **options,
    )
    # Times of the grid itself, so that no step and no sample changes.
    assert tree_allclose(saved.x, plain.x, rtol=1e-12, atol=1e-12)
    assert tree_allclose(saved.trajectory.times, jnp.asarray([0.7, 0.1]), **EXACT)
    assert jnp.all(saved.n_evaluations == 7)
    # The first step by hand, of order 1.
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    start, end = (diffusion.compute_kernel(jnp.asarray(t)) for t in (1.0, 0.7))
    for i in range(2):
        key_start, _ = jr.split(jr.fold_in(key, i))
        z = start.project(diffusion.prior.sample((3,), key=key_start))
        x = model.denoise(start.log_snr, z)
        expected = x + end.sigma / start.sigma * (z - x)
        actual = saved.trajectory.states[i, 0, 0]
        assert tree_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `times` or `log_snrs`"),
        ({"times": [0.1], "log_snrs": [1.0]}, "either `times` or `log_snrs`"),
        ({"times": [[0.1]]}, "must have a vector of values; got shape .1, 1."),
    ],
    ids=["none", "both", "shape"],
)
def test_save_at_takes_one_vector(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        eqmdm.SaveAt(**options)


@pytest.mark.parametrize(
    "save_at",
    [
        eqmdm.SaveAt(times=[0.5, 1.5]),
        eqmdm.SaveAt(times=[0.5, float("nan")]),
        eqmdm.SaveAt(times=[0.5, 0.5]),
        eqmdm.SaveAt(log_snrs=[1e3]),
    ],
    ids=["late", "nan", "twice", "log-snr"],
)
def test_times_to_save_at_must_be_distinct_and_within_the_interval(save_at, key):
    message = r"`save_at` must hold distinct times within .* interval, \[0.001, 1.0"
    with pytest.raises(ValueError, match=message):
        sample(eqmdm.VPSDE(), key=key, save_at=save_at, full_output=True)
