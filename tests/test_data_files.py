import os
import subprocess
import sys
from pathlib import Path

import datasets
import jax.random as jr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import eqmdm
from eqmdm.data import load
from image_files import encode_image, random_images, write_images


SHAPE = (28, 28, 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def data_dir(tmp_path):
    return write_dataset(tmp_path / "data")


def write_dataset(folder, seed=0):
    train, test = random_images(seed, 30, SHAPE), random_images(1, 5, SHAPE)
    write_images(folder / "train-00000-of-00002.parquet", train[:12], "image")
    write_images(folder / "train-00001-of-00002.parquet", train[12:], "image")
    write_images(folder / "test-00000-of-00001.parquet", test, "image")
    return folder


def test_images_in_files_are_those_in_memory(data_dir):
    inside = load("mnist", data_dir=data_dir)
    outside = load("mnist", data_dir=data_dir, in_memory=False)
    assert isinstance(outside.train, eqmdm.data.ImageFiles)
    assert outside.train.shape == inside.train.shape == (25, *SHAPE)
    assert outside.shape == inside.shape
    # Across both files, out of order and repeated.
    for indices in (slice(None), slice(3, 14), np.array([20, 3, 3, 11, 12])):
        images = outside.train[indices]
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, inside.train[indices])
    np.testing.assert_array_equal(outside.validation, inside.validation)
    np.testing.assert_array_equal(outside.test, inside.test)


def test_streams_of_both_are_the_same(data_dir):
    network = eqmdm.nn.MLP((2,), 1, width=4, depth=1, key=jr.key(0))
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    state = eqmdm.TrainState.create(model, eqmdm.make_optimiser(), key=jr.key(1))
    objective = eqmdm.Objective(levels=eqmdm.GreyLevels(256))
    streams = [
        eqmdm.BatchStream(
            state,
            load("mnist", data_dir=data_dir, in_memory=in_memory).train,
            objective,
            batch_size=7,
            n_threads=4,
        )
        for in_memory in (True, False)
    ]
    for _ in range(8):
        inside, outside = (next(stream).examples for stream in streams)
        np.testing.assert_array_equal(outside, inside)
    for stream in streams:
        stream.close()


def test_fingerprint_tells_files_apart(data_dir, tmp_path):
    fingerprint = lambda folder: (
        load("mnist", data_dir=folder, in_memory=False).fingerprint
    )
    other = write_dataset(tmp_path / "other", seed=2)
    assert fingerprint(data_dir) == fingerprint(data_dir) != fingerprint(other)


def test_rows_that_are_taken_have_a_fingerprint_of_their_own(data_dir):
    train = load("mnist", data_dir=data_dir, in_memory=False).train
    taken = train.take(np.array([4, 2]))
    assert taken.fingerprint != train.fingerprint
    np.testing.assert_array_equal(taken[np.array([1])], train[np.array([2])])


def test_image_that_cannot_be_decoded_is_named_when_it_is_asked_for(tmp_path):
    images = [encode_image(image) for image in random_images(0, 10, SHAPE)]
    write_images(tmp_path / "train-0.parquet", images, "image")
    write_images(tmp_path / "train-1.parquet", [*images[:3], b"no", *images], "image")
    write_images(tmp_path / "test-0.parquet", images[:2], "image")
    # A fixed rule puts the thirteenth into the validation split or the other.
    with pytest.raises(ValueError, match=r"Row 3 of `.*train-1.parquet` must be an im"):
        dataset = load("mnist", data_dir=tmp_path, in_memory=False)
        dataset.train[:]


def test_cache_that_cannot_be_written_to_is_named(data_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "in")
    with pytest.raises(OSError, match="could not be copied to .*HF_DATASETS_CACHE"):
        load("mnist", data_dir=data_dir, in_memory=False)


@pytest.mark.slow
def test_training_on_more_images_than_memory_holds(tmp_path):
    # Noise does not compress. A few images are repeated, and written out each time,
    # since encoding and deduplication are not under test.
    images = [encode_image(image) for image in random_images(0, 100, (32, 32, 3))]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": image, "path": None} for image in images], struct)
    table = pa.table({"image": rows})
    written = {"compression": "none", "use_dictionary": False}
    # Several files, since `datasets` copies one at a time, and the Hub has many.
    for index in range(12):
        path = tmp_path / f"train-{index}.parquet"
        with pq.ParquetWriter(path, table.schema, **written) as file:
            for _ in range(50):
                file.write_table(table)
    (tmp_path / "few").mkdir()
    for name in ("validation-0", "few/train-0", "few/validation-0"):
        pq.write_table(table[:20], tmp_path / f"{name}.parquet")
    # Optimised, unlike the other tests, since there are a thousand steps.
    environment = {"JAX_PLATFORMS": "cpu", "HF_HOME": str(tmp_path / "cache")}
    # Arrow's own allocator reserves a gigabyte at once, which could hold the images.
    environment |= {"XLA_FLAGS": "", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    process = subprocess.run(
        [sys.executable, Path(__file__).parent / "on_little_memory.py", tmp_path],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split("\n")[:4] == ["too large", "True", "True", "True"]
