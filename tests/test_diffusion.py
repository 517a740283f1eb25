"""Tests of the matrices, kernels and settings of every diffusion."""

import functools

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from diffusions import (
    MAKERS,
    STATIONARY,
    drift_and_noise,
    ends_early,
    every_diffusion,
    every_kind,
    make,
)

import eqmdm
from helpers import optimised_jit, slow, tree_allclose


def test_every_public_final_diffusion_is_tested():
    def finals(cls):
        for subclass in cls.__subclasses__():
            yield from finals(subclass)
            if not subclass.__name__.startswith(("Abstract", "_")):
                yield subclass

    own = {c for c in finals(eqmdm.AbstractLinearDiffusion) if c.__module__ != __name__}
    own = {c.__name__ for c in own if c.__module__.startswith("eqmdm.")}
    # They are made of the others, and have tests of their own.
    own -= {"BandedDiffusion", "LinearStart", "ScaledDiffusion"}
    assert own == {type(make(name)).__name__ for name in MAKERS}


TIME = 0.3


@functools.cache
def matrices(name):
    """The matrices F and G at `TIME`, 0 and 1."""
    diffusion = make(name)
    of = lambda t: (diffusion.drift_matrix(t), diffusion.diffusion_matrix(t))
    F, G = jax.jit(jax.vmap(of))(np.asarray([TIME, 0.0, 1.0]))
    return np.asarray(F), np.asarray(G)


@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_covariance_is_stationary(name):
    (F, *_), (G, *_) = matrices(name)
    root = np.asarray(make(name).prior.root)
    S = root @ root.T
    balance = F @ S + S @ F.T + G @ G.T
    # A few products and one solve with a well-conditioned S.
    assert np.max(np.abs(balance)) <= 1e-14 * np.max(np.abs(G @ G.T))


@pytest.mark.parametrize("name", [n for n in STATIONARY if n != "TwoScheduleDiffusion"])
def test_matrices_are_those_of_the_recipe(name):
    diffusion = make(name)
    parts = (
        diffusion.skew_matrix,
        diffusion.dissipation_matrix,
        diffusion.stationary_covariance,
        diffusion.start_covariance,
    )
    Q, D, S, start = map(np.asarray, parts)
    rate = float(diffusion.schedule.rate(jnp.asarray(TIME)))
    (F, *_), (G, *_) = matrices(name)
    assert tree_allclose(Q, -Q.T, rtol=0, atol=0)
    expected = -rate * np.linalg.solve(S, (Q + D).T).T
    assert tree_allclose(F, expected, rtol=1e-13, atol=1e-13)
    assert tree_allclose(G @ G.T, 2 * rate * D, rtol=1e-13, atol=1e-14)
    # Noise enters some variables only.
    assert G.shape[1] == np.linalg.matrix_rank(D)
    assert np.all(start[0] == 0)


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


# The other tests of kernels have closed forms for the slow ones.
@pytest.mark.parametrize(
    "name", [slow(n) if n in ("VESDE", "SubVPSDE") else n for n in MAKERS]
)
def test_transition_solves_the_moment_equations(name):
    diffusion, n_vars = make(name), make(name).n_vars
    s, t = jnp.asarray(0.15), jnp.asarray(0.8)
    if name in STATIONARY:
        # Every schedule here is linear, so the matrices are; variables that stay at 0
        # make all of them of one size.
        (_, *F), (_, *G) = matrices(name)
        pad = lambda matrix: np.pad(matrix, (0, 4 - n_vars))
        ends = [(pad(f), pad(g @ g.T)) for f, g in zip(F, G, strict=True)]
        solved = solved_moments_of_linear_rates(ends, s, t)
        expected = [np.asarray(moment)[:n_vars, :n_vars] for moment in solved]
    else:
        rates = lambda t: drift_and_noise(diffusion, t)
        solve = jax.jit(lambda s, t: solved_moments(rates, n_vars, s, t))
        expected = [np.asarray(moment) for moment in solve(s, t)]
    step = eqx.filter_jit(diffusion.transition)(s, t)
    root = np.asarray(step.root)
    actual = [np.asarray(step.mean_map), root @ root.T]
    # The variance-exploding covariance is of order 100.
    scale = np.max(np.abs(expected[1]))
    assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9 * max(scale, 1))


@every_kind
def test_transition_over_no_time_is_the_identity(name):
    diffusion = make(name)
    t = jnp.asarray(0.2)
    step = eqx.filter_jit(diffusion.transition)(t, t)
    assert tree_allclose(step.mean_map, np.eye(diffusion.n_vars), rtol=0, atol=0)
    assert not np.any(step.root)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cld_of_unit_mass_has_its_closed_form(dtype):
    diffusion = eqmdm.CLD(
        schedule=eqmdm.ConstantSchedule(1.0), interval=eqmdm.TimeInterval(1e-5, 5.0)
    )
    tau = jnp.asarray([1e-5, 1e-2, 0.3, 1.0, 5.0], dtype)
    transition = lambda t: diffusion.transition(jnp.zeros_like(t), t)
    psi = np.asarray(optimised_jit(jax.vmap(transition))(tau).mean_map)
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
    diffusion = eqmdm.CriticalThirdOrder(schedule=eqmdm.ConstantSchedule(1.0))
    F = np.asarray(jax.jit(diffusion.drift_matrix)(0.5))
    # A triple eigenvalue is ill-conditioned; its characteristic polynomial is not.
    r = np.sqrt(3)
    expected = np.poly([-r, -r, -r])
    assert tree_allclose(np.poly(F), expected, rtol=0, atol=1e-6)
    traces = np.asarray([np.trace(F), np.trace(F @ F), np.linalg.det(F)])
    expected = np.asarray([-3 * r, 9.0, -3 * r])
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
    F = np.asarray(jax.jit(diffusion.drift_matrix)(0.5))
    # A double eigenvalue: the discriminant of the characteristic polynomial is zero.
    discriminant = np.trace(F) ** 2 - 4 * np.linalg.det(F)
    assert abs(discriminant) < 1e-14 * np.trace(F) ** 2


@optimised_jit
def ve_and_sub_transitions(s, t):
    kinds = make("VESDE"), make("SubVPSDE")
    return [jax.vmap(kind.transition, (None, 0))(s, t) for kind in kinds]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("s", [0.0, 1e-5, 0.3])
def test_vesde_and_subvpsde_have_their_closed_forms(s, dtype):
    s = np.asarray(s, dtype)
    t = np.asarray([2e-5, 1e-3, 0.4, 1.0], dtype)
    # As many times for each start, so that one program serves all of them.
    t = np.where(t > s, t, t[-1])
    ve, sub = jax.device_get(ve_and_sub_transitions(s, t))
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
    rtol = 30 * float(np.finfo(dtype).eps)
    close = lambda x, y: tree_allclose(x, np.asarray(y, dtype), rtol=rtol, atol=0)
    assert np.all(ve.mean_map == 1)
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


@every_diffusion
def test_starts_are_the_data_with_auxiliaries_of_the_start_covariance(name, key):
    diffusion = make(name)
    x = np.asarray([0.3, -1.0])

    @jax.jit
    def compute(x, key):
        start = diffusion.draw_start(x, key=key)
        return start, diffusion.start_root(jnp.dtype("float64"))

    start, root = jax.device_get(compute(x, key))
    assert start.shape == (diffusion.n_vars, 2)
    assert np.all(start[0] == x)
    assert root.shape[0] == diffusion.n_vars
    assert np.all(start[1:] != 0)


@every_diffusion
def test_drift_and_diffusion_coefficient_are_the_matrices_on_states(name):
    diffusion = make(name)
    (F, *_), (G, *_) = matrices(name)
    generator = np.random.default_rng(0)
    y = generator.standard_normal((diffusion.n_vars, 2, 3))
    noise = generator.standard_normal((G.shape[1], 2, 3))

    @jax.jit
    def compute(t, y, noise):
        coefficient = diffusion.diffusion_coefficient(t, y, None)
        return diffusion.drift(t, y, None), coefficient.mv(noise)

    drift, pushed = compute(TIME, y, noise)
    close = dict(rtol=1e-14, atol=1e-14)
    assert tree_allclose(drift, np.einsum("ij,jkl->ikl", F, y), **close)
    assert tree_allclose(pushed, np.einsum("ij,jkl->ikl", G, noise), **close)
