"""The Inception network of the Fréchet Inception distance."""

from collections.abc import Mapping, Sequence
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from .inception_layers import LAYERS, Branches, Convolution, Layer, Pool, kernel_shapes


# The side of the images for which the network was trained.
SIZE = 299
# The names of batch norm's tensors.
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# Of batch norm, in the graph and in its ports.
_EPSILON = 1e-3

_Image = Float[Array, "_ _ _"]


@final
class Inception(eqx.Module):
    """The network of 2015 to whose last pool the Fréchet Inception distance refers.

    It differs from later Inception networks: mean pools leave out the padding, the last
    block has a maximum in place of a mean, and its weights are others. Batch norm is
    folded into the convolutions.

    **Source:** Szegedy et al. (2016) for the architecture; Heusel et al. (2017) for the
    choice of features; torch-fidelity 0.4.0 for the details of the graph.
    """

    kernels: dict[str, Float[Array, "height width in out"]]
    shifts: dict[str, Float[Array, " out"]]

    def __init__(self, tensors: Mapping[str, np.ndarray], dtype: type[np.floating]):
        """**Arguments:**

        - `tensors`: the tensors by their names in a PyTorch port: for each convolution
            of `kernel_shapes`, `conv.weight` and batch norm's `bn.weight`, `bn.bias`,
            `bn.running_mean` and `bn.running_var`.
        - `dtype`: of the computation, and of the features.
        """
        self.kernels, self.shifts = {}, {}
        for name in kernel_shapes():
            kernel, scale, bias, mean, variance = (
                tensors[f"{name}.{part}"].astype(np.float64)
                for part in ("conv.weight", *(f"bn.{part}" for part in BATCH_NORM))
            )
            scale = scale / np.sqrt(variance + _EPSILON)
            # Channels last, as in XLA's convolutions on a CPU.
            kernel = np.moveaxis(kernel * scale[:, None, None, None], (0, 1), (3, 2))
            self.kernels[name] = jnp.asarray(kernel, dtype)
            self.shifts[name] = jnp.asarray(bias - mean * scale, dtype)

    def __call__(
        self, image: UInt8[Array, "height width 3"], *, size: int = SIZE
    ) -> Float[Array, " features"]:
        """The features of an image, first resized to `size` by `size` pixels."""
        (dtype,) = {shift.dtype for shift in self.shifts.values()}
        x = (resized(image.astype(dtype), size) - 128) / 128
        return jnp.mean(self._through(LAYERS, x), axis=(0, 1))

    def _through(self, layers: Sequence[Layer], x: _Image) -> _Image:
        for layer in layers:
            match layer:
                case Convolution():
                    x = self._convolved(layer, x)
                case Pool():
                    x = _pooled(layer, x)
                case Branches():
                    parts = [self._through(part, x) for part in layer.branches]
                    x = jnp.concatenate(parts, axis=-1)
        return x

    def _convolved(self, layer: Convolution, x: _Image) -> _Image:
        (y,) = lax.conv_general_dilated(
            x[None],
            self.kernels[layer.name],
            window_strides=(layer.stride, layer.stride),
            padding=layer.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            # By default GPUs may multiply in TF32, with ten bits.
            precision=lax.Precision.HIGHEST,
        )
        return jax.nn.relu(y + self.shifts[layer.name][None, None])


def resized(image: _Image, size: int) -> _Image:
    r"""The image at `size` by `size` pixels, as TensorFlow 1 resizes it.

    Pixel $i$ of the result is at $i \, n / \text{size}$ in the image of side $n$,
    between whose pixels it interpolates linearly: the corners at the origin are
    aligned, not the centres, and an image that shrinks is not smoothed.

    **Source:** `interpolate_bilinear_2d_like_tensorflow1x` in torch-fidelity 0.4.0.
    """
    for axis in (1, 0):
        n = image.shape[axis]
        # The ratio is in single precision there, for images in double precision too.
        places = np.arange(size, dtype=image.dtype) * np.float32(n / size)
        low = np.floor(places).astype(np.int32)
        high = np.minimum(low + 1, n - 1)
        weight = jnp.asarray(places - low.astype(image.dtype))
        weight = jnp.expand_dims(weight, (1 - axis, 2))
        before = jnp.take(image, low, axis)
        image = before + (jnp.take(image, high, axis) - before) * weight
    return image


def _pooled(layer: Pool, x: _Image) -> _Image:
    padding = "VALID" if layer.stride > 1 else "SAME"
    window, strides = (3, 3, 1), (layer.stride, layer.stride, 1)
    if layer.kind == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
    rows, columns = (_inside(n) for n in x.shape[:2])
    counts = np.expand_dims(np.outer(rows, columns), 2)
    return total / jnp.asarray(counts, x.dtype)


def _inside(n: int) -> np.ndarray:
    """The number of places among three around each of `n` that are inside."""
    places = np.arange(n)
    return np.minimum(places + 2, n) - np.maximum(places - 1, 0)
