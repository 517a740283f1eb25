"""Tests of what is learned of a diffusion."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from diffusions import MAKERS, drift_and_noise, learned, linear, make

import eqmdm
from helpers import tree_allclose


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
