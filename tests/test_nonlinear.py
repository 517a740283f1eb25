"""Tests of processes whose drift is not linear: a user's own, training, and errors."""

import math
from typing import final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.polynomial import Polynomial
from numpy.testing import assert_allclose

import eqmdm
from eqmdm._diffusion.local import local_step, prior_defect


@final
class Cubic(eqmdm.AbstractNonlinearDiffusion):
    """As in the documentation of the interface."""

    prior: eqmdm.AbstractLaw = eqmdm.DoubleWellTarget()
    reference: eqmdm.AbstractLinearDiffusion = eqmdm.VPSDE()
    simulation: eqmdm.Simulation = eqmdm.Simulation(8)

    def drift(self, t, y, args=None):
        return -(y**3)

    def diffusion_matrix(self, t):
        return jnp.ones((1, 1), t.dtype)


TARGET = eqmdm.TargetDiffusion([[0.0]], [[0.5]], eqmdm.LogisticTarget())


def model_of(process):
    return eqmdm.FunctionModel(lambda t, y: -y, process)


def test_mean_of_a_local_step_is_of_second_order():
    # Against E y_h = sum_k h^k L^k y / k!, for dy = -y^3 dt + dw from y = 1.
    terms = [Polynomial([0.0, 1.0])]
    for _ in range(6):
        p = terms[-1]
        terms.append(Polynomial([0, 0, 0, -1.0]) * p.deriv() + 0.5 * p.deriv(2))
    errors = []
    local = jax.jit(lambda h: local_step(Cubic(), jnp.zeros(()), h, jnp.ones((1, 1))))
    for h in (0.02, 0.01):
        step = local(jnp.asarray(h))
        exact = sum(h**k / math.factorial(k) * p(1.0) for k, p in enumerate(terms))
        errors.append(abs(1 + float(step.shift[0, 0]) - exact))
    # h^2 / 4 f'' = 1.5 h^2, and a tenth of that at the next order.
    assert errors[0] == pytest.approx(1.5 * 0.02**2, rel=0.2)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("kind", ["stationary", "not stationary"])
def test_defect_of_the_prior_is_zero_where_it_is_stationary(kind, key):
    process = TARGET if kind == "stationary" else Cubic()
    y, t = jr.normal(key, (1, 5)), jnp.asarray(0.7)
    defect = eqx.filter_jit(prior_defect)(process, t, y)
    if kind == "stationary":
        # Rounding of terms of size 10.
        assert abs(defect) < 1e-12
        return
    # -L* pi / pi for dy = -y^3 dt + dw, by numbers: pi^-1 d/dy (f pi - pi' / 2).
    log_density = lambda v: process.prior.log_density(v[None, None])
    flux = lambda v: (
        jnp.exp(log_density(v)) * (-(v**3) - 0.5 * jax.grad(log_density)(v))
    )
    expected = lambda v: jax.grad(flux)(v) / jnp.exp(log_density(v))
    expected = jax.jit(jax.vmap(expected))(y[0])
    assert_allclose(defect, expected.sum(), rtol=1e-10)


def test_path_that_diverges_raises_with_time_and_coordinate(key):
    times, states = eqmdm.simulate_path(Cubic(), jnp.ones(2), key=key)
    assert states.shape == (9, 1, 2)
    assert np.isfinite(states).all() and times[-1] == 1
    far = jnp.asarray([0.0, 60.0])
    with pytest.raises(
        FloatingPointError, match=r"at t = 0\.\d+, in coordinate \(1,\)"
    ):
        eqmdm.simulate_path(Cubic(), far, key=key)
    with pytest.raises(FloatingPointError, match="in coordinate .* of variable 0"):
        eqmdm.elbo(model_of(Cubic()), far, key=key, u=jnp.asarray(0.99))


@pytest.mark.usefixtures("unchecked")
def test_what_needs_kernels_refuses_by_name(key):
    process, t = TARGET, jnp.asarray(0.5)
    for method in (
        process.perturbation_kernel,
        process.compute_kernel,
        process.log_snr,
    ):
        with pytest.raises(TypeError, match="TargetDiffusion does not have"):
            method(t)
    with pytest.raises(TypeError, match="`transition` needs Gaussian transition"):
        process.transition(t, t)
    with pytest.raises(TypeError, match="`diffusion` must be linear"):
        eqmdm.DenoiserModel(lambda log_snr, z: z, process)  # pyright: ignore[reportArgumentType]
    model, x = model_of(process), jnp.ones(2)
    samplers = [
        eqmdm.DPMSolver(),
        eqmdm.DiffraxSampler(diffrax.SEA(), clock=eqmdm.LogSNRClock()),
        eqmdm.DiffraxSampler(diffrax.SEA(), grid=eqmdm.LogSNRGrid()),
    ]
    for sampler in samplers:
        with pytest.raises(TypeError, match="`diffusion` must be linear"):
            eqmdm.sample(model, (2,), key=key, sampler=sampler)
    with pytest.raises(TypeError, match="`diffusion` must be linear"):
        save_at = eqmdm.SaveAt([0.5])
        eqmdm.sample(model, (2,), key=key, save_at=save_at, full_output=True)
    with pytest.raises(TypeError, match="`route` must be an `AugmentedRoute`"):
        eqmdm.log_likelihood(model, x, key=key, route=eqmdm.CollapsedRoute())
    with pytest.raises(TypeError, match="`diffusion` must be linear"):
        route = eqmdm.AugmentedRoute(clock=eqmdm.LogSNRClock())
        eqmdm.log_likelihood(model, x, key=key, route=route)


def test_bounds_that_do_not_suit_raise(key):
    model, x = model_of(TARGET), jnp.ones(2)
    with pytest.raises(TypeError, match="`form` must be `LocalScoreMatching` or"):
        eqmdm.elbo(model, x, key=key, form=eqmdm.LowVariance())
    with pytest.raises(ValueError, match="`decoder` must decode the data alone"):
        eqmdm.elbo(model, x, key=key, decoder=eqmdm.StartDecoder())
    with pytest.raises(ValueError, match="`length` must be shorter than the interval"):
        eqmdm.elbo(model, x, key=key, form=eqmdm.LocalScoreMatching(8.0))
    with pytest.raises(ValueError, match="`length` must be positive"):
        eqmdm.LocalScoreMatching(0.0)
    linear = model_of(eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`form` must be one with kernels"):
        eqmdm.elbo(linear, x, key=key, form=eqmdm.LocalScoreMatching())


def test_training_runs_and_its_run_loads(tmp_path, key):
    x = np.asarray(jr.normal(key, (64, 2)), np.float32)
    network = eqmdm.nn.MLP((2,), 1, width=8, depth=1, key=key)
    model = eqmdm.NoiseModel(network, TARGET)
    run_dir = tmp_path / "run"
    options = {"steps": 2, "batch_size": 8, "run_dir": run_dir, "key": key}
    trained = eqmdm.fit(model, x, validation=x[:8], **options)
    loaded = eqmdm.load_run(run_dir, like=model)
    y = jnp.ones((1, 2), jnp.float32)
    t = jnp.asarray(0.5, jnp.float32)
    score = eqx.filter_jit(lambda model: model.score(t, y))
    scores = [score(model) for model in (model, trained, loaded)]
    assert np.array_equal(scores[2], scores[1])
    assert not np.array_equal(scores[0], scores[1])
    # An objective has the form that suits the process.
    losses = [
        eqmdm.evaluate(trained, x[:8], objective, key=key, batch_size=8).loss
        for objective in (
            eqmdm.Objective(),
            eqmdm.Objective(form=eqmdm.LocalScoreMatching()),
        )
    ]
    np.testing.assert_array_equal(*losses)
