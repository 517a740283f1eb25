import math

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import eqmdm
from helpers import tree_allclose


SCHEDULES = {
    "constant": eqmdm.ConstantSchedule(4.0),
    "linear": eqmdm.LinearSchedule(),
    "linear-from-0": eqmdm.LinearSchedule(0.0, 3.0),
    "linear-flat": eqmdm.LinearSchedule(2.0, 2.0),
    "cosine": eqmdm.CosineSchedule(),
    "cosine-short": eqmdm.CosineSchedule(0.5),
}
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@schedules
def test_integrated_rate_is_the_integral_of_the_rate(schedule):
    s = jnp.asarray([0.0, 0.0, 0.1, 0.3, 0.5, 0.6])
    t = jnp.asarray([1e-4, 0.9, 0.4, 0.3001, 0.9, 0.6])
    nodes, weights = (jnp.asarray(part) for part in np.polynomial.legendre.leggauss(40))
    points = s[:, None] + 0.5 * (t - s)[:, None] * (nodes + 1)[None]
    rates = jax.vmap(jax.vmap(schedule.rate))(points)
    expected = 0.5 * (t - s) * jnp.sum(rates * weights[None], axis=1)
    # The nearest singularity, of the cosine's rate, is so far that 40 nodes converge.
    integral = jax.vmap(schedule.integrated_rate)(s, t)
    assert tree_allclose(integral, expected, rtol=1e-12, atol=0)


@schedules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_undoes_integrated_rate(schedule, dtype):
    t = jnp.asarray([1e-6, 1e-3, 0.1, 0.5, 0.99], dtype)
    integral = jax.vmap(schedule.integrated_rate)(jnp.zeros_like(t), t)
    # Each of the two maps rounds a few times, and neither magnifies.
    rtol = 16 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(jax.vmap(schedule.inverse)(integral), t, rtol=rtol, atol=0)


@schedules
def test_integrated_rate_keeps_its_digits_over_short_intervals_in_float32(schedule):
    s = np.asarray([0.0, 1e-3, 0.1, 0.5, 0.9], np.float32)
    for n_spacings in (1, 3, 1000):
        t = s + n_spacings * np.spacing(np.maximum(s, np.float32(1e-6)))
        integral = jax.vmap(schedule.integrated_rate)(jnp.asarray(s), jnp.asarray(t))
        middle = 0.5 * (s.astype(np.float64) + t.astype(np.float64))
        width = t.astype(np.float64) - s.astype(np.float64)
        # The rate hardly moves over the interval, so the midpoint rule is exact.
        expected = width * np.asarray(jax.vmap(schedule.rate)(jnp.asarray(middle)))
        # A few roundings each of the angle, the sines and the logarithm.
        assert tree_allclose(integral, expected.astype(np.float32), rtol=1e-6, atol=0)


@schedules
def test_rate_and_integral_have_the_dtype_of_the_time(schedule):
    for dtype in ("float32", "float64"):
        t = jnp.asarray(0.3, dtype)
        for value in (
            schedule.rate(t),
            schedule.integrated_rate(t, t),
            schedule.inverse(t),
        ):
            assert value.dtype == dtype and value.shape == ()


@schedules
def test_t_limit_is_where_the_integral_diverges(schedule):
    if math.isinf(schedule.t_limit):
        far = jnp.asarray(1e6)
        assert jnp.isfinite(schedule.integrated_rate(jnp.zeros(()), far))
        return
    assert schedule.t_limit > 1
    below = jnp.asarray(schedule.t_limit * (1 - 1e-12))
    # -2 log cos within 1e-12 of the pole.
    assert schedule.integrated_rate(jnp.zeros(()), below) > 50


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@pytest.mark.parametrize("end", [0.5, 10.0, 40.0])
def test_cosine_schedule_gives_the_variance_preserving_mean_a_cosine(end):
    schedule = eqmdm.CosineSchedule(end)
    one = jnp.ones(())
    integral = schedule.integrated_rate(0 * one, one)
    assert tree_allclose(integral, jnp.asarray(end), rtol=2e-15, atol=0)
    theta = jnp.arccos(jnp.exp(-end / 2 * one))
    diffusion = eqmdm.VPSDE(schedule=schedule)
    t = jnp.linspace(0.01, 0.95, 7)
    mean_map = jax.vmap(lambda t: diffusion.transition(0 * t, t).mean_map[0, 0])(t)
    assert tree_allclose(mean_map, jnp.cos(theta * t), rtol=1e-12, atol=0)


def _exact_cosine_schedule(end):
    """The rate, its integral from `s`, the inverse and the condition number of the rate
    in the time, in 60 digits."""
    theta = mp.acos(mp.exp(-mp.mpf(end) / 2))
    log_cosine = lambda t: mp.log(mp.cos(theta * mp.mpf(float(t))))
    return (
        lambda t: 2 * theta * mp.tan(theta * mp.mpf(float(t))),
        lambda s, t: 2 * (log_cosine(s) - log_cosine(t)),
        lambda integral: mp.acos(mp.exp(-mp.mpf(float(integral)) / 2)) / theta,
        lambda t: 2 * theta * mp.mpf(float(t)) / mp.sin(2 * theta * mp.mpf(float(t))),
    )


def _roundings(actual, exact, allowed=None):
    """The largest error, in units in the last place and in those that are allowed."""
    units = float(jnp.finfo(actual.dtype).eps)
    allowed = [1] * len(exact) if allowed is None else allowed
    worst = max(
        abs(mp.mpf(float(x)) - y) / abs(y) / (units * n)
        for x, y, n in zip(np.asarray(actual), exact, allowed, strict=True)
    )
    return float(worst)


COSINE_ENDS = [1e-3, 0.5, 10.0, 40.0, 170.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("end", COSINE_ENDS)
def test_cosine_schedule_is_accurate_to_roundings_up_to_time_one(end, dtype):
    # What the schedule sees: the nearest number of the dtype.
    end = float(np.asarray(end, dtype))
    schedule = eqmdm.CosineSchedule(end)
    spaced = np.linspace(0.01, 1, 60)
    ends = np.logspace(-8, -1, 30)
    t = np.unique(np.concatenate([spaced, ends, 1 - ends]).astype(dtype))
    with mp.workdps(60):
        rate, integral, inverse, _ = _exact_cosine_schedule(end)
        # The angle, two sines and a quotient round about once each.
        actual = jax.vmap(schedule.rate)(jnp.asarray(t))
        assert _roundings(actual, [rate(x) for x in t]) < 16

        s = np.random.default_rng(0).permutation(t)
        s, t = np.minimum(s, t), np.maximum(s, t)
        s, t = s[s < t], t[s < t]
        # The logarithm of the ratio of the cosines magnifies by up to 2.8.
        actual = jax.vmap(schedule.integrated_rate)(jnp.asarray(s), jnp.asarray(t))
        exact = [integral(x, y) for x, y in zip(s, t, strict=True)]
        assert _roundings(actual, exact) < 16

        values = np.concatenate([ends, end * spaced, [1e-30]]).astype(dtype)
        actual = jax.vmap(schedule.inverse)(jnp.asarray(values))
        assert _roundings(actual, [inverse(x) for x in values]) < 16


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("end", [1e-3, 0.5, 10.0])
def test_cosine_schedule_loses_what_its_condition_says_beyond_time_one(end, dtype):
    end = float(np.asarray(end, dtype))
    schedule = eqmdm.CosineSchedule(end)
    limit = schedule.t_limit
    t = (limit - (limit - 1) * np.logspace(-5, 0, 40)).astype(dtype)
    t = t[(t > 1) & (t < limit * (1 - 1e-6))]
    with mp.workdps(60):
        rate, integral, _, condition = _exact_cosine_schedule(end)
        # The angle that is left is a difference, off by roundings of its larger part.
        lost = [1 + 2 * condition(x) * (x - 1) / x for x in map(mp.mpf, map(float, t))]
        actual = jax.vmap(schedule.rate)(jnp.asarray(t))
        assert _roundings(actual, [rate(x) for x in t], lost) < 16

        actual = jax.vmap(schedule.integrated_rate)(jnp.zeros_like(t), jnp.asarray(t))
        exact = [integral(0, x) for x in t]
        lost = [1 + n / value for n, value in zip(lost, exact, strict=True)]
        assert _roundings(actual, exact, lost) < 16


@schedules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slopes_of_a_schedule_are_its_rate_and_finite_up_to_both_ends(schedule, dtype):
    t = jnp.asarray([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0], dtype)

    @eqx.filter_jit
    def slopes(schedule, t):
        zero = jnp.zeros_like(t)
        rate = jax.vmap(schedule.rate)(t)
        change = jax.vmap(jax.grad(schedule.integrated_rate, 1))(zero, t)
        back = jax.vmap(jax.grad(schedule.integrated_rate, 0))(t, t)
        bend = jax.vmap(jax.grad(schedule.rate))(t)
        integral = jax.vmap(schedule.integrated_rate)(zero, t)[1:]
        return rate, change, back, bend, jax.vmap(jax.grad(schedule.inverse))(integral)

    rate, change, back, bend, inverse = slopes(schedule, t)
    # Rounded like the rate, by another route: at the end of the cosine through a
    # quotient of two sines.
    rtol = 64 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(change, rate, rtol=rtol, atol=0)
    assert tree_allclose(back, -rate, rtol=rtol, atol=0)
    assert jnp.all(jnp.isfinite(bend))
    assert tree_allclose(inverse, 1 / rate[1:], rtol=rtol, atol=0)


def test_parameters_of_a_schedule_have_finite_slopes_at_both_ends():
    zero, one = jnp.zeros(()), jnp.ones(())
    for make, n in ((eqmdm.LinearSchedule, 2), (eqmdm.CosineSchedule, 1)):
        rates = (zero, 3 * one)[-n:]

        def values(*rates, make=make):
            schedule = make(*rates)
            integrals = [schedule.integrated_rate(zero, t) for t in (zero, one)]
            times = [schedule.inverse(value) for value in (zero, one)]
            return jnp.stack(
                [*integrals, *times, schedule.rate(zero), schedule.rate(one)]
            )

        slopes = jax.jacobian(values, argnums=tuple(range(n)))(*rates)
        assert all(jnp.all(jnp.isfinite(slope)) for slope in slopes)
        # At time 0 the integral is 0, and the time at 0 is 0, whatever the rates.
        assert all(jnp.all(slope[jnp.asarray([0, 2])] == 0) for slope in slopes)


@schedules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_of_nothing_is_time_zero(schedule, dtype):
    zero = jnp.zeros((), dtype)
    assert schedule.inverse(zero) == 0
    rate = schedule.rate(zero)
    # One over the rate: infinite where the rate starts at 0, and never NaN.
    slope = jax.grad(schedule.inverse)(zero)
    rtol = 4 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(slope, 1 / rate, rtol=rtol, atol=0)


@schedules
@pytest.mark.parametrize("wrong", [-1e-3, math.nan, math.inf])
def test_schedules_refuse_what_is_outside_their_domain(schedule, wrong):
    fine, wrong = jnp.asarray(0.5), jnp.asarray(wrong)
    with pytest.raises(ValueError, match="`t` must be non-negative"):
        schedule.rate(wrong)
    with pytest.raises(ValueError, match="`t` must be non-negative"):
        schedule.integrated_rate(fine, wrong)
    with pytest.raises(ValueError, match="`s` must be non-negative"):
        schedule.integrated_rate(wrong, fine)
    with pytest.raises(ValueError, match="`integral` must be non-negative"):
        schedule.inverse(wrong)


def test_cosine_schedule_refuses_times_past_its_pole():
    schedule = eqmdm.CosineSchedule(10.0)
    late = jnp.asarray(schedule.t_limit)
    with pytest.raises(ValueError, match="`t` must be non-negative and below 1.004"):
        schedule.rate(late)
    with pytest.raises(ValueError, match="`t` must be non-negative and below 1.004"):
        schedule.integrated_rate(0 * late, 2 * late)
    # A traced call returns NaN, which cannot be mistaken for a rate.
    assert jnp.isnan(jax.jit(schedule.rate)(2 * late))
    assert jnp.isnan(jax.jit(schedule.integrated_rate)(0 * late, 2 * late))


def test_cosine_schedule_refuses_an_end_beyond_float32():
    with pytest.raises(ValueError, match="`end` must be at most 170"):
        eqmdm.CosineSchedule(171.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_schedules_refuse_rates_that_are_none(value):
    with pytest.raises(ValueError, match="`value` must be positive and finite"):
        eqmdm.ConstantSchedule(value)
    with pytest.raises(ValueError, match="`end` must be positive and finite"):
        eqmdm.CosineSchedule(value)
    with pytest.raises(ValueError, match="`rate1` must be positive and finite"):
        eqmdm.LinearSchedule(0.0, value)
    if value != 0:
        with pytest.raises(ValueError, match="`rate0` must be non-negative and finite"):
            eqmdm.LinearSchedule(value, 1.0)


def test_linear_schedule_refuses_a_rate_that_falls():
    with pytest.raises(ValueError, match="`rate1` must be at least `rate0`"):
        eqmdm.LinearSchedule(2.0, 1.0)


def test_schedules_can_be_built_from_traced_rates():
    def integral(rate):
        schedules = eqmdm.ConstantSchedule(rate), eqmdm.LinearSchedule(rate, rate)
        schedules += (eqmdm.CosineSchedule(rate),)
        zero, one = jnp.zeros(()), jnp.ones(())
        return sum(schedule.integrated_rate(zero, one) for schedule in schedules)

    value, slope = jax.jit(jax.value_and_grad(integral))(jnp.asarray(1.5))
    # Each integral up to 1 is the rate itself.
    assert tree_allclose(value, jnp.asarray(4.5), rtol=1e-14, atol=0)
    assert tree_allclose(slope, jnp.asarray(3.0), rtol=1e-13, atol=0)
