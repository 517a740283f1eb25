"""The learned schedule, whose rate is linear between knots."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm
from helpers import tree_allclose


_rate = eqx.filter_jit(lambda schedule, t: schedule.rate(t))
_integral = eqx.filter_jit(lambda schedule, s, t: schedule.integrated_rate(s, t))
_log_snr = eqx.filter_jit(lambda diffusion, t: diffusion.log_snr(t))


@pytest.fixture(params=["start", "steep"])
def schedule(request):
    made = eqmdm.LearnedSchedule(6)
    if request.param == "start":
        return made
    raw = jnp.asarray([-4.0, 3.0, -3.0, 5.0, -5.0, 4.0], jnp.float32)
    return eqx.tree_at(lambda s: s.raw_rates, made, raw)


def test_initial_rates_and_integrals_are_those_of_the_start():
    start = eqmdm.LinearSchedule(0.2, 15.0)
    interval = eqmdm.TimeInterval(1e-2, 0.5)
    made = eqmdm.LearnedSchedule(9, start=start, interval=interval)
    t0, t1 = jnp.asarray(1e-2), jnp.asarray(0.5)
    knots = jnp.geomspace(t0, t1, 9)
    # The start is linear, so the interpolant is the start itself, up to the rounding of
    # float32 parameters. At t0 the rate jumps.
    t = jnp.append(knots[1:], 0.07)
    rates = eqx.filter_jit(lambda schedule: jax.vmap(schedule.rate)(t))
    assert tree_allclose(rates(made), rates(start), rtol=1e-6, atol=0.0)


def test_integrals_at_both_ends_do_not_move(schedule):
    start = eqmdm.LinearSchedule()
    zero, t0, t1 = jnp.zeros(()), jnp.asarray(1e-3), jnp.asarray(1.0)
    for s, t in ((zero, t0), (t0, t1), (zero, t1)):
        expected = _integral(start, s, t)
        # Sums of six cells.
        actual = _integral(schedule, s, t)
        assert tree_allclose(actual, expected, rtol=1e-14, atol=0.0)
    diffusion = eqmdm.CLD(schedule=schedule)
    for name in ("t0", "t1"):
        t = getattr(diffusion, name)
        expected = _log_snr(eqmdm.CLD(), t)
        assert tree_allclose(_log_snr(diffusion, t), expected, rtol=1e-12, atol=0.0)


def test_integrated_rate_is_the_integral_of_the_rate(schedule):
    edges = np.concatenate([[0.0], schedule.knots, [1.4]])
    s, t = 4e-4, 1.3
    nodes, weights = np.polynomial.legendre.leggauss(2)
    total = 0.0
    cells = np.clip(edges, s, t)
    for left, right in zip(cells[:-1], cells[1:], strict=True):
        points = left + 0.5 * (right - left) * (nodes + 1)
        rates = [float(_rate(schedule, jnp.asarray(point))) for point in points]
        # Exact for a linear rate.
        total += 0.5 * (right - left) * (weights @ rates)
    actual = _integral(schedule, jnp.asarray(s), jnp.asarray(t))
    assert abs(float(actual) - total) < 1e-13 * total


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_undoes_integrated_rate(schedule, dtype):
    t = jnp.asarray([1e-6, 1e-3, 4e-3, 0.1, 0.5, 0.99, 1.0, 3.0], dtype)

    @eqx.filter_jit
    def there_and_back(schedule, t):
        integral = jax.vmap(schedule.integrated_rate)(jnp.zeros_like(t), t)
        rate = jax.vmap(schedule.rate)(t)
        return integral, rate, jax.vmap(schedule.inverse)(integral)

    eps = float(jnp.finfo(dtype).eps)
    # A few roundings of the integral, magnified by its condition number.
    integral, rate, back = map(np.asarray, there_and_back(schedule, t))
    t = np.asarray(t)
    error = np.abs(back - t)
    assert np.all(error <= 16 * eps * (t + integral / rate))


def test_derivatives_are_those_of_the_integral(schedule):
    zero, t = jnp.zeros(()), jnp.asarray(0.2)

    @eqx.filter_jit
    def slopes(schedule):
        integral = lambda t: schedule.integrated_rate(zero, t)
        # Of the inverse function too.
        return jax.grad(integral)(t), jax.grad(schedule.inverse)(integral(t))

    slope, inverse_slope = slopes(schedule)
    rate = _rate(schedule, t)
    assert tree_allclose(slope, rate, rtol=1e-13, atol=0.0)
    assert tree_allclose(inverse_slope, 1 / rate, rtol=1e-10, atol=0.0)


def test_training_moves_the_way_and_not_its_ends(key):
    interval = eqmdm.TimeInterval()
    parts = [
        eqmdm.VPSDE(schedule=eqmdm.LearnedSchedule(5, interval=interval))
        for _ in range(2)
    ]
    diffusion = eqmdm.BandedDiffusion(parts, [0, 1])
    model = eqmdm.NoiseModel(
        eqmdm.nn.MLP((2,), 1, width=8, depth=1, key=key), diffusion
    )
    optimiser = optax.adam(1e-2)
    state = eqmdm.TrainState.create(model, optimiser, key=key)
    before = _log_snr(diffusion, jnp.asarray(0.1))
    x = jr.normal(key, (32, 2)) * jnp.asarray([[0.1, 3.0]])
    state, _ = eqmdm.train_step(
        state, x, eqmdm.Objective(), optimiser, batch_size=32, n_inner=3
    )
    after = state.model.diffusion
    assert np.abs(_log_snr(after, jnp.asarray(0.1)) - before).min() > 1e-4
    for name in ("t0", "t1"):
        t = getattr(diffusion, name)
        # Parameters in float32.
        actual, expected = _log_snr(after, t), _log_snr(diffusion, t)
        assert tree_allclose(actual, expected, rtol=1e-12, atol=0.0)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="`n_knots` must be at least 2; got 1"):
        eqmdm.LearnedSchedule(1)
    with pytest.raises(ValueError, match=r"`start` must have a positive .*monotone"):
        eqmdm.LearnedSchedule(4, start=_Stops())
    with pytest.raises(ValueError, match="`interval` must have known times"):
        jax.jit(
            lambda t1: (
                eqmdm.LearnedSchedule(
                    4, interval=eqmdm.TimeInterval(1e-3, t1)
                ).raw_rates
            )
        )(1.0)


class _Stops(eqmdm.AbstractSchedule):
    """A rate of 1 until t = 0.5, and of 0 after that."""

    t_limit = np.inf

    def rate(self, t):
        return jnp.where(t < 0.5, 1.0, 0.0)

    def integrated_rate(self, s, t):
        return jnp.minimum(t, 0.5) - jnp.minimum(s, 0.5)

    def inverse(self, integral):
        return integral
