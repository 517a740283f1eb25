"""Tests of the networks."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import pytest
from small_networks import NETWORKS, modules_of, perturbed, small_unet

from eqmdm import nn
from eqmdm.nn._image_layers import Attention, Conv, ResidualBlock
from helpers import equations, slow, tree_allclose


@pytest.mark.slow
def test_unet_of_series_is_that_of_images_one_pixel_wide(key):
    options = {"width": 4, "multipliers": (1,), "n_blocks": 1}
    of_series = perturbed(nn.UNet((7, 2), 3, **options, key=key), key)
    of_images = perturbed(nn.UNet((7, 1, 2), 3, **options, key=key), key)

    def widen(narrow, wide):
        # Only the middle column of a kernel meets an image of one column.
        if narrow.ndim == wide.ndim:
            return narrow
        return wide.at[:, 1].set(narrow)

    leaves, treedef = jax.tree.flatten(of_images)
    pairs = zip(jax.tree.leaves(of_series), leaves, strict=True)
    of_images = jax.tree.unflatten(treedef, [widen(*pair) for pair in pairs])
    y, t = jr.normal(key, (3, 7, 2), jnp.float32), jnp.float32(0.4)
    series, images = of_series(t, y), of_images(t, y[:, :, None])[:, :, 0]
    # In float32 the sums of two hundred terms of order one are in another order.
    assert tree_allclose(series, images, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_unet_of_series_commutes_with_shifts_of_whole_levels_inside(key):
    # Far from its ends a convolutional network sees only differences of position.
    options = {"width": 4, "multipliers": (1, 2), "n_blocks": 1}
    network = perturbed(nn.UNet((128, 1), 1, **options, key=key), key)
    # Attention and normalisation see the whole series, which a roll only permutes.
    y, t = jnp.zeros((1, 128, 1)).at[0, 40:60].set(1.0), jnp.float32(0.4)
    out = network(t, y)
    shifted = network(t, jnp.roll(y, 16, axis=1))
    inside = slice(40, 80)
    assert tree_allclose(
        jnp.roll(out, 16, axis=1)[:, inside], shifted[:, inside], rtol=1e-4, atol=1e-4
    )
    assert float(jnp.abs(out[:, inside] - shifted[:, inside]).max()) > 1e-3


def test_vmapped_unet_has_ordinary_batched_convolutions(key):
    network = eqx.filter_eval_shape(small_unet, key, multipliers=(1, 2, 2))
    vmapped = lambda network, t, y: jax.vmap(network)(t, y)
    inputs = jnp.ones(5), jnp.ones((5, 2, 8, 8, 1))
    jaxpr = jax.make_jaxpr(vmapped)(network, *inputs)
    convolutions = [
        equation
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert len(convolutions) == len(modules_of(Conv, network))
    for equation in convolutions:
        batch, channels, *_ = equation.params["dimension_numbers"].lhs_spec
        image, weight = (variable.aval for variable in equation.invars)
        assert equation.params["feature_group_count"] == 1
        assert equation.params["batch_group_count"] == 1
        assert (batch, channels) == (0, 3)
        assert image.shape[0] == 5
        assert weight.ndim == 4


@pytest.mark.slow
@pytest.mark.parametrize("make, shape", NETWORKS)
def test_vmapped_network_is_the_network_on_each_example(make, shape, key):
    key_network, key_noise, key_t, key_y = jr.split(key, 4)
    network = perturbed(make(key_network), key_noise)
    t = jr.uniform(key_t, 3)
    y = jr.normal(key_y, (3, *shape))
    one, batch = eqx.filter_jit(network), eqx.filter_jit(eqx.filter_vmap(network))
    expected = jnp.stack([one(t[i], y[i]) for i in range(3)])
    # Sums of a few hundred terms in another order.
    assert tree_allclose(batch(t, y), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make, shape", NETWORKS)
def test_untrained_network_returns_zero(make, shape, key):
    key_network, key_y = jr.split(key)
    y = jr.normal(key_y, shape)
    assert jnp.all(eqx.filter_jit(make(key_network))(jnp.asarray(0.3), y) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("make, shape", NETWORKS)
def test_every_parameter_and_input_of_a_network_matters(make, shape, key):
    key_network, key_noise, key_y = jr.split(key, 3)
    network = perturbed(make(key_network, dtype=jnp.float64), key_noise)
    y = jr.normal(key_y, shape)

    @jax.jit
    @jax.grad
    def gradient(inputs):
        network, t, y = inputs
        return jnp.sum(network(t, y) ** 2)

    gradients = gradient((network, jnp.asarray(0.3), y))
    for path, leaf in jtu.tree_leaves_with_path(gradients):
        name = jtu.keystr(path)
        # A softmax ignores what is common to all keys, and so the bias of the keys.
        if "key.bias" not in name:
            assert jnp.any(jnp.abs(leaf) > 1e-9), name


@pytest.mark.parametrize("make, shape", NETWORKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_network_computes_in_the_dtype_of_the_state(make, shape, dtype, key):
    key_network, key_noise, key_y = jr.split(key, 3)
    network = perturbed(make(key_network), key_noise)
    assert {x.dtype for x in jax.tree.leaves(network)} == {jnp.dtype(jnp.float32)}
    widened = jax.tree.map(lambda x: x.astype(jnp.float64), network)
    y = jr.normal(key_y, shape)
    t = jnp.asarray(0.3)
    out = eqx.filter_jit(network)(t, y.astype(dtype))
    assert out.dtype == dtype
    # About 100 roundings, each of the largest value at most, whose size is the scale.
    expected = eqx.filter_jit(widened)(t, y)
    atol = 100 * float(jnp.finfo(dtype).eps) * float(jnp.max(jnp.abs(expected)))
    assert tree_allclose(out.astype(jnp.float64), expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("dtype", [jnp.float32, slow(jnp.float64)])
def test_unet_in_bfloat16_is_the_network_up_to_its_rounding(dtype, key):
    key_network, key_noise, key_y = jr.split(key, 3)
    exact = perturbed(small_unet(key_network), key_noise)
    rounded = perturbed(small_unet(key_network, compute_dtype=jnp.bfloat16), key_noise)
    assert rounded.compute_dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(rounded)} == {jnp.dtype(jnp.float32)}
    y = jr.normal(key_y, (2, 8, 8, 1), dtype)
    t = jnp.asarray(0.3, dtype)
    expected, out = eqx.filter_jit(exact)(t, y), eqx.filter_jit(rounded)(t, y)
    assert out.dtype == dtype
    # About 30 layers in sequence, each rounding to 2**-8 of its values, at random.
    error = jnp.sqrt(jnp.mean((out - expected) ** 2) / jnp.mean(expected**2))
    assert 1e-4 < error < math.sqrt(30) * 2**-8


def test_unet_in_bfloat16_has_bfloat16_convolutions_only(key):
    make = lambda: small_unet(key, compute_dtype=jnp.bfloat16)
    network = eqx.filter_eval_shape(make)
    call = lambda network, t, y: network(t, y)
    inputs = jnp.ones((), jnp.float32), jnp.ones((2, 8, 8, 1), jnp.float32)
    jaxpr = jax.make_jaxpr(call)(network, *inputs)
    dtypes = {
        variable.aval.dtype
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        for variable in equation.invars
    }
    assert dtypes == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    "attention_sides",
    [
        pytest.param((), id="middle"),
        pytest.param((8,), id="level", marks=pytest.mark.slow),
    ],
)
def test_rematerialised_unet_has_the_values_and_gradients_of_the_plain_one(
    attention_sides, key
):
    key_network, key_noise, key_y = jr.split(key, 3)
    y = jr.normal(key_y, (3, 2, 8, 8, 1))
    t = jnp.linspace(0.1, 0.9, 3)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss_and_gradient(network):
        return jnp.sum(jax.vmap(network)(t, y) ** 2)

    def found(remat):
        network = small_unet(
            key_network,
            attention_sides=attention_sides,
            remat=remat,
            dtype=jnp.float64,
        )
        loss, gradient = loss_and_gradient(perturbed(network, key_noise))
        return loss, jax.tree.leaves(gradient)

    (plain, gradient), (loss, rematerialised) = found(False), found(True)
    # Under the same names. The same operations in another order: about 30 layers in
    # sequence, each a sum of at most 300 terms, and roundings that add up at worst.
    assert tree_allclose(loss, plain, rtol=1e-11, atol=0.0)
    scale = max(float(jnp.max(jnp.abs(x))) for x in gradient)
    atol = 30 * 300 * float(jnp.finfo(jnp.float64).eps) * scale
    assert tree_allclose(rematerialised, gradient, rtol=0.0, atol=atol)


@pytest.mark.parametrize("remat", [False, True])
def test_reverse_mode_keeps_the_inside_of_blocks_unless_it_is_rematerialised(
    remat, key
):
    make = lambda: small_unet(key, width=32, multipliers=(1, 1), remat=remat)
    network = eqx.filter_eval_shape(make)

    def kept(network):
        _, pull_back = jax.vjp(network, jnp.asarray(0.3), jnp.ones((2, 8, 8, 1)))
        return pull_back

    def sizes(tree, shape):
        return sum(x.shape == shape for x in jax.tree.leaves(tree))

    # Images of two levels: more than one a block only where its inside is kept.
    n_images = sum(
        sizes(eqx.filter_eval_shape(kept, network), (side, side, 32)) for side in (8, 4)
    )
    n_blocks = len(modules_of(ResidualBlock, network)) + len(
        modules_of(Attention, network)
    )
    assert (n_images > 2 * n_blocks) != remat
