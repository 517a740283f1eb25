import functools
import warnings

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import mpmath as mp
import numpy as np
import pytest
from references import exact_kernel

import eqmdm
from helpers import OPTIMISED, slow, tree_allclose


# For diffusions that deliberately end before their law is the prior.
ends_early = pytest.mark.filterwarnings("ignore:The law of this diffusion")

# Optimised, for claims about rounding errors in float32.
optimised_jit = functools.partial(jax.jit, compiler_options=OPTIMISED)


def made_up(**ends):
    return eqmdm.LinearDiffusion(
        [
            [0.0, 1.0, 0.0, -2.0],
            [-1.0, 0.0, 3.0, 0.0],
            [0.0, -3.0, 0.0, 1.0],
            [2.0, 0.0, -1.0, 0.0],
        ],
        np.diag([0.0, 0.5, 0.0, 2.0]),
        stationary_covariance=np.diag([1.0, 0.5, 2.0, 1.0]) + 0.1,
        **ends,
    )


def learned(n_vars, **options):
    return eqmdm.LearnedDiffusion(n_vars, key=jr.key(n_vars), **options)


def two_schedule(**ends):
    return eqmdm.TwoScheduleDiffusion(
        [[0.0, -1.0], [1.0, 0.0]],
        [[0.0, 0.0], [0.0, 2.0]],
        skew_schedule=eqmdm.LinearSchedule(0.5, 4.0),
        dissipation_schedule=eqmdm.LinearSchedule(),
        **({"interval": eqmdm.TimeInterval(1e-3, 1.5)} | ends),
    )


def time_varying_drift(t):
    turn, damp = jnp.cos(3 * t), 1 + t
    zero = jnp.zeros_like(t)
    return -4 * jnp.stack([jnp.stack([zero, turn]), jnp.stack([-turn, damp])])


def time_varying_noise(t):
    return 2 * jnp.sqrt(1 + t) * jnp.asarray([[0.2], [1.0]], t.dtype)


def time_varying(**ends):
    # Noise that turns with time leaves it no stationary law, so none is its prior.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return eqmdm.TimeVaryingDiffusion(
            time_varying_drift,
            time_varying_noise,
            prior_covariance=np.eye(2),
            **({"interval": eqmdm.TimeInterval(1e-3, 1.5)} | ends),
        )


# Each takes the interval, and uses its own default if none is given.
MAKERS = {
    "VPSDE": eqmdm.VPSDE,
    "CLD": eqmdm.CLD,
    "ALDA": eqmdm.ALDA,
    "MALDA": eqmdm.MALDA,
    "PSLD": eqmdm.PSLD,
    "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
    "LinearDiffusion": made_up,
    "LearnedDiffusion": lambda **ends: learned(2, **ends),
    "LearnedDiffusion-all": lambda **ends: learned(
        3, learn_stationary=True, learn_start=True, learn_schedule=True, **ends
    ),
    "VESDE": eqmdm.VESDE,
    "SubVPSDE": eqmdm.SubVPSDE,
    "TwoScheduleDiffusion": two_schedule,
    "TimeVaryingDiffusion": time_varying,
}
STATIONARY = [
    n for n in MAKERS if n not in ("VESDE", "SubVPSDE", "TimeVaryingDiffusion")
]
every_diffusion = pytest.mark.parametrize("name", MAKERS)


@functools.cache
def make(name):
    return MAKERS[name]()


# One for each way to compute a kernel or find a time, for tests that compile slowly.
KINDS = [
    "VPSDE",
    "CLD",
    "LinearDiffusion",
    "VESDE",
    "SubVPSDE",
    "TwoScheduleDiffusion",
    "TimeVaryingDiffusion",
]
every_kind = pytest.mark.parametrize("name", KINDS)


# One shape, so that each method of a diffusion is compiled once per dtype.
N_TIMES = 60


def evaluate(name, times):
    """The kernel and related quantities at `N_TIMES` times."""
    assert times.shape == (N_TIMES,)
    return _evaluate(name, str(times.dtype))(times)


@functools.cache
def _evaluate(name, dtype):
    diffusion = make(name)

    @(optimised_jit if dtype == "float32" else jax.jit)
    @jax.vmap
    def everything(t):
        def laws(t):
            kernel = diffusion.compute_kernel(t)
            return kernel, kernel.log_snr

        one = jnp.ones_like(t)
        (kernel, log_snr), (_, slope) = jax.jvp(laws, (t,), (one,))
        rate = diffusion.log_snr_rate(t, kernel)
        return {"kernel": kernel, "log_snr": log_snr, "slope": slope, "rate": rate}

    return everything


def grid(diffusion, dtype="float64"):
    t0, t1 = float(diffusion.t0), float(diffusion.t1)
    return jnp.asarray(np.geomspace(t0, t1, N_TIMES), dtype)


def levels_within(name):
    """Log-SNRs between those at t1 and t0."""
    first, last = evaluate(name, grid(make(name)))["log_snr"][jnp.asarray([0, -1])]
    return jnp.linspace(first - 1e-3, last + 1e-3, N_TIMES)


def with_float64(diffusion):
    widen = lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x
    return jax.tree.map(widen, diffusion)


def test_every_public_final_diffusion_is_tested():
    def finals(cls):
        for subclass in cls.__subclasses__():
            yield from finals(subclass)
            if not subclass.__name__.startswith(("Abstract", "_")):
                yield subclass

    own = {c for c in finals(eqmdm.AbstractLinearDiffusion) if c.__module__ != __name__}
    own = {c.__name__ for c in own if c.__module__.startswith("eqmdm.")}
    assert own == {type(make(name)).__name__ for name in MAKERS}


# The processes themselves.


@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_covariance_is_stationary(name):
    diffusion = make(name)
    t = jnp.asarray(0.3)
    F, G = diffusion.drift_matrix(t), diffusion.diffusion_matrix(t)
    S = diffusion.prior.root @ diffusion.prior.root.T
    balance = F @ S + S @ F.T + G @ G.T
    scale = float(jnp.max(jnp.abs(G @ G.T)))
    # A few products and one solve with a well-conditioned S.
    assert jnp.max(jnp.abs(balance)) <= 1e-14 * scale


@pytest.mark.parametrize("name", [n for n in STATIONARY if n != "TwoScheduleDiffusion"])
def test_matrices_are_those_of_the_recipe(name):
    diffusion = make(name)
    Q, D = diffusion.skew_matrix, diffusion.dissipation_matrix
    S, t = diffusion.stationary_covariance, jnp.asarray(0.3)
    rate = diffusion.schedule.rate(t)
    F = -rate * np.linalg.solve(S, (Q + D).T).T
    assert tree_allclose(Q, -Q.T, rtol=0, atol=0)
    assert tree_allclose(diffusion.drift_matrix(t), F, rtol=1e-13, atol=1e-13)
    G = diffusion.diffusion_matrix(t)
    assert tree_allclose(G @ G.T, 2 * rate * D, rtol=1e-13, atol=1e-14)
    # Noise enters some variables only.
    assert G.shape[1] == np.linalg.matrix_rank(D)
    assert jnp.all(diffusion.start_covariance[0] == 0)


def solved_moments(drift_and_noise, n_vars, s, t):
    """The mean map and covariance by an adaptive solve of their equations."""

    def moments(t, y, args):
        del args
        psi, sigma = y
        F, noise = drift_and_noise(t)
        return F @ psi, F @ sigma + sigma @ F.T + noise

    identity = jnp.eye(n_vars)
    solution = dfx.diffeqsolve(
        dfx.ODETerm(moments),
        dfx.Dopri8(),
        s,
        t,
        None,
        (identity, jnp.zeros_like(identity)),
        stepsize_controller=dfx.PIDController(rtol=1e-12, atol=1e-12),
    )
    return tuple(moment[-1] for moment in solution.ys)


@jax.jit
def solved_moments_of_linear_rates(ends, s, t):
    """The moments for matrices that are linear in time, given at 0 and 1."""
    at = lambda t: jax.tree.map(lambda low, high: low + t * (high - low), *ends)
    return solved_moments(at, 4, s, t)


def drift_and_noise(diffusion, t):
    G = diffusion.diffusion_matrix(t)
    return diffusion.drift_matrix(t), G @ G.T


@every_diffusion
def test_transition_solves_the_moment_equations(name):
    diffusion, n_vars = make(name), make(name).n_vars
    s, t, one = jnp.asarray(0.15), jnp.asarray(0.8), jnp.ones(())
    if name in STATIONARY:
        # Every schedule here is linear, so the matrices are; variables that stay at 0
        # make all of them of one size.
        ends = [drift_and_noise(diffusion, end) for end in (0 * one, one)]
        pad = lambda matrix: jnp.pad(matrix, (0, 4 - n_vars))
        solved = solved_moments_of_linear_rates(jax.tree.map(pad, ends), s, t)
        expected = tuple(moment[:n_vars, :n_vars] for moment in solved)
    else:
        rates = lambda t: drift_and_noise(diffusion, t)
        solve = jax.jit(lambda s, t: solved_moments(rates, n_vars, s, t))
        expected = solve(s, t)
    step = eqx.filter_jit(diffusion.transition)(s, t)
    actual = step.mean_map, step.root @ step.root.T
    # The variance-exploding covariance is of order 100.
    scale = float(jnp.max(jnp.abs(expected[1])))
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9 * max(scale, 1))


@every_kind
def test_transition_over_no_time_is_the_identity(name):
    diffusion = make(name)
    t = jnp.asarray(0.2)
    step = eqx.filter_jit(diffusion.transition)(t, t)
    assert tree_allclose(step.mean_map, jnp.eye(diffusion.n_vars), rtol=0, atol=0)
    assert jnp.all(step.root == 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cld_of_unit_mass_has_its_closed_form(dtype):
    diffusion = eqmdm.CLD(
        schedule=eqmdm.ConstantSchedule(1.0), interval=eqmdm.TimeInterval(1e-5, 5.0)
    )
    tau = jnp.asarray([1e-5, 1e-2, 0.3, 1.0, 5.0], dtype)
    transition = lambda t: diffusion.transition(jnp.zeros_like(t), t)
    psi = optimised_jit(jax.vmap(transition))(tau).mean_map
    exact = np.asarray(tau, np.float64)
    rows = [[1 + exact, exact], [-exact, 1 - exact]]
    expected = np.moveaxis(np.exp(-exact) * np.asarray(rows), -1, 0).astype(dtype)
    # The accuracy of the mean map that DESIGN.md states.
    bar = {"float32": 2e-5, "float64": 1e-12}[dtype]
    scale = np.max(np.abs(expected), axis=(1, 2), keepdims=True)
    assert tree_allclose(psi / scale, expected / scale, rtol=0, atol=bar)


def test_psld_without_friction_on_the_data_is_cld():
    psld = eqmdm.PSLD(
        mass=0.25, data_friction=0.0, schedule=eqmdm.ConstantSchedule(8.0)
    )
    cld = eqmdm.CLD(mass=0.25, schedule=eqmdm.ConstantSchedule(4.0))
    s, t = jnp.asarray(0.05), jnp.asarray(0.6)
    # The same matrices, up to a factor of two that is exact.
    actual, expected = jax.jit(
        lambda s, t: (psld.transition(s, t), cld.transition(s, t))
    )(s, t)
    assert tree_allclose(actual, expected, rtol=1e-14, atol=1e-14)


@ends_early
def test_critical_third_order_drift_has_a_triple_eigenvalue():
    F = eqmdm.CriticalThirdOrder(schedule=eqmdm.ConstantSchedule(1.0)).drift_matrix(
        jnp.asarray(0.5)
    )
    # A triple eigenvalue is ill-conditioned; its characteristic polynomial is not.
    r = np.sqrt(3)
    expected = np.poly([-r, -r, -r])
    assert tree_allclose(np.poly(np.asarray(F)), expected, rtol=0, atol=1e-6)
    traces = jnp.trace(F), jnp.trace(F @ F), jnp.linalg.det(F)
    expected = jnp.asarray(-3 * r), jnp.asarray(9.0), jnp.asarray(-3 * r)
    assert tree_allclose(traces, expected, rtol=1e-14, atol=0)


@ends_early
@pytest.mark.parametrize("name", ["PSLD", "CLD", "CLD-light"])
def test_default_frictions_are_critical(name):
    schedule = eqmdm.ConstantSchedule(1.0)
    diffusion = {
        "PSLD": lambda: eqmdm.PSLD(mass=0.3, data_friction=0.2, schedule=schedule),
        "CLD": lambda: eqmdm.CLD(schedule=schedule),
        "CLD-light": lambda: eqmdm.CLD(mass=0.3, schedule=schedule),
    }[name]()
    F = diffusion.drift_matrix(jnp.asarray(0.5))
    # A double eigenvalue: the discriminant of the characteristic polynomial is zero.
    discriminant = jnp.trace(F) ** 2 - 4 * jnp.linalg.det(F)
    assert abs(float(discriminant)) < 1e-14 * float(jnp.trace(F)) ** 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("s", [0.0, 1e-5, 0.3])
def test_vesde_and_subvpsde_have_their_closed_forms(s, dtype):
    s = jnp.asarray(s, dtype)
    t = jnp.asarray([2e-5, 1e-3, 0.4, 1.0], dtype)
    t = t[t > s]
    kinds = make("VESDE"), make("SubVPSDE")
    ve, sub = (
        jax.vmap(lambda t, kind=kind: kind.transition(s, t))(t) for kind in kinds
    )
    with mp.workdps(40):
        exact = lambda x: [mp.mpf(float(value)) for value in np.atleast_1d(x)]
        (start,), ends = exact(s), exact(t)
        sigma2 = lambda t: (mp.mpf(0.01) * mp.mpf(5000) ** t) ** 2
        B = lambda t: mp.mpf(0.1) * t + (10 - mp.mpf(0.1)) * t**2 / 2
        ve_std = [float(mp.sqrt(sigma2(t) - sigma2(start))) for t in ends]
        mean = [float(mp.exp(-(B(t) - B(start)) / 2)) for t in ends]
        total = lambda t: (1 - mp.exp(-B(t))) ** 2
        sub_std = [
            float(mp.sqrt(total(t) - mp.exp(B(start) - B(t)) * total(start)))
            for t in ends
        ]
    # An exponent of size 10 carries its rounding into the result.
    rtol = 30 * float(jnp.finfo(dtype).eps)
    close = lambda x, y: tree_allclose(x, np.asarray(y, dtype), rtol=rtol, atol=0)
    assert jnp.all(ve.mean_map == 1)
    assert close(ve.root[:, 0, 0], ve_std)
    assert close(sub.mean_map[:, 0, 0], mean)
    assert close(sub.root[:, 0, 0], sub_std)


def test_priors_of_the_scalar_diffusions_are_those_of_the_literature():
    ve, sub = make("VESDE"), make("SubVPSDE")
    assert tree_allclose(ve.prior.root, jnp.asarray([[50.0]]), rtol=1e-14, atol=0)
    assert tree_allclose(sub.prior.root, jnp.ones((1, 1)), rtol=0, atol=0)
    assert ve.drift_matrix(jnp.asarray(0.5)) == 0


def test_settings_of_the_papers():
    settings = {
        eqmdm.ALDA(): ([[0, -1, 0], [1, 0, -1], [0, 1, 0]], [0, 0, 1], [1, 1, 1]),
        eqmdm.MALDA(): ([[0, -1, -1], [1, 0, -1], [1, 1, 0]], [0, 2, 2], [1, 1, 1]),
        eqmdm.CLD(): ([[0, -1], [1, 0]], [0, 2], [1, 1]),
        eqmdm.PSLD(): ([[0, -0.5], [0.5, 0]], [0.005, 0.125 * 4.01], [1, 0.25]),
        eqmdm.VPSDE(): ([[0]], [0.5], [1]),
    }
    for diffusion, (Q, D, S) in settings.items():
        n_vars = len(Q)
        start = np.diag([0.0] + [0.01] * (n_vars - 1))
        matrices = (
            diffusion.skew_matrix,
            diffusion.dissipation_matrix,
            diffusion.stationary_covariance,
            diffusion.start_covariance,
        )
        expected = np.asarray(Q, float), np.diag(np.float64(D)), np.diag(np.float64(S))
        assert tree_allclose(matrices, (*expected, start), rtol=1e-15, atol=1e-17)
    rates = [eqmdm.PSLD().schedule.rate(jnp.asarray(t)) for t in (0.0, 1.0)]
    assert rates == [8.0, 8.0]


# Log signal-to-noise ratios.


@every_diffusion
def test_log_snr_decreases_and_its_rate_is_its_derivative(name):
    diffusion = make(name)
    found = evaluate(name, grid(diffusion))
    # Log-SNR is stationary where G^T Sigma^-1 a crosses zero, so up to rounding.
    assert jnp.all(jnp.diff(found["log_snr"]) <= 1e-11)
    # The derivative of the composed transitions has the error of the expansion.
    composed = name in ("TwoScheduleDiffusion", "TimeVaryingDiffusion")
    rtol = 1e-5 if composed else 1e-8
    scale = float(jnp.max(jnp.abs(found["rate"]) * grid(diffusion)))
    assert jnp.all(found["rate"] <= 0)
    relative = (found["rate"] - found["slope"]) * grid(diffusion)
    assert jnp.max(jnp.abs(relative)) <= rtol * scale


@pytest.mark.parametrize("n_vars", [3, 4])
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


@pytest.mark.parametrize("name", [*KINDS[:-2], slow(KINDS[-2]), KINDS[-1]])
def test_time_at_log_snr_is_the_inverse_of_log_snr(name):
    diffusion = make(name)
    levels = levels_within(name)
    solve = jax.jit(jax.vmap(jax.value_and_grad(diffusion.time_at_log_snr)))
    times, slopes = solve(levels)
    found = evaluate(name, times)
    # A spacing of the logarithm of time, which is down to -7, by the slope in it, and
    # what the kernel itself is off.
    eps = float(jnp.finfo("float64").eps)
    bar = 16 * eps * jnp.abs(found["slope"] * times) + 1e-11
    assert jnp.all(jnp.abs(found["log_snr"] - levels) <= bar)
    # The slope of the inverse is the inverse of the slope, which is tested by itself.
    assert tree_allclose(slopes, 1 / found["slope"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["VPSDE", "CLD", "VESDE", "SubVPSDE"])
def test_time_at_log_snr_is_the_inverse_in_float32(name):
    diffusion = make(name)
    levels = levels_within(name).astype(jnp.float32)
    times = optimised_jit(jax.vmap(diffusion.time_at_log_snr))(levels)
    assert times.dtype == jnp.float32
    found = evaluate(name, times.astype(jnp.float64))
    # As in float64, where two roots of the kernel may each be off by 5e-6.
    eps = float(jnp.finfo("float32").eps)
    bar = 16 * eps * jnp.abs(found["slope"] * times.astype(jnp.float64)) + 2e-5
    assert jnp.all(jnp.abs(found["log_snr"] - levels.astype(jnp.float64)) <= bar)


@ends_early
@pytest.mark.parametrize("log_snr", [24.0, 27.0, 29.0])
def test_time_at_log_snr_reaches_the_earliest_times(log_snr):
    rate = 0.1
    t = eqmdm.VPSDE(schedule=eqmdm.ConstantSchedule(rate)).time_at_log_snr(
        jnp.asarray(log_snr)
    )
    # A variance of 1 - exp(-rate t) against a squared mean of exp(-rate t).
    expected = np.log1p(np.exp(-log_snr)) / rate
    assert abs(float(t) / expected - 1) < 1e-11


def test_time_at_log_snr_has_derivatives_in_the_parameters():
    diffusion = with_float64(make("LearnedDiffusion-all"))
    parameters, rest = eqx.partition(diffusion, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(parameters)
    keys = jr.split(jr.key(0), len(leaves))
    direction = [
        jr.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]

    def time(parameters):
        return eqx.combine(parameters, rest).time_at_log_snr(jnp.asarray(2.0))

    def moved(size):
        new = [leaf + size * step for leaf, step in zip(leaves, direction, strict=True)]
        return jax.tree.unflatten(structure, new)

    h = 1e-4
    value_and_grad = jax.jit(jax.value_and_grad(time))
    gradient = jax.tree.leaves(value_and_grad(parameters)[1])
    along = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    high, low = (value_and_grad(moved(step))[0] for step in (h, -h))
    difference = (high - low) / (2 * h)
    assert tree_allclose(along, difference, rtol=1e-6, atol=0)
    # No parameter is left out, but for rotations of the factor of D.
    assert all(jnp.any(g != 0) for g in gradient)


@every_kind
def test_ends_in_log_snr_are_hit_and_leave_the_schedule_alone(name):
    ends = (-4.5, 9.5)
    diffusion = MAKERS[name](
        interval=eqmdm.LogSNRInterval(*ends), **RESETS.get(name, {})
    )

    @jax.jit
    def compute():
        times = jnp.stack([diffusion.t0, diffusion.t1])
        return times, jax.vmap(lambda t: diffusion.compute_kernel(t).log_snr)(times)

    (t0, t1), actual = compute()
    assert 0 < t0 < t1
    assert tree_allclose(actual, jnp.asarray(ends[::-1]), rtol=0, atol=1e-10)
    t = jnp.asarray(0.3)
    F, G = make(name).drift_matrix(t), make(name).diffusion_matrix(t)
    assert tree_allclose(diffusion.drift_matrix(t), F, rtol=1e-15, atol=0)
    assert tree_allclose(diffusion.diffusion_matrix(t), G, rtol=1e-15, atol=0)


# These constructors choose a time limit themselves.
RESETS = {
    name: {"t_limit": 4.0, "n_steps": 128}
    for name in ("TwoScheduleDiffusion", "TimeVaryingDiffusion")
}


@ends_early
@every_diffusion
def test_ends_in_time_are_kept(name):
    diffusion = MAKERS[name](interval=eqmdm.TimeInterval(0.01, 0.5))
    ends = jnp.stack([diffusion.t0, diffusion.t1])
    assert tree_allclose(ends, jnp.asarray([0.01, 0.5]), rtol=1e-15, atol=0)


# Parameters, and building under transforms.


@pytest.mark.parametrize(
    "name", [name for name in MAKERS if not name.startswith("Learned")]
)
def test_fixed_diffusions_have_nothing_to_train(name):
    assert not jax.tree.leaves(eqx.filter(make(name), eqx.is_array))


PARTS = {
    "skew": lambda d: d.recipe.skew,
    "dissipation": lambda d: d.recipe.dissipation_root,
    "stationary_covariance": lambda d: d.recipe.stationary_root,
    "start_covariance": lambda d: d.recipe.start_root,
}


def linear(**options):
    matrices = {
        "skew": [[0.0, -1.0], [1.0, 0.0]],
        "dissipation": np.diag([0.5, 2.0]),
        "stationary_covariance": jnp.diag(jnp.asarray([1.0, 0.5], jnp.float32)),
        "start_covariance": jnp.diag(jnp.asarray([0.0, 0.2])),
    }
    return eqmdm.LinearDiffusion(**matrices, **options)


@pytest.mark.parametrize("name", PARTS)
def test_what_is_learned_is_named(name):
    diffusion, constant = linear(learn=(name,)), linear()
    (leaf,) = jax.tree.leaves(eqx.filter(diffusion, eqx.is_array))
    assert leaf is PARTS[name](diffusion)
    # A parameter keeps the dtype that it is given in; all else is constant, whatever
    # it is given as.
    assert leaf.dtype == ("float32" if name == "stationary_covariance" else "float64")
    assert not jax.tree.leaves(eqx.filter(constant, eqx.is_array))
    t = jnp.asarray(0.4)
    kernels = [d.compute_kernel(t) for d in (diffusion, constant)]
    # A float32 root of S is off by its rounding.
    assert tree_allclose(*kernels, rtol=1e-6, atol=1e-7)


def test_schedules_are_learned_by_name():
    diffusion = linear(learn=["schedule"], interval=eqmdm.LogSNRInterval(-5.0, 9.0))
    leaves = jax.tree.leaves(eqx.filter(diffusion, eqx.is_array))
    assert [float(leaf) for leaf in leaves] == [0.1, 10.0]
    rates = [diffusion.schedule.rate0, diffusion.schedule.rate1]
    assert all(leaf is rate for leaf, rate in zip(leaves, rates, strict=True))
    # The times move with them.
    double = eqx.tree_at(
        lambda d: (d.schedule.rate0, d.schedule.rate1),
        diffusion,
        (2 * rates[0], 2 * rates[1]),
    )
    assert double.t1 < 0.8 * diffusion.t1
    assert tree_allclose(
        double.log_snr(double.t1), jnp.asarray(-5.0), rtol=1e-9, atol=0
    )
    two = eqmdm.TwoScheduleDiffusion(
        [[0.0, -1.0], [1.0, 0.0]],
        [[0.0, 0.0], [0.0, 2.0]],
        skew_schedule=eqmdm.ConstantSchedule(3.0),
        dissipation_schedule=eqmdm.LinearSchedule(),
        learn=("skew_schedule", "dissipation"),
    )
    leaves = jax.tree.leaves(eqx.filter(two, eqx.is_array))
    assert [leaf.shape for leaf in leaves] == [(2, 1), ()]


def test_parameter_of_q_moves_within_the_skew_symmetric_matrices(key):
    diffusion = linear(learn=("skew",))
    moved = eqx.tree_at(PARTS["skew"], diffusion, jr.normal(key, (2, 2)))
    Q, t = moved.skew_matrix, jnp.asarray(0.3)
    assert tree_allclose(Q, -Q.T, rtol=0, atol=0)
    F, noise = drift_and_noise(moved, t)
    S = moved.stationary_covariance
    assert jnp.max(jnp.abs(F @ S + S @ F.T + noise)) < 1e-13


def test_names_of_what_is_learned_are_checked():
    with pytest.raises(ValueError, match="`learn` must contain only skew, .* got 'S'"):
        linear(learn=("skew", "S"))
    with pytest.raises(TypeError, match="`learn` must be a sequence of names; got"):
        linear(learn="skew")


@pytest.mark.parametrize("n_vars", [1, 3])
@pytest.mark.parametrize(
    "switch", [None, "diagonal", "learn_stationary", "learn_start", "learn_schedule"]
)
def test_switches_of_the_learned_diffusion_give_the_stated_parameters(switch, n_vars):
    diffusion = learned(n_vars, **({} if switch is None else {switch: True}))
    expected = [("skew_half", (n_vars, n_vars))]
    if switch == "diagonal":
        expected += [("dissipation_parameter", (n_vars,))]
    else:
        expected += [("dissipation_parameter", (n_vars, n_vars))]
    if switch == "learn_stationary":
        expected += [("stationary_parameter", (n_vars, n_vars))]
    if switch == "learn_start" and n_vars > 1:
        expected += [("start_parameter", (n_vars - 1,))]
    if switch == "learn_schedule":
        expected += [("schedule_parameter", (2,))]
    leaves = jax.tree_util.tree_leaves_with_path(
        eqx.filter(diffusion, eqx.is_inexact_array)
    )
    actual = [(path[0].name, leaf.shape) for path, leaf in leaves]
    assert actual == expected
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype("float32")}
    # Learned parts start at the values of the fixed diffusion.
    plain, t = learned(n_vars), jnp.asarray(0.4)
    if switch != "diagonal":
        actual, expected = (
            (d.drift_matrix(t), d.diffusion_matrix(t), d.start_covariance)
            for d in (diffusion, plain)
        )
        # The parameters are float32.
        assert tree_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"diagonal": True}], ids=["full", "diagonal"])
def test_every_value_of_the_parameters_is_a_diffusion(options, key):
    options = options | {"learn_stationary": True, "learn_start": True}
    diffusion = learned(2, learn_schedule=True, **options)
    parameters, rest = eqx.partition(diffusion, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(parameters)
    keys = list(jr.split(key, len(leaves)))

    @jax.jit
    @jax.vmap
    def move(size):
        return [
            leaf + size * jr.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]

    @jax.jit
    @jax.vmap
    def compute(moved):
        diffusion = eqx.combine(jax.tree.unflatten(structure, moved), rest)
        t = jnp.asarray(0.3)
        F, noise = drift_and_noise(diffusion, t)
        S = diffusion.stationary_covariance
        scale = jnp.max(jnp.abs(F)) * jnp.max(jnp.abs(S))
        balance = jnp.max(jnp.abs(F @ S + S @ F.T + noise))
        return balance / scale, diffusion.compute_kernel(t).log_snr

    # Perturbed first: if computed twice within one program, the float32 parameters of F
    # and of S could differ by a rounding error.
    balance, log_snr = compute(move(jnp.asarray([0.0, 0.3, 1.0, 3.0], jnp.float32)))
    # S is formed from its root, so an ill-conditioned one does not cancel exactly.
    assert jnp.all(balance <= 1e-10)
    assert jnp.all(jnp.isfinite(log_snr))


def test_learned_diffusion_stays_accurate_however_fast_it_becomes():
    diffusion = learned(2)
    faster = eqx.tree_at(
        lambda d: (d.skew_half, d.dissipation_parameter),
        diffusion,
        (4096 * diffusion.skew_half, 64 * diffusion.dissipation_parameter),
    )
    # The mean map of a drift this strong has all but vanished.
    t = jnp.asarray(1.0)
    root = eqx.filter_jit(faster.transition)(0 * t, t).root
    assert tree_allclose(root @ root.T, jnp.eye(2), rtol=0, atol=1e-9)


# A plain function is no argument of `jax.jit`: the time-varying one has two.
@pytest.mark.parametrize("name", [n for n in MAKERS if n != "TimeVaryingDiffusion"])
def test_a_diffusion_passes_through_plain_jit(name):
    # Which traces the Python floats that it is made of, where Equinox's leaves them.
    times = grid(make(name))
    kernels = jax.vmap(lambda diffusion, t: diffusion.compute_kernel(t), (None, 0))
    # Fused otherwise, so to rounding.
    expected = evaluate(name, times)["kernel"]
    actual = jax.jit(kernels)(make(name), times)
    assert tree_allclose(actual, expected, rtol=1e-11, atol=1e-11)


def test_matrix_of_entries_that_are_arrays_is_differentiated():
    def log_snr(q):
        diffusion = eqmdm.LinearDiffusion([[0.0, -q], [q, 0.0]], np.diag([0.0, 2.0]))
        return diffusion.compute_kernel(jnp.asarray(0.4)).log_snr

    q, h = jnp.asarray(1.0), 1e-5
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_snr)))(
        jnp.stack([q - h, q, q + h])
    )
    slope, difference = slopes[1], (values[2] - values[0]) / (2 * h)
    # 1e-10 of truncation, 1e-11 of rounding.
    assert tree_allclose(slope, difference, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["CLD", "LinearDiffusion", "VESDE", "SubVPSDE"])
def test_diffusions_are_built_inside_jit_as_outside(name):
    times = grid(make(name))
    build = lambda t: jax.vmap(lambda t: MAKERS[name]().compute_kernel(t).log_snr)(t)
    built = jax.jit(build)(times)
    # Fused otherwise, so to rounding.
    expected = evaluate(name, times)["log_snr"]
    assert tree_allclose(built, expected, rtol=1e-11, atol=1e-11)


def test_log_snr_range_is_resolved_inside_jit():
    build = lambda: eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-5.0, 8.0))
    ends = jax.jit(lambda: (build().t0, build().t1))()
    assert tree_allclose(ends, (build().t0, build().t1), rtol=1e-12, atol=0)


def from_parameters(q, B, ends):
    return eqmdm.LinearDiffusion(q - q.T, dissipation_root=B, **ends)


@pytest.mark.parametrize("cls", [eqmdm.VPSDE, eqmdm.SubVPSDE])
def test_a_schedule_of_traced_rates_serves_matrices_that_are_known(cls):
    def log_snr(rate):
        diffusion = cls(schedule=eqmdm.ConstantSchedule(rate))
        return diffusion.compute_kernel(jnp.asarray(0.5)).log_snr

    rate = 3.0
    value, slope = jax.jit(jax.value_and_grad(log_snr))(jnp.asarray(rate))
    # The signal's square over the variance, both closed forms.
    signal = np.exp(-0.5 * rate)
    variance = 1 - signal if cls is eqmdm.VPSDE else (1 - signal) ** 2
    power = 1 if cls is eqmdm.VPSDE else 2
    assert tree_allclose(value, np.log(signal / variance), rtol=1e-12, atol=0)
    expected = -0.5 - power * 0.5 * signal / (1 - signal)
    assert tree_allclose(slope, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "ends",
    [
        {"interval": eqmdm.TimeInterval(1e-3, 1.0)},
        slow({"interval": eqmdm.LogSNRInterval(-4.0, 9.0)}),
    ],
    ids=["t", "snr"],
)
def test_diffusions_are_built_inside_grad_and_vmap(ends, key):
    q, B = jr.normal(key, (2, 2, 2))

    def end(q, B):
        diffusion = from_parameters(q, B, ends)
        return diffusion.compute_kernel(0.9 * diffusion.t1).log_snr

    h = 1e-5
    sizes = jnp.asarray([1 - h, 1.0, 1 + h])[:, None, None]
    compute = jax.jit(jax.vmap(jax.value_and_grad(end, argnums=(0, 1))))
    (low, middle, high), slopes = compute(sizes * q[None], sizes * B[None])
    along = jnp.sum(slopes[0][1] * q) + jnp.sum(slopes[1][1] * B)
    assert tree_allclose(along, (high - low) / (2 * h), rtol=1e-6, atol=1e-7)
    expected = from_parameters(q, B, ends)
    if isinstance(ends["interval"], eqmdm.TimeInterval):
        value = jax.jit(lambda: expected.compute_kernel(0.9 * expected.t1).log_snr)()
        assert tree_allclose(middle, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_vars", [2, 3])
def test_gradients_of_the_kernel_are_finite_differences_of_the_exact_one(n_vars):
    generator = np.random.default_rng((1, n_vars))
    normal = lambda: generator.standard_normal((n_vars, n_vars))
    q, B, V = normal(), normal(), normal()
    Q, D = q - q.T, B @ B.T + 0.3 * np.eye(n_vars)
    V[0], V[:, 0] = 0, 0
    S0 = 0.1 * (V @ V.T) + 0.05 * np.diag([0.0] + [1.0] * (n_vars - 1))
    skew, symmetric, inner = normal(), normal(), normal()
    inner[0], inner[:, 0] = 0, 0
    directions = (
        (skew - skew.T, 0 * Q, 0 * Q),
        (0 * Q, symmetric + symmetric.T, 0 * Q),
        (0 * Q, 0 * Q, 0.1 * (inner + inner.T)),
    )
    taus = (1e-3, 0.1, 1.0, 5.0)

    def kernel(tau, Q, D, S0):
        diffusion = eqmdm.LinearDiffusion(
            Q,
            D,
            start_covariance=S0,
            schedule=eqmdm.ConstantSchedule(1.0),
            interval=eqmdm.TimeInterval(1e-4, 5.0),
        )
        kernel = diffusion.perturbation_kernel(tau)
        return kernel.mean_map, kernel.root

    # Reverse mode, as in training.
    jacobians = jax.jit(jax.vmap(jax.jacrev(kernel, (1, 2, 3)), (0, None, None, None)))
    parts = jnp.asarray(taus), jnp.asarray(Q), jnp.asarray(D), jnp.asarray(S0)
    mean_jacobian, root_jacobian = jacobians(*parts)

    def exact(tau, Q, D, S0):
        start = np.zeros_like(S0)
        start[1:, 1:] = np.linalg.cholesky(S0[1:, 1:])
        psi, root = exact_kernel(Q, np.linalg.cholesky(D), np.eye(n_vars), start, tau)
        return (np.array(part.tolist(), float) for part in (psi[:, 0], root))

    h = 3e-5
    for i, tau in enumerate(taus):
        for direction in directions:
            beside = [
                exact(
                    tau,
                    *(
                        M + step * dM
                        for M, dM in zip((Q, D, S0), direction, strict=True)
                    ),
                )
                for step in (-h, h)
            ]
            (low_mean, low_root), (high_mean, high_root) = beside
            mean = (high_mean[:, 0] - low_mean[:, 0]) / (2 * h)
            root = (high_root - low_root) / (2 * h)
            # 1e-6 relative to the largest entry of the derivative; of the root, of
            # each row. 1e-11 for what the difference itself rounds.
            gap = np.abs(directional(mean_jacobian, i, direction) - mean)
            assert np.max(gap) <= 1e-6 * np.max(np.abs(mean)) + 1e-11
            gap = directional(root_jacobian, i, direction) - root
            row_gaps, rows = (np.linalg.norm(part, axis=1) for part in (gap, root))
            assert np.all(row_gaps <= 1e-6 * rows + 1e-11)


def directional(jacobian, i, direction):
    parts = zip(jacobian, direction, strict=True)
    return sum(np.tensordot(part[i], step, 2) for part, step in parts)


def test_gradients_reach_noise_that_enters_at_the_end_of_a_chain():
    # Rows of the root of order tau^(5/2) beside tau^(1/2).
    tau, coupling, friction = 1e-2, 1.3, 0.8
    zero = np.zeros((3, 3))

    def matrices(coupling, friction):
        Q = coupling * (np.diag([-1.0, -1.0], 1) + np.diag([1.0, 1.0], -1))
        return Q, np.asarray([[0.0], [0.0], [np.sqrt(friction)]])

    def exact(coupling, friction):
        Q, R = matrices(coupling, friction)
        _, root = exact_kernel(Q, R, np.eye(3), zero, tau)
        return np.array(root.tolist(), float)

    def root(coupling, friction):
        chain, last = matrices(1.0, 1.0)
        diffusion = eqmdm.LinearDiffusion(
            coupling * chain,
            dissipation_root=jnp.sqrt(friction) * last,
            schedule=eqmdm.ConstantSchedule(1.0),
        )
        return diffusion.transition(jnp.zeros(()), jnp.asarray(tau)).root

    point = jnp.asarray(coupling), jnp.asarray(friction)
    slopes = jax.jit(jax.jacfwd(root, (0, 1)))(*point)
    h = 1e-5
    differences = (
        (exact(coupling + h, friction) - exact(coupling - h, friction)) / (2 * h),
        (exact(coupling, friction + h) - exact(coupling, friction - h)) / (2 * h),
    )
    for slope, difference in zip(slopes, differences, strict=True):
        gap = np.linalg.norm(slope - difference, axis=1)
        assert np.all(gap <= 1e-6 * np.linalg.norm(difference, axis=1))


# Starts.


@every_diffusion
def test_starts_are_the_data_with_auxiliaries_of_the_start_covariance(name, key):
    diffusion = make(name)
    x = jnp.asarray([0.3, -1.0])
    start = diffusion.draw_start(x, key=key)
    assert start.shape == (diffusion.n_vars, 2)
    assert jnp.all(start[0] == x)
    root = diffusion.start_root(jnp.dtype("float64"))
    assert root.shape[0] == diffusion.n_vars
    assert jnp.all(start[1:] != 0)


@every_diffusion
def test_drift_and_diffusion_coefficient_are_the_matrices_on_states(name, key):
    diffusion = make(name)
    t = jnp.asarray(0.4)
    G = diffusion.diffusion_matrix(t)
    key_state, key_noise = jr.split(key)
    y = jr.normal(key_state, (diffusion.n_vars, 2, 3))
    noise = jr.normal(key_noise, (G.shape[1], 2, 3))
    drift = jnp.einsum("ij,jkl->ikl", diffusion.drift_matrix(t), y)
    close = dict(rtol=1e-14, atol=1e-14)
    assert tree_allclose(diffusion.drift(t, y, None), drift, **close)
    pushed = diffusion.diffusion_coefficient(t, y, None).mv(noise)
    assert tree_allclose(pushed, jnp.einsum("ij,jkl->ikl", G, noise), **close)


# Invalid arguments.


def refuses(match, *arguments, error=ValueError, **options):
    with pytest.raises(error, match=match):
        eqmdm.LinearDiffusion(*arguments, **options)


EYE2 = np.eye(2)
TURN = [[0.0, -1.0], [1.0, 0.0]]


@pytest.mark.usefixtures("unchecked")
def test_matrices_that_are_no_recipe_are_refused():
    refuses("`skew` must be skew-symmetric", [[0.0, 1.0], [1.0, 0.0]], EYE2)
    refuses("`skew` must be square", [[0.0, 1.0]], EYE2)
    refuses("`skew` must be a matrix", [0.0, 1.0], EYE2)
    refuses("`skew` must be finite", [[0.0, np.nan], [np.nan, 0.0]], EYE2)
    refuses("K = 0 leaves no data", np.zeros((0, 0)), np.zeros((0, 0)))
    indefinite = np.diag([1.0, -1.0])
    refuses("`dissipation` must be positive semidefinite", TURN, indefinite)
    refuses("`dissipation` must be positive semidefinite", TURN, 0 * EYE2)
    refuses("`dissipation` must be symmetric", TURN, [[1.0, 1.0], [0.0, 1.0]])
    refuses("`dissipation` must be 2 x 2", TURN, np.eye(3))
    refuses("Exactly one of `dissipation`", TURN)
    refuses("Exactly one of `dissipation`", TURN, EYE2, dissipation_root=EYE2)
    refuses("`dissipation_root` must have a row", TURN, dissipation_root=np.eye(3))
    singular = np.diag([1.0, 0.0])
    refuses(
        "`stationary_covariance` must be positive definite",
        TURN,
        EYE2,
        stationary_covariance=singular,
    )
    refuses(
        "`start_covariance` must have a zero first row",
        TURN,
        EYE2,
        start_covariance=EYE2,
    )
    refuses(
        "`start_covariance` must be positive definite",
        TURN,
        EYE2,
        start_covariance=0 * EYE2,
    )


@pytest.mark.parametrize(
    "skew, noise, unreached",
    [
        (0 * EYE2, [0.0, 1.0], r"not reach the data \(variable 0\),"),
        (0 * EYE2, [1.0, 0.0], "not reach auxiliary variable 1,"),
        (
            [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
            [0.0, 1.0, 0.0],
            "not reach auxiliary variable 2,",
        ),
        (np.zeros((3, 3)), [1.0, 0.0, 0.0], "auxiliary variable 1 and auxiliary"),
    ],
)
@pytest.mark.parametrize("as_array", [np.asarray, lambda m: jnp.asarray(m, "float32")])
def test_a_variable_that_noise_cannot_reach_is_named(skew, noise, unreached, as_array):
    refuses(unreached, as_array(skew), as_array(np.diag(noise)))


def test_parameters_of_named_diffusions_are_checked():
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`mass` must be positive"):
            eqmdm.CLD(mass=value)
        with pytest.raises(ValueError, match="`friction` must be positive"):
            eqmdm.MALDA(friction=value)
        with pytest.raises(ValueError, match="`start_variance` must be positive"):
            eqmdm.ALDA(start_variance=value)
        with pytest.raises(ValueError, match="`start_variance` must be positive"):
            learned(2, start_variance=value)
    with pytest.raises(ValueError, match="`velocity_friction` must be positive"):
        eqmdm.PSLD(velocity_friction=0.0)
    with pytest.raises(ValueError, match="`coupling` must be positive"):
        eqmdm.ALDA(coupling=0.0)
    with pytest.raises(ValueError, match="`data_friction` must be non-negative"):
        eqmdm.PSLD(data_friction=-1.0, velocity_friction=1.0)
    for sigmas in ((0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="`sigma0` and `sigma1` must be finite"):
            eqmdm.VESDE(*sigmas)


def test_learned_diffusion_refuses_what_it_cannot_learn():
    with pytest.raises(ValueError, match="`n_vars` must be at least 1"):
        learned(0)
    with pytest.raises(ValueError, match="`schedule` must be a `LinearSchedule`"):
        learned(2, learn_schedule=True, schedule=eqmdm.ConstantSchedule(1.0))


@pytest.mark.usefixtures("unchecked")
@every_diffusion
def test_ends_that_are_none_are_refused(name):
    for bad in ((0.0, 1.0), (0.5, 0.5), (0.5, 0.1), (1e-3, np.inf)):
        with pytest.raises(ValueError, match="`interval` must have finite times"):
            MAKERS[name](interval=eqmdm.TimeInterval(*bad))
    for bad in ((3.0, 3.0), (5.0, -5.0), (-np.inf, 5.0)):
        with pytest.raises(ValueError, match="`interval` must have finite log"):
            MAKERS[name](interval=eqmdm.LogSNRInterval(*bad), **RESETS.get(name, {}))
    with pytest.raises(TypeError, match="`interval` must be an `eqmdm.TimeInterval`"):
        MAKERS[name](interval=(1e-3, 1.0))


def test_a_horizon_beyond_the_schedule_is_refused():
    with pytest.raises(
        ValueError, match="`interval` must end before the schedule does"
    ):
        eqmdm.CLD(
            schedule=eqmdm.CosineSchedule(), interval=eqmdm.TimeInterval(1e-3, 2.0)
        )


def test_times_that_are_out_of_range_are_refused():
    diffusion = make("VESDE")
    zero, early, late = (jnp.asarray(t) for t in (0.0, 0.2, 0.6))
    beyond = diffusion.t1 * 1.001
    kernel, transition = diffusion.perturbation_kernel, diffusion.transition
    cases = [
        (kernel, (zero,), "point mass"),
        (kernel, (-early,), "`t` must be positive"),
        (kernel, (early * jnp.nan,), "`t` must be positive"),
        (kernel, (beyond,), "within the interval"),
        (diffusion.log_snr, (beyond,), "within the interval"),
        (transition, (late, early), "`s` must lie between 0 and `t`"),
        (transition, (-early, late), "`s` must lie between 0 and `t`"),
        (transition, (early, beyond), "within the interval"),
        (diffusion.time_at_log_snr, (-1000 * late,), "must be reached"),
        (diffusion.time_at_log_snr, (jnp.nan * late,), "must be reached"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    for function, arguments, message in (
        cases[:1] + cases[3:4] + cases[5:6] + cases[8:9]
    ):
        with pytest.raises(eqx.EquinoxRuntimeError, match=message):
            jax.block_until_ready(eqx.filter_jit(function)(*arguments))


@pytest.mark.usefixtures("unchecked")
def test_times_must_be_floating_point_scalars():
    diffusion = make("CLD")
    wrong = "`t` must be a scalar floating-point array"
    for t in (jnp.asarray([0.1, 0.2]), jnp.asarray(1)):
        for function in (diffusion.perturbation_kernel, diffusion.log_snr):
            with pytest.raises(TypeError, match=wrong):
                function(t)
    with pytest.raises(TypeError, match="`log_snr` must be a scalar floating-point"):
        diffusion.time_at_log_snr(jnp.asarray(1))


@ends_early
def test_ends_in_log_snr_that_are_never_reached_are_refused():
    for name, reset in RESETS.items():
        with pytest.raises(ValueError, match="`log_snr` must be reached"):
            MAKERS[name](interval=eqmdm.LogSNRInterval(-40.0, 5.0), **reset)
    # The noise of a variance-exploding diffusion grows for ever; that of a rate that
    # stops does not, nor does a schedule's that ends.
    schedule = eqmdm.CosineSchedule(1.0)
    with pytest.raises(ValueError, match="`log_snr` must be reached"):
        eqmdm.VPSDE(schedule=schedule, interval=eqmdm.LogSNRInterval(-60.0, 5.0))
    with pytest.raises(ValueError, match="`log_snr` must be reached"):
        eqmdm.VESDE(interval=eqmdm.LogSNRInterval(-500.0, 5.0))


def test_ends_in_log_snr_may_be_traced(unchecked):
    schedule = lambda rate: eqmdm.VPSDE(
        schedule=eqmdm.ConstantSchedule(rate), interval=eqmdm.LogSNRInterval(-3.0, 9.0)
    )
    upper = lambda kind: lambda top: kind(interval=eqmdm.LogSNRInterval(-3.0, top))
    cases = [(schedule, 1.0, "t1"), (upper(eqmdm.VPSDE), 9.0, "t0")]
    for make, value, end in [*cases, (upper(eqmdm.VESDE), 6.0, "t0")]:
        read = lambda x, make=make, end=end: getattr(make(x), end)
        # One search, in two programs.
        np.testing.assert_allclose(jax.jit(read)(value), read(value), rtol=1e-12)


def test_noise_on_some_variables_may_be_traced():
    t = jnp.asarray(0.5)

    def log_snr(friction):
        noise = jnp.diag(jnp.stack([jnp.zeros(()), jnp.zeros(()), friction]))
        skew = [[0.0, -1.0, 0.0], [1.0, 0.0, -2.0], [0.0, 2.0, 0.0]]
        return eqmdm.LinearDiffusion(skew, noise).log_snr(t)

    friction, step = jnp.asarray(2.0), 1e-5
    traced = jax.jit(jax.value_and_grad(log_snr))
    value, slope = traced(friction)
    np.testing.assert_allclose(value, log_snr(friction), rtol=1e-10)
    high, low = (traced(friction + move)[0] for move in (step, -step))
    # step^2 of truncation and 1e-15 / step of rounding.
    np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-8)


@ends_early
def test_numpy_numbers_are_constants():
    one = np.float64(1.0)
    diffusions = [
        eqmdm.VPSDE(
            schedule=eqmdm.ConstantSchedule(one),
            interval=eqmdm.TimeInterval(1e-3 * one, one),
        ),
        eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(one, 2 * one)),
        eqmdm.SubVPSDE(
            schedule=eqmdm.CosineSchedule(one),
            interval=eqmdm.TimeInterval(1e-3 * one, one),
        ),
        eqmdm.CLD(mass=one, interval=eqmdm.LogSNRInterval(-5 * one, 9 * one)),
    ]
    for diffusion in diffusions:
        assert not jax.tree.leaves(eqx.filter(diffusion, eqx.is_inexact_array))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: eqmdm.CLD(mass=x),
        lambda x: eqmdm.CLD(start_variance=x),
        lambda x: eqmdm.ALDA(coupling=x),
        lambda x: eqmdm.PSLD(data_friction=x),
        lambda x: eqmdm.VESDE(sigma1=x),
    ],
)
def test_named_diffusions_refuse_what_looks_like_a_parameter(make, unchecked):
    message = "must be a Python or NumPy number.*`eqmdm.LinearDiffusion`"
    with pytest.raises(TypeError, match=message):
        make(jnp.asarray(0.5))
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda x: make(x).log_snr(jnp.asarray(0.5)))(0.5)


@pytest.mark.parametrize("rates", [(0.0, 10.0), (5.0, 5.0)])
def test_a_schedule_on_the_edge_of_what_is_learned_is_refused(rates):
    with pytest.raises(ValueError, match="`schedule` must have 0 < rate0 < rate1"):
        learned(1, learn_schedule=True, schedule=eqmdm.LinearSchedule(*rates))


def test_a_horizon_beyond_the_kernels_is_refused():
    with pytest.raises(ValueError, match="`interval` must end where kernels are still"):
        eqmdm.VESDE(interval=eqmdm.TimeInterval(1e-3, 10.0))


def test_functions_of_another_shape_than_the_prior_are_refused():
    square, column = (lambda t: -jnp.eye(2)), (lambda t: jnp.ones((3, 1)))
    for drift, noise, name in (
        (square, column, "drift"),
        (lambda t: -jnp.eye(3), square, "diffusion"),
    ):
        with pytest.raises(ValueError, match=f"`{name}_matrix` must return a matrix"):
            eqmdm.TimeVaryingDiffusion(drift, noise, prior_covariance=np.eye(3))
