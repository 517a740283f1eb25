"""The U-Net of Ho, Jain & Abbeel (2020)."""

import math
from typing import final

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, DTypeLike, Float, Inexact, Real

from .._core.checks import check_count
from .._core.types import PRNGKey
from ._mlp import (
    Linear,
    TimeEmbedding,
    add_bias,
    at_least_float32,
    check_arguments,
    variance_scaling,
)


@final
class _Conv(eqx.Module):
    """A 3x3 convolution of one channels-last image, padded to keep its size.

    With a stride of 2 an even side is padded at its end only.
    """

    weight: Float[Array, "3 3 in out"]
    bias: Float[Array, " out"]
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        stride: int = 1,
        zero: bool = False,
        dtype: DTypeLike,
        key: PRNGKey,
    ):
        shape = (3, 3, n_in, n_out)
        if zero:
            self.weight = jnp.zeros(shape, dtype)
        else:
            self.weight = variance_scaling(key, shape, 9 * n_in, 9 * n_out, dtype)
        self.bias = jnp.zeros(n_out, dtype)
        self.stride = stride

    def __call__(
        self, x: Inexact[Array, "height width in"]
    ) -> Inexact[Array, "height_out width_out out"]:
        # The batch of one is what `jax.vmap` enlarges: the batched network then has
        # ordinary convolutions, not grouped ones.
        [out] = lax.conv_general_dilated(
            x[None],
            self.weight.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return add_bias(out, self.bias)


@final
class _GroupNorm(eqx.Module):
    """Group normalisation, with a scale and a shift for each channel.

    There are 32 groups, as in Ho et al., or where the channels do not divide into 32
    groups of at least two, the largest number below that they do divide into. A group
    of one channel would subtract the very shift that tells a residual block the time.
    """

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]

    def __init__(self, n_channels: int, *, dtype: DTypeLike):
        self.scale = jnp.ones(n_channels, dtype)
        self.shift = jnp.zeros(n_channels, dtype)

    def __call__(
        self, x: Inexact[Array, "height width channels"]
    ) -> Inexact[Array, "height width channels"]:
        height, width, n_channels = x.shape
        n_groups = _n_groups(n_channels)
        n_each = n_channels // n_groups
        dtype = at_least_float32(x.dtype)
        wide = x.astype(dtype)
        # Sums of the values and of their squares over the positions, then over the few
        # channels of a group: on a CPU 1.2 times faster for the whole network's
        # gradient than reductions of a five-dimensional array.
        count = height * width * n_each
        total = jnp.sum(wide, axis=(0, 1)).reshape(n_groups, n_each).sum(axis=1)
        square = jnp.sum(wide**2, axis=(0, 1)).reshape(n_groups, n_each).sum(axis=1)
        mean = total / count
        # The difference may round below zero where a group is constant.
        variance = jnp.maximum(square / count - mean**2, 0)
        factor = jnp.repeat(lax.rsqrt(variance + 1e-6), n_each)
        factor = factor * self.scale.astype(dtype)
        offset = self.shift.astype(dtype) - jnp.repeat(mean, n_each) * factor
        return (wide * factor[None, None] + offset[None, None]).astype(x.dtype)


def _n_groups(n_channels: int) -> int:
    most = min(32, n_channels // 2)
    return max(n for n in range(1, most + 1) if n_channels % n == 0)


@final
class _ResidualBlock(eqx.Module):
    norm1: _GroupNorm
    conv1: _Conv
    linear_time: Linear
    norm2: _GroupNorm
    conv2: _Conv
    shortcut: Linear | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_features: int,
        *,
        dtype: DTypeLike,
        key: PRNGKey,
    ):
        key1, key_time, key2, key_shortcut = jr.split(key, 4)
        self.norm1 = _GroupNorm(n_in, dtype=dtype)
        self.conv1 = _Conv(n_in, n_out, dtype=dtype, key=key1)
        self.linear_time = Linear(n_features, n_out, dtype=dtype, key=key_time)
        self.norm2 = _GroupNorm(n_out, dtype=dtype)
        self.conv2 = _Conv(n_out, n_out, zero=True, dtype=dtype, key=key2)
        if n_in == n_out:
            self.shortcut = None
        else:
            # A 1x1 convolution is an affine map of the channels.
            self.shortcut = Linear(n_in, n_out, dtype=dtype, key=key_shortcut)

    def __call__(
        self,
        x: Inexact[Array, "height width in"],
        time: Inexact[Array, " features"],
    ) -> Inexact[Array, "height width out"]:
        hidden = self.conv1(jax.nn.silu(self.norm1(x)))
        hidden = hidden + self.linear_time(time)[None, None]
        hidden = self.conv2(jax.nn.silu(self.norm2(hidden)))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


@final
class _Attention(eqx.Module):
    """Self-attention with one head over the positions of an image."""

    norm: _GroupNorm
    query: Linear
    key: Linear
    value: Linear
    out: Linear

    def __init__(self, n_channels: int, *, dtype: DTypeLike, key: PRNGKey):
        key_query, key_key, key_value, key_out = jr.split(key, 4)
        n = n_channels
        self.norm = _GroupNorm(n, dtype=dtype)
        self.query = Linear(n, n, dtype=dtype, key=key_query)
        self.key = Linear(n, n, dtype=dtype, key=key_key)
        self.value = Linear(n, n, dtype=dtype, key=key_value)
        self.out = Linear(n, n, zero=True, dtype=dtype, key=key_out)

    def __call__(
        self, x: Inexact[Array, "height width channels"]
    ) -> Inexact[Array, "height width channels"]:
        n_channels = x.shape[-1]
        normed = self.norm(x).reshape(-1, n_channels)
        query, key, value = self.query(normed), self.key(normed), self.value(normed)
        logits = (query @ key.T).astype(at_least_float32(x.dtype))
        weights = jax.nn.softmax(logits / math.sqrt(n_channels)).astype(x.dtype)
        return x + self.out(weights @ value).reshape(x.shape)


@final
class _Level(eqx.Module):
    """The blocks at one resolution, and the convolution to the next one if any."""

    blocks: tuple[_ResidualBlock, ...]
    attentions: tuple[_Attention, ...] | None
    resample: _Conv | None

    def __init__(
        self,
        n_in: tuple[int, ...],
        n_out: int,
        n_features: int,
        *,
        attend: bool,
        resample_stride: int | None,
        dtype: DTypeLike,
        key: PRNGKey,
    ):
        key_blocks, key_attentions, key_resample = jr.split(key, 3)
        n_blocks = len(n_in)
        self.blocks = tuple(
            _ResidualBlock(n, n_out, n_features, dtype=dtype, key=k)
            for n, k in zip(n_in, jr.split(key_blocks, n_blocks), strict=True)
        )
        if attend:
            keys = jr.split(key_attentions, n_blocks)
            self.attentions = tuple(_Attention(n_out, dtype=dtype, key=k) for k in keys)
        else:
            self.attentions = None
        if resample_stride is None:
            self.resample = None
        else:
            self.resample = _Conv(
                n_out, n_out, stride=resample_stride, dtype=dtype, key=key_resample
            )

    def block(
        self,
        index: int,
        x: Inexact[Array, "height width in"],
        skip: Inexact[Array, "height width skip"] | None,
        time: Inexact[Array, " features"],
    ) -> Inexact[Array, "height width out"]:
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        x = self.blocks[index](x, time)
        return x if self.attentions is None else self.attentions[index](x)


def _upsample(
    x: Inexact[Array, "height width channels"],
) -> Inexact[Array, "2*height 2*width channels"]:
    """Each pixel repeated in a square of four."""
    height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, None, :, None], (height, 2, width, 2, channels))
    return x.reshape(2 * height, 2 * width, channels)


@final
class UNet(eqx.Module):
    """The U-Net of Ho et al. (2020), on images.

    Each level has `n_blocks` residual blocks on the way down and one more on the way
    up, each told the time; levels are joined by strided convolutions down, by nearest
    neighbours and a convolution up, and by skip connections across. One-head
    self-attention follows each residual block where the height and the width are both
    in `attention_sides`, and stands between two residual blocks in the middle.
    Normalisation is by groups, 32 of them or fewer so that each has two channels or
    more. There is no dropout.

    The last convolution of each residual block, the output of each attention and the
    last convolution of all start at zero, so that an untrained network returns zero.

    It takes one example and is batched with `jax.vmap`, which makes its convolutions
    ordinary batched ones. The variables are folded into channels.

    **Source:** Ho, Jain & Abbeel (2020), appendix B, and its code for what the paper
    leaves out: the initial weights, and the padding of the strided convolutions.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    n_vars: int = eqx.field(static=True)
    compute_dtype: str | None = eqx.field(static=True)
    time_embedding: TimeEmbedding
    conv_in: _Conv
    down: tuple[_Level, ...]
    middle1: _ResidualBlock
    middle_attention: _Attention
    middle2: _ResidualBlock
    up: tuple[_Level, ...]
    norm_out: _GroupNorm
    conv_out: _Conv
    remat: bool = eqx.field(static=True, default=False)

    def __init__(
        self,
        shape: tuple[int, ...],
        n_vars: int,
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        n_blocks: int = 2,
        attention_sides: tuple[int, ...] = (16,),
        compute_dtype: DTypeLike | None = None,
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKey,
    ):
        """**Arguments:**

        - `shape`: the shape `(height, width, channels)` of one image. Each level after
            the first halves both sides.
        - `n_vars`: the number of variables per pixel, the data's own included.
        - `width`: the channels of the first level; even, and at least 4.
        - `multipliers`: for each level, its channels as a multiple of `width`.
        - `n_blocks`: the residual blocks of a level on the way down.
        - `attention_sides`: the sides at which levels have attention. The default is Ho
            et al.'s, and gives a 28x28 network none but in the middle.
        - `compute_dtype`: the dtype to compute in, such as `jnp.bfloat16`; statistics
            and softmax stay in float32 at least. By default that of `y`.
        - `remat`: whether derivatives in reverse mode keep only what enters each block
            and compute its inside again (rematerialisation), for less memory and about
            a third more work. Values and parameters are the same.
        - `dtype`: the dtype of the parameters.
        - `key`: the key of the initial weights.

        **Raises:**

        `ValueError` if an argument is out of these limits, or if the sides cannot be
        halved often enough. `TypeError` if `compute_dtype` is not a floating-point one.
        """
        _check_sizes(shape, multipliers)
        check_count("n_vars", n_vars)
        check_count("n_blocks", n_blocks)
        if compute_dtype is not None:
            if not jnp.issubdtype(compute_dtype, jnp.floating):
                raise TypeError(
                    "`compute_dtype` must be a floating-point dtype, such as "
                    f"`jnp.bfloat16`, or `None`; got {compute_dtype!r}."
                )
            compute_dtype = jnp.dtype(compute_dtype).name
        height, breadth, channels = shape
        n_levels = len(multipliers)
        n_features = 4 * width
        keys = iter(jr.split(key, 6 + 2 * n_levels))

        self.shape = shape
        self.n_vars = n_vars
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.time_embedding = TimeEmbedding(width, dtype=dtype, key=next(keys))
        self.conv_in = _Conv(n_vars * channels, width, dtype=dtype, key=next(keys))

        def level(index, n_in, resample_stride):
            return _Level(
                n_in,
                width * multipliers[index],
                n_features,
                attend=all(s >> index in attention_sides for s in (height, breadth)),
                resample_stride=resample_stride,
                dtype=dtype,
                key=next(keys),
            )

        # The channels of every activation that is kept for the way up.
        skips = [width]
        down = []
        for index, multiplier in enumerate(multipliers):
            n_out = width * multiplier
            n_in = (skips[-1], *[n_out] * (n_blocks - 1))
            last = index == n_levels - 1
            down.append(level(index, n_in, None if last else 2))
            skips.extend([n_out] * (n_blocks if last else n_blocks + 1))
        self.down = tuple(down)

        n_middle = skips[-1]
        self.middle1, self.middle2 = (
            _ResidualBlock(n_middle, n_middle, n_features, dtype=dtype, key=next(keys))
            for _ in range(2)
        )
        self.middle_attention = _Attention(n_middle, dtype=dtype, key=next(keys))

        up = []
        n_above = n_middle
        for index in reversed(range(n_levels)):
            n_out = width * multipliers[index]
            n_in = tuple(
                skips.pop() + (n_above if block == 0 else n_out)
                for block in range(n_blocks + 1)
            )
            up.append(level(index, n_in, None if index == 0 else 1))
            n_above = n_out
        self.up = tuple(up)
        self.norm_out = _GroupNorm(n_above, dtype=dtype)
        self.conv_out = _Conv(
            n_above, n_vars * channels, zero=True, dtype=dtype, key=next(keys)
        )

    def __call__(
        self, t: Real[Array, ""], y: Float[Array, "vars height width channels"]
    ) -> Float[Array, "vars height width channels"]:
        """**Arguments:**

        - `t`: the time, about in $[0, 1]$.
        - `y`: the state.

        **Returns:**

        The network's output, in the dtype of `y`.

        **Raises:**

        `ValueError`, at trace time, if `t` is not a scalar or `y` not of the shape that
        the network was built for.
        """
        expected = (self.n_vars, *self.shape)
        check_arguments(t, y, expected, "n_vars, height, width, channels")
        height, width, channels = self.shape
        dtype = y.dtype if self.compute_dtype is None else self.compute_dtype
        x = jnp.moveaxis(y, 0, 2).reshape(height, width, -1).astype(dtype)
        # Every block has this activation before its own dense layer: once is enough.
        time = jax.nn.silu(self.time_embedding(t, dtype))

        # With its input from across, so that the two joined are not kept beside them.
        in_block = eqx.filter_checkpoint if self.remat else lambda function: function

        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            for index in range(len(level.blocks)):
                x = in_block(level.block)(index, x, None, time)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        x = in_block(self.middle1)(x, time)
        x = in_block(self.middle_attention)(x)
        x = in_block(self.middle2)(x, time)
        for level in self.up:
            for index in range(len(level.blocks)):
                x = in_block(level.block)(index, x, skips.pop(), time)
            if level.resample is not None:
                x = level.resample(_upsample(x))
        x = self.conv_out(jax.nn.silu(self.norm_out(x)))
        x = x.reshape(height, width, self.n_vars, channels)
        return jnp.moveaxis(x, 2, 0).astype(y.dtype)


def _check_sizes(shape: tuple[int, ...], multipliers: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            "`shape` must be `(height, width, channels)`, each at least 1; got "
            f"{shape}. For points use `eqmdm.nn.MLP`."
        )
    if len(multipliers) < 1 or min(multipliers) < 1:
        raise ValueError(
            "`multipliers` must be one or more numbers of at least 1; got "
            f"{multipliers}."
        )
    n_halvings = len(multipliers) - 1
    factor = 2**n_halvings
    if any(side % factor != 0 for side in shape[:2]):
        divides = math.gcd(*shape[:2])
        possible = (divides & -divides).bit_length()
        padded = tuple(-(-side // factor) * factor for side in shape[:2])
        raise ValueError(
            f"`shape` must have a height and a width that {factor} divides, because "
            f"{len(multipliers)} `multipliers` halve them {n_halvings} times; got "
            f"{shape}. Give at most {possible} `multipliers`, or pad the images to "
            f"{padded[0]}x{padded[1]}."
        )
