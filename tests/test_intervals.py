"""Tests of log-SNRs, the times at which they are reached, and intervals."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffusions import (
    KINDS,
    MAKERS,
    RESETS,
    ends_early,
    evaluate,
    every_diffusion,
    every_kind,
    grid,
    levels_within,
    make,
    optimised_jit,
    with_float64,
)

import eqmdm
from helpers import slow, slow_but, tree_allclose


@every_diffusion
def test_log_snr_decreases_and_its_rate_is_its_derivative(name):
    diffusion = make(name)
    found = evaluate(name, grid(diffusion))
    # Log-SNR is stationary where G^T Sigma^-1 a crosses zero, so up to rounding.
    assert jnp.all(jnp.diff(found["log_snr"]) <= 1e-11)
    # The derivative of the composed transitions has the error of the expansion.
    composed = name in ("TwoScheduleDiffusion", "TimeVaryingDiffusion")
    rtol = 1e-5 if composed else 1e-8
    scale = float(jnp.max(jnp.abs(found["rate"]) * grid(diffusion)))
    assert jnp.all(found["rate"] <= 0)
    relative = (found["rate"] - found["slope"]) * grid(diffusion)
    assert jnp.max(jnp.abs(relative)) <= rtol * scale


@pytest.mark.parametrize("n_vars", [3, 4])
def test_log_snr_rate_in_float32_is_right_where_the_ratio_overflows(n_vars):
    skew = np.diag(np.ones(n_vars - 1), -1) - np.diag(np.ones(n_vars - 1), 1)
    noise = np.diag([0.0] * (n_vars - 1) + [1.0])
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        diffusion = eqmdm.LinearDiffusion(
            skew, noise, interval=eqmdm.TimeInterval(1e-7, 1.0)
        )

    def read(t):
        kernel = diffusion.compute_kernel(t)
        return kernel.log_snr, diffusion.log_snr_rate(t, kernel)

    log_snr, rate = optimised_jit(read)(jnp.asarray(1e-7, jnp.float32))
    expected = jax.jit(read)(jnp.asarray(np.float64(np.float32(1e-7))))
    # Its exponential overflows float32.
    assert log_snr > 89
    assert tree_allclose(float(log_snr), float(expected[0]), rtol=1e-6, atol=0)
    # Three entries of 5e-6 each.
    assert tree_allclose(float(rate), float(expected[1]), rtol=3e-5, atol=0)


@pytest.mark.parametrize(
    "name", ["VPSDE", slow("MALDA"), slow("LinearDiffusion"), "SubVPSDE"]
)
def test_log_snr_in_float32_is_that_in_float64(name):
    diffusion = make(name)
    times = grid(diffusion, "float32")
    low = evaluate(name, times)["log_snr"]
    high = evaluate(name, times.astype(jnp.float64))["log_snr"]
    # Twice the 5e-6 that a root may be off, and the logarithm's own rounding.
    expected = np.asarray(high, np.float32)
    assert tree_allclose(low, expected, rtol=1e-6, atol=3e-5)


@pytest.mark.parametrize(
    "name", slow_but(["CLD", "VESDE", "SubVPSDE", "TimeVaryingDiffusion"], KINDS)
)
def test_time_at_log_snr_is_the_inverse_of_log_snr(name):
    diffusion = make(name)
    levels = levels_within(name)
    solve = jax.jit(jax.vmap(jax.value_and_grad(diffusion.time_at_log_snr)))
    times, slopes = solve(levels)
    found = evaluate(name, times)
    # A spacing of the logarithm of time, which is down to -7, by the slope in it, and
    # what the kernel itself is off.
    eps = float(jnp.finfo("float64").eps)
    bar = 16 * eps * jnp.abs(found["slope"] * times) + 1e-11
    assert jnp.all(jnp.abs(found["log_snr"] - levels) <= bar)
    # The slope of the inverse is the inverse of the slope, which is tested by itself.
    assert tree_allclose(slopes, 1 / found["slope"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["VPSDE", "CLD", "VESDE", "SubVPSDE"])
def test_time_at_log_snr_is_the_inverse_in_float32(name):
    diffusion = make(name)
    levels = levels_within(name).astype(jnp.float32)
    times = optimised_jit(jax.vmap(diffusion.time_at_log_snr))(levels)
    assert times.dtype == jnp.float32
    found = evaluate(name, times.astype(jnp.float64))
    # As in float64, where two roots of the kernel may each be off by 5e-6.
    eps = float(jnp.finfo("float32").eps)
    bar = 16 * eps * jnp.abs(found["slope"] * times.astype(jnp.float64)) + 2e-5
    assert jnp.all(jnp.abs(found["log_snr"] - levels.astype(jnp.float64)) <= bar)


@ends_early
@pytest.mark.parametrize("log_snr", [24.0, 27.0, 29.0])
def test_time_at_log_snr_reaches_the_earliest_times(log_snr):
    rate = 0.1
    t = eqmdm.VPSDE(schedule=eqmdm.ConstantSchedule(rate)).time_at_log_snr(
        jnp.asarray(log_snr)
    )
    # A variance of 1 - exp(-rate t) against a squared mean of exp(-rate t).
    expected = np.log1p(np.exp(-log_snr)) / rate
    assert abs(float(t) / expected - 1) < 1e-11


def test_time_at_log_snr_has_derivatives_in_the_parameters():
    diffusion = with_float64(make("LearnedDiffusion-all"))
    parameters, rest = eqx.partition(diffusion, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(parameters)
    keys = jr.split(jr.key(0), len(leaves))
    direction = [
        jr.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]

    def time(parameters):
        return eqx.combine(parameters, rest).time_at_log_snr(jnp.asarray(2.0))

    def moved(size):
        new = [leaf + size * step for leaf, step in zip(leaves, direction, strict=True)]
        return jax.tree.unflatten(structure, new)

    h = 1e-4
    value_and_grad = jax.jit(jax.value_and_grad(time))
    gradient = jax.tree.leaves(value_and_grad(parameters)[1])
    along = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    high, low = (value_and_grad(moved(step))[0] for step in (h, -h))
    difference = (high - low) / (2 * h)
    assert tree_allclose(along, difference, rtol=1e-6, atol=0)
    # No parameter is left out, but for rotations of the factor of D.
    assert all(jnp.any(g != 0) for g in gradient)


@every_kind
def test_ends_in_log_snr_are_hit_and_leave_the_schedule_alone(name):
    ends = (-4.5, 9.5)
    diffusion = MAKERS[name](
        interval=eqmdm.LogSNRInterval(*ends), **RESETS.get(name, {})
    )

    @jax.jit
    def compute():
        times = jnp.stack([diffusion.t0, diffusion.t1])
        return times, jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr)(times)

    (t0, t1), actual = compute()
    assert 0 < t0 < t1
    assert tree_allclose(actual, jnp.asarray(ends[::-1]), rtol=0, atol=1e-10)
    t = jnp.asarray(0.3)
    F, G = make(name).drift_matrix(t), make(name).diffusion_matrix(t)
    assert tree_allclose(diffusion.drift_matrix(t), F, rtol=1e-15, atol=0)
    assert tree_allclose(diffusion.diffusion_matrix(t), G, rtol=1e-15, atol=0)


@ends_early
@every_diffusion
def test_ends_in_time_are_kept(name):
    diffusion = MAKERS[name](interval=eqmdm.TimeInterval(0.01, 0.5))
    ends = jnp.stack([diffusion.t0, diffusion.t1])
    assert tree_allclose(ends, jnp.asarray([0.01, 0.5]), rtol=1e-15, atol=0)
