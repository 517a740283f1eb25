import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqmdm
from helpers import tree_allclose


CLOCKS = {
    "constant": eqmdm.ConstantClock(4.0),
    "linear": eqmdm.LinearClock(),
    "linear-from-0": eqmdm.LinearClock(0.0, 3.0),
    "linear-flat": eqmdm.LinearClock(2.0, 2.0),
    "cosine": eqmdm.CosineClock(),
    "cosine-short": eqmdm.CosineClock(0.5),
}
clocks = pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)


@clocks
def test_integrated_rate_is_the_integral_of_the_rate(clock):
    s = jnp.asarray([0.0, 0.0, 0.1, 0.3, 0.5, 0.6])
    t = jnp.asarray([1e-4, 0.9, 0.4, 0.3001, 0.9, 0.6])
    nodes, weights = (jnp.asarray(part) for part in np.polynomial.legendre.leggauss(40))
    points = s[:, None] + 0.5 * (t - s)[:, None] * (nodes + 1)[None]
    rates = jax.vmap(jax.vmap(clock.rate))(points)
    expected = 0.5 * (t - s) * jnp.sum(rates * weights[None], axis=1)
    # The nearest singularity, of the cosine's rate, is so far that 40 nodes converge.
    integral = jax.vmap(clock.integrated_rate)(s, t)
    assert tree_allclose(integral, expected, rtol=1e-12, atol=0)


@clocks
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_undoes_integrated_rate(clock, dtype):
    t = jnp.asarray([1e-6, 1e-3, 0.1, 0.5, 0.99], dtype)
    integral = jax.vmap(clock.integrated_rate)(jnp.zeros_like(t), t)
    # Each of the two maps rounds a few times, and neither magnifies.
    rtol = 16 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(jax.vmap(clock.inverse)(integral), t, rtol=rtol, atol=0)


@clocks
def test_integrated_rate_keeps_its_digits_over_short_intervals_in_float32(clock):
    s = np.asarray([0.0, 1e-3, 0.1, 0.5, 0.9], np.float32)
    for n_spacings in (1, 3, 1000):
        t = s + n_spacings * np.spacing(np.maximum(s, np.float32(1e-6)))
        integral = jax.vmap(clock.integrated_rate)(jnp.asarray(s), jnp.asarray(t))
        middle = 0.5 * (s.astype(np.float64) + t.astype(np.float64))
        width = t.astype(np.float64) - s.astype(np.float64)
        # The rate hardly moves over the interval, so the midpoint rule is exact.
        expected = width * np.asarray(jax.vmap(clock.rate)(jnp.asarray(middle)))
        # The cosine's rate at 0.9 magnifies the rounding of its angle nine times.
        assert tree_allclose(integral, expected.astype(np.float32), rtol=3e-6, atol=0)


@clocks
def test_rate_and_integral_have_the_dtype_of_the_time(clock):
    for dtype in ("float32", "float64"):
        t = jnp.asarray(0.3, dtype)
        for value in (clock.rate(t), clock.integrated_rate(t, t), clock.inverse(t)):
            assert value.dtype == dtype and value.shape == ()


@clocks
def test_t_limit_is_where_the_integral_diverges(clock):
    if math.isinf(clock.t_limit):
        far = jnp.asarray(1e6)
        assert jnp.isfinite(clock.integrated_rate(jnp.zeros(()), far))
        return
    assert clock.t_limit > 1
    below = jnp.asarray(clock.t_limit * (1 - 1e-12))
    # -2 log cos within 1e-12 of the pole.
    assert clock.integrated_rate(jnp.zeros(()), below) > 50


@pytest.mark.parametrize("end", [0.5, 10.0, 40.0])
def test_cosine_clock_gives_the_variance_preserving_mean_a_cosine(end):
    clock = eqmdm.CosineClock(end)
    one = jnp.ones(())
    # Near the pole the angle's rounding is magnified by tan(theta) = e^(end / 2).
    rtol = 1e-15 * max(10, math.exp(end / 2))
    assert tree_allclose(
        clock.integrated_rate(0 * one, one), jnp.asarray(end), rtol=rtol, atol=0
    )
    theta = jnp.arccos(jnp.exp(-end / 2 * one))
    diffusion = eqmdm.VPSDE(clock=clock)
    t = jnp.linspace(0.01, 0.95, 7)
    mean_map = jax.vmap(lambda t: diffusion.transition(0 * t, t).mean_map[0, 0])(t)
    assert tree_allclose(mean_map, jnp.cos(theta * t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_clocks_refuse_rates_that_are_none(value):
    with pytest.raises(ValueError, match="`value` must be positive and finite"):
        eqmdm.ConstantClock(value)
    with pytest.raises(ValueError, match="`end` must be positive and finite"):
        eqmdm.CosineClock(value)
    with pytest.raises(ValueError, match="`rate1` must be positive and finite"):
        eqmdm.LinearClock(0.0, value)
    if value != 0:
        with pytest.raises(ValueError, match="`rate0` must be non-negative and finite"):
            eqmdm.LinearClock(value, 1.0)


def test_linear_clock_refuses_a_rate_that_falls():
    with pytest.raises(ValueError, match="`rate1` must be at least `rate0`"):
        eqmdm.LinearClock(2.0, 1.0)


def test_clocks_can_be_built_from_traced_rates():
    def integral(rate):
        clocks = eqmdm.ConstantClock(rate), eqmdm.LinearClock(rate, rate)
        clocks += (eqmdm.CosineClock(rate),)
        zero, one = jnp.zeros(()), jnp.ones(())
        return sum(clock.integrated_rate(zero, one) for clock in clocks)

    value, slope = jax.jit(jax.value_and_grad(integral))(jnp.asarray(1.5))
    # Each integral up to 1 is the rate itself.
    assert tree_allclose(value, jnp.asarray(4.5), rtol=1e-14, atol=0)
    assert tree_allclose(slope, jnp.asarray(3.0), rtol=1e-13, atol=0)
