import diffrax as dfx
import jax.numpy as jnp
import jax.random as jr
import pytest

import eqmdm
from helpers import tree_allclose, within_standard_errors


MEANS = jnp.asarray([-1.0, 1.5])
STD = 0.3


def mixture_denoiser(log_snr, z):
    """The posterior mean of a mixture of two normals in every coordinate."""
    noise = jnp.exp(-log_snr)
    total = STD**2 + noise
    gap = z[..., None] - MEANS.astype(z.dtype).reshape(*([1] * z.ndim), 2)
    logits = -0.5 * gap**2 / total
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    posterior = z[..., None] - gap * (noise / total)
    return jnp.sum(weights * posterior, axis=-1)


def sample(diffusion, shape=(), **options):
    score = eqmdm.DenoiserScore(mixture_denoiser, diffusion)
    return eqmdm.sample(score, diffusion, shape, **options)


@pytest.mark.parametrize("cls", [eqmdm.VPSDE, eqmdm.CLD], ids=["VPSDE", "CLD"])
def test_samples_with_the_exact_denoiser_have_the_moments_of_the_data(cls, key):
    # To where nothing of the data is left.
    diffusion = cls(t_range=(1e-3, 1.3))
    x = sample(diffusion, (4,), key=key, n_samples=400, n_steps=150).reshape(-1)
    offsets = MEANS - jnp.mean(MEANS)
    first, second, fourth = (jnp.mean(offsets**power) for power in (1, 2, 4))
    expected = (
        first,
        second + STD**2,
        fourth + 6 * second * STD**2 + 3 * STD**4,
    )
    gap = x - jnp.mean(MEANS)
    for power, moment in zip((1, 2, 4), expected, strict=True):
        assert within_standard_errors(gap**power, moment)
    # The mixture's gap is almost empty: 1e-4 of its mass is within 0.1 of the middle.
    assert jnp.mean(jnp.abs(gap) < 0.1) < 5e-3


def test_a_sample_does_not_depend_on_how_many_are_drawn(key):
    diffusion = eqmdm.VPSDE()
    few, many = (
        sample(diffusion, (2,), key=key, n_samples=n, n_steps=8) for n in (2, 5)
    )
    assert few.shape == (2, 2) and many.shape == (5, 2)
    assert len(jnp.unique(many)) == 10
    # Another batch size may be fused otherwise, so to rounding.
    assert tree_allclose(few, many[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [dfx.Euler(), dfx.ShARK()], ids=["Euler", "ShARK"])
def test_sample_takes_other_solvers(solver, key):
    x = sample(eqmdm.VPSDE(), (2,), key=key, n_samples=3, n_steps=20, solver=solver)
    # The data lie within some standard deviations of the two means.
    assert x.shape == (3, 2) and jnp.all(jnp.abs(x) < 4)


def test_samples_have_the_dtype_that_is_asked_for_and_follow_the_key(key):
    draws = [
        sample(eqmdm.VPSDE(), (2,), key=k, n_samples=2, n_steps=4, dtype=jnp.float32)
        for k in jr.split(key)
    ]
    for x in draws:
        assert x.dtype == jnp.float32 and jnp.all(jnp.isfinite(x))
    assert jnp.all(draws[0] != draws[1])


def test_any_callable_serves_as_a_score(key):
    # Standard normal data under a diffusion that keeps them: the score is -y.
    diffusion = eqmdm.VPSDE()
    x = eqmdm.sample(
        lambda t, y: -y, diffusion, (8,), key=key, n_samples=300, n_steps=100
    )
    assert within_standard_errors(x.reshape(-1), 0.0)
    # What is returned is the posterior mean at the cut, which varies a little less.
    expected = jnp.exp(-diffusion.clock.integrated_rate(jnp.zeros(()), diffusion.t0))
    assert within_standard_errors(x.reshape(-1) ** 2, expected)


def test_counts_below_one_are_refused(key):
    for options in ({"n_steps": 0}, {"n_samples": 0}, {"n_steps": -1}):
        with pytest.raises(ValueError, match="`n_steps` and `n_samples` must be at"):
            sample(eqmdm.VPSDE(), key=key, **options)


def test_a_horizon_below_the_denoisers_range_is_refused(key):
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-3.0, 9.0)
    )
    score = eqmdm.DenoiserScore(denoiser, diffusion)
    with pytest.raises(ValueError, match="`diffusion` must end within the denoiser"):
        eqmdm.sample(score, diffusion, (2,), key=key, n_samples=1)
