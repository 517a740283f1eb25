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
    N_TIMES,
    RESETS,
    ends_early,
    evaluate,
    every_diffusion,
    grid,
    make,
)

import eqmdm
from eqmdm._diffusion.base import with_solved_interval
from eqmdm._diffusion.interval import known_times
from helpers import optimised_jit, slow, slow_but, tree_allclose


def levels_within(name):
    """Log-SNRs between those at t1 and t0."""
    found = np.asarray(evaluate(name, grid(make(name)))["log_snr"])
    return np.linspace(found[0] - 1e-3, found[-1] + 1e-3, N_TIMES)


@pytest.mark.parametrize("name", slow_but([*KINDS, "ALDA"], MAKERS))
def test_log_snr_decreases_and_its_rate_is_its_derivative(name):
    times = grid(make(name))
    found, times = jax.device_get((evaluate(name, times), times))
    # Log-SNR is stationary where G^T Sigma^-1 a crosses zero, so up to rounding.
    assert np.all(np.diff(found["log_snr"]) <= 1e-11)
    # The derivative of the composed transitions has the error of the expansion.
    composed = name in ("TwoScheduleDiffusion", "TimeVaryingDiffusion")
    rtol = 1e-5 if composed else 1e-8
    scale = np.max(np.abs(found["rate"]) * times)
    assert np.all(found["rate"] <= 0)
    relative = (found["rate"] - found["slope"]) * times
    assert np.max(np.abs(relative)) <= rtol * scale


@pytest.mark.parametrize("n_vars", [slow(3), 4])
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
    "name", slow_but(["CLD", "SubVPSDE", "TimeVaryingDiffusion"], KINDS)
)
def test_time_at_log_snr_is_the_inverse_of_log_snr(name):
    diffusion = make(name)
    levels = levels_within(name)
    solve = jax.value_and_grad(diffusion.time_at_log_snr)
    # Not with `jax.vmap`, which doubles the time to compile a search.
    times, slopes = jax.jit(lambda levels: jax.lax.map(solve, levels))(levels)
    times = np.asarray(times)
    found = jax.device_get(evaluate(name, jnp.asarray(times)))
    # A spacing of the logarithm of time, which is down to -7, by the slope in it, and
    # what the kernel itself is off.
    eps = np.finfo("float64").eps
    bar = 16 * eps * np.abs(found["slope"] * times) + 1e-11
    assert np.all(np.abs(found["log_snr"] - levels) <= bar)
    # The slope of the inverse is the inverse of the slope, which is tested by itself.
    assert tree_allclose(slopes, 1 / found["slope"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [slow("VPSDE"), "CLD", "VESDE", "SubVPSDE"])
def test_time_at_log_snr_is_the_inverse_in_float32(name):
    diffusion = make(name)
    levels = levels_within(name).astype(np.float32)
    solve = lambda levels: jax.lax.map(diffusion.time_at_log_snr, levels)
    times = optimised_jit(solve)(levels)
    assert times.dtype == jnp.float32
    times = np.asarray(times, np.float64)
    found = jax.device_get(evaluate(name, jnp.asarray(times)))
    # As in float64, where two roots of the kernel may each be off by 5e-6.
    eps = np.finfo("float32").eps
    bar = 16 * eps * np.abs(found["slope"] * times) + 2e-5
    assert np.all(np.abs(found["log_snr"] - levels) <= bar)


@ends_early
def test_time_at_log_snr_reaches_the_earliest_times():
    rate = 0.1
    diffusion = eqmdm.VPSDE(schedule=eqmdm.ConstantSchedule(rate))
    log_snrs = np.asarray([24.0, 27.0, 29.0])
    t = jax.jit(jax.vmap(diffusion.time_at_log_snr))(log_snrs)
    # A variance of 1 - exp(-rate t) against a squared mean of exp(-rate t).
    expected = np.log1p(np.exp(-log_snrs)) / rate
    assert np.all(np.abs(np.asarray(t) / expected - 1) < 1e-11)


def test_time_at_log_snr_has_derivatives_in_the_parameters():
    diffusion = make("LearnedDiffusion-all")
    parameters, rest = eqx.partition(diffusion, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(parameters)
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
    generator = np.random.default_rng(0)
    direction = [generator.standard_normal(leaf.shape) for leaf in leaves]

    def time(parameters):
        return eqx.combine(parameters, rest).time_at_log_snr(jnp.asarray(2.0))

    def moved(size):
        new = [leaf + size * step for leaf, step in zip(leaves, direction, strict=True)]
        return jax.tree.unflatten(structure, new)

    h = 1e-4
    value_and_grad = jax.jit(jax.value_and_grad(time))
    gradient = jax.device_get(jax.tree.leaves(value_and_grad(moved(0.0))[1]))
    along = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    high, low = (np.asarray(value_and_grad(moved(step))[0]) for step in (h, -h))
    difference = (high - low) / (2 * h)
    assert tree_allclose(along, difference, rtol=1e-6, atol=0)
    # No parameter is left out, but for rotations of the factor of D.
    assert all(np.any(g != 0) for g in gradient)


@pytest.mark.parametrize(
    "name", [slow(n) if n == "TwoScheduleDiffusion" else n for n in KINDS]
)
def test_ends_in_log_snr_are_hit_and_leave_the_schedule_alone(name):
    ends = (-4.5, 9.5)
    diffusion = MAKERS[name](
        interval=eqmdm.LogSNRInterval(*ends), **RESETS.get(name, {})
    )

    matrices = lambda diffusion, t: (
        diffusion.drift_matrix(t),
        diffusion.diffusion_matrix(t),
    )

    @jax.jit
    def compute(t):
        times = jnp.stack([diffusion.t0, diffusion.t1])
        log_snrs = jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr)(times)
        return times, log_snrs, matrices(diffusion, t), matrices(make(name), t)

    times, log_snrs, actual, expected = compute(jnp.asarray(0.3))
    t0, t1 = np.asarray(times)
    assert 0 < t0 < t1
    assert tree_allclose(log_snrs, np.asarray(ends[::-1]), rtol=0, atol=1e-10)
    assert tree_allclose(actual, expected, rtol=1e-15, atol=0)


@ends_early
@every_diffusion
def test_ends_in_time_are_kept(name):
    diffusion = MAKERS[name](interval=eqmdm.TimeInterval(0.01, 0.5))
    ends = np.asarray([diffusion.t0, diffusion.t1])
    assert tree_allclose(ends, np.asarray([0.01, 0.5]), rtol=1e-15, atol=0)


def test_solved_times_are_those_of_the_diffusion_with_their_derivatives():
    diffusion = eqmdm.LearnedDiffusion(
        2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-4.5, 9.5)
    )
    parameters, rest = eqx.partition(diffusion, eqx.is_inexact_array)
    is_known = []

    def ends(parameters, solve):
        diffusion = eqx.combine(parameters, rest)
        if solve:
            diffusion = with_solved_interval(diffusion)
        is_known.append(known_times(diffusion.interval) is not None)
        return jnp.log(diffusion.t0), jnp.log(diffusion.t1)

    @jax.jit
    def compute(parameters):
        both = lambda function: (
            function(parameters, True),
            function(parameters, False),
        )
        return both(ends), both(jax.jacrev(ends))

    times, derivatives = compute(parameters)
    assert is_known == [True, False, True, False]
    # The same search, to a few spacings of the logarithm.
    assert tree_allclose(*times, rtol=0, atol=1e-14)
    # Derivatives have the dtype of the parameters, float32.
    assert tree_allclose(*derivatives, rtol=1e-6, atol=1e-6)


class OwnStart(eqmdm.AbstractLinearDiffusion):
    """A diffusion with another start, and the interval of the one that it wraps."""

    diffusion: eqmdm.AbstractLinearDiffusion

    @property
    def n_vars(self):
        return self.diffusion.n_vars

    @property
    def interval(self):
        return self.diffusion.interval

    @property
    def t_limit(self):
        return self.diffusion.t_limit

    @property
    def prior(self):
        return self.diffusion.prior

    def start_root(self, dtype):
        return 3 * self.diffusion.start_root(dtype)

    def drift_matrix(self, t):
        return self.diffusion.drift_matrix(t)

    def diffusion_matrix(self, t):
        return self.diffusion.diffusion_matrix(t)

    def compute_transition(self, s, t):
        return self.diffusion.compute_transition(s, t)


@pytest.mark.parametrize(
    "make", [lambda inner: eqmdm.LinearStart(inner, [2.0]), OwnStart], ids=["", "own"]
)
def test_times_of_one_diffusion_are_not_solved_for_another(make):
    inner = eqmdm.LearnedDiffusion(
        2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-4.5, 9.5)
    )
    outer = make(inner)

    @jax.jit
    def compute():
        solved = with_solved_interval(outer)
        assert type(solved) is type(outer)
        return solved.diffusion.t1, inner.t1

    found, expected = compute()
    assert found == expected
