"""The networks of `eqmdm train`, from its options."""

from typing import Any

import jax
import jax.numpy as jnp

from eqmdm import nn

from .._core.own import is_own
from . import own_code
from .train.options import ResolvedTrainOptions


def build_network(
    options: ResolvedTrainOptions,
    shape: tuple[int, ...],
    n_vars: int,
    *,
    key: jax.Array,
    **told: Any,
) -> Any:
    """The network to train, on one example of `shape` with `n_vars` variables.

    `told` are the kinds of what it is told besides: `condition` and `noise_levels`.
    """
    if options.network == "unet" and len(shape) not in (2, 3):
        raise ValueError(
            "`network` must be mlp for examples that are neither images of shape "
            "(height, width, channels) nor series of shape (length, channels); got "
            f"unet for the shape {shape}."
        )
    if is_own(options.network):
        return own_code.make_network(options.network, shape, n_vars, key=key, **told)
    if options.network == "mlp":
        return nn.MLP(
            shape, n_vars, width=options.width, depth=options.n_blocks, key=key, **told
        )
    return nn.UNet(
        shape,
        n_vars,
        width=options.width,
        multipliers=options.multipliers,
        n_blocks=options.n_blocks,
        patch=options.patch,
        compute_dtype=None if options.compute_dtype == "float32" else jnp.bfloat16,
        remat=options.remat,
        key=key,
        **told,
    )
