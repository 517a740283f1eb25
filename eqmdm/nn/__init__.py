"""Networks for single examples, batched with `jax.vmap`."""

from ._mlp import MLP as MLP
from ._unet import UNet as UNet
