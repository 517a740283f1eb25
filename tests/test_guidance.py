"""Tests of classifier-free guidance."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conditional_models import DIFFUSIONS, KINDS, conditional_mlp, denoiser
from numpy.testing import assert_allclose, assert_array_equal

import eqmdm
from helpers import counted, slow


# The guided denoiser of N(c, s^2) and N(0, s^2) is that of N(scale c, s^2).
@pytest.mark.parametrize("kind", ["denoiser", slow("noise"), slow("score")])
def test_guidance_between_normals_is_the_score_of_a_normal(kind):
    model = KINDS[kind](DIFFUSIONS["cld"])
    guided = eqmdm.GuidedModel(model, 2.5).with_condition(1.2)
    exact = model.with_condition(2.5 * 1.2)

    @eqx.filter_jit
    def answers(model, t, y):
        kernel = model.diffusion.compute_kernel(t)
        x, noise = y[0], 0.3 * y
        error = model.whitened_error(kernel, x, noise, kernel.perturb(x, noise))
        return model.score(t, y), error, model.data_estimate(kernel, y)

    at = jnp.float64(0.4), jnp.ones((2, 3), jnp.float64)
    actual, expected = answers(guided, *at), answers(exact, *at)
    assert_allclose(actual[0], expected[0], rtol=1e-9)
    assert_allclose(actual[1], expected[1], rtol=1e-8, atol=1e-10)
    assert_allclose(actual[2], expected[2], rtol=1e-8, atol=1e-10)


def test_guided_samples_between_normals_are_those_of_a_normal(key):
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["cld"])
    settings = {"key": key, "n_samples": 64, "dtype": jnp.float64}
    for scale in (0.0, 1.0, 2.5):
        guided = eqmdm.GuidedModel(model, scale)
        x = eqmdm.sample(guided, (2,), condition=1.2, **settings)
        exact = eqmdm.sample(model, (2,), condition=scale * 1.2, **settings)
        # Equal in exact arithmetic: every step is affine in the denoiser.
        assert_allclose(x, exact, atol=1e-8)


def test_guidance_at_a_scale_of_one_changes_no_bit(key):
    model = conditional_mlp(key)
    samples = lambda m: eqmdm.sample(m, (2,), condition=2, key=key, n_samples=32)
    assert_array_equal(samples(eqmdm.GuidedModel(model, 1.0)), samples(model))
    assert not np.array_equal(samples(eqmdm.GuidedModel(model, 1.1)), samples(model))


def test_guidance_acts_in_its_interval_only(key):
    model = conditional_mlp(key)
    guided = eqmdm.GuidedModel(model, 3.0, eqmdm.LogSNRInterval(-2.0, 1.0))
    inside = eqmdm.GuidedModel(model, 3.0)
    z = jnp.asarray([0.3, -0.4])
    jitted = eqx.filter_jit(lambda m, log_snr: m.denoise(log_snr, z))
    denoise = lambda m, log_snr: jitted(m.with_condition(1), jnp.float64(log_snr))
    # Up to the rounding of float64, in which operations are fused differently.
    equal = lambda a, b: np.allclose(a, b, rtol=1e-12, atol=1e-12)
    for log_snr in (-2.1, 1.1):
        assert equal(denoise(guided, log_snr), denoise(model, log_snr))
        assert not equal(denoise(inside, log_snr), denoise(model, log_snr))
    for log_snr in (-2.0, 1.0):
        assert equal(denoise(guided, log_snr), denoise(inside, log_snr))


def test_a_guided_model_is_used_like_any_other(key):
    model = eqmdm.GuidedModel(conditional_mlp(key), 2.0)
    x = jnp.asarray([0.3, -0.4])
    assert bool(eqmdm.log_likelihood(model, x, condition=1, key=key).converged)
    assert np.isfinite(eqmdm.elbo(model, x, condition=1, key=key).total)
    other = model.under(eqmdm.CLD(interval=eqmdm.LogSNRInterval(-4.0, 9.0)))
    x = eqmdm.sample(other, (2,), condition=1, key=key, n_samples=4)
    assert np.isfinite(x).all()


def test_another_scale_or_class_compiles_nothing(key):
    model = conditional_mlp(key)
    samples = lambda scale, condition: eqmdm.sample(
        eqmdm.GuidedModel(model, scale),
        (2,),
        condition=condition,
        key=key,
        n_samples=4,
    )
    samples(2.0, 1)
    with counted() as compiled:
        samples(3.0, 1)
        samples(3.0, 2)
    assert not any(compiled.values())


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda m: eqmdm.GuidedModel(m.network, 2.0), TypeError, "`model` must be"),
        (lambda m: eqmdm.GuidedModel(m, np.ones(2)), ValueError, "`scale` must be a n"),
        (lambda m: eqmdm.GuidedModel(m, np.nan), ValueError, "`scale` must be finite"),
        (lambda m: eqmdm.GuidedModel(m, 2.0, (0, 1)), TypeError, "`interval` must be"),
        (
            lambda m: eqmdm.sample(eqmdm.GuidedModel(m, 2.0), (2,), key=jr.key(0)),
            ValueError,
            "`condition` must be given to a `GuidedModel`",
        ),
        (
            lambda m: eqmdm.GuidedModel(m, 2.0).with_condition(3),
            ValueError,
            "from 0 to 2, or -1",
        ),
    ],
)
def test_guidance_refuses_by_name(make, error, match, key, unchecked):
    with pytest.raises(error, match=match):
        make(conditional_mlp(key))
