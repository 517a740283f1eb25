"""Training with Student-t noise, and the errors of its models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from correlated import model_of, two_speeds
from heavy_tails import hidden_denoiser

import eqmdm
from eqmdm import nn
from helpers import slow, tree_allclose, within_standard_errors


def small_model(*, nu=4.0, hidden=False, diffusion=None):
    network = nn.MLP((2,), 1, width=16, depth=2, key=jr.key(0))
    diffusion = eqmdm.VPSDE() if diffusion is None else diffusion
    return eqmdm.StudentTModel.for_data(
        network, diffusion, np.full((1, 2), 0.5), nu, hidden=hidden
    )


@pytest.mark.parametrize("hidden", [False, slow(True)], ids=["shown", "hidden"])
def test_fit_raises_the_bound_and_resumes(hidden, key, tmp_path):
    means = np.asarray([[2.0, 0.0], [-2.0, 0.0]], np.float32)
    noise = np.random.default_rng(0).standard_normal((600, 2)).astype(np.float32)
    x = means[np.arange(600) % 2] + 0.3 * noise
    model = small_model(hidden=hidden)
    settings = {"key": key, "batch_size": 64, "run_dir": tmp_path, "ema_decay": 0.98}
    settings |= {"log_every": 50, "checkpoint_every": 50}
    settings |= {"optimiser": eqmdm.make_optimiser(3e-3)}
    fit = lambda steps: eqmdm.fit(model, x[:500], steps=steps, **settings)
    fit(50)
    trained = fit(150)
    evaluated = lambda model, first=0: eqmdm.evaluate(
        model, x[500 + first :], eqmdm.Objective(), key=key, n_draws=4, first=first
    ).terms["total"]
    after, before = evaluated(trained), evaluated(model)
    assert not within_standard_errors(after - before, 0.0)
    assert after.mean() > before.mean()
    read = eqmdm.load_run(tmp_path, like=model)
    # Every draw, of the precision too, is keyed by the number of its example.
    assert tree_allclose(evaluated(read, first=30), after[30:], rtol=1e-4, atol=1e-4)
    assert np.isfinite(eqmdm.sample(trained, (2,), key=key, n_samples=8)).all()


def test_bound_of_a_learned_diffusion_has_derivatives(key):
    network = nn.MLP((2,), 1, width=8, depth=1, key=jr.key(0))
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(1))
    denoiser = eqmdm.PreconditionedDenoiser(network, 0.5, (-30.0, 14.0))
    model = eqmdm.StudentTModel(eqmdm.DenoiserModel(denoiser, diffusion), 4.0)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return eqmdm.elbo(model, jnp.asarray([0.3, -0.4]), key=key).total

    found = jax.device_get(gradient(model))
    for part in (found.model.network, found.model.diffusion):
        leaves = jax.tree.leaves(part)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(np.any(leaf != 0) for leaf in leaves)


@pytest.mark.slow
def test_training_fits_the_mean_over_all_hidden_precisions(key):
    # The derivative of a loss in a factor of E[x | z] is zero if that is its optimum.
    nu, diffusion = 8.0, eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-5.0, 5.0))
    exact, objective = hidden_denoiser(nu, 1.5), eqmdm.Objective()

    def bound(factor, key, training):
        denoiser = lambda log_snr, z: factor * exact(log_snr, z)
        model = eqmdm.DenoiserModel(denoiser, diffusion)
        model = eqmdm.StudentTModel(model, nu, hidden=True)
        key_x, key_u, key = jr.split(key, 3)
        x, keys = 1.5**0.5 * jr.normal(key_x, (200, 1)), jr.split(key, 200)
        u = jr.uniform(key_u, (200,))
        if training:
            return objective.shared_bound(model, x, keys, u, 200)[0].total
        one = lambda x, u, key: objective.bound(model, x, key, u)[0].total
        return jnp.mean(jax.vmap(one)(x, u, keys))

    slopes = jax.jit(jax.vmap(jax.grad(bound), (None, 0, None)), static_argnums=2)
    keys, one = jr.split(key, 300), jnp.ones(())
    assert within_standard_errors(slopes(one, keys, True), 0.0)
    assert not within_standard_errors(slopes(one, keys, False), 0.0)


def test_only_precisions_that_weight_a_loss_are_drawn_otherwise_for_training(key):
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.DenoiserModel(lambda log_snr, z: z, diffusion)
    noise = eqmdm.NoiseModel(lambda t, y: y, diffusion)
    differ = []
    for model, hidden in ((denoiser, False), (denoiser, True), (noise, True)):
        model = eqmdm.StudentTModel(model, 6.0, hidden=hidden)
        draws = model.draw_precision, model.draw_training_precision
        reported, trained = (draw(key=key, dtype=jnp.float64) for draw in draws)
        differ.append(bool(reported != trained))
    assert differ == [False, True, False]


@pytest.mark.slow
def test_bands_that_are_equal_give_the_bound_of_one(key):
    band, _ = two_speeds(eqmdm.CLD)
    banded = eqmdm.BandedDiffusion([band, band], [0, 1, 1])
    x = jnp.asarray([0.5, -1.0, 0.2])
    bound = lambda diffusion: eqmdm.elbo(
        eqmdm.StudentTModel(model_of(diffusion), 4.0), x, key=key, n_draws=16
    )
    assert tree_allclose(bound(banded), bound(band), rtol=1e-9, atol=1e-9)


def test_vectors_of_log_snrs_are_trained_as_for_normal_noise(key):
    basis = eqmdm.PixelBasis((2,))
    network = nn.MLP((2,), 1, width=8, noise_levels=basis.noise_levels, key=jr.key(0))
    denoiser = eqmdm.PreconditionedDenoiser(network, 0.5, (-12.0, 9.2), basis)
    normal = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE())
    objective = eqmdm.Objective(basis=basis, snr_vectors=eqmdm.SNRVectors())
    x, keys = jnp.ones((4, 2)), jr.split(key, 4)
    loss = eqx.filter_jit(lambda model: objective.vector_loss(model, x, keys))
    assert loss(eqmdm.StudentTModel(normal, 4.0)) == loss(normal)


def test_diffusion_of_a_wrapped_model_has_its_learning_rate():
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(3))
    network = nn.MLP((2,), 2, width=8, depth=1, key=jr.key(4))
    model = eqmdm.StudentTModel(eqmdm.NoiseModel(network, diffusion), 4.0, hidden=True)
    values = eqx.filter(model, eqx.is_inexact_array)
    optimiser = eqmdm.make_optimiser(1e-3, diffusion_learning_rate=1e-2, clip=1e6)
    gradient = jax.tree.map(jnp.ones_like, values)
    with jax.numpy_dtype_promotion("standard"):
        init, update = (eqx.filter_jit(step) for step in optimiser)
        updates, _ = update(gradient, init(values), values)
    for part, rate in (
        (updates.model.network, 1e-3),
        (updates.model.diffusion, 1e-2),
    ):
        assert jax.tree.leaves(part)
        for update in jax.tree.leaves(part):
            # Adam's first update is the learning rate, up to its epsilon.
            np.testing.assert_allclose(update, -rate, rtol=1e-5)


# --- Errors --------------------------------------------------------------------------


def wrapped(nu=4.0, **options):
    denoiser = lambda log_snr, z: z * jax.nn.sigmoid(log_snr)
    return eqmdm.StudentTModel(
        eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE()), nu, **options
    )


@pytest.mark.parametrize("nu", [0.0, -1.0, np.nan, np.inf])
def test_degrees_of_freedom_must_be_positive(nu):
    with pytest.raises(ValueError, match="`nu` must be a positive, finite number"):
        wrapped(nu)


def test_hidden_precision_needs_a_variance():
    with pytest.raises(ValueError, match="`nu` must be above 2 for a hidden precision"):
        wrapped(2.0, hidden=True)
    # Shown, the noise needs no variance.
    assert np.isfinite(eqmdm.elbo(wrapped(0.5), jnp.ones(2), key=jr.key(0)).total)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda m: eqmdm.StudentTModel(m.network, 4.0), TypeError, "`model` must be"),
        (lambda m: eqmdm.StudentTModel(wrapped(), 4.0), TypeError, "have normal noise"),
        (
            lambda m: eqmdm.StudentTModel(
                eqmdm.NoiseModel(lambda t, y: y, m.diffusion), 4.0
            ),
            TypeError,
            "`model` must have a denoiser, .*; got NoiseModel. Use .*`hidden=True`",
        ),
        (
            lambda m: eqmdm.StudentTModel(
                eqmdm.FunctionModel(lambda t, y: y, m.diffusion), 4.0, hidden=True
            ),
            TypeError,
            "`NoiseModel` for a hidden precision; got FunctionModel",
        ),
        (
            lambda m: eqmdm.discrete_elbo(
                wrapped(), jnp.ones(2), times=jnp.linspace(1.0, 0.1, 4), key=jr.key(0)
            ),
            TypeError,
            "`model` must have a known precision here",
        ),
        (
            lambda m: wrapped().score(jnp.asarray(0.5), jnp.ones((1, 2))),
            TypeError,
            r"`model\.given_precision\(precision\)`",
        ),
        (
            lambda m: eqmdm.log_likelihood(
                m, jnp.ones(2), key=jr.key(0), route=eqmdm.PrecisionRoute()
            ),
            TypeError,
            "`model` must be a `StudentTModel` for a `PrecisionRoute`",
        ),
        (lambda m: eqmdm.PrecisionRoute(n_draws=0), ValueError, "`n_draws` must be at"),
        (
            lambda m: wrapped().given_precision(-1.0),
            ValueError,
            "`precision` must be positive and finite; got -1.0",
        ),
    ],
)
def test_student_t_noise_refuses_by_name(make, error, match, unchecked):
    with pytest.raises(error, match=match):
        make(wrapped().model)


def test_network_must_have_been_trained_on_the_precisions(key):
    # The interval of the diffusion alone is enough for normal noise.
    model = small_model().model
    low = eqmdm.VPSDE().log_snr(eqmdm.VPSDE().t1)
    network = model.network.network
    narrow = eqmdm.PreconditionedDenoiser(network, 0.5, (float(low) - 0.01, 9.2))
    normal = eqmdm.DenoiserModel(narrow, eqmdm.VPSDE())
    assert np.isfinite(eqmdm.elbo(normal, jnp.ones(2), key=key).total)
    with pytest.raises(ValueError, match="within the log-SNR range of its network"):
        eqmdm.elbo(eqmdm.StudentTModel(normal, 4.0), jnp.ones(2), key=key)
