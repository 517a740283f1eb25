"""Tests of splits, labels, arrays and functions of the user's own data."""

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from eqmdm.data import Dataset, Labels, load
from image_files import write_images
from own_files import (
    SPLITS,
    colour,
    grey,
    rows_of,
    two_columns,
    write_csv,
    write_folder,
)


pytestmark = pytest.mark.usefixtures("no_network", "datasets_cache")


@pytest.mark.parametrize("given", [(), ("validation",), ("test",), SPLITS[1:]], ids=str)
@pytest.mark.parametrize("n", [3, 10, 57])
def test_splits_never_overlap_and_hold_every_example(given, n):
    x = np.arange(2.0 * n).reshape(n, 2)
    others = {split: -1.0 - np.arange(8.0).reshape(4, 2) for split in given}
    dataset = Dataset.from_arrays(x, **others)
    from_train = [
        rows
        for split, rows in zip(SPLITS, rows_of(dataset), strict=True)
        if split not in given
    ]
    together = sum(from_train, [])
    assert len(set(together)) == len(together) == n
    assert set(together) == {row.tobytes() for row in x}
    assert min(map(len, from_train)) >= 1
    for split in given:
        assert np.array_equal(getattr(dataset, split), others[split])
    assert Dataset.from_arrays(x, **others).fingerprint == dataset.fingerprint


def test_fractions_are_those_of_the_examples():
    x = np.arange(200.0)[:, None]
    dataset = Dataset.from_arrays(x, validation_fraction=0.25, test_fraction=0.05)
    assert [len(getattr(dataset, split)) for split in SPLITS] == [140, 50, 10]
    for wrong in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="`test_fraction` must be between 0 and 1"):
            Dataset.from_arrays(x, test_fraction=wrong)
    with pytest.raises(ValueError, match="leave something to train on.*add up to 1.1"):
        Dataset.from_arrays(x, validation_fraction=0.6, test_fraction=0.5)
    with pytest.raises(ValueError, match="`test_fraction` must be left .*4 examples"):
        Dataset.from_arrays(x, test=x[:4], test_fraction=0.5)
    with pytest.raises(ValueError, match="at least 3 examples, one for each.*it has 2"):
        Dataset.from_arrays(x[:2])


def test_splits_of_a_folder_are_kept_and_others_named(tmp_path):
    for split, n in {"train": 12, "test": 4, "extra": 2}.items():
        write_csv(tmp_path / f"{split}.csv", two_columns(n, seed=n))
    dataset = load(tmp_path, standardise=False)
    assert len(dataset.test) == 4 and len(dataset.train) + len(dataset.validation) == 12
    assert "(validation cut from train by a fixed choice)" in dataset.description


@pytest.mark.parametrize("known", [True, False], ids=["known", "own"])
@pytest.mark.parametrize(
    "labels, message",
    [
        ([0.0, 1.0, 2.0, 0.5], "integers or strings; its type is double"),
        ([True, False, True, True], "integers or strings; its type is bool"),
        ([0, 1, None, 2], "row 2 of .* must hold a label; it is null"),
        (["a", None, "b", "c"], "row 1 of .* must hold a label; it is null"),
        ([0, 1, -1, 2], "row 2 of .* must hold labels of at least 0; got -1"),
    ],
    ids=["floats", "booleans", "a null", "a null string", "negative"],
)
def test_labels_that_are_no_classes_raise_by_name(labels, message, known, tmp_path):
    images = grey(4, (28, 28))[..., None]
    for split in ("train", "test"):
        path = tmp_path / f"{split}-0.parquet"
        write_images(path, images, "image")
        table = pq.read_table(path).drop_columns(["label"])
        pq.write_table(table.append_column("label", [labels]), path)
    with pytest.raises(ValueError, match=rf"Column `label` of .*{message}"):
        load("mnist", data_dir=tmp_path) if known else load(tmp_path)
    if not known:
        assert load(tmp_path, label_column="none").labels is None


def test_string_labels_are_encoded_and_keep_their_names(tmp_path):
    images = grey(4, (28, 28))[..., None]
    texts = {
        "train": ["bee", "ant", "bee", "cow"],
        "test": ["dog", "ant", "bee", "ant"],
    }
    for split, labels in texts.items():
        path = tmp_path / f"{split}-0.parquet"
        write_images(path, images, "image")
        table = pq.read_table(path).drop_columns(["label"])
        pq.write_table(table.append_column("label", [labels]), path)
    dataset = load("mnist", data_dir=tmp_path)
    assert dataset.labels.names == ("ant", "bee", "cow", "dog")
    assert dataset.labels.test.tolist() == [3, 0, 1, 0]
    together = np.concatenate([dataset.labels.train, dataset.labels.validation])
    assert sorted(together) == [0, 1, 1, 2]


def test_archive_with_the_names_of_keras_has_its_splits_and_labels(tmp_path):
    images, labels = grey(20), np.arange(20) % 4
    arrays = {"x_train": images[:14], "y_train": labels[:14]}
    arrays |= {"x_test": images[14:], "y_test": labels[14:, None]}
    np.savez(tmp_path / "own.npz", **arrays)
    dataset = load(tmp_path / "own.npz")
    assert dataset.shape == (6, 5, 1) and dataset.n_levels == 256
    assert np.array_equal(dataset.test[..., 0], images[14:])
    assert dataset.labels.test.tolist() == labels[14:].tolist()
    np.savez(tmp_path / "own.npz", a=images, b=images)
    with pytest.raises(ValueError, match="one array beside labels.*it holds a, b"):
        load(tmp_path / "own.npz")


def test_folder_of_arrays_has_splits_by_their_names(tmp_path):
    x = np.random.Generator(np.random.PCG64(0)).normal(size=(20, 3))
    np.save(tmp_path / "train.npy", x[:15])
    np.save(tmp_path / "test.npy", x[15:])
    dataset = load(tmp_path, standardise=False)
    assert np.array_equal(dataset.test, x[15:]) and dataset.shape == (3,)


@pytest.mark.parametrize(
    "array, error, message",
    [
        (np.zeros((0, 3)), ValueError, "`train` must hold one example or more"),
        (np.zeros((1, 3)), ValueError, "at least 3 examples.*it has 1"),
        (np.arange(9), TypeError, "`n_levels` must be given for integers.*int64"),
        (np.asarray([[1.0, np.nan]] * 4), ValueError, "`train` must be finite"),
        (np.asarray([["1", "2"]] * 4), TypeError, "`train` must be an array of real"),
        (
            np.zeros((4, 3, 32, 32), np.uint8),
            ValueError,
            "channels last.*moveaxis",
        ),
    ],
    ids=["empty", "one", "integers", "missing", "text", "channels first"],
)
def test_array_that_cannot_be_used_is_named(array, error, message, tmp_path):
    np.save(tmp_path / "own.npy", array)
    with pytest.raises(error, match=message):
        load(tmp_path / "own.npy")


def test_function_of_a_module_gives_the_data(tmp_path, monkeypatch):
    code = """
import numpy as np
def array():
    return np.arange(20.0).reshape(10, 2)
def named():
    return {"train": array(), "test": array()[:3], "labels": ["a"] * 10}
def wrong():
    return {"x": 1}
"""
    (tmp_path / "own_module_of_data.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    dataset = load("own_module_of_data:array", standardise=False)
    assert dataset.shape == (2,) and dataset.name == "own_module_of_data"
    with pytest.raises(ValueError, match="`labels` must be given for each.*test"):
        load("own_module_of_data:named")
    with pytest.raises(ValueError, match="must return a Dataset.*got x"):
        load("own_module_of_data:wrong")
    errors = {
        "own_module_of_data:arrays": "has no arrays. Did you mean array",
        "absent_module_of_data:array": "cannot be imported .*absent_module_of_data",
        "own_module_of_data:np": "which is module",
    }
    for name, error in errors.items():
        with pytest.raises(ValueError, match=f"`dataset` must be a function.*{error}"):
            load(name)


def test_labels_of_arrays_are_cut_with_their_examples():
    x, classes = grey(30), np.arange(30)
    dataset = Dataset.from_arrays(x, labels=classes)
    number = {image.tobytes(): i for i, image in enumerate(x)}
    for rows, labels in zip(rows_of(dataset), dataset.labels, strict=True):
        assert [number[row] for row in rows] == labels.tolist()
    assert isinstance(dataset.labels, Labels)
    with pytest.raises(ValueError, match="one for each example; there are 29 for.* 30"):
        Dataset.from_arrays(x, labels=classes[1:])
    with pytest.raises(ValueError, match="`labels` must be a tuple of one array"):
        Dataset.from_arrays(x, test=x[:3], labels=(classes,))
    texts = Dataset.from_arrays(x, labels=["b", "a"] * 15).labels
    assert texts.names == ("a", "b")


def test_dataset_says_what_it_is(tmp_path):
    dataset = load(write_folder(tmp_path / "own", colour(12)))
    assert len(dataset.description.splitlines()) == 1
    for part in ("a folder of images", "6x5x3", "256 levels", "10 train", "1 test"):
        assert part in dataset.description
    assert load("digits").description == ""
