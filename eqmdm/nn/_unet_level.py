"""The level of a U-Net: its blocks at one resolution."""

from typing import final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ._image_layers import Attention, Conv, ResidualBlock
from ._initialiser import Initialiser


@final
class Level(eqx.Module):
    """The blocks at one resolution, and the convolution to the next one, if any."""

    blocks: tuple[ResidualBlock, ...]
    attentions: tuple[Attention, ...] | None
    resample: Conv | None

    def __init__(
        self,
        n_in: tuple[int, ...],
        n_out: int,
        n_features: int,
        *,
        n_axes: int,
        attend: bool,
        resample_stride: int | None,
        init: Initialiser,
    ):
        self.blocks = tuple(
            ResidualBlock(n, n_out, n_features, n_axes=n_axes, init=init) for n in n_in
        )
        self.attentions = None
        if attend:
            self.attentions = tuple(Attention(n_out, init=init) for _ in n_in)
        self.resample = None
        if resample_stride is not None:
            self.resample = Conv(
                n_out, n_out, n_axes=n_axes, stride=resample_stride, init=init
            )

    def block(
        self,
        index: int,
        x: Inexact[Array, "*sides in"],
        skip: Inexact[Array, "*sides skip"] | None,
        time: Inexact[Array, " features"],
    ) -> Inexact[Array, "*sides out"]:
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        x = self.blocks[index](x, time)
        return x if self.attentions is None else self.attentions[index](x)
