"""Diffusions with more or less noise."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from correlated import two_speeds

import eqmdm
from helpers import tree_allclose


Q = np.array([[0.0, -1.0], [1.0, 0.0]])
D = np.diag([0.5, 2.0])
S, START = np.diag([1.0, 0.5]), np.diag([0.0, 0.2])


def scaled_by_hand(kappa, **options):
    return eqmdm.LinearDiffusion(
        Q / kappa,
        D / kappa,
        stationary_covariance=S / kappa,
        start_covariance=START / kappa,
        **options,
    )


def laws(diffusion, t):
    kernel = diffusion.compute_kernel(t)
    G = diffusion.diffusion_matrix(t)
    return {
        "kernel": kernel,
        "rate": diffusion.log_snr_rate(t, kernel),
        "transition": diffusion.transition(0.5 * t, t),
        "drift": diffusion.drift_matrix(t),
        "noise": G @ G.T,
        "prior": diffusion.prior,
        "start": diffusion.start_root(t.dtype) @ diffusion.start_root(t.dtype).T,
        "limit": diffusion.t1,
    }


@pytest.mark.parametrize("kappa", [0.05, 7.0])
def test_scaled_diffusion_is_the_recipe_with_its_matrices_divided(kappa):
    t = jnp.asarray(0.3)
    scaled = eqmdm.ScaledDiffusion(scaled_by_hand(1.0), kappa)
    # The same numbers, multiplied in another order.
    assert tree_allclose(
        laws(scaled, t), laws(scaled_by_hand(kappa), t), rtol=1e-12, atol=1e-14
    )
    shift = scaled.log_snr(t) - scaled.diffusion.log_snr(t)
    np.testing.assert_allclose(shift, np.log(kappa), rtol=1e-12)


def test_scaled_kernel_is_the_kernel_of_the_scaled_diffusion():
    t, kappa = jnp.asarray(0.3), jnp.asarray(0.05)
    speeds = two_speeds(eqmdm.CLD)
    diffusion = eqmdm.BandedDiffusion(speeds, [1, 0, 1])
    expected = eqmdm.ScaledDiffusion(diffusion, kappa).compute_kernel(t)
    actual = diffusion.compute_kernel(t).scaled(kappa)
    assert tree_allclose(actual, expected, rtol=1e-11, atol=1e-13)


def test_scaled_diffusion_keeps_the_times_of_an_interval_in_log_snr():
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-5.0, 9.0))
    scaled = eqmdm.ScaledDiffusion(diffusion, 0.1)
    assert (scaled.t0, scaled.t1) == (diffusion.t0, diffusion.t1)
    moving = eqmdm.LearnedDiffusion(
        2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-4.0, 9.0)
    )
    scaled = eqmdm.ScaledDiffusion(moving, 0.1)
    np.testing.assert_allclose(scaled.t0, moving.t0, rtol=1e-6)
    np.testing.assert_allclose(scaled.t1, moving.t1, rtol=1e-6)


def test_scaled_diffusion_is_shown_by_its_parts():
    shown = repr(eqmdm.ScaledDiffusion(eqmdm.VESDE(), 0.25))
    assert shown.startswith("ScaledDiffusion(VESDE(") and "precision=0.25" in shown


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda d: eqmdm.ScaledDiffusion(3.0, 1.0), TypeError, "`diffusion` must be a"),
        (lambda d: eqmdm.ScaledDiffusion(d, 0.0), ValueError, "`precision` must be po"),
        (lambda d: eqmdm.ScaledDiffusion(d, np.inf), ValueError, "`precision` must be"),
        (
            lambda d: eqmdm.ScaledDiffusion(d, np.ones(2)),
            ValueError,
            r"`precision` must be a number; got shape \(2,\)",
        ),
    ],
)
def test_scaled_diffusion_refuses_by_name(make, error, match, unchecked):
    with pytest.raises(error, match=match):
        make(eqmdm.VPSDE())


def test_splitting_sampler_takes_the_scaled_diffusion(key):
    kappa, settings = 0.2, {"key": key, "n_samples": 8, "n_steps": 5}
    denoiser = lambda log_snr, z: jnp.tanh(z) * jax.nn.sigmoid(log_snr)
    draw = lambda diffusion: eqmdm.sample(
        eqmdm.DenoiserModel(denoiser, diffusion), (2,), sampler=eqmdm.SSCS(), **settings
    )
    scaled = eqmdm.ScaledDiffusion(scaled_by_hand(1.0), kappa)
    # The recipe with divided matrices is an independent route to the same steps.
    np.testing.assert_allclose(
        draw(scaled), draw(scaled_by_hand(kappa)), rtol=1e-9, atol=1e-10
    )
