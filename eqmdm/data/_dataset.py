"""What every data set is loaded as."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Int64, UInt8

from .._core.checks import check_finite
from ._files import ImageFiles


Examples = UInt8[np.ndarray, "_ height width channels"] | Float32[np.ndarray, "_ dim"]


class Labels(NamedTuple):
    """The class of each example of the three splits, counted from 0."""

    train: Int64[np.ndarray, " _"]
    validation: Int64[np.ndarray, " _"]
    test: Int64[np.ndarray, " _"]


# Compared by identity: arrays have no truth value. Compare fingerprints instead.
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test examples.

    **Arguments:**

    - `name`: the name it is loaded by.
    - `train`, `validation`, `test`: images as grey levels, or points. Arrays are made
        read-only; training images may be in files instead.
    - `n_levels`: the number of grey levels of an image; `None` for points.
    - `flip`: whether a mirrored image is as likely as the image itself.
    - `log_density`: the exact log density of one point in nats, where it is known.
    - `labels`: the classes of the examples, where they are known.

    **Raises:**

    `ValueError` if some of a split's points are not finite.
    """

    name: str
    train: Examples | ImageFiles
    validation: Examples
    test: Examples
    n_levels: int | None = None
    flip: bool = False
    log_density: Callable[[Float[Array, " dim"]], Float[Array, ""]] | None = None
    labels: Labels | None = None

    def __post_init__(self):
        for name in ("train", "validation", "test"):
            examples = getattr(self, name)
            if isinstance(examples, np.ndarray):
                check_finite(name, examples)
        for array in (self.train, self.validation, self.test, *(self.labels or ())):
            if isinstance(array, np.ndarray):
                array.setflags(write=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.shape[1:]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the three splits' shapes, types and contents, in hexadecimal.

        It names the data that a figure was computed on, wherever it was loaded from;
        labels are not part of it. For images in files it is of the files instead.
        """
        digest = hashlib.sha256()
        for examples in (self.train, self.validation, self.test):
            if isinstance(examples, ImageFiles):
                digest.update(examples.fingerprint.encode())
                continue
            little_endian = examples.astype(
                examples.dtype.newbyteorder("<"), copy=False
            )
            digest.update(f"{little_endian.dtype.str} {examples.shape}".encode())
            digest.update(np.ascontiguousarray(little_endian).data)
        return digest.hexdigest()
