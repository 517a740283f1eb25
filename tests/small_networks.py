"""Small networks for tests, with any parameters."""

import jax
import numpy as np
import pytest

from eqmdm import nn
from helpers import generator_of


def modules_of(cls, tree):
    """All modules of a class in a tree."""
    is_leaf = lambda node: isinstance(node, cls)
    return [x for x in jax.tree.leaves(tree, is_leaf=is_leaf) if is_leaf(x)]


def perturbed(network, key):
    """The network with noise on every parameter, so that none is zero."""
    # By NumPy, because JAX would compile a draw and a sum for each shape.
    generator = generator_of(key)

    def perturb(x):
        noise = 0.2 * generator.standard_normal(x.shape)
        return jax.device_put((np.asarray(x) + noise).astype(x.dtype))

    return jax.tree.map(perturb, network)


def small_unet(key, **kwargs):
    options = {"width": 4, "multipliers": (1, 2), "n_blocks": 1} | kwargs
    return nn.UNet((8, 8, 1), 2, **options, key=key)


def small_mlp(key, **kwargs):
    return nn.MLP((3,), 2, width=8, depth=2, **kwargs, key=key)


NETWORKS = [
    pytest.param(small_unet, (2, 8, 8, 1), id="unet"),
    pytest.param(small_mlp, (2, 3), id="mlp"),
    pytest.param(
        lambda key, **kw: nn.UNet((5, 3, 2), 2, width=4, key=key, **kw),
        (2, 5, 3, 2),
        id="unet_odd",
    ),
    pytest.param(
        lambda key, **kw: nn.UNet(
            (7, 2), 2, width=4, multipliers=(1, 2), n_blocks=1, key=key, **kw
        ),
        (2, 7, 2),
        id="unet_series",
    ),
    pytest.param(
        lambda key, **kw: nn.MLP((3, 2), 2, width=8, depth=2, key=key, **kw),
        (2, 3, 2),
        id="mlp_series",
    ),
]


def perturbed_mlp(key):
    """A network of 8x8 images whose derivative is not symmetric."""
    mlp = nn.MLP((8, 8, 1), 1, width=16, depth=2, key=key)
    return perturbed(mlp, key)
