"""Tests of the data set that benchmarks/imagenet32.py makes."""

import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eqmdm.data import load
from image_files import random_images


N_SOURCES, N_TRAIN, N_HELD_OUT = 10, 30, 7


@pytest.fixture(scope="module")
def crops():
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, benchmarks)
    import _crops

    yield _crops
    sys.path.remove(benchmarks)


@pytest.fixture(scope="module")
def source(crops):
    # Noise, so that hardly any two squares are alike.
    images = random_images(0, N_SOURCES, (32, 32, 3))
    return crops.Source(images, np.arange(N_SOURCES))


@pytest.fixture(scope="module")
def folder(crops, source, tmp_path_factory):
    return write(crops, source, tmp_path_factory.mktemp("crops"))


def write(crops, source, folder, seed=0, n_written=(3, 1)):
    counts = {"train": (N_TRAIN, 3), "validation": (N_HELD_OUT, 1)}
    for (split, (n, n_shards)), expected in zip(counts.items(), n_written, strict=True):
        written = crops.write(folder, split, source, n=n, n_shards=n_shards, seed=seed)
        assert written == expected
    return folder


def rows_of(folder, split="train"):
    files = sorted(folder.glob(f"{split}-*"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def pixels_of(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def bilinear(square):
    """A square at 32x32, each pixel interpolated between the centres of its four
    neighbours; beyond the outermost centres, constant."""
    n = len(square)
    places = np.clip((np.arange(32) + 0.5) * n / 32 - 0.5, 0, n - 1)
    below = np.minimum(places.astype(int), n - 2)
    part = places - below
    weights = np.zeros((32, n))
    weights[np.arange(32), below] = 1 - part
    weights[np.arange(32), below + 1] = part
    return np.einsum("ip,jq,pqc->ijc", weights, weights, square.astype(float))


def test_crops_load_as_imagenet32(folder, datasets_cache):
    for in_memory in (True, False):
        dataset = load("imagenet32", data_dir=folder, in_memory=in_memory)
        together = np.concatenate([dataset.train[:], dataset.validation])
        rows = rows_of(folder)
        assert sorted(x.tobytes() for x in together) == sorted(
            pixels_of(row).tobytes() for row in rows
        )
        held_out = [pixels_of(row) for row in rows_of(folder, "validation")]
        np.testing.assert_array_equal(dataset.test, held_out)
        labels = np.concatenate([dataset.labels.train, dataset.labels.validation])
        assert sorted(labels) == sorted(row["label"] for row in rows)


def test_images_are_the_crops_that_they_are_named_after(folder, crops, source):
    flips = set()
    for row in rows_of(folder) + rows_of(folder, "validation"):
        crop = crops.Crop.named(row["image"]["path"])
        assert 16 <= crop.side <= 32
        assert min(crop.left, crop.top) >= 0
        assert max(crop.left, crop.top) + crop.side <= 32
        # The source's class, of ten, has a hundred of the thousand.
        assert row["label"] // 100 == source.labels[crop.image]
        square = source.images[crop.image][
            crop.top : crop.top + crop.side, crop.left : crop.left + crop.side
        ]
        expected = bilinear(square)[:, :: -1 if crop.flip else 1]
        # Pillow rounds after each of two passes, half a level at most.
        difference = np.abs(pixels_of(row) - expected)
        assert difference.max() <= 1 + 1e-2
        flips.add(crop.flip)
    assert flips == {False, True}


def test_crops_of_shards_and_splits_are_other_ones(folder):
    names = [
        {row["image"]["path"] for row in pq.read_table(file).to_pylist()}
        for file in folder.iterdir()
    ]
    assert len(names) == 4
    # A whole image, mirrored or not, may be in two.
    assert all(len(one & other) <= 2 for one, other in itertools.combinations(names, 2))


def test_shards_are_made_again_to_the_bit(folder, crops, source, tmp_path):
    again = write(crops, source, tmp_path / "again")
    contents = lambda place: {f.name: f.read_bytes() for f in place.iterdir()}
    assert contents(again) == contents(folder)
    # Those that are complete are kept.
    (again / "train-00001-of-00003.parquet").unlink()
    write(crops, source, again, n_written=(1, 0))
    assert contents(again) == contents(folder)
    other = write(crops, source, again, seed=1)
    assert rows_of(other) != rows_of(folder)
    changed = source._replace(images=source.images[::-1])
    write(crops, changed, again, seed=1)
