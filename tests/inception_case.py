"""Weights and images on which Inception networks are compared.

Also read where JAX is not installed, hence NumPy alone.
"""

import math
import zlib

import numpy as np


# The variance of max(z, 0) for a standard normal z.
_VARIANCE = (1 - 1 / math.pi) / 2
_BATCH_NORM = {
    "weight": (0.8, 1.2),
    "bias": (-0.3, 0.3),
    "running_mean": (-0.3, 0.3),
    "running_var": (0.7, 1.3),
}
# Resized to the first in quick tests, and to the second, as in the distance.
SIZES = (139, 299)
SHAPES = {"28x28x1": (28, 28, 1), "32x32x3": (32, 32, 3), "45x20x3": (45, 20, 3)}
# Prime, so that the features are from every branch of the last block.
STRIDE = 31


def weights(shapes):
    """Tensors for convolutions and batch norms, by name, in float32.

    Each kernel is centred and scaled so that activations keep their size and their
    differences through the depth, where most random networks lose the latter.
    """
    tensors = {}
    for name, shape in shapes.items():
        part = f"{name}.conv.weight"
        kernel = _uniform(part, *shape, low=-1, high=1)
        kernel -= kernel.mean(axis=(1, 2, 3), keepdims=True)
        # A uniform number from -1 to 1 has the variance 1/3.
        tensors[part] = kernel * math.sqrt(3 / (_VARIANCE * math.prod(shape[1:])))
        for part, (low, high) in _BATCH_NORM.items():
            part = f"{name}.bn.{part}"
            tensors[part] = _uniform(part, shape[0], low=low, high=high)
    tensors["fc.weight"] = _uniform("fc.weight", 1008, 2048, low=-0.1, high=0.1)
    tensors["fc.bias"] = _uniform("fc.bias", 1008, low=-0.1, high=0.1)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def images():
    """Random images by name, of pixels from 0 to 255."""
    return {
        name: np.floor(_uniform(name, *shape, low=0, high=256)).astype(np.uint8)
        for name, shape in SHAPES.items()
    }


def _uniform(name, *size, low, high):
    # NumPy promises the stream of this class, and not of its successors.
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.uniform(low, high, size)
