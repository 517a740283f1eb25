"""Tests that diffusions of known constants are computed on the host, accurately."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from references import DIGITS, TAUS, errors, exact_kernel, named_diffusions

import eqmdm
from eqmdm._diffusion import host
from eqmdm._model.base import kernel_at_ends
from helpers import counted, tree_allclose


NAMED = {
    "VPSDE": eqmdm.VPSDE,
    "CLD": eqmdm.CLD,
    "ALDA": eqmdm.ALDA,
    "MALDA": eqmdm.MALDA,
    "PSLD": eqmdm.PSLD,
    "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
    "VESDE": eqmdm.VESDE,
    "SubVPSDE": eqmdm.SubVPSDE,
}
STATIONARY = list(NAMED)[:6]
LOW, HIGH = -9.0, 13.3
every_named = pytest.mark.parametrize("name", NAMED)
# The integral of the rate is the time.
OPTIONS = {"schedule": eqmdm.ConstantSchedule(1.0)}


@every_named
@pytest.mark.parametrize(
    "interval",
    [eqmdm.TimeInterval(1e-3, 1.0), eqmdm.LogSNRInterval(LOW, HIGH)],
    ids=["time", "log-SNR"],
)
@pytest.mark.parametrize("schedule", [None, eqmdm.CosineSchedule()])
def test_named_diffusions_are_built_and_read_without_a_program(
    name, interval, schedule
):
    if schedule is not None and name == "VESDE":
        pytest.skip("the variance-exploding diffusion has no schedule")
    if schedule is not None and isinstance(interval, eqmdm.TimeInterval):
        interval = eqmdm.TimeInterval(1e-3, 0.99)
    options = (
        {"interval": interval}
        if schedule is None
        else dict(interval=interval, schedule=schedule)
    )
    jax.clear_caches()
    with counted() as programs:
        diffusion = NAMED[name](**options)
        repr(diffusion)
        numbers = diffusion.t0, diffusion.t1, diffusion.t_limit, diffusion.prior.root
    assert programs == {"traced": 0, "lowered": 0, "compiled": 0}
    assert all(number.dtype == jnp.float64 for number in numbers)


@pytest.mark.parametrize("name", STATIONARY)
def test_kernels_at_the_ends_are_those_of_a_program(name):
    diffusion = NAMED[name](interval=eqmdm.LogSNRInterval(LOW, HIGH))
    compute = jax.jit(diffusion.compute_kernel)
    expected = compute(diffusion.t0), compute(diffusion.t1)
    jax.clear_caches()
    with counted() as programs:
        actual = kernel_at_ends(diffusion)
    assert programs == {"traced": 0, "lowered": 0, "compiled": 0}
    # Both are accurate to 1e-12 relative to the largest entry of a row, which two
    # solves multiply by the condition number of a root, below 1e3.
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_learned_diffusion_is_built_with_one_program():
    key = jax.random.key(0)
    jax.clear_caches()
    with counted() as programs:
        eqmdm.LearnedDiffusion(
            3,
            key=key,
            learn_stationary=True,
            learn_start=True,
            learn_schedule=True,
            interval=eqmdm.LogSNRInterval(LOW, HIGH),
        )
    # The draw of its parameters.
    assert programs["compiled"] == 1


def exact_log_snr(diffusion, tau):
    recipe = diffusion.recipe
    parts = recipe.skew, recipe.dissipation_root, recipe.stationary_root
    start = np.asarray(recipe.start_root).reshape(diffusion.n_vars, -1)
    psi, root = exact_kernel(*parts, start, tau)
    with mp.workdps(DIGITS):
        whitened = mp.lu_solve(root, psi[:, 0])
        return mp.log((whitened.T * whitened)[0])


@pytest.mark.parametrize("low, high", [(-9.0, 13.3), (-2.0, 27.0)])
@pytest.mark.parametrize("name", STATIONARY)
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_times_of_log_snrs_have_them_in_60_digits(name, low, high):
    diffusion = NAMED[name](interval=eqmdm.LogSNRInterval(low, high), **OPTIONS)
    for t, log_snr in ((diffusion.t0, high), (diffusion.t1, low)):
        # The slope in the logarithm of time is at most 5 early and t late.
        tolerance = 1e-12 * (5 + float(t))
        assert abs(exact_log_snr(diffusion, float(t)) - log_snr) < tolerance


def test_times_of_log_snrs_of_the_scalar_diffusions_have_their_closed_forms():
    interval = eqmdm.LogSNRInterval(LOW, HIGH)
    ve, sub = eqmdm.VESDE(interval=interval), eqmdm.SubVPSDE(interval=interval)
    with mp.workdps(DIGITS):
        for level, t_ve, t_sub in ((HIGH, ve.t0, sub.t0), (LOW, ve.t1, sub.t1)):
            t_ve, t_sub = mp.mpf(float(t_ve)), mp.mpf(float(t_sub))
            sigma0, growth = mp.mpf(0.01), 2 * mp.log(50 / mp.mpf(0.01))
            variance = sigma0**2 * mp.expm1(growth * t_ve)
            assert abs(-mp.log(variance) - level) < 1e-12 * (1 + growth)
            B = mp.mpf(0.1) * t_sub + (10 - mp.mpf(0.1)) * t_sub**2 / 2
            log_snr = -B - 2 * mp.log(-mp.expm1(-B))
            assert abs(log_snr - level) < 1e-12 * 20


@pytest.mark.parametrize("name", list(named_diffusions()))
def test_host_kernels_are_those_of_60_digits(name):
    recipe = named_diffusions()[name].recipe
    Q, R = np.asarray(recipe.skew), np.asarray(recipe.dissipation_root)
    S = np.asarray(recipe.stationary_root)
    start = np.asarray(recipe.start_root).reshape(len(Q), -1)
    F = recipe.known_drift_matrix()
    step = host.transition(F, np.sqrt(2) * R, np.asarray(TAUS))
    kernel = host.kernel_after(step, start)
    for i, tau in enumerate(TAUS):
        psi, root = exact_kernel(Q, R, S, 0 * start, tau)
        diagonal, rows, mean = errors(step.mean_map[i], step.root[i], psi, root)
        # The limits of the compiled kernels.
        assert diagonal < 1e-12 and rows < 1e-12
        assert mean < (1e-12 if tau <= 5 else 1e-11)
        _, root = exact_kernel(Q, R, S, start, tau)
        mean_map = kernel.mean_map[i]
        diagonal, rows, _ = errors(mean_map, kernel.root[i], psi[:, 0], root)
        assert diagonal < 1e-12 and rows < 1e-12


@pytest.mark.parametrize("name", STATIONARY)
def test_host_log_snr_is_that_of_the_compiled_kernel(name):
    interval = eqmdm.TimeInterval(1e-4, 10.0)
    diffusion = NAMED[name](interval=interval, **OPTIONS)
    laws = diffusion.recipe.known_laws()
    taus = np.geomspace(1e-4, 6, 40)
    actual = laws.log_snr(taus, np.dtype(float))
    kernel = jax.jit(jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr))
    expected = np.asarray(kernel(jnp.asarray(taus)))
    # Two kernels of 1e-12.
    assert tree_allclose(actual, expected, rtol=1e-12, atol=4e-12)


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@pytest.mark.parametrize("n_vars, high, held", [(4, 60.0, True), (8, 180.0, False)])
def test_log_snr_that_the_dtype_does_not_resolve_is_an_error(n_vars, high, held):
    skew = np.diag(np.ones(n_vars - 1), -1) - np.diag(np.ones(n_vars - 1), 1)
    noise = np.diag([0.0] * (n_vars - 1) + [1.0])
    interval = eqmdm.LogSNRInterval(-9.0, high)
    build = lambda: eqmdm.LinearDiffusion(skew, noise, interval=interval)
    assert build().t0 > 0
    with jax.enable_x64(False):
        if held:
            diffusion = build()
            kernel = diffusion.compute_kernel(diffusion.t0)
            assert abs(kernel.log_snr - high) < 1e-3
            return
        with pytest.raises(ValueError, match="`log_snr` must be a value .*float32 res"):
            build()


# The warning.


@every_named
def test_named_diffusions_end_at_their_priors_by_default(name):
    # Warnings are errors.
    NAMED[name]()
    NAMED[name](interval=eqmdm.LogSNRInterval(LOW, HIGH))


def test_diffusion_that_ends_early_says_by_how_much_and_what_to_do():
    t1 = 0.3
    with pytest.warns(UserWarning, match="LogSNRInterval") as caught:
        eqmdm.VPSDE(interval=eqmdm.TimeInterval(1e-3, t1))
    integral = 0.1 * t1 + 9.9 * t1**2 / 2
    # Of N(x e^(-B/2), 1 - e^-B) from N(0, 1), averaged over x^2 = 1.
    expected = -0.5 * np.log(-np.expm1(-integral))
    assert f"is {expected:.2g} nats per dimension" in str(caught[0].message)


@pytest.mark.parametrize("name", ["VPSDE", "CLD", "MALDA", "PSLD", "VESDE", "SubVPSDE"])
def test_divergence_is_the_prior_term_of_the_bound(name):
    diffusion = NAMED[name]()
    laws = (
        diffusion._known_laws()
        if name in ("VESDE", "SubVPSDE")
        else diffusion.recipe.known_laws()
    )
    t1 = float(diffusion.t1)

    @eqx.filter_jit
    def prior_term(diffusion):
        kernel = diffusion.compute_kernel(jnp.asarray(t1))
        return diffusion.prior.kl_from(kernel.root, kernel.mean(jnp.ones(1)))

    expected = prior_term(diffusion)
    actual = laws.divergence(laws.integral(t1))
    assert abs(actual - float(expected)) < 1e-10 * float(expected) + 1e-14


def test_time_varying_and_two_schedule_diffusions_that_end_early_say_so():
    ornstein = lambda t: -0.5 * jnp.ones((1, 1), t.dtype)
    noise = lambda t: jnp.ones((1, 1), t.dtype)
    expected = -0.5 * np.log(-np.expm1(-1.0))
    match = f"is {expected:.2g} nats per dimension"
    with pytest.warns(UserWarning, match=match):
        eqmdm.TimeVaryingDiffusion(ornstein, noise, prior_covariance=[[1.0]])
    slow = eqmdm.ConstantSchedule(1.0)
    schedules = dict(skew_schedule=slow, dissipation_schedule=slow)
    with pytest.warns(UserWarning, match=match):
        eqmdm.TwoScheduleDiffusion([[0.0]], [[0.5]], **schedules)
    eqmdm.TimeVaryingDiffusion(
        ornstein,
        noise,
        prior_covariance=[[1.0]],
        interval=eqmdm.LogSNRInterval(LOW, HIGH),
        t_limit=16.0,
        n_steps=64,
    )


def test_learned_diffusion_that_starts_unmixed_says_so():
    with pytest.warns(UserWarning, match="is not its prior"):
        eqmdm.LearnedDiffusion(
            2, key=jax.random.key(0), interval=eqmdm.TimeInterval(1e-3, 0.2)
        )


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: -np.log(x), id="line"),
        # Stationary between, where interpolation is of no use.
        pytest.param(lambda x: -((np.log(x) + 3) ** 3), id="stationary"),
        pytest.param(
            lambda x: np.where(x < 1e-4, np.nan, -np.sqrt(x)), id="unresolved"
        ),
        pytest.param(lambda x: np.where(x < 0.02, 50.0, -50.0), id="jump"),
    ],
)
def test_search_ends_where_a_falling_function_crosses_its_levels(function):
    levels = np.array([-0.9, -0.02, 0.0, 2.0])
    points = host.first_below(function, levels, 1e-6, 10.0)
    # Above the level a spacing earlier, and not above it a spacing later; where the
    # function is known.
    near = 4 * np.finfo(float).eps * np.maximum(1, np.abs(np.log(points)))
    before, after = (function(points * np.exp(sign * near)) for sign in (-1, 1))
    reached = ~(function(np.full(4, 10.0)) >= levels)
    assert np.all(~(before < levels) & (after <= levels) | ~reached)
    assert np.all(points[~reached] == 10.0)


@pytest.mark.parametrize("name", STATIONARY)
def test_sampling_times_of_constants_take_no_program(name):
    diffusion = NAMED[name]()
    grids = [eqmdm.UniformGrid(), eqmdm.QuadraticGrid(), eqmdm.LogSNRGrid()]
    with counted() as programs:
        found = [grid(diffusion, 10) for grid in [*grids, eqmdm.RhoGrid()]]
    assert programs["traced"] == 0
    assert all(times[0] == diffusion.t1 for times in found)
