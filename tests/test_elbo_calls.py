"""Tests of how bounds are called, differentiated and shared over a batch."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from bounds import GeometricTime, elbo_at_noise, gauss_legendre
from jax.flatten_util import ravel_pytree
from references import VARIANCE, normal_denoiser

import eqmdm
from eqmdm._bound.estimate import compute_elbo, compute_shared_elbo
from helpers import slow, tree_allclose, within_standard_errors


@final
class FixedTime(eqmdm.AbstractTimeSampler):
    """The same time for every quantile."""

    t: jax.Array
    density: jax.Array

    def __call__(self, diffusion, u):
        return self.t, self.density


def images(key):
    return jr.normal(key, (3, 4, 4, 1))


def test_elbo_of_a_batch_of_images_is_that_of_each(key):
    diffusion = eqmdm.CLD()
    model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1 * t, diffusion)
    key_data, key_bound, key_time = jr.split(key, 3)
    x = images(key_data).astype(jnp.float32)
    keys, u = jr.split(key_bound, 3), eqmdm.low_discrepancy(3, key=key_time)
    single = lambda x, key, u: eqmdm.elbo(model, x, key=key, u=u)
    batch = jax.jit(jax.vmap(single))(x, keys, u)
    each = [jax.jit(single)(*args) for args in zip(x, keys, u, strict=True)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    for bound in (batch, stacked):
        assert all(leaf.shape == (3,) for leaf in jax.tree.leaves(bound))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(bound))
    # Sums of 32 numbers in another order, in float32.
    assert tree_allclose(batch, stacked, rtol=2e-5, atol=1e-4)
    terms = batch.reconstruction + batch.prior + batch.diffusion + batch.auxiliary
    assert tree_allclose(batch.total, terms, rtol=1e-6, atol=0.0)


def test_elbo_is_by_default_that_of_its_named_defaults(key):
    diffusion = eqmdm.VPSDE()
    model = eqmdm.NoiseModel(lambda t, y: 0.5 * y, diffusion)
    x = images(key)
    named = {
        "form": eqmdm.LowVariance(),
        "decoder": eqmdm.DataDecoder(),
        "time_sampler": eqmdm.ImportanceTimeSampler(),
    }
    run = lambda **options: eqmdm.elbo(model, x, key=key, **options)
    default, same, moved = jax.jit(
        lambda: (run(), run(**named), run(u=jnp.asarray(0.3)))
    )()
    # One computation.
    assert tree_allclose(default, same, rtol=1e-14, atol=0.0)
    # The quantile of the time moves the one term that depends on it.
    assert default.diffusion != moved.diffusion
    assert default.reconstruction == moved.reconstruction
    assert default.prior == moved.prior


# The sampler's search for its times is the larger part of a program.
@pytest.mark.parametrize(
    "form, decoder, sampler",
    [
        (
            eqmdm.LowVariance(),
            eqmdm.DataDecoder(),
            eqmdm.ImportanceTimeSampler(),
        ),
        slow(eqmdm.LowVariance(), eqmdm.StartDecoder(), eqmdm.UniformTimeSampler()),
        slow(
            eqmdm.DenoisingScoreMatching(),
            eqmdm.StartDecoder(),
            eqmdm.UniformTimeSampler(),
        ),
        (
            eqmdm.ImplicitScoreMatching(),
            eqmdm.StartDecoder(),
            eqmdm.UniformTimeSampler(),
        ),
    ],
    ids=["low_variance", "theorem_3", "denoising", "implicit"],
)
def test_shared_elbo_has_the_terms_of_each_share(form, decoder, sampler, key):
    diffusion = eqmdm.CLD()
    model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1 * t, diffusion)
    n = 5
    # The numbers of examples at t0 and at random times: disjoint, or all at both.
    shares = [(2, 3), (5, 5)]
    key_data, key_bound, key_time = jr.split(key, 3)
    x = jr.normal(key_data, (n, 3))
    keys = jr.split(key_bound, n)
    u = jr.uniform(key_time, (n,))

    @jax.jit
    def compute(x, keys, u):
        shared = [
            compute_shared_elbo(
                model, x, u[-n_path:], n_cut, form, decoder, sampler, keys=keys
            )
            for n_cut, n_path in shares
        ]
        one = lambda x, key, u: compute_elbo(
            model, x, u, form, decoder, sampler, key=key
        )
        return shared, jax.vmap(one)(x, keys, u)

    shared, each = compute(x, keys, u)
    for actual, (n_cut, n_path) in zip(shared, shares, strict=True):
        expected = eqmdm.Elbo(
            reconstruction=jnp.mean(each.reconstruction[:n_cut]),
            prior=jnp.mean(each.prior),
            diffusion=jnp.mean(each.diffusion[-n_path:]),
            auxiliary=jnp.mean(each.auxiliary),
        )
        # Sums in another order; a cut at 1e-3 has a condition number of 1e5.
        assert tree_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_elbo_refuses_integers(dtype, key):
    diffusion = eqmdm.VPSDE()
    model = eqmdm.NoiseModel(lambda t, y: y, diffusion)
    with pytest.raises(TypeError, match="`x` must be floating-point data"):
        eqmdm.elbo(model, jnp.zeros((2, 2), dtype), key=key)


@pytest.mark.parametrize(
    "form", [eqmdm.DenoisingScoreMatching(), eqmdm.LowVariance(given_start=True)]
)
def test_forms_given_the_start_refuse_a_decoder_of_the_data(form, key):
    diffusion = eqmdm.CLD()
    model = eqmdm.NoiseModel(lambda t, y: y, diffusion)
    with pytest.raises(ValueError, match="`decoder` must be a `StartDecoder`"):
        options = {"form": form, "decoder": eqmdm.DataDecoder()}
        eqmdm.elbo(model, jnp.zeros(2), key=key, **options)


@pytest.mark.parametrize(
    "ends",
    [{}, slow({"interval": eqmdm.LogSNRInterval(-4.0, 6.0)})],
    ids=["t", "log_snr"],
)
def test_gradient_of_elbo_in_the_diffusion_is_that_of_differences(ends, key):
    key_diffusion, key_bound = jr.split(key)
    diffusion = eqmdm.LearnedDiffusion(2, key=key_diffusion, **ends)
    trainable, fixed = eqx.partition(diffusion, eqx.is_inexact_array)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trainable)
    values, unravel = ravel_pytree(trainable)

    def total(values):
        diffusion = eqx.combine(unravel(values), fixed)
        model = eqmdm.NoiseModel(lambda t, y: 0.5 * y + 0.1 * t, diffusion)
        options = {"time_sampler": eqmdm.UniformTimeSampler(), "u": jnp.asarray(0.1)}
        x = jnp.asarray(0.7)
        return eqmdm.elbo(model, x, key=key_bound, **options).total

    total_and_gradient = jax.jit(jax.value_and_grad(total))
    _, gradient = total_and_gradient(values)
    step = 1e-5
    for i in range(len(values)):
        move = jnp.zeros_like(values).at[i].set(step)
        up, down = (total_and_gradient(values + s * move)[0] for s in (1, -1))
        difference = (up - down) / (2 * step)
        # The square of the step, and roundings over the step.
        assert abs(gradient[i] - difference) < 1e-6 * max(1, abs(difference))


@pytest.mark.slow
def test_diffusion_between_fixed_log_snr_ends_has_nothing_to_learn(monkeypatch):
    # With a denoiser the bound without its prior term depends on the interval alone:
    # its expected gradient is 0 if it includes the moving limits of the integral.
    diffusion = eqmdm.LearnedDiffusion(
        2, key=jr.key(0), interval=eqmdm.LogSNRInterval(-4.0, 6.0)
    )
    trainable, fixed = eqx.partition(diffusion, eqx.is_inexact_array)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), trainable)
    u, weights = gauss_legendre(32)
    points = 2 * jnp.concatenate([jnp.eye(4), -jnp.eye(4)])

    def expected(trainable):
        diffusion = eqx.combine(trainable, fixed)
        model = eqmdm.DenoiserModel(normal_denoiser, diffusion)

        def at(u, point):
            x, start_noise, noise = jnp.split(point, [1, 2])
            x = jnp.sqrt(VARIANCE) * x[0]
            # A fixed grid has no derivative in the limits of the interval.
            frozen = jax.lax.stop_gradient
            t, density = GeometricTime()(diffusion, u)
            sampler = FixedTime(frozen(t), frozen(density))
            args = monkeypatch, start_noise, noise, model, x, u, sampler
            return elbo_at_noise(*args, "low variance, data")

        bounds = jax.vmap(jax.vmap(at, in_axes=(None, 0)), in_axes=(0, None))(u, points)
        terms = jnp.mean(bounds.reconstruction + bounds.diffusion, axis=1)
        return jnp.sum(terms * jnp.asarray(weights))

    value, gradient = jax.jit(jax.value_and_grad(expected))(trainable)
    # Mean square errors at these ends, integrated over log-SNR, are logarithms.
    log_snr = np.array([-4.0, 6.0])
    loss = np.diff(np.log1p(VARIANCE * np.exp(log_snr)))[0]
    at_cut = 1 / (1 + 1 / (VARIANCE * np.exp(6.0)))
    exact = 0.5 * (6.0 - np.log(2 * np.pi) - at_cut - loss)
    # Quadrature.
    assert abs(value - exact) < 1e-7
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


def chain(n_vars, t0):
    """A diffusion with noise on the last variable and a chain of couplings."""
    coupling = np.tril(np.ones((n_vars, n_vars)), -1)
    coupling = coupling - np.tril(coupling, -2)
    noise = np.diag([0.0] * (n_vars - 1) + [1.0])
    interval = eqmdm.TimeInterval(t0, 1.0)
    return eqmdm.LinearDiffusion(coupling - coupling.T, noise, interval=interval)


# Log-SNRs of 90 to 94 at t0, where the ratio itself is no number in float32.
some_chains = pytest.mark.parametrize(
    ("n_vars", "t0"),
    [(3, 1e-7), slow(4, 3e-5), slow(5, 1e-3)],
)


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@some_chains
def test_bound_is_one_where_the_signal_leaves_float32(n_vars, t0, key):
    diffusion = chain(n_vars, t0)
    model = eqmdm.DenoiserModel(lambda l, z: z / (1 + jnp.exp(-l)), diffusion)
    x = jnp.ones(8, jnp.float32)
    bound = lambda key: eqmdm.elbo(model, x, key=key)
    bounds = jax.jit(jax.vmap(bound))(jr.split(key, 4000))
    low = float(jax.jit(lambda: diffusion.log_snr(diffusion.t1))())
    # Of x - x_hat the mean square is 1 / (1 + SNR) for this x, whose
    # integral over SNR is a logarithm; that of the top cancels with the decoder's.
    expected = 8 * (0.5 * np.logaddexp(0, low) - 0.5 * np.log(2 * np.pi) - 0.5)
    assert within_standard_errors(bounds.reconstruction + bounds.diffusion, expected)
    log_density = -4 * (np.log(2 * np.pi) + 1)
    total = np.asarray(bounds.total, float)
    assert total.mean() < log_density + 5 * total.std() / np.sqrt(len(total))


@pytest.mark.filterwarnings("ignore:The law of this diffusion")
@some_chains
def test_discrete_bound_is_right_where_the_signal_leaves_float32(n_vars, t0, key):
    diffusion = chain(n_vars, t0)
    model = eqmdm.DenoiserModel(lambda l, z: z / (1 + jnp.exp(-l)), diffusion)
    x = jnp.ones(8, jnp.float32)
    times = eqmdm.LogSNRGrid()(diffusion, 20, jnp.float32)
    bound = lambda key: eqmdm.discrete_elbo(model, x, times=times, key=key)
    bounds = jax.jit(jax.vmap(bound))(jr.split(key, 400))
    log_snr = np.asarray(jax.vmap(diffusion.log_snr)(times.astype(float)))
    # A step costs half the gain of SNR times the mean square of x - x_hat, 1 / (1 +
    # SNR) at its start.
    gain, before = np.diff(log_snr), log_snr[:-1]
    costs = 4 * np.expm1(gain) * np.exp(-np.logaddexp(0, -before))
    assert within_standard_errors(bounds.diffusion, -np.sum(costs))
    reconstruction = 4 * (log_snr[-1] - np.log(2 * np.pi) - 1)
    # The noise is known but for a part 1 / SNR of it. Sums of 8 float32 numbers.
    np.testing.assert_allclose(bounds.reconstruction, reconstruction, rtol=1e-5)
