"""Tests of denoisers whose network is told the noise level of every coefficient."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bases import BASES, random_rotation, some_quick
from small_networks import perturbed

import eqmdm
from eqmdm import nn
from helpers import generator_of, normal, slow, tree_allclose


RANGE = (-9.0, 13.0)
# Operations on an array of equal numbers and on the number.
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}


def ignoring(c, inputs, *, noise_levels, filtered):
    """A network that uses nothing but the mean noise level."""
    del noise_levels, filtered
    return jnp.sin(3 * inputs) + 0.2 * c * inputs


def attending(c, inputs, *, noise_levels, filtered):
    return jnp.sin(3 * inputs + noise_levels[None]) + c * jnp.tanh(filtered)[None]


def denoiser_with(basis, network=ignoring, data_std=0.6):
    return eqmdm.PreconditionedDenoiser(network, data_std, RANGE, basis)


def uniform(key, shape):
    return generator_of(key).uniform(size=shape)


@pytest.mark.parametrize("basis", BASES)
def test_equal_log_snrs_are_those_of_a_scalar_denoiser(basis, key):
    told = denoiser_with(basis)
    plain = lambda c, inputs: ignoring(c, inputs, noise_levels=None, filtered=None)
    scalar = denoiser_with(None, plain)
    assert told.takes_snr_vector and not scalar.takes_snr_vector

    @jax.jit
    def answers(log_snrs, x):
        z = basis.forward(x)

        def at(log_snr):
            vector = jnp.full(basis.shape, log_snr)
            return [
                (
                    getattr(told, name)(log_snr, z),
                    getattr(told, name)(vector, z),
                    basis.forward(getattr(scalar, name)(log_snr, x)),
                )
                for name in ("__call__", "residual", "correction")
            ]

        return jax.vmap(at)(log_snrs)

    log_snrs = np.asarray([-8.5, 0.5, 12.9, 14.0])
    for of_scalar, of_vector, expected in answers(log_snrs, normal(key, basis.shape)):
        assert tree_allclose(of_scalar, expected, **ROUNDING)
        assert tree_allclose(of_vector, expected, **ROUNDING)


@pytest.mark.parametrize("basis", BASES)
def test_a_network_can_be_exact_for_correlated_normal_data(basis, key):
    n_dims, data_std = math.prod(basis.shape), 0.6
    root = normal(key, (n_dims, n_dims)) / math.sqrt(n_dims)
    covariance = root @ root.T
    low, high = RANGE

    def exact(log_snr, z):
        noise = jnp.exp(-log_snr.reshape(-1))
        gain = jnp.linalg.solve(covariance + jnp.diag(noise), z.reshape(-1))
        return (covariance @ gain).reshape(z.shape)

    both_skipped = []

    def network(c, inputs, *, noise_levels, filtered):
        """The exact denoiser, from what a network is given."""
        log_snr = high - (high - low) * noise_levels
        noise, mean_noise = jnp.exp(-log_snr), jnp.exp((high - low) * c - high)
        total, mean_total = (
            jnp.sqrt(part + data_std**2) for part in (noise, mean_noise)
        )
        smaller = jnp.minimum(1, mean_total / total)
        z = basis.forward(inputs[0]) * total / smaller
        skipped = data_std**2 / total**2 * z
        both_skipped.append((basis.forward(filtered) * data_std, skipped))
        output = (exact(log_snr, z) - skipped) * total / (data_std * jnp.sqrt(noise))
        return basis.inverse(output)[None]

    denoiser = denoiser_with(basis, network, data_std)

    @jax.jit
    def answers(log_snr, z):
        names = "__call__", "correction", "residual"
        actual = [getattr(denoiser, name)(log_snr, z) for name in names]
        return actual, both_skipped, exact(log_snr, z)

    log_snr = np.linspace(-5.0, 8.0, n_dims).reshape(basis.shape)
    z = normal(key, basis.shape)
    actual, skipped, expected = jax.device_get(answers(log_snr, z))
    assert len(skipped) == 3
    for part, expected_part in skipped:
        assert tree_allclose(part, expected_part, **ROUNDING)
    share = data_std**2 / (data_std**2 + np.exp(-log_snr))
    # The network divides by factors as small as exp(-4).
    expected = [expected, expected - z, expected - share * z]
    assert tree_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("basis", some_quick(BASES))
def test_infinite_log_snrs_give_finite_estimates_and_derivatives(basis):
    denoiser = denoiser_with(basis, attending)
    generator = np.random.default_rng(0)
    kinds = np.resize([-math.inf, 0.5, math.inf], math.prod(basis.shape))
    log_snr = generator.permutation(kinds).reshape(basis.shape)
    z = generator.standard_normal(basis.shape)

    @jax.jit
    def answers(log_snr, z):
        def total(log_snr, z):
            x_hat = denoiser(log_snr, z)
            return jnp.sum(x_hat**2), x_hat

        return jax.grad(total, argnums=(0, 1), has_aux=True)(log_snr, z)

    gradients, x_hat = jax.device_get(answers(log_snr, z))
    # What stands at a missing coefficient does not matter, even if it is infinite.
    for other in (5.0, math.inf):
        _, actual = answers(log_snr, np.where(log_snr == -math.inf, other, z))
        assert tree_allclose(actual, x_hat, rtol=0.0, atol=0.0)
    assert np.isfinite(x_hat).all()
    # A known coefficient keeps its value.
    assert (x_hat == z)[log_snr == math.inf].all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_mean_noise_level_is_that_of_what_is_neither_known_nor_missing():
    shown = []

    def network(c, inputs, *, noise_levels, filtered):
        shown.append((c, noise_levels))
        return inputs

    denoiser = denoiser_with(eqmdm.PixelBasis((4,)), network)

    @jax.jit
    def told(log_snr):
        denoiser(log_snr, jnp.ones(4))
        return shown.pop()

    level = lambda log_snr: (RANGE[1] - log_snr) / (RANGE[1] - RANGE[0])
    mean, levels = told(np.asarray([math.inf, 2.0, -math.inf, 2.0]))
    assert float(mean) == pytest.approx(level(2.0), abs=1e-9)
    expected = np.asarray([0.0, level(2.0), 1.0, level(2.0)])
    assert tree_allclose(levels, expected, rtol=1e-12, atol=0.0)
    # By Gaussian data of this scale, p is SNR / (SNR + 1 / 0.6^2).
    log_snr = np.array([-3.0, 0.0, 1.0, 5.0])
    share = 1 / (1 + np.exp(-log_snr) / 0.6**2)
    weight = np.sqrt(share * (1 - share))
    mean, _ = told(log_snr)
    assert float(mean) == pytest.approx(weight @ level(log_snr) / weight.sum())
    assert told(np.full(4, math.inf))[0] == 0.0


def test_infinite_log_snrs_are_the_limits_of_large_ones(key):
    basis = eqmdm.HaarBasis((4, 4, 1))
    denoiser = jax.jit(denoiser_with(basis, attending).__call__)
    sign, z = normal(key, (2, *basis.shape))

    def vector(large):
        log_snr = large * np.sign(sign)
        # One that is neither, which the mean noise level is of.
        log_snr[0, 0] = 0.5
        return log_snr

    limit = denoiser(vector(math.inf), z)
    # The share of the data, or of the noise, at a log-SNR of 80 is exp(-80), and its
    # root is what coefficients are scaled by.
    found = denoiser(vector(80.0), z)
    assert tree_allclose(found, limit, rtol=0.0, atol=1e-12)


def test_permuting_pixels_permutes_the_estimate(key):
    basis = eqmdm.PixelBasis((6,))
    denoiser = jax.jit(denoiser_with(basis, attending).__call__)
    order = np.random.default_rng(0).permutation(6)
    z, log_snr = normal(key, (6,)), np.linspace(-8.0, 12.0, 6)
    permuted = denoiser(log_snr[order], z[order])
    expected = np.asarray(denoiser(log_snr, z))[order]
    assert tree_allclose(permuted, expected, **ROUNDING)


@pytest.mark.parametrize("cls", [slow(eqmdm.VPSDE), eqmdm.CLD, slow(eqmdm.MALDA)])
def test_serves_diffusions_of_any_number_of_variables(cls, key):
    basis = eqmdm.PixelBasis((3,))
    diffusion = cls(interval=eqmdm.LogSNRInterval(-8.0, 12.0))
    told = eqmdm.DenoiserModel(denoiser_with(basis), diffusion)
    plain = lambda c, inputs: ignoring(c, inputs, noise_levels=None, filtered=None)
    scalar = eqmdm.DenoiserModel(denoiser_with(None, plain), diffusion)
    x = jnp.asarray(0.6 * normal(key, (3,)))
    for function in (
        lambda model: eqmdm.elbo(model, x, key=key, n_draws=4).terms(),
        lambda model: eqmdm.log_likelihood(model, x, key=key).log_likelihood,
        lambda model: eqmdm.sample(model, (3,), key=key, n_samples=2, n_steps=5),
    ):
        # The solver's steps follow from rounding errors to its tolerance of 1e-5.
        assert tree_allclose(function(told), function(scalar), rtol=1e-7, atol=1e-7)


NETWORKS = [
    pytest.param(
        lambda basis, key: nn.UNet(
            basis.shape,
            1,
            width=4,
            multipliers=(1, 2),
            n_blocks=1,
            noise_levels=basis.noise_levels,
            key=key,
        ),
        id="unet",
    ),
    pytest.param(
        lambda basis, key: nn.MLP(
            basis.shape, 1, width=8, depth=1, noise_levels=basis.noise_levels, key=key
        ),
        id="mlp",
    ),
]
IMAGE_BASES = [
    pytest.param(eqmdm.PixelBasis((6, 7, 1)), id="pixels"),
    pytest.param(eqmdm.HaarBasis((8, 4, 2)), id="haar"),
    pytest.param(eqmdm.HaarBasis((8, 2)), id="haar_series"),
    pytest.param(eqmdm.CosineBasis((6, 4, 1)), id="cosine"),
    pytest.param(random_rotation((4, 3, 1)), id="rotation"),
]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("basis", some_quick(IMAGE_BASES))
def test_every_noise_level_reaches_the_network(make, basis, key):
    network = perturbed(make(basis, key), key)
    inputs = jnp.asarray(normal(key, (1, *basis.shape)), jnp.float32)
    levels = uniform(key, basis.shape).astype(np.float32)

    def output(levels, filtered):
        given = {"noise_levels": levels, "filtered": filtered}
        return jnp.sum(jnp.sin(network(jnp.float32(0.4), inputs, **given)))

    filtered = np.asarray(inputs)[0]
    gradients = jax.jit(jax.grad(output, argnums=(0, 1)))(levels, filtered)
    for gradient in gradients:
        assert (np.asarray(gradient) != 0).all()


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("basis", some_quick(IMAGE_BASES))
def test_a_new_network_ignores_the_noise_levels(make, basis, key):
    network = make(basis, key)
    names = ("conv_out", "linear_out")
    [last] = [name for name in names if hasattr(network, name)]
    # The last layer is zero as well.
    layer = perturbed(getattr(network, last), key)
    network = eqx.tree_at(lambda network: getattr(network, last), network, layer)
    y = jnp.asarray(normal(key, (1, *basis.shape)), jnp.float32)

    @eqx.filter_jit
    def output(levels, filtered):
        given = {"noise_levels": levels, "filtered": filtered}
        return network(jnp.float32(0.4), y, **given)

    zeros = np.zeros(basis.shape, np.float32)
    levels = uniform(key, basis.shape).astype(np.float32)
    told = output(levels, np.asarray(y)[0])
    assert tree_allclose(told, output(zeros, zeros), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("basis", IMAGE_BASES[:3])
def test_maps_show_each_level_over_the_pixels_of_its_coefficient(basis, key):
    levels = uniform(key, basis.shape)
    maps = np.asarray(jax.jit(basis.noise_levels.maps)(levels))
    n_channels = basis.shape[-1]
    assert maps.shape[-1] == basis.noise_levels.n_maps(levels.ndim - 1) * n_channels
    # The pixels on which each coefficient's function is not zero.
    units = np.eye(levels.size).reshape(levels.size, *basis.shape)
    functions = np.asarray(jax.jit(jax.vmap(basis.inverse))(units))
    for level, function in zip(np.ravel(levels), functions, strict=True):
        # Levels are distinct, so one channel holds this one, on these pixels alone.
        shown = np.any(maps == level, axis=-1)
        covered = np.any(np.abs(function) > 1e-12, axis=-1)
        assert (shown == covered).all()


def test_a_network_that_is_not_told_refuses_noise_levels(key):
    network = nn.MLP((3,), 1, width=8, depth=1, key=key)
    denoiser = denoiser_with(eqmdm.PixelBasis((3,)), network)
    with pytest.raises(ValueError, match="`noise_levels` must be left out.*Build it"):
        jax.eval_shape(lambda *at: denoiser(*at), jnp.zeros(3), jnp.zeros(3))


def test_a_network_that_is_told_refuses_to_go_without(key, unchecked):
    told = eqmdm.PixelBasis((3,)).noise_levels
    network = nn.MLP((3,), 1, width=8, depth=1, noise_levels=told, key=key)
    with pytest.raises(ValueError, match="`noise_levels` must be given to a network"):
        denoiser_with(None, network)(jnp.asarray(0.0), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"`filtered` must have the shape .*\(3,\)"):
        network(
            jnp.asarray(0.0),
            jnp.zeros((1, 3)),
            noise_levels=jnp.zeros(3),
            filtered=jnp.zeros(2),
        )


def test_a_network_without_the_keywords_is_named(unchecked):
    denoiser = denoiser_with(eqmdm.PixelBasis((3,)), lambda c, inputs: inputs)
    message = "`network` must accept .* and `noise_levels`, `filtered` as keywords; it"
    with pytest.raises(TypeError, match=message):
        denoiser(jnp.zeros(3), jnp.zeros(3))


def test_a_condition_reaches_a_network_with_noise_levels(key):
    def network(c, inputs, *, noise_levels, filtered, condition):
        return (
            ignoring(c, inputs, noise_levels=noise_levels, filtered=filtered)
            + condition
        )

    basis = eqmdm.PixelBasis((3,))
    denoiser = denoiser_with(basis, network)
    given = denoiser.with_condition(2.0)
    assert given.basis is basis
    difference = jax.jit(
        lambda log_snr, z: given(log_snr, z) - denoiser_with(basis)(log_snr, z)
    )
    # The weight of the output, c_out.
    weight = 0.6 / math.sqrt(1 + 0.6**2)
    actual = difference(np.zeros(3), normal(key, (3,)))
    assert tree_allclose(actual, np.full(3, 2.0 * weight), rtol=1e-12, atol=0.0)


def test_coefficients_of_another_shape_are_refused():
    denoiser = denoiser_with(eqmdm.PixelBasis((3,)))
    with pytest.raises(ValueError, match="`x` must have the shape of the PixelBasis"):
        denoiser(jnp.asarray(0.0), jnp.zeros(4))
