"""The defaults of `eqmdm train` for each data set, and for any shape of example."""

import math
from typing import Any


_IMAGES: dict[str, Any] = {
    "network": "unet",
    "steps": 50_000,
    "batch_size": 128,
    "learning_rate": 2e-4,
    "warmup": 500,
    "ema_decay": 0.9995,
    "width": 32,
    "multipliers": (1, 2, 2),
    "n_blocks": 2,
    "patch": 1,
    "preconditioning": "normal",
    "decay": "none",
    "log_every": 50,
    "validate_every": 1000,
    "checkpoint_every": 1000,
    "n_samples": 64,
}
# Most pixels are background.
_MNIST = _IMAGES | {"preconditioning": "spike-and-slab"}
_CIFAR10 = _IMAGES | {
    "steps": 500_000,
    "warmup": 5000,
    "ema_decay": 0.9999,
    "width": 128,
    "multipliers": (1, 2, 2, 2),
    "log_every": 100,
    "validate_every": 5000,
    "checkpoint_every": 5000,
}
_POINTS = _IMAGES | {
    "network": "mlp",
    "steps": 10_000,
    "batch_size": 512,
    "learning_rate": 1e-3,
    "ema_decay": 0.999,
    "width": 128,
    "n_blocks": 3,
    "log_every": 100,
    "n_samples": 4000,
}
_DIGITS = _IMAGES | {
    "steps": 2000,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup": 100,
    "ema_decay": 0.998,
    "width": 24,
    "multipliers": (1, 2),
    "n_blocks": 1,
    "log_every": 20,
    "validate_every": 500,
    "checkpoint_every": 500,
}
DEFAULTS = {
    "digits": _DIGITS,
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": _CIFAR10,
    "imagenet32": _CIFAR10,
    "mixture": _POINTS,
    "rings": _POINTS,
    "checkerboard": _POINTS,
}
_LAPTOP_GREY: dict[str, Any] = {
    "steps": 10_000,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "warmup": 200,
    "decay": "cosine",
    "ema_decay": 0.999,
    "width": 24,
    "multipliers": (1, 2, 2),
    "n_blocks": 1,
    "patch": 1,
    "preconditioning": "spike-and-slab",
    "validate_every": 1000,
    "checkpoint_every": 500,
}
_LAPTOP_COLOUR = _LAPTOP_GREY | {
    "steps": 6000,
    "learning_rate": 2e-3,
    "ema_decay": 0.9995,
    "width": 48,
    "multipliers": (1, 2),
    "patch": 2,
    "preconditioning": "normal",
}
_LAPTOP = {
    "mnist": _LAPTOP_GREY,
    "fashion_mnist": _LAPTOP_GREY,
    "cifar10": _LAPTOP_COLOUR,
    "imagenet32": _LAPTOP_COLOUR,
}
PRESETS = {"laptop": _LAPTOP}
# The log-SNRs at which a spike-and-slab denoiser of data scaled to [-1, 1] learns. On a
# trained network, the gradient of one example has a norm of 40 to 95 between -2 and 14,
# 8 at -4 and 1 at -6. Above 14 the network is not used.
FOCUS = (-3.0, 14.0)
# The smallest image side that the U-Net halves.
_LEAST_HALVED = 8


def log_snr_range(preconditioning: str, dequantisation: str) -> tuple[float, float]:
    """The interval of a denoiser, which makes all fixed diffusions comparable.

    At a log-SNR of 13.3 the noise is a sixth of one of 256 levels. A dequantised pixel
    of known level has a uniform density, which a denoiser of spikes knows, but the
    normal decoder at the start time does not: the bound loses 0.22 bits for each such
    pixel, and 0.008 if the interval ends at 20. Other denoisers, and the discrete
    decoder, gain nothing.
    """
    resolves_edges = (
        preconditioning == "spike-and-slab" and dequantisation != "discrete"
    )
    return -9.0, 20.0 if resolves_edges else 13.3


def defaults_by_size(
    shape: tuple[int, ...], n_levels: int | None, network: str | None
) -> dict[str, Any]:
    """The defaults for data without chosen defaults, from the shape of an example.

    They follow the known data sets: digits for images of up to 12 pixels a side, MNIST
    for larger ones, with twice the width in colour or beyond 32 pixels, and points for
    everything else, wider for more coordinates. A U-Net for series, which has to be
    asked for, has the sizes of one for images of that side.
    """
    of_images = n_levels is not None and len(shape) == 3
    of_sides = of_images or network == "unet" and len(shape) in (2, 3)
    if network == "mlp" or not of_sides:
        dim = math.prod(shape)
        return _POINTS | {"width": 128 if dim <= 16 else 256 if dim <= 256 else 512}
    *sides, channels = shape
    side = max(sides)
    n_halvings = max(0, min(4, int(math.log2(max(side, 1) / (_LEAST_HALVED / 2)))))
    multipliers = (1, *[2] * n_halvings)
    if side <= 12:
        return _DIGITS | {"multipliers": multipliers}
    # A batch has at most the pixels of 128 images of 32x32.
    batch_size = max(8, min(128, 2 ** int(math.log2(2**17 / math.prod(sides)))))
    return _IMAGES | {
        "width": 32 if channels == 1 and side <= 32 else 64,
        "multipliers": multipliers,
        "batch_size": batch_size,
    }


def preset_defaults(
    preset: str, dataset: str, shape: tuple[int, ...] | None
) -> dict[str, Any]:
    """The defaults of a preset for a known data set, or for examples of a shape.

    **Raises:** `ValueError` for data that are no images of at least 16x16.
    """
    known = PRESETS[preset].get(dataset)
    if known is not None:
        return known
    if shape is None or len(shape) != 3 or min(shape[:2]) < 16:
        of_shape = dataset if shape is None else f"examples of shape {shape}"
        raise ValueError(
            "`preset` must be left out for data that are no images of at least 16x16 "
            f"pixels; got {preset} for {of_shape}."
        )
    return _LAPTOP_GREY if shape[-1] == 1 else _LAPTOP_COLOUR
