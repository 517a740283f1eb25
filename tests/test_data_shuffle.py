import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm.data
from eqmdm.data import random_flip


# Compiled, as in a training step: much faster here than operation by operation.
shuffled_indices = jax.jit(
    eqmdm.data.shuffled_indices, static_argnames=("batch_size", "n")
)
SIZES = [1, 2, 3, 7, 1000, 1797]


def _epochs(key, n, n_epochs, start=0):
    """The stream from the epoch `start` on, one epoch to a row."""
    stream = shuffled_indices(key, start * n, n * n_epochs, n)
    return np.asarray(stream).reshape(n_epochs, n)


def _excess(counts, expected):
    """How far the chi-square statistic is above its mean, in standard deviations."""
    counts = np.asarray(counts)
    freedom = counts.size - 1
    statistic = np.sum((counts - expected) ** 2 / expected)
    return (statistic - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", SIZES)
def test_shuffled_indices_epoch_is_a_permutation(n, key):
    for first in (0, 5, 10**6):
        epochs = _epochs(key, n, 4, start=first)
        assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (4, 1)))


@pytest.mark.parametrize("n", [1000, 1797])
def test_shuffled_indices_differ_between_epochs_keys_and_file_order(n, key):
    # Four epochs, as above, so that the tests share a program.
    first, second, *_ = _epochs(key, n, 4)
    other, *_ = _epochs(jr.fold_in(key, 1), n, 4)
    # Two random permutations agree in a Poisson(1) number of places.
    for one, another in itertools.combinations([first, second, other, range(n)], 2):
        assert np.sum(np.asarray(one) == np.asarray(another)) < 10


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_shuffled_indices_do_not_depend_on_the_batch_size(n, batch_size, key):
    whole = shuffled_indices(key, 0, 320, n)
    starts = range(0, 320, batch_size)
    batches = [shuffled_indices(key, start, batch_size, n) for start in starts]
    assert jnp.array_equal(jnp.concatenate(batches), whole)


def test_shuffled_indices_batch_may_straddle_epochs(key):
    n = 1000
    straddling = shuffled_indices(key, 990, 20, n)
    # Four epochs, as above, so that the tests share a program.
    first, second, *_ = _epochs(key, n, 4)
    assert np.array_equal(straddling, [*first[990:], *second[:10]])


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_shuffled_indices_take_every_order_equally_often(n, key):
    orders = list(itertools.permutations(range(n)))
    n_epochs = 200 * len(orders)
    counts = Counter(map(tuple, _epochs(key, n, n_epochs).tolist()))
    assert _excess([counts[order] for order in orders], 200) < 5


@pytest.mark.parametrize("n", [7, 60])
def test_shuffled_indices_are_uniform_at_each_place(n, key):
    n_epochs = 100 * n
    # One epoch more than is used, as the next test takes, so that they share a program.
    epochs = _epochs(key, n, n_epochs + 1)[:-1]
    # Each row and column of the table sums to the same, hence fewer degrees of freedom
    # and a standard deviation that is a little smaller than `_excess` has it.
    table = np.stack([np.bincount(place, minlength=n) for place in epochs.T])
    assert _excess(table, n_epochs / n) < 5


@pytest.mark.parametrize("n", [7, 60])
@pytest.mark.parametrize("neighbour", ["next place", "next epoch"])
def test_shuffled_indices_are_unpredictable_from_their_neighbours(n, neighbour, key):
    epochs = _epochs(key, n, 100 * n + 1)
    if neighbour == "next place":
        one, other, n_others = epochs[:-1, 0], epochs[:-1, 1], n - 1
    else:
        one, other, n_others = epochs[:-1, 0], epochs[1:, 0], n
    counts = np.bincount(one * n + other, minlength=n * n).reshape(n, n)
    if neighbour == "next place":
        assert not np.diagonal(counts).any()
        counts = counts[~np.eye(n, dtype=bool)]
    assert _excess(counts, 100 / n_others) < 5


@pytest.mark.parametrize("n", [2**31 - 1, 2**31 - 46341, 2**30 + 1])
def test_shuffled_indices_at_the_largest_sizes(n, key):
    batch_size = 1000
    start = 2**31 - 1 - batch_size
    indices = np.asarray(shuffled_indices(key, start, batch_size, n))
    assert indices.dtype == np.int32
    assert indices.min() >= 0 and indices.max() < n
    # At most one epoch ends within the batch, and an epoch repeats no example.
    in_first = np.arange(start, start + batch_size) // n == start // n
    for part in (indices[in_first], indices[~in_first]):
        assert len(np.unique(part)) == len(part)
    # Five standard errors of the mean of uniform draws, whose variance is n**2 / 12.
    assert abs(indices.mean() / n - 0.5) < 5 / np.sqrt(12 * batch_size)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32, jnp.int64])
def test_shuffled_indices_are_the_same_in_either_mode(dtype, key):
    expected = shuffled_indices(key, 12345, 50, 1797)
    wide = shuffled_indices(key, jnp.asarray(12345, dtype), 50, 1797)
    assert jnp.array_equal(wide, expected)
    with jax.enable_x64(False):
        actual = shuffled_indices(key, jnp.asarray(12345, jnp.int32), 50, 1797)
    assert actual.dtype == expected.dtype == jnp.int32
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("n", [0, -1, 2**31])
def test_shuffled_indices_reject_n(n, key):
    with pytest.raises(ValueError, match="`n` must be between 1"):
        eqmdm.data.shuffled_indices(key, 0, 1, n)


def test_shuffled_indices_reject_batch_size(key):
    with pytest.raises(ValueError, match="`batch_size` must be between 1"):
        eqmdm.data.shuffled_indices(key, 0, 0, 10)


@pytest.mark.parametrize("start", [-1, 2**31 - 8])
def test_shuffled_indices_reject_start(start, key):
    with pytest.raises(ValueError, match="`start` must not be negative"):
        eqmdm.data.shuffled_indices(key, start, 8, 10)


def test_random_flip_mirrors_half_of_the_images(key):
    image = jnp.arange(24, dtype=jnp.uint8).reshape(4, 3, 2)
    flip = jax.jit(jax.vmap(lambda key: random_flip(image, key=key)))
    flipped = np.asarray(flip(jr.split(key, 1000)))
    is_same = np.all(flipped == np.asarray(image), axis=(1, 2, 3))
    is_mirrored = np.all(flipped == np.asarray(image)[:, ::-1], axis=(1, 2, 3))
    assert np.all(is_same ^ is_mirrored)
    # Five standard errors of a fair coin.
    assert abs(is_mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(1000)
