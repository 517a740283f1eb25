"""Tests of random inputs to the public interface: a correct result or a clear error.

Shapes come from small sets, so that compiled programs are shared; values do not.
"""

import functools
import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings, strategies as st
from references import DIGITS, as_arrays, exact_kernel

import eqmdm
from helpers import NOT_FINITE


# Random diffusions end anywhere.
pytestmark = pytest.mark.filterwarnings("ignore:The law of this diffusion")

# Hypothesis derives its examples from each test's name: see `conftest.py`.
few, some, many = (settings(max_examples=n) for n in (15, 40, 100))

DTYPES = st.sampled_from(["float32", "float64"])
N_VARS = st.integers(1, 4)
# Exact in float32, so that one reference serves both dtypes.
entries = st.floats(-2, 2, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
rates = st.floats(2.0**-10, 100, width=32)


def matrices(rows, columns):
    size = rows * columns
    values = st.lists(entries, min_size=size, max_size=size)
    return values.map(lambda x: np.array(x).reshape(rows, columns))


@st.composite
def recipes(draw, n_vars=N_VARS):
    """K, a skew matrix, and a root of a dissipation of any rank from 1 to K."""
    n_vars = draw(n_vars)
    half = draw(matrices(n_vars, n_vars))
    root = draw(matrices(n_vars, n_vars))
    # Columns of zeros keep the shape, and with it the program.
    root[:, draw(st.integers(1, n_vars)) :] = 0
    assume(root.any())
    return np.tril(half, -1) - np.tril(half, -1).T, root


@st.composite
def schedules(draw):
    kind = draw(st.sampled_from(["constant", "linear", "cosine"]))
    if kind == "constant":
        return as_arrays(eqmdm.ConstantSchedule(draw(rates)))
    if kind == "linear":
        low, high = sorted([draw(rates | st.just(0.0)), draw(rates)])
        return as_arrays(eqmdm.LinearSchedule(low, high))
    return as_arrays(eqmdm.CosineSchedule(draw(st.floats(2.0**-10, 160, width=32))))


def exact_schedule(schedule):
    """The rate, the integral from 0 and its inverse, in many digits."""
    values = [mp.mpf(float(leaf)) for leaf in jax.tree.leaves(schedule)]
    if isinstance(schedule, eqmdm.ConstantSchedule):
        (rate,) = values
        return lambda t: rate, lambda t: rate * t, lambda b: b / rate
    if isinstance(schedule, eqmdm.LinearSchedule):
        low, slope = values[0], values[1] - values[0]
        invert = lambda b: 2 * b / (low + mp.sqrt(low**2 + 2 * slope * b)) if b else b
        return lambda t: low + slope * t, lambda t: t * (low + slope * t / 2), invert
    # -log cos x = -log(1 - 2 sin^2(x / 2)), and acos(e^(-b / 2)) = atan(sqrt(e^b -
    # 1)): without the 1 of which an angle of 1e-40 takes nothing away.
    angle = lambda b: mp.atan(mp.sqrt(mp.expm1(b)))
    theta = angle(values[0])
    return (
        lambda t: 2 * theta * mp.tan(theta * t),
        lambda t: -2 * mp.log1p(-2 * mp.sin(theta * t / 2) ** 2),
        lambda b: angle(b) / theta,
    )


@jax.jit
def read_schedule(schedule, s, t, integral):
    return (
        schedule.rate(t),
        schedule.integrated_rate(s, t),
        schedule.integrated_rate(t, s),
        schedule.inverse(integral),
    )


def is_close(actual, exact, roundings, dtype):
    # Subnormal numbers may be flushed to 0.
    least = mp.mpf(float(jnp.finfo(dtype).tiny))
    error = abs(mp.mpf(float(actual)) - exact)
    return error <= roundings * float(jnp.finfo(dtype).eps) * abs(exact) + least


@many
# Whose cosine is 1 in 60 digits.
@example(as_arrays(eqmdm.CosineSchedule(10.0)), 0.0, 8.8e-37, 1e-30, "float32")
@example(as_arrays(eqmdm.CosineSchedule(10.0)), 0.0, 8.8e-37, 1e-30, "float64")
@given(
    schedules(),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32),
    st.floats(0, 2.0**10, width=32),
    DTYPES,
)
def test_schedule_at_any_time_is_accurate_to_roundings(schedule, s, t, integral, dtype):
    s, t = sorted([s, t])
    numbers = (jnp.asarray(x, dtype) for x in (s, t, integral))
    rate, forward, backward, time = read_schedule(schedule, *numbers)
    with mp.workdps(DIGITS):
        exact_rate, exact_integral, exact_inverse = exact_schedule(schedule)
        expected = exact_integral(mp.mpf(t)) - exact_integral(mp.mpf(s))
        # As test_schedule.py counts them; the logarithm of a ratio of cosines, taken
        # backwards, is of a number above 1, which it does not magnify.
        assert is_close(rate, exact_rate(mp.mpf(t)), 16, dtype)
        assert is_close(forward, expected, 16, dtype)
        assert is_close(backward, -expected, 16, dtype)
        assert is_close(time, exact_inverse(mp.mpf(integral)), 16, dtype)


@some
@given(schedules(), st.floats(width=32), DTYPES)
def test_schedule_refuses_any_time_outside_its_domain(schedule, t, dtype):
    schedule = jax.tree.map(float, schedule)
    time, fine = jnp.asarray(t, dtype), jnp.asarray(0.5, dtype)
    if 0 <= t < schedule.t_limit:
        assert schedule.rate(time) >= 0
        return
    for read in (schedule.rate, lambda x: schedule.integrated_rate(fine, x)):
        with pytest.raises(ValueError, match="`t` must be non-negative"):
            read(time)
    with pytest.raises(ValueError, match="`s` must be non-negative"):
        schedule.integrated_rate(time, fine)
    if not 0 <= t < math.inf:
        with pytest.raises(ValueError, match="`integral` must be non-negative"):
            schedule.inverse(time)


@some
@given(st.sampled_from(["value", "rate0", "rate1", "end"]), st.floats())
def test_schedule_is_built_of_positive_finite_rates_alone(name, number):
    make = {
        "value": eqmdm.ConstantSchedule,
        "rate0": lambda x: eqmdm.LinearSchedule(x, max(x, 1.0)),
        "rate1": lambda x: eqmdm.LinearSchedule(0.0, x),
        "end": eqmdm.CosineSchedule,
    }[name]
    largest = 170 if name == "end" else sys.float_info.max
    if 0 < number <= largest or (name == "rate0" and number == 0):
        make(number)
        return
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make(number)


@eqx.filter_jit
def laws_of(diffusion, t):
    return diffusion.compute_kernel(t)


def in_float64(matrix):
    return np.array(matrix.tolist(), float).reshape(matrix.rows, matrix.cols)


def amplification(root):
    """The factor by which relative changes of rows grow in a covariance factor."""
    return np.linalg.cond(root / np.linalg.norm(root, axis=1, keepdims=True))


@settings(max_examples=80)
@given(recipes(), st.floats(2.0**-10, 20, width=32), DTYPES)
def test_kernel_of_any_recipe_is_that_of_many_digits(recipe, tau, dtype):
    skew, noise = recipe
    n_vars = len(skew)
    try:
        diffusion = eqmdm.LinearDiffusion(
            skew,
            dissipation_root=noise,
            schedule=eqmdm.ConstantSchedule(1.0),
            learn=("skew", "dissipation"),
        )
    except ValueError as error:
        assert "noise must reach every variable" in str(error)
        return
    laws = laws_of(diffusion, jnp.asarray(tau, dtype))
    start = np.diag([0.0] + [0.1] * (n_vars - 1))
    eps = float(jnp.finfo(dtype).eps)
    norm = np.linalg.norm(skew + noise @ noise.T, 2)
    for root, start_root in (
        (laws.step.root, 0 * start),
        (laws.root, start),
    ):
        psi, exact_root = exact_kernel(skew, noise, np.eye(n_vars), start_root, tau)
        expected = in_float64(exact_root)
        rows = np.linalg.norm(expected, axis=1)
        # Each doubling and each term of the series rounds by the size of what is added.
        roundings = 64 * n_vars * (1 + norm * tau) * eps
        factor = amplification(expected)
        if factor * roundings > 0.1:
            # A covariance that is numerically singular in this dtype.
            assert np.all(np.isfinite(np.asarray(root)))
            continue
        error = np.abs(np.asarray(root, float) - expected)
        assert np.all(error <= factor * roundings * rows[:, None])
        # A contraction, of norm 1 at the most.
        mean_error = np.abs(np.asarray(laws.step.mean_map, float) - in_float64(psi))
        assert np.all(mean_error <= roundings)


@some
@given(recipes(), st.sampled_from(["skew", "dissipation", "root", "start"]), st.data())
def test_matrix_that_is_none_of_its_kind_is_refused_by_name(recipe, which, data):
    skew, noise = recipe
    n_vars = len(skew)
    arguments = {
        "skew": skew,
        "dissipation": noise @ noise.T,
        "root": noise,
        "start": np.diag([0.0] + [0.1] * (n_vars - 1)),
    }
    matrix = arguments[which].copy()
    i, j = (data.draw(st.integers(0, n_vars - 1)) for _ in range(2))
    fault = data.draw(st.sampled_from(["not finite", "shape", "kind"]))
    if fault == "not finite":
        matrix[i, j] = data.draw(st.sampled_from(NOT_FINITE))
    elif fault == "shape":
        matrix = matrix[:, 0] if data.draw(st.booleans()) else matrix[None]
    elif which == "root":
        return  # Every matrix is a root.
    elif which == "skew":
        matrix[i, j] += 0.5
        # This changes one of two entries that must be opposite.
        assume(i == j or not np.allclose(matrix, -matrix.T))
    elif which == "dissipation":
        matrix[i, i] = -0.5
    else:
        matrix[0, j] = 0.5
    arguments[which] = jnp.asarray(matrix) if data.draw(st.booleans()) else matrix
    chosen = "root" if which == "root" else "dissipation"
    name = {"root": "dissipation_root", "start": "start_covariance"}.get(which, which)
    with pytest.raises(ValueError, match=f"`{name}` must"):
        eqmdm.LinearDiffusion(
            arguments["skew"],
            start_covariance=arguments["start"],
            schedule=eqmdm.ConstantSchedule(),
            **{"dissipation" + "_root" * (chosen == "root"): arguments[chosen]},
        )


@functools.cache
def diffusions():
    """One diffusion of each kind, each with its own interval."""
    coupled = [[0.0, -1.0], [1.0, 0.0]]
    return {
        "VPSDE": eqmdm.VPSDE(
            schedule=eqmdm.CosineSchedule(), interval=eqmdm.TimeInterval(1e-4, 1.0)
        ),
        "CLD": eqmdm.CLD(interval=eqmdm.TimeInterval(1e-3, 0.5)),
        "ALDA": eqmdm.ALDA(interval=eqmdm.TimeInterval(1e-2, 2.0)),
        "VESDE": eqmdm.VESDE(),
        "SubVPSDE": eqmdm.SubVPSDE(),
        "two schedules": eqmdm.TwoScheduleDiffusion(
            coupled,
            np.eye(2),
            skew_schedule=eqmdm.ConstantSchedule(),
            dissipation_schedule=eqmdm.LinearSchedule(0.5, 1.0),
        ),
    }


KINDS = st.sampled_from(["VPSDE", "CLD", "ALDA", "VESDE", "SubVPSDE", "two schedules"])
# The limits of the intervals, and values around them.
times = st.sampled_from([0.0, -0.0, 1e-4, 1e-3, 1e-2, 0.5, 1.0, 2.0, *NOT_FINITE])
times = times | st.floats(0, 1, width=32) | st.floats(width=32)


@eqx.filter_jit
def traced_transition(diffusion, s, t):
    return diffusion.transition(s, t)


@many
@given(KINDS, times, times)
def test_transition_between_any_times_is_right_or_names_the_time(kind, s, t):
    diffusion = diffusions()[kind]
    numbers = jnp.asarray(s), jnp.asarray(t)
    inside = 0 <= s <= t <= float(diffusion.t1) * (1 + 1e-12)
    if not inside:
        with pytest.raises(ValueError, match="`[st]` must lie"):
            diffusion.transition(*numbers)
        with pytest.raises(eqx.EquinoxRuntimeError, match="`[st]` must lie"):
            traced_transition(diffusion, *numbers)
        return
    law = traced_transition(diffusion, *numbers)
    if s == t:
        assert np.array_equal(law.mean_map, np.eye(diffusion.n_vars))
        assert not np.any(law.root)
        return
    # Chapman and Kolmogorov, by a time between the two: the composed transitions are
    # accurate to the fourth power of their steps, the others to roundings.
    middle = jnp.asarray(s + 0.5 * (t - s))
    first = traced_transition(diffusion, numbers[0], middle)
    second = traced_transition(diffusion, middle, numbers[1])
    tolerance = 1e-6 if kind == "two schedules" else 1e-9
    mean_map = np.asarray(second.mean_map @ first.mean_map)
    np.testing.assert_allclose(law.mean_map, mean_map, rtol=0, atol=tolerance)
    carried = np.asarray(second.mean_map @ first.root)
    covariance = carried @ carried.T + np.asarray(second.root @ second.root.T)
    expected = np.asarray(law.root @ law.root.T)
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    # Digits are lost if the interval is only a few rounding errors long.
    lost = np.finfo(float).eps * t / (t - s)
    assert np.all(np.abs(covariance - expected) <= (tolerance + 16 * lost) * size)


@some
@given(KINDS, times)
def test_log_snr_and_its_time_are_inverse_or_name_their_argument(kind, t):
    diffusion = diffusions()[kind]
    if not 0 < t <= float(diffusion.t1) * (1 + 1e-12):
        message = "`t` must be positive|`t` must lie within the interval"
        with pytest.raises(ValueError, match=message):
            diffusion.perturbation_kernel(jnp.asarray(t))
        return
    log_snr = float(traced_log_snr(diffusion, jnp.asarray(t)))
    # The search begins at 1e-9, before which there is no kernel in any dtype.
    assume(t > 1e-8)
    found = traced_time(diffusion, jnp.asarray(log_snr))
    # If log-SNR is stationary, as for ALDA, many times share a value.
    again = float(traced_log_snr(diffusion, jnp.minimum(found, diffusion.t1)))
    assert abs(again - log_snr) <= 1e-8 * max(1, abs(log_snr))


@eqx.filter_jit
def traced_log_snr(diffusion, t):
    return diffusion.log_snr(t)


@eqx.filter_jit
def traced_time(diffusion, log_snr):
    return diffusion.time_at_log_snr(log_snr)


@pytest.mark.parametrize("log_snr", [*NOT_FINITE, 1e3, -1e4, 1e300])
def test_time_at_a_log_snr_that_there_is_not_is_refused(log_snr):
    with pytest.raises(ValueError, match="`log_snr` must be"):
        diffusions()["CLD"].time_at_log_snr(jnp.asarray(log_snr))


@some
@given(st.sampled_from(["TimeInterval", "LogSNRInterval"]), st.floats(), st.floats())
def test_ends_are_a_range_or_are_refused_by_name(name, low, high):
    # A schedule without a largest time, so that every t1 is allowed.
    usable = low < high and math.isfinite(low) and math.isfinite(high)
    if usable and (name == "LogSNRInterval" or low > 0):
        return  # Whether they are reached is the test above.
    with pytest.raises(ValueError, match="`interval` must have finite"):
        getattr(eqmdm, name)(low, high)


SHAPES = st.sampled_from([(), (3,), (4, 4, 1)])


@eqx.filter_jit
def read_states(diffusion, t, x, noise, key):
    law = diffusion.compute_kernel(t)
    y = diffusion.draw_start(x, key=key)
    return law, y, law.step.perturb(y, noise), law.perturb(x, noise)


@some
@given(st.sampled_from(["VPSDE", "CLD", "ALDA"]), SHAPES, DTYPES, st.integers(0, 99))
def test_states_of_any_shape_are_matrix_products_over_the_vars(
    kind, shape, dtype, seed
):
    diffusion = diffusions()[kind]
    x = jr.normal(jr.key(seed), shape, dtype)
    noise = jr.normal(jr.key(seed + 1), (diffusion.n_vars, *shape), dtype)
    t = jnp.asarray(0.4, dtype)
    law, y, *perturbed = read_states(diffusion, t, x, noise, jr.key(seed))
    assert np.array_equal(y[0], x) and y.dtype == dtype
    product = lambda matrix, state: np.tensordot(
        np.asarray(matrix, float), np.asarray(state, float), 1
    )
    rtol = 16 * float(jnp.finfo(dtype).eps)
    parts = (law.step.mean_map, y, law.step.root), (law.mean_map[:, None], x[None])
    for actual, expected in zip(perturbed, parts, strict=True):
        matrix, state, root = (*expected, law.root)[:3]
        expected = product(matrix, state) + product(root, noise)
        assert actual.shape == (diffusion.n_vars, *shape) and actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * rtol)
