"""Sizes of images and series that the networks take."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from small_networks import NETWORKS, modules_of, perturbed, small_unet

import eqmdm
from eqmdm import nn
from eqmdm.nn._image_layers import Attention
from helpers import slow, tree_allclose


@pytest.mark.parametrize(
    "n_vars, n_parameters", [(1, 1_539_329), (2, 1_539_906), (3, 1_540_483)]
)
def test_unet_has_the_published_number_of_parameters_for_mnist(n_vars, n_parameters):
    make = lambda: nn.UNet((28, 28, 1), n_vars, key=jr.key(0))
    leaves = jax.tree.leaves(eqx.filter_eval_shape(make))
    assert sum(x.size for x in leaves) == n_parameters


@pytest.mark.parametrize(
    "n_vars, n_parameters", [(1, 35_746_307), (2, 35_753_222), (3, 35_760_137)]
)
def test_unet_has_the_published_number_of_parameters_for_cifar10(n_vars, n_parameters):
    make = lambda: nn.UNet(
        (32, 32, 3), n_vars, width=128, multipliers=(1, 2, 2, 2), key=jr.key(0)
    )
    leaves = jax.tree.leaves(eqx.filter_eval_shape(make))
    assert sum(x.size for x in leaves) == n_parameters


@pytest.mark.parametrize(
    "shape, multipliers, n_attentions",
    [
        # Attention at side 16: two blocks down, three up, and one in the middle.
        pytest.param((32, 32, 3), (1, 2, 2, 2), 6, id="32x32"),
        pytest.param((16, 16, 1), (1, 2), 6, id="16x16"),
        pytest.param((28, 28, 1), (1, 2, 2), 1, id="28x28"),
        pytest.param((8, 8, 1), (1, 2), 1, id="8x8"),
        pytest.param((32, 16, 1), (1, 2), 1, id="32x16"),
    ],
)
def test_unet_attends_where_the_side_is_16_and_in_the_middle(
    shape, multipliers, n_attentions
):
    network = eqx.filter_eval_shape(
        lambda: nn.UNet(shape, 1, width=4, multipliers=multipliers, key=jr.key(0))
    )
    assert len(modules_of(Attention, network)) == n_attentions


def test_unet_pads_what_it_cannot_halve_and_crops_its_output(key):
    options = {"n_vars": 2, "width": 4, "multipliers": (1, 2, 2), "n_blocks": 1}
    small = nn.UNet((5, 7, 3), **options, key=key)
    # Sides that 4 divides, with the same parameters.
    large = nn.UNet((8, 8, 3), **options, key=key)
    small, large = (eqx.filter_jit(perturbed(net, key)) for net in (small, large))
    y = jr.normal(key, (2, 5, 7, 3))
    padded = jnp.pad(y, ((0, 0), (1, 2), (0, 1), (0, 0)))
    t = jnp.asarray(0.3)
    expected = large(t, padded)[:, 1:6, :7]
    assert small(t, y).shape == y.shape
    # The same operations, which the compiler may order otherwise.
    assert tree_allclose(small(t, y), expected, rtol=1e-10, atol=1e-10)
    # The pixels of the margins are not counted.
    assert not jnp.array_equal(large(t, padded)[:, 0], jnp.zeros((2, 8, 3)))


@pytest.mark.parametrize("sides", [(8, 12), slow((12,))])
def test_unet_of_patches_is_that_of_the_folded_image(sides, key):
    options = {"width": 4, "multipliers": (1, 2), "n_blocks": 1, "key": key}
    patched = nn.UNet((*sides, 3), 2, patch=2, **options)
    small = tuple(side // 2 for side in sides)
    plain = nn.UNet((*small, 2 ** len(sides) * 2 * 3), 1, **options)
    # Their parameters have the same shapes and keys.
    patched, plain = (eqx.filter_jit(perturbed(net, key)) for net in (patched, plain))
    y = jr.normal(key, (2, *sides, 3))
    # Channels are ordered by place in the patch, variable and colour.
    places = list(itertools.product(*[range(2)] * len(sides)))
    starts = [tuple(slice(k, None, 2) for k in place) for place in places]
    folded = jnp.concatenate([y[:, *start] for start in starts], axis=0)
    folded = jnp.moveaxis(folded, 0, -2).reshape(1, *small, -1)
    t = jnp.asarray(0.3)
    parts = plain(t, folded)[0].reshape(*small, len(places), 2, 3)
    out = patched(t, y)
    for index, start in enumerate(starts):
        part = jnp.moveaxis(parts[..., index, :, :], -2, 0)
        # The same operations, which the compiler may order otherwise.
        assert tree_allclose(out[:, *start], part, rtol=1e-10, atol=1e-10)


def test_unet_of_patches_is_told_the_noise_levels_of_its_patches(key):
    levels = eqmdm.PixelBasis((8, 8, 1)).noise_levels
    options = {"width": 4, "multipliers": (1,), "n_blocks": 1, "patch": 4}
    network = nn.UNet((8, 8, 1), 1, noise_levels=levels, **options, key=key)
    network = perturbed(network, key)
    y, filtered = jr.normal(key, (1, 8, 8, 1)), jnp.zeros((8, 8, 1))
    run = lambda at: network(jnp.asarray(0.3), y, noise_levels=at, filtered=filtered)[0]
    change = eqx.filter_jit(jax.jacfwd(run))(jnp.full((8, 8, 1), 0.5))
    # Every pixel depends on the level of every pixel of its patch.
    assert jnp.all(change[:4, :4, 0, :4, :4, 0] != 0)


@pytest.mark.slow
def test_bound_of_a_padded_size_is_that_of_its_pixels(key):
    # An untrained U-Net returns zero, and its denoiser is then the exact one of normal
    # data: the bound is the closed form, to the Monte Carlo error that it says.
    shape, std = (5, 3, 2), 0.7
    network = nn.UNet(shape, 1, width=4, multipliers=(1, 1, 2), n_blocks=1, key=key)
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=std, log_snr_range=(-9.0, 14.0)
    )
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    x = std * jr.normal(key, shape)
    bound = eqmdm.elbo(model, x, key=key, n_draws=1024)
    expected = jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=std))
    # Between these ends an exact model loses the KL to the prior: half the squared
    # signal, e**-9 of the data's, is 2e-4 a pixel at most.
    assert abs(bound.total - expected) < 5 * bound.standard_error + 30 * 2e-4
    # A margin counted as pixels would be 34 nats.
    assert bound.standard_error < 1
    objective = eqmdm.Objective(levels=eqmdm.GreyLevels(256))
    levels = jnp.asarray(np.random.RandomState(0).randint(0, 256, (3, *shape)))
    found = eqmdm.evaluate(model, levels, objective, key=key)
    # Divided by 30 pixels and channels, and not by the 64 of the padded image.
    bits = -found.terms["total"] / (30 * np.log(2))
    assert np.allclose(found.terms["bits_per_dim"], bits, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, multipliers, match",
    [
        ((8,), (1,), r"`shape` must be `\(height, width, channels\)`.*\(8,\)"),
        ((8, 8, 0), (1,), r"`shape`.*\(8, 8, 0\)"),
        ((8, 8, 1), (), r"`multipliers`.*\(\)"),
        ((8, 8, 1), (1, 0), r"`multipliers`.*\(1, 0\)"),
    ],
)
def test_unet_refuses_shapes_that_are_no_images_or_series(
    shape, multipliers, match, key
):
    with pytest.raises(ValueError, match=match):
        nn.UNet(shape, 1, width=4, multipliers=multipliers, key=key)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"n_vars": 0}, "`n_vars` must be at least 1; got 0"),
        ({"n_blocks": 0}, "`n_blocks` must be at least 1; got 0"),
        ({"patch": 0}, "`patch` must be at least 1; got 0"),
        ({"patch": 3}, r"`patch` must divide the sides of `shape`, \(8, 8\); got 3"),
        ({"width": 2}, "`width` must be an even number of at least 4.*got 2"),
        ({"width": 31}, "`width` must be an even number of at least 4.*got 31"),
    ],
)
def test_unet_refuses_numbers_out_of_range(options, match, key):
    options = {"n_vars": 1, "width": 4} | options
    with pytest.raises(ValueError, match=match):
        nn.UNet((8, 8, 1), multipliers=(1,), **options, key=key)


def test_unet_refuses_to_compute_in_integers(key):
    with pytest.raises(TypeError, match="`compute_dtype` must be a floating-point"):
        small_unet(key, compute_dtype=jnp.int32)


@pytest.mark.parametrize(
    "shape, options, match",
    [
        ((), {}, r"`shape` must be that of one data point.*\(\)"),
        ((2, 0), {}, r"`shape` must be that of one data point.*\(2, 0\)"),
        ((2,), {"n_vars": 0}, "`n_vars` must be at least 1; got 0"),
        ((2,), {"depth": 0}, "`depth` must be at least 1; got 0"),
        ((2,), {"width": 7}, "`width` must be an even number.*got 7"),
    ],
)
def test_mlp_refuses_numbers_out_of_range(shape, options, match, key):
    options = {"n_vars": 1} | options
    with pytest.raises(ValueError, match=match):
        nn.MLP(shape, **options, key=key)


@pytest.mark.parametrize("make, shape", NETWORKS)
def test_network_refuses_states_of_another_shape(make, shape, key):
    network = make(key)
    wrong = (shape[0] + 1, *shape[1:])
    with pytest.raises(ValueError, match=r"`y` must have the shape.*got \(3, "):
        jax.eval_shape(network, jnp.asarray(0.3), jnp.zeros(wrong))


@pytest.mark.parametrize("make, shape", NETWORKS)
def test_network_refuses_a_batch_of_times(make, shape, key):
    network = make(key)
    # Users have no type checker between them and the library's own message.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"`t` must be a scalar.*\(5,\).*vmap"):
            jax.eval_shape(network, jnp.zeros(5), jnp.zeros(shape))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
