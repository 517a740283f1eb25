from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqmdm
from eqmdm import CustomGrid, LogSNRGrid, QuadraticGrid, RhoGrid, UniformGrid
from helpers import slow, tree_allclose


GRIDS = {
    "uniform": UniformGrid(),
    "quadratic": QuadraticGrid(),
    "log-SNR": LogSNRGrid(),
    "rho": RhoGrid(),
}
DIFFUSIONS = {
    "VPSDE": eqmdm.VPSDE(),
    "CLD": eqmdm.CLD(),
    # Its log-SNR is stationary at two times before this t1, and its t0 is at 48.
    "ALDA": eqmdm.ALDA(interval=eqmdm.TimeInterval(1e-3, 1.1)),
    "VESDE": eqmdm.VESDE(),
}
N_STEPS = 40


def log_snrs(diffusion, times):
    return jax.jit(jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr))(times)


@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_times_decrease_from_t1_to_t0(grid, name):
    diffusion = DIFFUSIONS[name]
    for dtype in (jnp.float32, jnp.float64):
        times = grid(diffusion, N_STEPS, dtype)
        assert times.shape == (N_STEPS + 1,) and times.dtype == dtype
        assert times[0] == diffusion.t1.astype(dtype)
        assert times[-1] == diffusion.t0.astype(dtype)
        assert jnp.all(jnp.diff(times) < 0)


def test_one_step_goes_from_end_to_end():
    diffusion = DIFFUSIONS["CLD"]
    for grid in GRIDS.values():
        times = grid(diffusion, 1, jnp.float64)
        assert jnp.all(times == jnp.stack([diffusion.t1, diffusion.t0]))


@pytest.mark.parametrize(
    "name, quantity",
    [
        ("uniform", lambda t, l: t),
        ("quadratic", lambda t, l: np.sqrt(np.maximum(t - t[-1], 0))),
        ("log-SNR", lambda t, l: l),
        ("rho", lambda t, l: np.exp(-0.5 * l / 7)),
    ],
    ids=GRIDS.keys(),
)
@pytest.mark.parametrize("diffusion", [slow("VPSDE"), "CLD", "ALDA"])
def test_steps_are_equal_in_the_quantity_of_the_grid(name, quantity, diffusion):
    diffusion = DIFFUSIONS[diffusion]
    times = GRIDS[name](diffusion, N_STEPS, jnp.float64)
    values = quantity(np.asarray(times), np.asarray(log_snrs(diffusion, times)))
    expected = np.linspace(values[0], values[-1], N_STEPS + 1)
    # Kernels are good to 1e-12 relative, and roots of differences to half as many
    # digits at their zero.
    scale = np.abs(values).max()
    assert tree_allclose(values, expected, rtol=0, atol=1e-9 * scale)


def test_rho_grid_tends_to_the_one_uniform_in_log_snr():
    diffusion = DIFFUSIONS["CLD"]
    limit = LogSNRGrid()(diffusion, N_STEPS, jnp.float64)
    gaps = [
        jnp.max(jnp.abs(RhoGrid(rho)(diffusion, N_STEPS, jnp.float64) - limit))
        for rho in (1e3, 1e4)
    ]
    # First order in 1 / rho.
    assert gaps[1] < 0.11 * gaps[0] and gaps[1] < 1e-2


def test_quadratic_grid_is_finer_towards_the_data_than_the_uniform_one():
    diffusion = DIFFUSIONS["VPSDE"]
    uniform, quadratic = (
        grid(diffusion, N_STEPS, jnp.float64)
        for grid in (UniformGrid(), QuadraticGrid())
    )
    assert jnp.all(quadratic[1:-1] < uniform[1:-1])


def test_grids_are_made_under_jit():
    diffusion = DIFFUSIONS["VPSDE"]
    for grid in GRIDS.values():
        traced = eqx.filter_jit(grid)(diffusion, 5, jnp.float64)
        assert tree_allclose(
            traced, grid(diffusion, 5, jnp.float64), rtol=1e-9, atol=1e-12
        )


def test_custom_grid_has_the_times_given():
    diffusion = eqmdm.VPSDE(interval=eqmdm.TimeInterval(0.01, 1.0))
    for times in ([1.0, 0.3, 0.01], jnp.asarray([1.0, 0.3, 0.01], jnp.float32)):
        found = CustomGrid(times)(diffusion, 2, jnp.float64)
        assert tree_allclose(found, jnp.asarray([1.0, 0.3, 0.01]), rtol=1e-7, atol=0)
        # The last time is exactly t0, however the given time rounds.
        assert found[-1] == diffusion.t0
    # It knows how many steps it has.
    assert len(CustomGrid(times)(diffusion)) == 3


def test_counts_below_one_raise():
    for grid in GRIDS.values():
        with pytest.raises(ValueError, match="`n_steps` must be at least 1; got 0"):
            grid(DIFFUSIONS["VPSDE"], 0, jnp.float64)


def test_steps_that_the_dtype_does_not_resolve_raise():
    # Next to 1 the spacing of float32 is 6e-8.
    times = CustomGrid([1.0, 1.0 - 1e-8, 0.001])
    with pytest.raises(ValueError, match="must strictly decrease.*do not at t = 1.0"):
        times(DIFFUSIONS["VPSDE"], 2, jnp.float32)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must strictly decrease"):
        eqx.filter_jit(times)(DIFFUSIONS["VPSDE"], 2, jnp.float32)


@pytest.mark.parametrize("times", [[1.0], 1.0, [[1.0, 0.5]]], ids=str)
def test_custom_times_of_another_shape_raise(times, unchecked):
    with pytest.raises(ValueError, match="`times` must be a vector of two"):
        CustomGrid(times)


def test_custom_times_that_do_not_decrease_raise():
    with pytest.raises(ValueError, match="they do not at t = 0.5"):
        CustomGrid([1.0, 0.4, 0.5, 0.001])
    with pytest.raises(ValueError, match="they do not at t = nan"):
        CustomGrid([1.0, float("nan"), 0.001])


def test_custom_times_must_fit_the_diffusion_and_the_count():
    diffusion = eqmdm.VPSDE()
    with pytest.raises(ValueError, match="the first is 0.9 and t1 is 1.0"):
        CustomGrid([0.9, 0.001])(diffusion, 1, jnp.float64)
    with pytest.raises(ValueError, match="the last is 0.01 and t0 is 0.001"):
        CustomGrid([1.0, 0.01])(diffusion, 1, jnp.float64)
    with pytest.raises(ValueError, match="`n_steps` must be 1 or left out, one less"):
        CustomGrid([1.0, 0.001])(diffusion, 2, jnp.float64)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("inf"), float("nan")], ids=str)
def test_rho_that_is_not_positive_raises(rho):
    with pytest.raises(ValueError, match="`rho` must be positive"):
        RhoGrid(rho)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_number_of_steps_is_that_of_the_grid_by_default(grid):
    diffusion = DIFFUSIONS["VPSDE"]
    assert len(grid(diffusion)) == 51
    assert grid(diffusion).dtype == jnp.float64
    assert len(LogSNRGrid(n_steps=7)(diffusion)) == 8
    assert len(LogSNRGrid(n_steps=7)(diffusion, 9)) == 10


@pytest.mark.parametrize(
    "through",
    [
        [0.37],
        [1.0, 0.5, 0.001],
        # Several within one step of the grid, and at either end of it.
        [0.9991, 0.999, 0.9989],
        [0.5, 0.4999, 0.4998],
        [0.001003, 0.001002, 0.001001],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
    ],
    ids=lambda times: f"{times[0]}-{len(times)}",
)
def test_grid_goes_through_given_times_in_as_many_steps(through):
    diffusion = DIFFUSIONS["VPSDE"]
    for grid in (UniformGrid(), LogSNRGrid()):
        plain = np.asarray(grid(diffusion, 12))
        times = np.asarray(grid(diffusion, 12, through=jnp.asarray(through)))
        assert len(times) == 13 and np.all(np.diff(times) < 0)
        assert times[0] == plain[0] and times[-1] == plain[-1]
        assert set(through) <= set(times)
        # Of the others none has moved.
        assert set(times) - set(through) <= set(plain)


def test_grid_needs_more_steps_than_times_to_go_through():
    with pytest.raises(ValueError, match="`save_at` must have fewer times.*4 for 4"):
        times = jnp.asarray([0.8, 0.6, 0.4, 0.2])
        UniformGrid()(DIFFUSIONS["VPSDE"], 4, through=times)


def test_small_rho_stays_within_single_precision():
    # The roots of the noise levels are from 1e-40 to 1e34.
    diffusion = eqmdm.VESDE()
    times = RhoGrid(0.05)(diffusion, 10, jnp.float32)
    with jax.enable_x64(False):
        single = RhoGrid(0.05)(eqmdm.VESDE(), 10)
    assert single.dtype == jnp.float32 and jnp.all(jnp.diff(single) < 0)
    assert tree_allclose(single, times, rtol=1e-4, atol=0)


@final
class Cosine(eqmdm.AbstractGrid):
    n_steps: int = 20

    def compute_times(self, diffusion, n_steps):
        share = jnp.sin(0.5 * jnp.pi * jnp.linspace(1, 0, n_steps + 1))
        return diffusion.t0 + (diffusion.t1 - diffusion.t0) * share


def test_own_grid_is_a_grid_like_any_other(key):
    diffusion = DIFFUSIONS["VPSDE"]
    times = Cosine()(diffusion)
    expected = np.sin(0.5 * np.pi * np.linspace(1, 0, 21))
    expected = 0.001 + 0.999 * expected
    assert tree_allclose(times, expected, rtol=1e-12, atol=1e-15)
    model = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
    sampler = eqmdm.DPMSolver(grid=Cosine())
    result = eqmdm.sample(
        model, (2,), key=key, n_samples=3, sampler=sampler, full_output=True
    )
    assert jnp.all(result.n_evaluations == 21)
