"""Tests of users' own diffusions and schedules, written with public names alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import eqmdm
from helpers import slow


INTERVALS = [eqmdm.TimeInterval(1e-3, 1.0), eqmdm.LogSNRInterval(-5.0, 9.0)]
every_interval = pytest.mark.parametrize(
    "interval", [slow(INTERVALS[0]), INTERVALS[1]], ids=["time", "log-SNR"]
)


class Ramp(eqmdm.AbstractSchedule):
    """A rate that grows as the square root of time, in `jax.numpy` alone."""

    end: float | jax.Array

    @property
    def t_limit(self):
        return float("inf")

    def rate(self, t):
        return 1.5 * jnp.asarray(self.end, t.dtype) * jnp.sqrt(t)

    def integrated_rate(self, s, t):
        # t^(3/2) - s^(3/2), factored.
        root = jnp.sqrt(s) + jnp.sqrt(t)
        total = (t - s) * (s + t + jnp.sqrt(s * t))
        return jnp.asarray(self.end, t.dtype) * jnp.where(root > 0, total / root, 0)

    def inverse(self, integral):
        return (integral / jnp.asarray(self.end, integral.dtype)) ** (2 / 3)


class Overdamped(eqmdm.AbstractStationaryDiffusion):
    """Langevin dynamics with three times the critical friction."""

    _recipe: eqmdm.Recipe

    def __init__(self, *, schedule=None, interval=None):
        self._recipe = eqmdm.Recipe.create(
            [[0.0, -1.0], [1.0, 0.0]],
            np.diag([0.0, 6.0]),
            schedule=schedule,
            interval=interval,
        )

    @property
    def recipe(self):
        return self._recipe


class LearnedFriction(eqmdm.AbstractStationaryDiffusion):
    """Langevin dynamics whose friction is the exponential of a parameter."""

    log_friction: jax.Array
    interval_: eqmdm.TimeInterval | eqmdm.LogSNRInterval

    @property
    def recipe(self):
        friction = jnp.exp(0.5 * self.log_friction)
        return eqmdm.Recipe(
            skew=((0.0, -1.0), (1.0, 0.0)),
            dissipation_root=jnp.zeros((2, 1)).at[1, 0].set(friction),
            stationary_root=((1.0, 0.0), (0.0, 1.0)),
            start_root=((0.0,), (0.1,)),
            schedule=eqmdm.LinearSchedule(),
            interval=self.interval_,
        )


class Direct(eqmdm.AbstractLinearDiffusion):
    """Langevin dynamics of constant rate 4 and critical friction, by its matrices."""

    friction: jax.Array
    interval_: eqmdm.TimeInterval | eqmdm.LogSNRInterval

    @property
    def n_vars(self):
        return 2

    @property
    def interval(self):
        return self.interval_

    @property
    def t_limit(self):
        return jnp.asarray(3.0)

    @property
    def prior(self):
        return eqmdm.Gaussian(jnp.eye(2))

    def start_root(self, dtype):
        return jnp.asarray([[0.0], [0.1]], dtype)

    def drift_matrix(self, t):
        matrix = jnp.asarray([[0.0, 1.0], [-1.0, 0.0]], t.dtype)
        return 4 * matrix.at[1, 1].set(-self.friction.astype(t.dtype))

    def diffusion_matrix(self, t):
        root = jnp.sqrt(8 * self.friction).astype(t.dtype)
        return jnp.stack([jnp.zeros((), t.dtype), root])[:, None]

    def compute_transition(self, s, t):
        return eqmdm.composed_transition(
            self.drift_matrix, self.diffusion_matrix, s, t, n_steps=16
        )


@eqx.filter_jit
def read(diffusion, t):
    kernel = diffusion.perturbation_kernel(t)
    times = diffusion.t0, diffusion.t1
    return kernel, diffusion.log_snr(t), times, [diffusion.log_snr(t) for t in times]


def assert_same(own, library, *, rtol=1e-10):
    """Assert that both have the same kernels, interval and log-SNRs of the interval."""
    actual, expected = (read(d, jnp.asarray(0.3)) for d in (own, library))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_allclose(x, y, rtol=rtol)
    if isinstance(own.interval, eqmdm.LogSNRInterval):
        assert_allclose(actual[-1], [9.0, -5.0], rtol=rtol)


@every_interval
def test_own_schedule_serves_a_diffusion_of_the_library(interval):
    diffusion = eqmdm.CLD(schedule=Ramp(5.0), interval=interval)
    # The process at t is that of unit rate at 5 t^(3/2).
    tau = lambda t: 5.0 * t**1.5
    unit = eqmdm.CLD(
        schedule=eqmdm.ConstantSchedule(1.0),
        interval=eqmdm.TimeInterval(float(tau(diffusion.t0)), float(tau(diffusion.t1))),
    )
    for t in (0.2, float(diffusion.t1)):
        actual = diffusion.perturbation_kernel(jnp.asarray(t))
        expected = unit.perturbation_kernel(jnp.asarray(tau(t)))
        assert_allclose(actual.mean_map, expected.mean_map, rtol=1e-11)
        assert_allclose(actual.root, expected.root, rtol=1e-11)
    if isinstance(interval, eqmdm.LogSNRInterval):
        assert_allclose(diffusion.log_snr(diffusion.t0), 9.0, rtol=1e-11)
        assert_allclose(diffusion.log_snr(diffusion.t1), -5.0, rtol=1e-11)
    assert repr(diffusion).startswith("CLD(skew=[[0, -1], [1, 0]]")


@pytest.mark.parametrize("cls", [eqmdm.CLD, eqmdm.SubVPSDE])
def test_times_move_with_the_parameters_of_an_own_schedule(cls):
    interval = eqmdm.LogSNRInterval(-5.0, 9.0)
    diffusion = cls(schedule=Ramp(jnp.asarray(5.0)), interval=interval)
    faster = eqx.tree_at(lambda d: d.schedule.end, diffusion, jnp.asarray(10.0))
    # The integral at t1 stays, so t1^(3/2) is halved.
    assert_allclose(faster.t1, diffusion.t1 / 2 ** (2 / 3), rtol=1e-10)
    assert_allclose(faster.log_snr(faster.t1), -5.0, rtol=1e-10)


@pytest.mark.parametrize("interval", INTERVALS, ids=["time", "log-SNR"])
def test_own_schedule_is_used_inside_jit(interval):
    build = lambda: eqmdm.SubVPSDE(schedule=Ramp(5.0), interval=interval)
    assert_allclose(jax.jit(lambda: build().t1)(), build().t1, rtol=1e-14)


@every_interval
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_own_stationary_diffusion_is_the_linear_one_of_its_matrices(interval):
    own = Overdamped(interval=interval)
    linear = eqmdm.LinearDiffusion(
        [[0.0, -1.0], [1.0, 0.0]], np.diag([0.0, 6.0]), interval=interval
    )
    assert_same(own, linear)
    assert repr(own).startswith("Overdamped(skew=[[0, -1], [1, 0]], dissipation=[[0, 0")


@every_interval
def test_own_stationary_diffusion_has_parameters(interval):
    own = LearnedFriction(jnp.log(jnp.asarray(2.0)), interval)
    assert_same(own, eqmdm.CLD(interval=interval))

    @jax.jit
    @jax.grad
    def slope_at(log_friction):
        diffusion = LearnedFriction(log_friction, interval)
        return diffusion.t1 + diffusion.log_snr(jnp.asarray(0.5))

    slope = slope_at(jnp.asarray(0.5))
    assert jnp.isfinite(slope) and slope != 0


@every_interval
def test_own_linear_diffusion_is_the_one_of_its_matrices(interval):
    own = Direct(jnp.asarray(2.0), interval)
    same = eqmdm.CLD(schedule=eqmdm.ConstantSchedule(4.0), interval=interval)
    assert_same(own, same, rtol=1e-9)
    t = jnp.asarray(0.3)
    log_snr = lambda friction: Direct(friction, interval).log_snr(t)
    gradient = jax.jit(jax.grad(log_snr))(jnp.asarray(2.0))
    assert jnp.isfinite(gradient) and gradient != 0
