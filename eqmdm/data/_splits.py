"""Fixed random splits of examples."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped


SPLITS = ("train", "validation", "test")
# Of the examples, where a split is not there and no other fraction is given.
_FRACTION = 0.1


class Fractions(NamedTuple):
    """The parts of the training examples that become the splits that are absent."""

    validation: float | None = None
    test: float | None = None


class Cut(NamedTuple):
    """The examples of a split: `rows`, in order, of the split `of` that is given."""

    of: str
    rows: Int64[np.ndarray, " n"]


def split_off(
    examples: Shaped[np.ndarray, "n ..."], n: int
) -> tuple[Shaped[np.ndarray, "m ..."], Shaped[np.ndarray, "k ..."]]:
    """All examples but a fixed random choice of `n`, and these `n`; both in order."""
    # RandomState, because NumPy promises that its numbers never change.
    order = np.random.RandomState(0).permutation(len(examples))
    return examples[np.sort(order[n:])], examples[np.sort(order[:n])]


def cut(sizes: Mapping[str, int], fractions: Fractions, where: str) -> dict[str, Cut]:
    """The three splits: those that are given, and from the training examples, by a
    fixed random choice, those that are not.

    **Arguments:**

    - `sizes`: the number of examples of each split that is given.
    - `where`: names the data in errors.

    **Raises:**

    `ValueError` for fractions that are not in (0, 1) or belong to a split that is
    given, and for too few examples.
    """
    check_fractions(fractions)
    for split in sizes:
        if getattr(fractions, split, None) is not None:
            raise ValueError(
                f"`{split}_fraction` must be left out for {where}, which has a "
                f"{split} split of {sizes[split]:,} examples; got "
                f"{getattr(fractions, split)}."
            )
        if sizes[split] == 0:
            raise ValueError(
                f"{where} must hold one example or more in each split; its {split} "
                "split has none."
            )
    n, absent = sizes["train"], [s for s in SPLITS[1:] if s not in sizes]
    if n < 1 + len(absent):
        raise ValueError(
            f"{where} must hold at least {1 + len(absent)} examples, one for each of "
            f"{', '.join(['train', *absent])}; it has {n}."
        )
    cuts = {split: Cut(split, np.arange(size)) for split, size in sizes.items()}
    rows = cuts["train"].rows
    for i, split in enumerate(absent):
        fraction = getattr(fractions, split) or _FRACTION
        # Each split is left at least one example.
        most = len(rows) - (len(absent) - i)
        rows, taken = split_off(rows, min(max(1, round(fraction * n)), most))
        cuts[split] = Cut("train", taken)
    return cuts | {"train": Cut("train", rows)}


def check_fractions(fractions: Fractions) -> None:
    """**Raises:** `ValueError` unless each is in (0, 1), and their sum below 1."""
    for split, fraction in fractions._asdict().items():
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(
                f"`{split}_fraction` must be between 0 and 1, neither included; got "
                f"{fraction}. 0.1 is usual."
            )
    total = sum(fraction or 0 for fraction in fractions)
    if total >= 1:
        raise ValueError(
            "`validation_fraction` and `test_fraction` must leave something to train "
            f"on; they add up to {total:g}."
        )
