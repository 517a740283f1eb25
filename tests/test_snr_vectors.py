"""Tests of training with random vectors of log-SNRs."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from bases import BASES, some_quick

import eqmdm
from eqmdm._training.objective import batch_loss
from eqmdm.nn import MLP
from helpers import slow, tree_allclose, within_standard_errors


RANGE = (-6.0, 9.0)


def draws(basis, n, key):
    draw = lambda key: eqmdm.SNRVectors().draw(basis, RANGE, key=key)
    return np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, n))).reshape(n, -1)


# Local bases and others, with and without bands.
QUICK_BASES = "pixels", "pixels_points", "haar_series", "rotation_points"


@pytest.mark.parametrize("basis", some_quick(BASES, QUICK_BASES))
def test_levels_are_in_the_range_or_infinite(basis, key):
    low, high = RANGE
    log_snr = draws(basis, 500, key)
    finite = np.isfinite(log_snr)
    assert not np.isnan(log_snr).any()
    assert ((low <= log_snr) & (log_snr <= high))[finite].all()
    # Known and missing coefficients do not occur together, and both occur.
    known, missing = (log_snr == sign * math.inf for sign in (1, -1))
    assert known.any() and missing.any()
    assert not (known.any(axis=1) & missing.any(axis=1)).any()
    # Most vectors have one or two levels.
    n_levels = np.array([len(np.unique(row)) for row in log_snr])
    assert (n_levels <= 2).mean() > 0.6
    # The others have no infinite ones.
    assert finite[n_levels > 2].all()


def test_finite_levels_are_uniform_in_the_range(key):
    low, high = RANGE
    # For points all vectors are sets.
    log_snr = draws(eqmdm.PixelBasis((2,)), 4000, key)[:, 0]
    log_snr = log_snr[np.isfinite(log_snr)]
    share = (log_snr - low) / (high - low)
    for power in (1, 2, 3):
        assert within_standard_errors(share**power, 1 / (power + 1))


def test_known_and_missing_coefficients_are_a_third_of_the_sets_each(key):
    log_snr = draws(eqmdm.PixelBasis((20,)), 4000, key)
    n_levels = np.array([len(np.unique(row)) for row in log_snr])
    # A set may also have all coefficients or none.
    log_snr = log_snr[n_levels == 2]
    for sign in (1, -1):
        assert within_standard_errors((log_snr == sign * math.inf).any(axis=1), 1 / 3)


def test_bands_of_a_set_are_consecutive(key):
    basis = eqmdm.CosineBasis((8, 8, 1))
    log_snr, bands = draws(basis, 300, key), basis.bands.ravel()
    by_band = [
        row
        for row in log_snr
        if all(len(np.unique(row[bands == b])) == 1 for b in range(bands.max() + 1))
    ]
    # Two kinds of three: those below a band, and those monotone in it.
    assert 0.5 < len(by_band) / len(log_snr) < 0.8
    for row in by_band:
        levels = [row[bands == b][0] for b in range(bands.max() + 1)]
        assert sorted(levels) in (levels, levels[::-1])


def test_images_have_blocks_and_half_planes(key):
    rows = draws(eqmdm.PixelBasis((6, 6, 2)), 400, key).reshape(400, 6, 6, 2)
    same = (rows == rows[..., :1]).all(axis=(1, 2, 3))
    # All but the scattered kind have one level for the channels of a pixel.
    assert 0.6 < same.mean() < 0.95
    n_levels = np.array([len(np.unique(row)) for row in rows])
    is_block = []
    for row in rows[same & (n_levels == 2), ..., 0]:
        is_set = row == np.unique(row)[0]
        for part in (is_set, ~is_set):
            sides = part.any(axis=1), part.any(axis=0)
            is_block.append((part == np.outer(*sides)).all() and not part.all())
    assert any(is_block)


def test_shares_that_are_no_shares_are_refused():
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="`scalar_share` must be strictly between"):
            eqmdm.SNRVectors(share)
    assert eqmdm.SNRVectors(0.75).n_vectors(60) == 15
    with pytest.raises(ValueError, match="`batch_size` must give examples both"):
        eqmdm.SNRVectors().n_vectors(1)


def exact(log_snr, z):
    """The exact denoiser of standard normal data."""
    return z * jax.nn.sigmoid(log_snr)


def model_of(function):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(*RANGE))
    return eqmdm.DenoiserModel(eqmdm.VectorDenoiser(function, 1.0, RANGE), diffusion)


@pytest.mark.parametrize("gain", [slow(1.0), 0.5])
def test_vector_loss_is_the_weighted_error_of_the_denoiser(gain, key):
    low, high = RANGE
    basis = eqmdm.CosineBasis((4, 3, 1))
    objective = eqmdm.Objective(basis=basis, snr_vectors=eqmdm.SNRVectors())
    model = model_of(lambda log_snr, z: gain * exact(log_snr, z))
    key_loss, key_vectors = jr.split(key)
    n = 4000
    x = np.random.default_rng(0).standard_normal((n, *basis.shape))
    one = lambda x, key: objective.vector_loss(model, x[None], key[None])
    losses = np.asarray(jax.jit(jax.vmap(one))(x, jr.split(key_loss, n)))
    # With p = SNR / (1 + SNR), the error of a coefficient of variance 1 is (1 - p)
    # plus (1 - gain)^2 p, times the SNR.
    log_snr = draws(basis, 20_000, key_vectors)
    known = np.where(np.isfinite(log_snr), log_snr, 0.0)
    share = 1 / (1 + np.exp(-known))
    error = np.exp(known) * ((1 - share) + (1 - gain) ** 2 * share)
    error = np.where(np.isfinite(log_snr), error, 0.0)
    expected = 0.5 * (high - low) * error.sum(axis=1)
    # Both are estimates: 20,000 draws of the second, without noise, add a tenth to the
    # variance of the difference at most.
    assert within_standard_errors(losses, expected.mean())


@pytest.fixture(scope="module")
def trained_parts():
    basis = eqmdm.PixelBasis((3,))
    levels = basis.noise_levels
    network = MLP((3,), 1, width=8, depth=1, noise_levels=levels, key=jr.key(0))
    denoiser = eqmdm.PreconditionedDenoiser(network, 1.0, (-6.01, 9.01), basis)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*RANGE))
    x = np.random.RandomState(0).standard_normal((200, 3)).astype(np.float32)
    return eqmdm.DenoiserModel(denoiser, diffusion), x


def test_the_loss_is_the_bound_and_the_weighted_loss_of_vectors(trained_parts, key):
    model, x = trained_parts
    x, keys = jnp.asarray(x[:12]), jr.split(key, 12)
    u = jnp.asarray(np.linspace(0.1, 0.9, 4, dtype=np.float32))
    vectors = eqmdm.Objective(snr_vectors=eqmdm.SNRVectors())
    plain = eqmdm.Objective()
    compute = eqx.filter_jit(batch_loss)
    bound, terms = compute(model, plain, x, keys, u, n_reconstruction=2)
    loss, metrics = compute(model, vectors, x, keys, u, n_reconstruction=2, n_vectors=6)
    added = eqx.filter_jit(vectors.vector_loss)(model, x[2:8], keys[2:8])
    # The same programs, or parts of them, in float32.
    assert tree_allclose(metrics.pop("vectors"), added, rtol=1e-5, atol=0.0)
    assert tree_allclose(metrics, terms, rtol=1e-5, atol=1e-5)
    assert tree_allclose(loss, bound + 6 / 4 * added, rtol=1e-5, atol=0.0)


def test_training_reports_the_loss_of_vectors_and_resumes_exactly(trained_parts):
    model, x = trained_parts
    objective = eqmdm.Objective(snr_vectors=eqmdm.SNRVectors())
    data = eqmdm.TrainingSet(x, objective)
    optimiser = optax.adam(1e-2)

    def after(state, n):
        for _ in range(n):
            state, metrics = eqmdm.train_step(
                state, data, objective, optimiser, batch_size=16
            )
        return state, metrics

    create = lambda: eqmdm.TrainState.create(model, optimiser, key=jr.key(1))
    state, metrics = after(create(), 4)
    assert metrics["vectors"].shape == (1,) and metrics["vectors"] > 0
    # The parameters through which the network is told the levels are trained.
    assert np.any(state.model.network.network.linear_levels.weight)
    half, _ = after(create(), 2)
    leaves, structure = jax.tree.flatten(half)
    stored = [np.asarray(leaf) if eqx.is_array(leaf) else leaf for leaf in leaves]
    half = jax.tree.unflatten(
        structure, [jnp.array(x) if eqx.is_array(x) else x for x in stored]
    )
    resumed, _ = after(half, 2)
    arrays = lambda state: eqx.filter(state, eqx.is_array)
    assert tree_allclose(arrays(resumed), arrays(state), rtol=0.0, atol=0.0)


def test_fit_trains_in_the_basis_of_the_model(trained_parts):
    model, x = trained_parts
    # In the other order, so that the first coefficient is the last coordinate.
    basis = eqmdm.PrincipalComponents(np.eye(3, dtype=np.float32)[::-1])
    denoiser = model.network
    turned = eqmdm.PreconditionedDenoiser(
        denoiser.network, denoiser.data_std, denoiser.log_snr_range, basis
    )
    turned = eqmdm.DenoiserModel(turned, model.diffusion)
    options = {"steps": 3, "batch_size": 16, "log_every": 3}
    seen = []
    log = lambda event: seen.append(event.metrics) if event.metrics else None
    fitted = eqmdm.fit(turned, x, key=jr.key(1), callbacks=[log], **options)
    assert "vectors" in seen[0]
    objective = eqmdm.Objective(basis=basis, snr_vectors=eqmdm.SNRVectors())
    expected = eqmdm.fit(turned, x, key=jr.key(1), objective=objective, **options)
    arrays = lambda model: eqx.filter(model, eqx.is_inexact_array)
    assert tree_allclose(arrays(fitted), arrays(expected), rtol=0.0, atol=0.0)


def test_a_model_of_one_log_snr_is_refused(key):
    scalar = eqmdm.DenoiserModel(exact, eqmdm.CLD())
    objective = eqmdm.Objective(snr_vectors=eqmdm.SNRVectors())
    message = "`model` must be told the log-SNR of every coordinate"
    with pytest.raises(TypeError, match=message):
        objective.vector_loss(scalar, jnp.zeros((2, 3)), jr.split(key, 2))
    unknown = eqmdm.DenoiserModel(eqmdm.VectorDenoiser(exact), eqmdm.CLD())
    with pytest.raises(TypeError, match=message):
        objective.vector_loss(unknown, jnp.zeros((2, 3)), jr.split(key, 2))


def test_a_discrete_decoder_needs_pixels():
    levels = eqmdm.GreyLevels(16, dequantiser=eqmdm.CentreDequantiser())
    with pytest.raises(ValueError, match="`basis` must be left out, or be a `Pixel"):
        eqmdm.Objective(levels=levels, basis=eqmdm.HaarBasis((8, 8, 1)))
    eqmdm.Objective(levels=levels, basis=eqmdm.PixelBasis((8, 8, 1)))


@pytest.mark.parametrize(
    "basis", [slow(eqmdm.HaarBasis((4, 4, 1))), eqmdm.CosineBasis((4, 4, 1))]
)
def test_a_basis_does_not_change_bits_per_dimension(basis, key):
    levels = jnp.asarray(np.random.default_rng(0).integers(16, size=(40, 4, 4, 1)))
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-7.0, 12.0))
    # Independent of the basis, like the law of its data.
    function = lambda log_snr, z: jax.nn.sigmoid(log_snr - 1.0) * z
    model = eqmdm.DenoiserModel(eqmdm.VectorDenoiser(function, 0.6), diffusion)
    found = []
    for own in (None, basis):
        objective = eqmdm.Objective(levels=eqmdm.GreyLevels(16), basis=own)
        found.append(eqmdm.evaluate(model, levels, objective, key=key, n_draws=8).terms)
    without, within = found
    for name in ("dequantisation", "data_transform"):
        assert tree_allclose(within[name], without[name], rtol=1e-6, atol=0.0)
    # The same offsets and times, and noise that only the basis turns.
    difference = within["bits_per_dim"] - without["bits_per_dim"]
    assert np.abs(difference).max() > 1e-4
    assert within_standard_errors(difference, 0.0)
