import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import as_parameters

import eqmdm
from eqmdm._model.time_change import make_timing
from helpers import tree_allclose


@pytest.mark.parametrize("clock", [eqmdm.LogSNRClock(), eqmdm.AngleClock()])
def test_readings_increase_with_noise_and_are_inverted(clock):
    log_snr, data_std = jnp.linspace(13.0, -13.0, 27), 0.5
    readings = jax.vmap(lambda l: clock.reading(l, data_std))(log_snr)
    assert jnp.all(jnp.diff(readings) > 0)
    # Near pi / 2 a rounding of the angle is one of its distance to pi / 2, e^-6.5.
    close = dict(rtol=1e-12, atol=1e-12)
    found = jax.vmap(lambda r: clock.log_snr(r, data_std))(readings)
    assert tree_allclose(found, log_snr, **close)


def test_angle_is_that_of_noise_and_data():
    log_snr, data_std = jnp.asarray(1.3), 0.5
    angle = eqmdm.AngleClock().reading(log_snr, data_std)
    noise = np.exp(-1.3 / 2)
    close = dict(rtol=1e-12, atol=0.0)
    assert tree_allclose(
        jnp.cos(angle), jnp.asarray(0.5 / np.hypot(0.5, noise)), **close
    )


@eqx.filter_jit
def _there_and_back(diffusion, clock, times):
    timing = make_timing(diffusion, clock, times.dtype)

    def at(t):
        reading, speed = jax.jvp(timing.reading, (t,), (jnp.ones_like(t),))
        return timing.time(reading), reading, speed

    (found, rates), readings, speeds = jax.vmap(at)(times)
    return found, rates, readings, speeds, timing.start, timing.end


@pytest.mark.parametrize(
    ("name", "clock"),
    [("VPSDE", eqmdm.AngleClock()), ("CLD", eqmdm.LogSNRClock())],
    ids=["VPSDE", "CLD"],
)
def test_time_is_found_from_the_reading(name, clock):
    diffusion = getattr(eqmdm, name)(interval=eqmdm.LogSNRInterval(-13.3, 13.3))
    times = jnp.geomspace(diffusion.t0, diffusion.t1, 60)
    found, rates, readings, speeds, start, end = _there_and_back(
        diffusion, clock, times
    )
    assert jnp.all(jnp.diff(readings) > 0)
    assert tree_allclose(
        (readings[0], readings[-1]), (start, end), rtol=1e-12, atol=0.0
    )
    # Log-SNR is known to some 1e-14, over slopes of it that are of order 1 in log t.
    assert tree_allclose(found, times, rtol=1e-10, atol=0.0)
    assert tree_allclose(rates, 1 / speeds, rtol=1e-7, atol=0.0)


def test_time_is_found_in_single_precision():
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-13.3, 13.3))
    times = jnp.geomspace(diffusion.t0, diffusion.t1, 60)
    args = diffusion, eqmdm.LogSNRClock()
    found, rates, *_ = _there_and_back(*args, times.astype(jnp.float32))
    expected = _there_and_back(*args, times)
    assert found.dtype == rates.dtype == jnp.float32
    # Readings of up to 13 have errors of 1e-6.
    assert tree_allclose(found.astype(float), times, rtol=1e-5, atol=0.0)
    assert tree_allclose(rates.astype(float), expected[1], rtol=1e-4, atol=0.0)


def test_stationary_log_snr_raises_with_its_time():
    diffusion = eqmdm.ALDA()
    message = "not strictly monotone near t = 0.8"
    with pytest.raises(ValueError, match=message) as error:
        make_timing(diffusion, eqmdm.LogSNRClock(), jnp.dtype(float))
    named = float(str(error.value).split("near t = ")[1].split(",")[0])
    times = jnp.geomspace(0.5 * named, diffusion.t1, 2000)
    log_snrs = jax.jit(jax.vmap(diffusion.log_snr))(times)
    slopes = -jnp.diff(log_snrs)
    stillest = jnp.argmin(slopes)
    assert slopes[stillest] < 1e-4 * slopes[0]
    # It is the time of the table before that, by steps of 1.03.
    assert named <= times[stillest] * 1.001 and times[stillest] < 1.03 * named


def test_stationary_log_snr_raises_under_jit():
    # Without parameters the diffusion is known while the program is traced.
    args = eqmdm.LogSNRClock(), jnp.asarray([0.1])
    with pytest.raises(ValueError, match="not strictly monotone near t = 0.8"):
        _there_and_back(eqmdm.ALDA(), *args)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not strictly monotone"):
        _there_and_back(as_parameters(eqmdm.ALDA()), *args)


@pytest.mark.parametrize("clock", [None, eqmdm.LogSNRClock()], ids=["own", "noise"])
def test_kernel_is_that_of_the_time(clock):
    diffusion = eqmdm.CLD(interval=eqmdm.TimeInterval(0.01, 0.8))

    @jax.jit
    def compare(t):
        timing = make_timing(diffusion, clock, t.dtype)
        reading = timing.reading(t)
        kernel, rate = timing.kernel(reading)
        return (kernel, rate), (diffusion.compute_kernel(t), timing.time(reading)[1])

    actual, expected = compare(jnp.asarray(0.3))
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-12)
