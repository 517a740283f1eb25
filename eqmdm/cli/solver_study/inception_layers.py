"""The layers of the Inception network of the Fréchet Inception distance."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias


N_FEATURES = 2048
N_CLASSES = 1008


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution, then batch norm and ReLU. `name` is the prefix of its tensors."""

    name: str
    channels: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pool over three by three pixels. A mean is over those inside the image."""

    kind: Literal["max", "mean"]
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Branches:
    """Branches with one input, whose channels are concatenated."""

    branches: tuple[tuple["Layer", ...], ...]


Layer: TypeAlias = Convolution | Pool | Branches


def _halving(name: str, channels: int) -> Convolution:
    return Convolution(name, channels, 3, 3, stride=2, padding="VALID")


def _pooled(block: str, channels: int, kind: Literal["max", "mean"]) -> tuple:
    return Pool(kind), Convolution(f"{block}.branch_pool", channels)


def _a(block: str, pooled: int) -> Branches:
    name = f"{block}.branch"
    return Branches(
        (
            (Convolution(f"{name}1x1", 64),),
            (Convolution(f"{name}5x5_1", 48), Convolution(f"{name}5x5_2", 64, 5, 5)),
            (
                Convolution(f"{name}3x3dbl_1", 64),
                Convolution(f"{name}3x3dbl_2", 96, 3, 3),
                Convolution(f"{name}3x3dbl_3", 96, 3, 3),
            ),
            _pooled(block, pooled, "mean"),
        )
    )


def _b(block: str) -> Branches:
    name = f"{block}.branch3x3"
    return Branches(
        (
            (_halving(name, 384),),
            (
                Convolution(f"{name}dbl_1", 64),
                Convolution(f"{name}dbl_2", 96, 3, 3),
                _halving(f"{name}dbl_3", 96),
            ),
            (Pool("max", stride=2),),
        )
    )


def _c(block: str, inner: int) -> Branches:
    name = f"{block}.branch"
    return Branches(
        (
            (Convolution(f"{name}1x1", 192),),
            (
                Convolution(f"{name}7x7_1", inner),
                Convolution(f"{name}7x7_2", inner, 1, 7),
                Convolution(f"{name}7x7_3", 192, 7, 1),
            ),
            (
                Convolution(f"{name}7x7dbl_1", inner),
                Convolution(f"{name}7x7dbl_2", inner, 7, 1),
                Convolution(f"{name}7x7dbl_3", inner, 1, 7),
                Convolution(f"{name}7x7dbl_4", inner, 7, 1),
                Convolution(f"{name}7x7dbl_5", 192, 1, 7),
            ),
            _pooled(block, 192, "mean"),
        )
    )


def _d(block: str) -> Branches:
    name = f"{block}.branch"
    return Branches(
        (
            (Convolution(f"{name}3x3_1", 192), _halving(f"{name}3x3_2", 320)),
            (
                Convolution(f"{name}7x7x3_1", 192),
                Convolution(f"{name}7x7x3_2", 192, 1, 7),
                Convolution(f"{name}7x7x3_3", 192, 7, 1),
                _halving(f"{name}7x7x3_4", 192),
            ),
            (Pool("max", stride=2),),
        )
    )


def _e(block: str, kind: Literal["max", "mean"]) -> Branches:
    def split(name: str) -> Branches:
        row, column = (
            Convolution(f"{name}a", 384, 1, 3),
            Convolution(f"{name}b", 384, 3, 1),
        )
        return Branches(((row,), (column,)))

    name = f"{block}.branch"
    return Branches(
        (
            (Convolution(f"{name}1x1", 320),),
            (Convolution(f"{name}3x3_1", 384), split(f"{name}3x3_2")),
            (
                Convolution(f"{name}3x3dbl_1", 448),
                Convolution(f"{name}3x3dbl_2", 384, 3, 3),
                split(f"{name}3x3dbl_3"),
            ),
            _pooled(block, 192, kind),
        )
    )


LAYERS: tuple[Layer, ...] = (
    _halving("Conv2d_1a_3x3", 32),
    Convolution("Conv2d_2a_3x3", 32, 3, 3, padding="VALID"),
    Convolution("Conv2d_2b_3x3", 64, 3, 3),
    Pool("max", stride=2),
    Convolution("Conv2d_3b_1x1", 80),
    Convolution("Conv2d_4a_3x3", 192, 3, 3, padding="VALID"),
    Pool("max", stride=2),
    _a("Mixed_5b", 32),
    _a("Mixed_5c", 64),
    _a("Mixed_5d", 64),
    _b("Mixed_6a"),
    _c("Mixed_6b", 128),
    _c("Mixed_6c", 160),
    _c("Mixed_6d", 160),
    _c("Mixed_6e", 192),
    _d("Mixed_7a"),
    _e("Mixed_7b", "mean"),
    # A maximum only here: a fault of the 2015 graph, which the distance inherits.
    _e("Mixed_7c", "max"),
)


def kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """The shape of each convolution's kernel by name: output channels, input channels,
    height, width."""
    shapes: dict[str, tuple[int, int, int, int]] = {}
    _collect(LAYERS, 3, shapes)
    return shapes


def _collect(layers: Sequence[Layer], channels: int, shapes: dict) -> int:
    """The number of output channels, with the shapes of the layers added."""
    for layer in layers:
        if isinstance(layer, Convolution):
            shapes[layer.name] = layer.channels, channels, layer.height, layer.width
            channels = layer.channels
        elif isinstance(layer, Branches):
            channels = sum(_collect(part, channels, shapes) for part in layer.branches)
    return channels
