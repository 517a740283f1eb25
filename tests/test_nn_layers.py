"""Tests of layers, and of the initial weights of networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_networks import NETWORKS, modules_of, perturbed, small_unet

from eqmdm import nn
from eqmdm.nn._image_layers import Attention, Conv, GroupNorm, upsample
from eqmdm.nn._initialiser import Initialiser
from eqmdm.nn._layers import TimeEmbedding
from helpers import counted, slow, tree_allclose, within_standard_errors


@pytest.mark.parametrize(
    "n_channels, n_groups", [(4, 2), (24, 12), (32, 16), (64, 32), (96, 32), (128, 32)]
)
def test_group_norm_gives_each_group_mean_0_and_variance_1(n_channels, n_groups, key):
    random = np.random.default_rng(n_channels)
    norm = GroupNorm(n_channels, init=Initialiser(key, jnp.float64))
    scale, shift = random.normal(size=(2, n_channels))
    norm = eqx.tree_at(
        lambda n: (n.scale, n.shift), norm, (jnp.asarray(scale), jnp.asarray(shift))
    )
    x = 3 + 2 * random.normal(size=(6, 5, n_channels))

    groups = x.reshape(6, 5, n_groups, -1)
    mean = groups.mean(axis=(0, 1, 3), keepdims=True)
    std = np.sqrt(groups.var(axis=(0, 1, 3), keepdims=True) + 1e-6)
    expected = ((groups - mean) / std).reshape(x.shape) * scale + shift
    # The variance is a difference of numbers about ten times as large.
    actual = eqx.filter_jit(norm)(jnp.asarray(x))
    assert tree_allclose(actual, expected, rtol=0.0, atol=1e-12)


def test_group_norm_of_bfloat16_has_statistics_in_float32(key):
    # 4096 positions: a sum of ones in bfloat16 would stop at 256.
    x = (3 + jr.normal(key, (64, 64, 32))).astype(jnp.bfloat16)
    out = GroupNorm(32, init=Initialiser(key, jnp.float32))(x)
    assert out.dtype == jnp.bfloat16
    groups = np.asarray(x, np.float64).reshape(64, 64, 16, 2)
    mean = groups.mean((0, 1, 3), keepdims=True)
    std = np.sqrt(groups.var((0, 1, 3), keepdims=True) + 1e-6)
    expected = ((groups - mean) / std).reshape(x.shape)
    # One rounding of the result, to 2**-8; the rest is in float32, where the statistics
    # of 8192 numbers about 3 are good to a few 1e-6.
    out = np.asarray(out, np.float64)
    assert tree_allclose(out, expected, rtol=2**-8 * 1.001, atol=2e-5)


def test_group_norm_of_a_constant_is_the_shift(key):
    # In float32 a variance by difference may round below zero.
    x = jnp.full((7, 7, 8), 1000.1, jnp.float32)
    out = GroupNorm(8, init=Initialiser(key, jnp.float32))(x)
    assert jnp.all(jnp.isfinite(out))


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_a_sum_over_shifted_images(stride, key):
    key_conv, key_x = jr.split(key)
    conv = Conv(3, 5, stride=stride, init=Initialiser(key_conv, jnp.float64))
    x = np.asarray(jr.normal(key_x, (6, 4, 3)))
    before = 1 if stride == 1 else 0
    padded = np.pad(x, ((before, 1), (before, 1), (0, 0)))
    expected = sum(
        padded[i : i + 6 : stride, j : j + 4 : stride] @ np.asarray(conv.weight[i, j])
        for i in range(3)
        for j in range(3)
    )
    # Sums of 27 terms of order one.
    assert tree_allclose(conv(jnp.asarray(x)), expected, rtol=0.0, atol=1e-14)


def test_upsampling_repeats_each_pixel(key):
    x = jr.normal(key, (3, 4, 2))
    expected = jax.image.resize(x, (6, 8, 2), "nearest")
    assert jnp.array_equal(upsample(x), expected)


def test_attention_is_a_weighted_mean_of_the_values(key):
    key_attention, key_noise, key_x = jr.split(key, 3)
    attention = Attention(4, init=Initialiser(key_attention, jnp.float64))
    attention = perturbed(attention, key_noise)
    x = jr.normal(key_x, (2, 3, 4))
    normed = np.asarray(attention.norm(x))

    def affine(linear, z):
        return z @ np.asarray(linear.weight) + np.asarray(linear.bias)

    expected = np.asarray(x).copy()
    for i in np.ndindex(2, 3):
        query = affine(attention.query, normed[i])
        weighted, total = np.zeros(4), 0.0
        for j in np.ndindex(2, 3):
            weight = np.exp(query @ affine(attention.key, normed[j]) / 2)
            weighted += weight * affine(attention.value, normed[j])
            total += weight
        expected[i] += affine(attention.out, weighted / total)
    # A handful of operations on numbers of order one.
    assert tree_allclose(attention(x), expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_time_embedding_has_sinusoids_of_a_thousand_times_the_time(dtype, key):
    embedding = TimeEmbedding(6, init=Initialiser(key, jnp.float64))
    t = 0.7
    angles = 700.0 * 10_000.0 ** -np.array([0.0, 0.5, 1.0])
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)])
    hidden = sinusoids @ np.asarray(embedding.linear1.weight)
    hidden = hidden / (1 + np.exp(-hidden))
    expected = hidden @ np.asarray(embedding.linear2.weight)
    out = embedding(jnp.asarray(t), dtype)
    assert out.dtype == dtype
    # Roundings of the angle, of 700 in float32 at least, and of three layers.
    angle_eps = min(float(jnp.finfo(dtype).eps), float(jnp.finfo(jnp.float32).eps))
    atol = 700 * angle_eps + 8 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(np.asarray(out, np.float64), expected, rtol=0.0, atol=atol)


def test_initial_weights_have_the_variance_of_the_average_fan(key):
    conv = Conv(64, 32, init=Initialiser(key, jnp.float64))
    weights = np.ravel(conv.weight)
    assert within_standard_errors(weights, 0.0)
    assert within_standard_errors(weights**2, 2 / (9 * 64 + 9 * 32))
    assert not np.any(np.asarray(conv.bias))


def test_coordinates_enter_the_mlp_with_the_variance_that_they_have(key):
    network = nn.MLP((2,), 1, width=512, dtype=jnp.float64, key=key)
    weights = np.ravel(network.linear_in.weight)
    assert within_standard_errors(weights, 0.0)
    assert within_standard_errors(weights**2, 1 / 2)


# A layer of the wider network takes several blocks of draws.
@pytest.mark.parametrize("width", [slow(8), 200])
def test_network_built_under_jit_is_the_one_built_outside(width, key):
    build = lambda key: nn.MLP((3,), 2, width=width, key=key)
    network = build(key)
    assert tree_allclose(eqx.filter_jit(build)(key), network, rtol=0, atol=0)
    closed_over = eqx.filter_jit(lambda: build(key))
    assert tree_allclose(closed_over(), network, rtol=0, atol=0)


def test_networks_built_under_vmap_are_those_built_one_by_one(key):
    build = lambda key: nn.MLP((3,), 2, width=8, key=key)
    keys = jr.split(key)
    ensemble = eqx.filter_vmap(build)(keys)
    for i in range(2):
        member = jax.tree.map(lambda x, i=i: x[i], ensemble)
        assert tree_allclose(member, build(keys[i]), rtol=0, atol=0)


def test_arrays_and_blocks_of_an_initialiser_share_no_draws(key):
    init = Initialiser(key, jnp.float32)
    size = 4 * 2**14
    first, second = (
        np.asarray(init.weight((size,), fan_in=3, fan_out=3)) for _ in range(2)
    )
    blocks = [*np.split(first, 4), *np.split(second, 4)]
    for i, block in enumerate(blocks):
        for other in blocks[:i]:
            # Of 2**14 pairs of 24 random bits hardly any are equal.
            assert np.count_nonzero(block == other) < 5


@pytest.mark.parametrize("make, shape", NETWORKS)
def test_networks_are_built_by_one_program_whatever_their_sizes(make, shape, key):
    other = jr.fold_in(key, 1)
    make(key)
    with counted() as n_programs:
        make(other, dtype=jnp.float64)
        nn.UNet((12, 8, 3), 3, width=6, multipliers=(1, 3), key=key)
        nn.MLP((5,), 1, width=22, key=key)
    assert n_programs["compiled"] == 0


def test_static_fields_of_a_network_are_plain(key):
    network = small_unet(key, compute_dtype=jnp.bfloat16)
    plain = (int, str, tuple, type(None))
    for module in modules_of(Conv, network) + [network, network.time_embedding]:
        for name, value in vars(module).items():
            if module.__dataclass_fields__[name].metadata.get("static", False):
                assert isinstance(value, plain)
