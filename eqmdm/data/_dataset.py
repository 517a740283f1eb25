"""The data set that every loader returns."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int64, Real

from .._core.checks import (
    as_array,
    as_examples,
    check_count,
    check_finite,
    check_levels,
    check_points,
)
from ._arrays import array_labels, split_arrays
from ._files import ImageFiles
from ._labels import Conditions, Labels
from ._splits import SPLITS, Fractions
from ._standardise import Standardisation


Examples = Real[np.ndarray, "_ *shape"]


# Compared by identity: arrays have no truth value. Compare fingerprints instead.
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test examples.

    **Arguments:**

    - `name`: the name it is loaded by.
    - `train`, `validation`, `test`: grey levels, or points, along the first axis; of
        one shape. Training images may be in files instead. Arrays that can be written
        to are copied, so that `fingerprint` stays true; read-only ones are not.
    - `n_levels`: the number of grey levels; `None` for points.
    - `flip`: whether a mirrored image is as likely as the image itself.
    - `log_density`: the exact log density of one point in nats, where it is known.
    - `labels`: the classes of the examples, where they are known.
    - `conditions`: what a conditional model of the examples is conditioned on: classes,
        or arrays of numbers in which NaN is missing.
    - `standardisation`: the map to these examples from those in their own units, in
        which likelihoods are then reported; `None` where they are the same.
    - `description`: where the data were found and what they are, in one line.

    **Raises:**

    `TypeError` unless each split is an array of integers, or for points of floats;
    `ValueError` if a split is empty, has another shape than `train`, levels that are
    not from 0 to `n_levels - 1` or points that are not finite, if `flip` is asked of
    what is no image, or if labels do not go with the examples.
    """

    name: str
    train: Examples | ImageFiles
    validation: Examples
    test: Examples
    n_levels: int | None = None
    flip: bool = False
    log_density: Callable[[Float[Array, " dim"]], Float[Array, ""]] | None = None
    labels: Labels | None = None
    conditions: Conditions | None = None
    standardisation: Standardisation | None = None
    description: str = ""

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        validation: Any = None,
        test: Any = None,
        *,
        labels: Any = None,
        conditions: Any = None,
        n_levels: int | None = None,
        name: str = "array",
        flip: bool = False,
        standardise: bool = False,
        validation_fraction: float | None = None,
        test_fraction: float | None = None,
    ) -> "Dataset":
        """A data set of arrays whose first axes count examples.

        !!! Example

            ```python
            dataset = eqmdm.data.Dataset.from_arrays(x, labels=classes)
            model = eqmdm.fit(model, dataset, key=key)
            ```

        **Arguments:**

        - `train`, `validation`, `test`: floats, or integers that are grey levels. A
            split that is left out is cut from `train` by a fixed random choice.
        - `labels`: integers or strings, one for each example of `train`; where other
            splits are given, a tuple of one such array for each of them.
        - `conditions`: what a conditional model is conditioned on: `"label"` for the
            labels, or arrays given like those of `labels`.
        - `n_levels`: the number of grey levels; by default 256 for uint8 and 65,536 for
            uint16. Grey images may come without their one channel, which is added.
        - `name`, `flip`: as for `Dataset`.
        - `standardise`: whether floats are shifted and scaled to mean 0 and variance 1,
            by coordinate if an example has one axis; see [`eqmdm.data.load`][].
        - `validation_fraction`, `test_fraction`: the parts of `train` that the splits
            are that are left out; 0.1 by default.

        **Raises:**

        `TypeError` for what is no array of real numbers, and for other integers without
        `n_levels`; `ValueError` for splits of several shapes, values that are not
        finite, or labels that do not go with the examples.
        """
        given = dict(zip(SPLITS, (train, validation, test), strict=True))
        examples = {split: x for split, x in given.items() if x is not None}
        of_label = isinstance(conditions, str)
        if of_label and (conditions != "label" or labels is None):
            raise ValueError(
                '`conditions` must be arrays, or "label" together with `labels`; got '
                f"{conditions!r}{' without labels' if labels is None else ''}."
            )
        splits = split_arrays(
            examples,
            classes=array_labels(
                _by_split("labels", labels, examples), examples, f"`{name}`"
            ),
            conditions=None
            if of_label
            else _by_split("conditions", conditions, examples) or None,
            n_levels=n_levels,
            fractions=Fractions(validation_fraction, test_fraction),
            standardise=standardise,
            where=f"`{name}`",
        )
        dataset = cls(name=name, flip=flip, **splits._asdict())
        return dataset.conditioned_on_labels() if of_label else dataset

    def conditioned_on_labels(self) -> "Dataset":
        """The same data set, whose conditions are its labels.

        **Raises:** `ValueError` if it has no labels.
        """
        if self.labels is None:
            raise ValueError(
                f"`condition` must not be label for {self.name}, which has no labels. "
                "Name the column that holds them with `label_column`."
            )
        return dataclasses.replace(self, conditions=Conditions(*self.labels))

    def __post_init__(self):
        if self.n_levels is not None:
            check_count("n_levels", self.n_levels, least=2)
        for split in SPLITS:
            examples = getattr(self, split)
            if not isinstance(examples, ImageFiles):
                examples = freeze(np.asarray(as_examples(split, examples)))
            # The class is frozen for everyone else.
            object.__setattr__(self, split, examples)
            self._check_split(split, examples)
        if self.flip and len(self.shape) != 3:
            raise ValueError(
                "`flip` must be false unless examples are images of (height, width, "
                f"channels); their shape is {self.shape}."
            )
        if self.labels is not None:
            labels = [self._checked_labels(split) for split in SPLITS]
            names = self.labels.names
            object.__setattr__(self, "labels", Labels(*labels, names=names))
        if self.conditions is not None:
            conditions = [self._checked_conditions(split) for split in SPLITS]
            object.__setattr__(self, "conditions", Conditions(*conditions))

    def _check_split(self, split: str, examples: Examples | ImageFiles) -> None:
        if examples.shape[1:] != self.shape:
            raise ValueError(
                f"`{split}` must hold examples of the shape of those of `train`, "
                f"{self.shape}; got {examples.shape[1:]}."
            )
        if isinstance(examples, ImageFiles):
            if self.n_levels != 256:
                raise ValueError(
                    f"`n_levels` must be 256 for images in files; got {self.n_levels}."
                )
        elif self.n_levels is not None:
            check_levels(split, examples, self.n_levels)
        else:
            check_points(split, examples, "n_levels")
            check_finite(split, examples)

    def _checked_labels(self, split: str) -> Int64[np.ndarray, " _"]:
        n = len(getattr(self, split))
        labels = np.asarray(as_array(f"labels.{split}", getattr(self.labels, split)))
        usable = labels.shape == (n,) and np.issubdtype(labels.dtype, np.integer)
        if not usable or labels.min() < 0:
            raise ValueError(
                f"`labels.{split}` must be {n:,} integers, one of at least 0 for each "
                f"example of `{split}`; got {labels.dtype} of shape {labels.shape}"
                + (f", the least {labels.min()}." if usable else ".")
            )
        return freeze(labels.astype(np.int64, copy=False))

    def _checked_conditions(self, split: str) -> Real[np.ndarray, "_ ..."]:
        n, name = len(getattr(self, split)), f"conditions.{split}"
        values = np.asarray(as_examples(name, getattr(self.conditions, split)))
        if len(values) != n or np.isinf(values).any():
            raise ValueError(
                f"`{name}` must be {n:,} conditions, one for each example of "
                f"`{split}`, finite or NaN where missing; got shape {values.shape}"
                + (" with infinite values." if np.isinf(values).any() else ".")
            )
        return freeze(values)

    def __repr__(self) -> str:
        sizes = " + ".join(f"{len(getattr(self, split)):,}" for split in SPLITS)
        parts = [repr(self.name), f"{sizes} examples of {self.shape}"]
        if self.n_levels is not None:
            parts.append(f"{self.n_levels} levels")
        # Of files it would be read from the disk.
        if not isinstance(self.train, ImageFiles):
            parts.append(f"fingerprint {self.fingerprint[:12]}")
        return f"Dataset({', '.join(parts)})"

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
        for split in SPLITS:
            examples = getattr(self, split)
            if isinstance(examples, ImageFiles):
                digest.update(examples.fingerprint.encode())
                continue
            little_endian = examples.astype(
                examples.dtype.newbyteorder("<"), copy=False
            )
            digest.update(f"{little_endian.dtype.str} {examples.shape}".encode())
            digest.update(np.ascontiguousarray(little_endian).data)
        if self.standardisation is not None:
            for value in (self.standardisation.mean, self.standardisation.std):
                digest.update(value.astype("<f8").tobytes())
        return digest.hexdigest()


def _by_split(name: str, given: Any, examples: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by the name of their split, from one for each split of examples."""
    if given is None:
        return {}
    one = len(examples) == 1 and not isinstance(given, tuple)
    parts = (given,) if one else given
    if len(parts) != len(examples):
        raise ValueError(
            f"`{name}` must be a tuple of one array for each split that is given, "
            f"{', '.join(examples)}; got {len(parts)}."
        )
    return dict(zip(examples, parts, strict=True))


def freeze(array: np.ndarray, *, own: bool = False) -> np.ndarray:
    """The array read-only: a copy if anyone might still write to it.

    Switching the given array to read-only would not do: views that were made before,
    and the array that it is a view of, could still be written to.

    **Arguments:**

    - `own`: whether nothing else refers to the array, so that no copy is needed; images
        in memory can take half of it.
    """
    if not own and _is_writeable(array):
        array = array.copy()
    array.setflags(write=False)
    return array


def _is_writeable(array: np.ndarray) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return True
        base = base.base
    return False
