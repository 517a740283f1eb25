import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqmdm
from helpers import tree_allclose


TURN = [[0.0, -1.0], [1.0, 0.0]]
DAMP = [[0.0, 0.0], [0.0, 2.0]]


def turning_drift(t):
    zero, one = jnp.zeros_like(t), jnp.ones_like(t)
    turn = 2 * jnp.cos(3 * t)
    return jnp.stack([jnp.stack([zero, turn]), jnp.stack([-turn - one, -one - t])])


def turning_noise(t):
    return jnp.stack([0.1 * t, jnp.sqrt(1 + t)])[:, None]


def test_composed_transition_is_the_constant_one_where_matrices_commute():
    constant = eqmdm.CLD()

    @jax.jit
    def compute(s, t):
        composed = eqmdm.composed_transition(
            constant.drift_matrix, constant.diffusion_matrix, s, t, n_steps=16
        )
        return composed, constant.transition(s, t)

    # Without a commutator a step errs by its quadrature alone, of order 16 here.
    composed, expected = compute(jnp.asarray(0.05), jnp.asarray(0.9))
    assert tree_allclose(composed, expected, rtol=1e-12, atol=1e-13)
    # From the start, where the smallest entry of the root is of order t^(3/2).
    composed, expected = compute(jnp.asarray(0.0), jnp.asarray(1e-4))
    scale = jnp.linalg.norm(expected.root, axis=1, keepdims=True)
    assert tree_allclose(
        composed.root / scale, expected.root / scale, rtol=0, atol=1e-12
    )


def test_composed_transition_converges_at_fourth_order_where_they_do_not():
    @jax.jit
    def covariances(s, t):
        def moments(n_steps):
            step = eqmdm.composed_transition(
                turning_drift, turning_noise, s, t, n_steps=n_steps
            )
            return step.mean_map, step.root @ step.root.T

        return [moments(n_steps) for n_steps in (2, 4, 64)]

    coarse, fine, exact = covariances(jnp.asarray(0.0), jnp.asarray(6.0))
    # Only the mean map carries the expansion over whole steps.
    for moment, better, best in zip(coarse, fine, exact, strict=True):
        errors = [jnp.max(jnp.abs(value - best)) for value in (moment, better)]
        order = float(jnp.log2(errors[0] / errors[1]))
        # Asymptotically 4; between so few steps the next order shows.
        assert order > 3.5
    assert float(jnp.max(jnp.abs(fine[0] - exact[0]))) > 1e-12


def test_two_schedules_that_agree_are_one():
    schedule = eqmdm.LinearSchedule()
    two = eqmdm.TwoScheduleDiffusion(
        TURN, DAMP, skew_schedule=schedule, dissipation_schedule=schedule, n_steps=16
    )
    one = eqmdm.LinearDiffusion(TURN, DAMP, schedule=schedule)
    t = jnp.asarray([1e-3, 0.3, 1.0])
    kernel = lambda diffusion: jax.jit(jax.vmap(diffusion.compute_kernel))(t)
    assert tree_allclose(kernel(two), kernel(one), rtol=1e-11, atol=1e-12)


def test_two_schedules_keep_the_stationary_law():
    S = jnp.asarray([[1.0, 0.3], [0.3, 0.5]])
    diffusion = eqmdm.TwoScheduleDiffusion(
        TURN,
        DAMP,
        skew_schedule=eqmdm.CosineSchedule(6.0),
        dissipation_schedule=eqmdm.ConstantSchedule(2.0),
        stationary_covariance=np.asarray(S),
        n_steps=64,
    )
    step = jax.jit(diffusion.transition)(jnp.asarray(0.1), jnp.asarray(0.7))
    psi, root = step.mean_map, step.root
    assert tree_allclose(psi @ S @ psi.T + root @ root.T, S, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_time_varying_diffusion_of_constant_matrices_is_the_linear_one():
    # At unit rate: F = -(Q + D), G G^T = 2 D.
    linear = eqmdm.LinearDiffusion(
        TURN,
        DAMP,
        schedule=eqmdm.ConstantSchedule(1.0),
        start_covariance=np.diag([0.0, 0.2]),
    )
    varying = eqmdm.TimeVaryingDiffusion(
        linear.drift_matrix,
        linear.diffusion_matrix,
        prior_covariance=np.eye(2),
        start_covariance=np.diag([0.0, 0.2]),
        n_steps=8,
    )
    t = jnp.asarray([1e-3, 0.3, 1.0])
    kernel = lambda diffusion: jax.jit(jax.vmap(diffusion.compute_kernel))(t)
    assert tree_allclose(kernel(varying), kernel(linear), rtol=1e-11, atol=1e-12)
    assert tree_allclose(varying.prior.root, jnp.eye(2), rtol=0, atol=0)


@pytest.mark.parametrize("n_steps", [0, -2, 3, 12])
def test_composed_transition_refuses_steps_that_do_not_pair(n_steps):
    s, t = jnp.asarray(0.0), jnp.asarray(1.0)
    with pytest.raises(ValueError, match="`n_steps` must be a power of two"):
        eqmdm.composed_transition(turning_drift, turning_noise, s, t, n_steps=n_steps)


def test_diffusions_refuse_too_few_steps_for_their_drift():
    fast = eqmdm.ConstantSchedule(200.0)
    with pytest.raises(ValueError, match="`n_steps` must be larger.* Try n_steps="):
        eqmdm.TwoScheduleDiffusion(
            TURN, DAMP, skew_schedule=fast, dissipation_schedule=fast, n_steps=2
        )
    with pytest.raises(ValueError, match="`n_steps` must be larger"):
        eqmdm.TimeVaryingDiffusion(
            lambda t: -1000 * jnp.ones((1, 1), t.dtype),
            lambda t: jnp.ones((1, 1), t.dtype),
            prior_covariance=[[1.0]],
            n_steps=4,
        )


def test_the_number_of_steps_that_is_suggested_is_taken():
    fast = eqmdm.ConstantSchedule(200.0)
    options = dict(skew_schedule=fast, dissipation_schedule=fast)
    with pytest.raises(ValueError, match="n_steps=") as caught:
        eqmdm.TwoScheduleDiffusion(TURN, DAMP, **options, n_steps=2)
    suggested = int(str(caught.value).rsplit("n_steps=", 1)[1].rstrip("."))
    eqmdm.TwoScheduleDiffusion(TURN, DAMP, **options, n_steps=suggested)


def test_diffusions_refuse_noise_that_never_reaches_a_variable():
    schedule = eqmdm.ConstantSchedule(1.0)
    with pytest.raises(ValueError, match=r"does not reach the data \(variable 0\)"):
        eqmdm.TwoScheduleDiffusion(
            np.zeros((2, 2)),
            DAMP,
            skew_schedule=schedule,
            dissipation_schedule=schedule,
        )
    with pytest.raises(ValueError, match="not reach auxiliary variable 1"):
        eqmdm.TimeVaryingDiffusion(
            lambda t: -jnp.eye(2, dtype=t.dtype),
            lambda t: jnp.asarray([[1.0], [0.0]], t.dtype),
            prior_covariance=np.eye(2),
        )


def test_time_varying_diffusion_refuses_a_prior_that_is_none():
    with pytest.raises(
        ValueError, match="`prior_covariance` must be positive definite"
    ):
        eqmdm.TimeVaryingDiffusion(
            turning_drift, turning_noise, prior_covariance=np.diag([1.0, 0.0])
        )
