import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqmdm
from eqmdm._sampling.grids import (
    CustomGrid,
    LogSNRGrid,
    QuadraticGrid,
    RhoGrid,
    UniformGrid,
)
from helpers import tree_allclose


GRIDS = {
    "uniform": UniformGrid(),
    "quadratic": QuadraticGrid(),
    "log-SNR": LogSNRGrid(),
    "rho": RhoGrid(),
}
DIFFUSIONS = {
    "VPSDE": eqmdm.VPSDE(),
    "CLD": eqmdm.CLD(),
    # Its log-SNR is stationary at two times before this end, and its cut is at 48.
    "ALDA": eqmdm.ALDA(interval=eqmdm.TimeInterval(1e-3, 1.1)),
    "VESDE": eqmdm.VESDE(),
}
N_STEPS = 40


def log_snrs(diffusion, times):
    return jax.jit(jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr))(times)


@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_times_decrease_from_the_horizon_to_the_cut(grid, name):
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
@pytest.mark.parametrize("diffusion", ["VPSDE", "CLD", "ALDA"])
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
        # Whatever their own rounding.
        assert found[-1] == diffusion.t0


def test_counts_below_one_are_refused():
    for grid in GRIDS.values():
        with pytest.raises(ValueError, match="`n_steps` must be at least 1; got 0"):
            grid(DIFFUSIONS["VPSDE"], 0, jnp.float64)


def test_steps_that_the_dtype_does_not_resolve_are_refused():
    # Next to 1 the spacing of float32 is 6e-8.
    times = CustomGrid([1.0, 1.0 - 1e-8, 0.001])
    with pytest.raises(ValueError, match="must strictly decrease.*not at t = 1.0"):
        times(DIFFUSIONS["VPSDE"], 2, jnp.float32)
    with pytest.raises(eqx.EquinoxRuntimeError, match="must strictly decrease"):
        eqx.filter_jit(times)(DIFFUSIONS["VPSDE"], 2, jnp.float32)


@pytest.mark.parametrize("times", [[1.0], 1.0, [[1.0, 0.5]]], ids=str)
def test_custom_times_of_another_shape_are_refused(times, unchecked):
    with pytest.raises(ValueError, match="`times` must be a vector of two"):
        CustomGrid(times)


def test_custom_times_that_do_not_decrease_are_refused():
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
    with pytest.raises(ValueError, match="`n_steps` must be 1, one less"):
        CustomGrid([1.0, 0.001])(diffusion, 2, jnp.float64)


@pytest.mark.parametrize("rho", [0.0, -1.0, float("inf"), float("nan")], ids=str)
def test_rho_that_is_not_positive_is_refused(rho):
    with pytest.raises(ValueError, match="`rho` must be positive"):
        RhoGrid(rho)
