"""Tests of the text of a diffusion: the call that would build it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqmdm


TURN = [[0.0, -1.0], [1.0, 0.0]]
TEXTS = {
    "CLD": (
        lambda: eqmdm.CLD(interval=eqmdm.LogSNRInterval(-9, 13.3)),
        "CLD(skew=[[0, -1], [1, 0]], dissipation=[[0, 0], [0, 2]], "
        "schedule=LinearSchedule(0.1, 10.0), interval=LogSNRInterval(-9.0, 13.3))",
    ),
    "PSLD": (
        eqmdm.PSLD,
        "PSLD(skew=[[0, -0.5], [0.5, 0]], dissipation=[[0.005, 0], [0, 0.50125]], "
        "stationary_covariance=[[1, 0], [0, 0.25]], schedule=ConstantSchedule(8.0), "
        "interval=TimeInterval(0.001, 1.0))",
    ),
    "LinearDiffusion": (
        lambda: eqmdm.LinearDiffusion(
            TURN, np.diag([0.0, 1 / 3]), schedule=eqmdm.CosineSchedule(20)
        ),
        "LinearDiffusion(skew=[[0, -1], [1, 0]], "
        "dissipation=[[0, 0], [0, 0.333333333333]], schedule=CosineSchedule(20.0), "
        "interval=TimeInterval(0.001, 1.0))",
    ),
    "VESDE": (
        eqmdm.VESDE,
        "VESDE(sigma0=0.01, sigma1=50.0, interval=TimeInterval(0.001, 1.0))",
    ),
    "SubVPSDE": (
        lambda: eqmdm.SubVPSDE(interval=eqmdm.LogSNRInterval(-5.0, 9.0)),
        "SubVPSDE(schedule=LinearSchedule(0.1, 10.0), "
        "interval=LogSNRInterval(-5.0, 9.0))",
    ),
    "TwoScheduleDiffusion": (
        lambda: eqmdm.TwoScheduleDiffusion(
            TURN,
            np.eye(2),
            skew_schedule=eqmdm.ConstantSchedule(2),
            dissipation_schedule=eqmdm.LinearSchedule(),
        ),
        "TwoScheduleDiffusion(skew=[[0, -1], [1, 0]], dissipation=[[1, 0], [0, 1]], "
        "skew_schedule=ConstantSchedule(2.0), "
        "dissipation_schedule=LinearSchedule(0.1, 10.0), "
        "interval=TimeInterval(0.001, 1.0))",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_diffusion_prints_its_matrices_schedule_and_interval(name):
    build, text = TEXTS[name]
    diffusion = build()
    assert repr(diffusion) == text
    # The same inside a container.
    assert eqx.tree_pformat((diffusion,), width=1000) == f"({text},)"


def drift(t):
    return -5 * jnp.eye(1, dtype=t.dtype)


def noise(t):
    return jnp.sqrt(10 * jnp.eye(1, dtype=t.dtype))


def test_time_varying_diffusion_prints_its_functions():
    diffusion = eqmdm.TimeVaryingDiffusion(drift, noise, prior_covariance=[[1.0]])
    assert repr(diffusion) == (
        "TimeVaryingDiffusion(drift_matrix=<function drift>, "
        "diffusion_matrix=<function noise>, prior_covariance=[[1]], "
        "interval=TimeInterval(0.001, 1.0))"
    )


def test_learned_diffusion_prints_its_present_values_to_three_digits():
    diffusion = eqmdm.LearnedDiffusion(
        2, key=jax.random.key(0), learn_stationary=True, learn_schedule=True
    )
    values = jnp.asarray([[0.0, 0.0], [1.23456, 0.0]], jnp.float32)
    root = jnp.asarray([[1.0, 0.0], [0.5, 2.0]], jnp.float32)
    moved = eqx.tree_at(
        lambda d: (d.skew_half, d.dissipation_parameter), diffusion, (values, root)
    )
    assert repr(moved).startswith(
        "LearnedDiffusion(skew=[[0, -1.23], [1.23, 0]], "
        "dissipation=[[1, 0.5], [0.5, 4.25]], schedule=LinearSchedule(0.1, 10"
    )


@pytest.mark.parametrize(
    "build",
    [eqmdm.CLD, eqmdm.VESDE, lambda: eqmdm.LearnedDiffusion(2, key=jax.random.key(0))],
    ids=["CLD", "VESDE", "LearnedDiffusion"],
)
def test_diffusion_prints_where_its_numbers_are_not_known(build):
    diffusion = build()
    name = type(diffusion).__name__
    arrays = jax.tree.map(jnp.asarray, diffusion)
    assert repr(jax.eval_shape(lambda: arrays)).startswith(name)
    seen = []
    jax.jit(lambda d: seen.append(repr(d)) or 0)(diffusion)
    jax.vmap(lambda d: seen.append(repr(d)) or 0)(
        jax.tree.map(lambda x: jnp.stack([x, x]), arrays)
    )
    assert len(seen) == 2 and all(text.startswith(name) for text in seen)
    rate = lambda x: seen.append(repr(eqmdm.LinearSchedule(x, 2 * x))) or x
    jax.grad(rate)(1.0)
    assert seen[-1].startswith("LinearSchedule(float64[]")
