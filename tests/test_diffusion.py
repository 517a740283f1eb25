"""Tests of the matrices, kernels and settings of every diffusion."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
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
    optimised_jit,
)

import eqmdm
from helpers import tree_allclose


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
