"""The U-Net of Ho, Jain & Abbeel (2020)."""

import math
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Inexact, Real

from .._core.checks import check_count
from .._core.conditions import AbstractConditionalNetwork, ConditionKind
from .._core.noise_levels import NoiseLevelMaps, NoiseLevels
from .._core.types import PRNGKey
from ._conditions import (
    ArrayCondition,
    Condition,
    ConditionEmbedding,
)
from ._image_layers import (
    Attention,
    Conv,
    GroupNorm,
    ResidualBlock,
    fold,
    unfold,
    upsample,
)
from ._initialiser import Initialiser
from ._layers import Linear, TimeEmbedding, check_arguments, check_noise_levels
from ._unet_level import Level


@final
class UNet(AbstractConditionalNetwork):
    """The U-Net of Ho et al. (2020), for images and for series.

    Each level has `n_blocks` residual blocks on the way down and one more on the way
    up, all with time embedding. Strided convolutions go down, nearest-neighbour
    upsampling followed by a convolution goes up, and skip connections join the two
    sides. Single-head self-attention follows each residual block whose sides are all in
    `attention_sides`, and sits between the two residual blocks in the middle. Group
    normalisation has 32 groups, or fewer so that each has at least two channels. There
    is no dropout. For series, the convolutions have one axis.

    The last convolution of each residual block, the output layer of each attention and
    the last convolution are initialised to zero, so an untrained network returns zero.

    Examples can have any size. A side that cannot be halved often enough is padded with
    zeros at both ends, and the output is cropped to the pixels of the image.

    With `patch`, the pixels of each patch are folded into channels before the first
    convolution, and unfolded after the last one (space to depth). The first level then
    has the resolution of the patches, which makes a narrow network several times
    faster.

    The network takes one example. Batched with `jax.vmap`, its convolutions become
    ordinary batched convolutions. The variables are folded into channels.

    **Source:** Ho, Jain & Abbeel (2020), appendix B, and their code for what the paper
    omits: the initial weights, and the padding of the strided convolutions.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    n_vars: int = eqx.field(static=True)
    compute_dtype: str | None = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    time_embedding: TimeEmbedding
    conv_in: Conv
    down: tuple[Level, ...]
    middle1: ResidualBlock
    middle_attention: Attention
    middle2: ResidualBlock
    up: tuple[Level, ...]
    norm_out: GroupNorm
    conv_out: Conv
    condition: ConditionKind | None
    condition_embedding: ConditionEmbedding | None
    noise_levels: NoiseLevels | None
    conv_levels: Conv | None
    linear_levels: Linear | None
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
        patch: int = 1,
        compute_dtype: DTypeLike | None = None,
        remat: bool = False,
        condition: Condition | None = None,
        noise_levels: NoiseLevels | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKey,
    ):
        """**Arguments:**

        - `shape`: the shape `(height, width, channels)` of one image, or `(length,
            channels)` of one series. Each level after the first halves the sides, which
            are padded as needed.
        - `n_vars`: the number of variables per coordinate, including the data.
        - `width`: the number of channels of the first level; even, and at least 4.
        - `multipliers`: the number of channels of each level, as a multiple of `width`.
        - `n_blocks`: the number of residual blocks of a level on the way down.
        - `attention_sides`: the sides, after padding, at which levels have attention.
            With the default, that of Ho et al., a 28x28 network only has attention in
            the middle.
        - `patch`: the side of the patches that are folded into channels. It must divide
            the sides of `shape`, and levels count from the sides that remain.
        - `compute_dtype`: the dtype to compute in, such as `jnp.bfloat16`; by default
            that of `y`. Statistics and softmax use at least float32.
        - `remat`: whether reverse-mode derivatives store only the inputs of each block
            and recompute the rest (rematerialisation), for less memory and about a
            third more work. Values and parameters are the same.
        - `condition`: the kind of condition, such as
            [`eqmdm.nn.condition_for`][]`(values)`; `None` for none. An image or series
            must have the sides of `shape`.
        - `noise_levels`: `basis.noise_levels` of the basis in which the network is told
            the noise level of every coefficient, with additional channels or features;
            `None` if it is not told.
        - `dtype`: the dtype of the parameters.
        - `key`: the key for the initial weights.

        **Raises:**

        `ValueError` if an argument is outside these limits; `TypeError` if
        `compute_dtype` is not a floating-point dtype.
        """
        _check_sizes(shape, multipliers, patch)
        check_count("n_vars", n_vars)
        check_count("n_blocks", n_blocks)
        *sides, channels = shape
        n_axes, last = len(sides), len(multipliers) - 1
        n_folded = patch**n_axes
        sides = [side // patch for side in sides]
        margins = _margins(sides, last)
        padded = [sum(m) + side for m, side in zip(margins, sides, strict=True)]
        init = Initialiser(key, dtype)

        def level(index: int, n_in: tuple[int, ...], resample_stride: int | None):
            return Level(
                n_in,
                width * multipliers[index],
                4 * width,
                n_axes=n_axes,
                attend=all(side >> index in attention_sides for side in padded),
                resample_stride=resample_stride,
                init=init,
            )

        self.shape = shape
        self.n_vars = n_vars
        self.compute_dtype = _dtype_name(compute_dtype)
        self.patch = patch
        self.remat = remat
        self.time_embedding = TimeEmbedding(width, init=init)
        n_extra = _n_condition_channels(condition, shape)
        n_in = n_folded * (n_vars * channels + n_extra)
        self.conv_in = Conv(n_in, width, n_axes=n_axes, init=init)
        down, up = _block_inputs(width, multipliers, n_blocks)
        self.down = tuple(
            level(index, n_in, None if index == last else 2)
            for index, n_in in enumerate(down)
        )
        n_middle = width * multipliers[last]
        block = lambda: ResidualBlock(
            n_middle, n_middle, 4 * width, n_axes=n_axes, init=init
        )
        self.middle1 = block()
        self.middle_attention = Attention(n_middle, init=init)
        self.middle2 = block()
        self.up = tuple(
            level(index, n_in, None if index == 0 else 1)
            for index, n_in in zip(reversed(range(last + 1)), up, strict=True)
        )
        n_out = width * multipliers[0]
        self.norm_out = GroupNorm(n_out, init=init)
        self.conv_out = Conv(
            n_out, n_folded * n_vars * channels, n_axes=n_axes, zero=True, init=init
        )
        self.condition = condition
        self.condition_embedding = None
        if condition is not None and not n_extra:
            self.condition_embedding = ConditionEmbedding(
                condition, 4 * width, init=init
            )
        self.noise_levels = noise_levels
        self.conv_levels = self.linear_levels = None
        if noise_levels is not None:
            n_maps = 1
            if isinstance(noise_levels, NoiseLevelMaps):
                n_maps += noise_levels.n_maps(n_axes)
            else:
                self.linear_levels = Linear(
                    math.prod(shape), 4 * width, zero=True, init=init
                )
            # Zero, so that training starts from a network that is not told the levels.
            self.conv_levels = Conv(
                n_folded * n_maps * channels,
                width,
                n_axes=n_axes,
                zero=True,
                init=init,
            )

    def __call__(
        self,
        t: Real[Array, ""],
        y: Float[Array, "vars *shape"],
        *,
        condition: Any = None,
        noise_levels: Float[Array, "*shape"] | None = None,
        filtered: Float[Array, "*shape"] | None = None,
    ) -> Float[Array, "vars *shape"]:
        """**Arguments:**

        - `t`: the time, roughly in $[0, 1]$.
        - `y`: the state.
        - `condition`: the condition of one example.
        - `noise_levels`, `filtered`: for a network with `noise_levels`, those of every
            coefficient in $[0, 1]$, and the example without the noise of the noisier
            coefficients; see [`eqmdm.PreconditionedDenoiser`][].

        **Returns:**

        The network's output, in the dtype of `y`.

        **Raises:**

        `ValueError`, at trace time, if `t` is not a scalar or `y` does not have the
        shape that the network was built for, or as for `check_condition`.
        """
        expected = (self.n_vars, *self.shape)
        check_arguments(t, y, expected, "n_vars, *shape")
        *sides, channels = self.shape
        dtype = y.dtype if self.compute_dtype is None else self.compute_dtype
        x = jnp.moveaxis(y, 0, -2).reshape(*sides, -1).astype(dtype)
        condition = self.check_condition(condition)
        features = self.time_embedding(t, dtype)
        if self.condition_embedding is not None:
            features = features + self.condition_embedding(condition, dtype)
        elif isinstance(self.condition, ArrayCondition):
            x = jnp.concatenate(
                [x, *self.condition.standardise(condition, dtype)], axis=-1
            )
        told = self._told(noise_levels, filtered, dtype)
        if self.linear_levels is not None:
            assert noise_levels is not None
            levels = (2 * noise_levels - 1).reshape(-1).astype(dtype)
            features = features + self.linear_levels(levels)
        # Every block applies this activation before its own dense layer.
        time = jax.nn.silu(features)

        # Concatenate the skip connection inside the checkpoint, so that the result is
        # not stored in addition to its parts.
        in_block = eqx.filter_checkpoint if self.remat else lambda function: function

        x, told = fold(x, self.patch), None if told is None else fold(told, self.patch)
        sides = x.shape[:-1]
        margins = _margins(sides, len(self.down) - 1)
        if any(map(any, margins)):
            pad = lambda x: jnp.pad(x, (*margins, (0, 0)))
            x, told = pad(x), None if told is None else pad(told)
        x = self.conv_in(x)
        if self.conv_levels is not None:
            assert told is not None
            x = x + self.conv_levels(told)
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
                x = level.resample(upsample(x))
        x = self.conv_out(jax.nn.silu(self.norm_out(x)))
        x = x[
            tuple(
                slice(before, before + side)
                for (before, _), side in zip(margins, sides, strict=True)
            )
        ]
        x = unfold(x, self.patch).reshape(*self.shape[:-1], self.n_vars, channels)
        return jnp.moveaxis(x, -2, 0).astype(y.dtype)

    def _told(
        self,
        noise_levels: Float[Array, "*shape"] | None,
        filtered: Float[Array, "*shape"] | None,
        dtype: DTypeLike,
    ) -> Inexact[Array, "*sides channels"] | None:
        """The channels that tell the network the noise levels."""
        kind = self.noise_levels
        if not check_noise_levels(kind is not None, noise_levels, filtered, self.shape):
            return None
        assert noise_levels is not None and filtered is not None
        if not isinstance(kind, NoiseLevelMaps):
            return filtered.astype(dtype)
        maps = kind.maps(2 * noise_levels - 1)
        return jnp.concatenate([maps, filtered], axis=-1).astype(dtype)


def _n_condition_channels(condition: Condition | None, shape: tuple[int, ...]) -> int:
    """The channels that a condition adds to the input: none unless it has the sides of
    the data."""
    if not isinstance(condition, ArrayCondition) or len(condition.shape) < 2:
        return 0
    if condition.shape[:-1] != shape[:-1]:
        raise ValueError(
            "`condition` must be a class, a vector, or have the sides of the data, "
            f"{shape[:-1]}; got arrays of shape {condition.shape}. Resize images, and "
            "flatten other arrays."
        )
    # The values, and which of them are missing.
    return 2 * condition.shape[-1]


def _block_inputs(
    width: int, multipliers: tuple[int, ...], n_blocks: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The input channels of each block of the levels, on the way down and up."""
    widths = [width * multiplier for multiplier in multipliers]
    last = len(widths) - 1
    # The channels of the activations that are stored for the way up.
    skips = [width]
    down = []
    for index, n_out in enumerate(widths):
        down.append((skips[-1], *[n_out] * (n_blocks - 1)))
        # The output of the convolution to the next level is stored too.
        skips.extend([n_out] * (n_blocks + (index != last)))
    up = []
    n_above = widths[-1]
    for n_out in reversed(widths):
        before = (n_above, *[n_out] * n_blocks)
        up.append(tuple(skips.pop() + n for n in before))
        n_above = n_out
    return down, up


def _dtype_name(compute_dtype: DTypeLike | None) -> str | None:
    if compute_dtype is None:
        return None
    if not jnp.issubdtype(compute_dtype, jnp.floating):
        raise TypeError(
            "`compute_dtype` must be a floating-point dtype, such as `jnp.bfloat16`, "
            f"or `None`; got {compute_dtype!r}."
        )
    return jnp.dtype(compute_dtype).name


def _check_sizes(
    shape: tuple[int, ...], multipliers: tuple[int, ...], patch: int
) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            "`shape` must be `(height, width, channels)` or `(length, channels)`, each "
            f"at least 1; got {shape}. For points use `eqmdm.nn.MLP`."
        )
    if len(multipliers) < 1 or min(multipliers) < 1:
        raise ValueError(
            "`multipliers` must be one or more numbers of at least 1; got "
            f"{multipliers}."
        )
    check_count("patch", patch)
    if any(side % patch for side in shape[:-1]):
        raise ValueError(
            f"`patch` must divide the sides of `shape`, {shape[:-1]}; got {patch}. "
            "Use 1 for no patches."
        )


def _margins(sides: Sequence[int], n_halvings: int) -> tuple[tuple[int, int], ...]:
    """The padding before and after each side that lets it be halved."""
    missing = [-side % 2**n_halvings for side in sides]
    return tuple((n // 2, n - n // 2) for n in missing)
