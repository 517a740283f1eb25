import functools
import os
import socket
import time
import tracemalloc
from fnmatch import fnmatch

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from eqmdm.data import NAMES, load
from image_files import encode_image, random_images, write_images


# The files on the Hub: column, shape, held-out split, and name of a training file.
SCHEMAS = {
    "mnist": ("image", (28, 28, 1), "test", "mnist/train-00000-of-00001.parquet"),
    "fashion_mnist": (
        "image",
        (28, 28, 1),
        "test",
        "fashion_mnist/train-00000-of-00001.parquet",
    ),
    "cifar10": ("img", (32, 32, 3), "test", "plain_text/train-00000-of-00001.parquet"),
    "imagenet32": (
        "image",
        (32, 32, 3),
        "validation",
        "data/train-00002-of-00003.parquet",
    ),
}


def _write_dataset(folder, name, n_train=30, n_test=5):
    column, shape, held_out, _ = SCHEMAS[name]
    train = random_images(0, n_train, shape)
    test = random_images(1, n_test, shape)
    write_images(folder / "train-00000-of-00002.parquet", train[:12], column)
    write_images(folder / "train-00001-of-00002.parquet", train[12:], column)
    write_images(folder / f"{held_out}-00000-of-00001.parquet", test, column)
    return train, test


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def _by_content(images):
    return sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("name", SCHEMAS)
def test_local_files_give_their_images(name, tmp_path, no_network):
    train, test = _write_dataset(tmp_path, name)
    dataset = load(name, data_dir=tmp_path)
    assert np.array_equal(dataset.test, test)
    together = np.concatenate([dataset.train, dataset.validation])
    assert _by_content(together) == _by_content(train)
    # A sixth of MNIST, a tenth of CIFAR-10, and one image where a hundredth is less.
    n_validation = {"cifar10": 3, "imagenet32": 1}.get(name, 5)
    assert len(dataset.validation) == n_validation
    assert dataset.train.dtype == np.uint8
    assert dataset.shape == SCHEMAS[name][1]
    assert dataset.n_levels == 256
    assert dataset.flip == (name in ("cifar10", "imagenet32"))
    assert dataset.log_density is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_folder_may_be_a_parent_or_a_clone_of_the_hub(name, tmp_path, no_network):
    _, test = _write_dataset(tmp_path / "own" / name, name)
    hub_folder, _ = SCHEMAS[name][3].split("/")
    _write_dataset(tmp_path / "clone" / hub_folder, name)
    for root in ("own", "clone"):
        dataset = load(name, data_dir=str(tmp_path / root))
        assert np.array_equal(dataset.test, test)


def _class_of(image):
    """A class that is a function of the image."""
    return int(image.astype(np.int64).sum() % 7)


def test_labels_are_those_of_their_images(tmp_path):
    train, test = (random_images(seed, 30, (28, 28, 1)) for seed in (0, 1))
    files = {"train-0": train[:12], "train-1": train[12:], "test-0": test}
    for name, images in files.items():
        labels = [_class_of(image) for image in images]
        write_images(tmp_path / f"{name}.parquet", images, "image", labels=labels)
    dataset = load("mnist", data_dir=tmp_path)
    assert dataset.labels is not None
    splits = (dataset.train, dataset.validation, dataset.test)
    for images, labels in zip(splits, dataset.labels, strict=True):
        assert labels.tolist() == [_class_of(image) for image in images]


def test_labels_of_the_digits_are_those_of_their_images():
    from sklearn.datasets import load_digits

    rows, classes = load_digits(return_X_y=True)
    class_of = dict(zip([row.tobytes() for row in rows], classes, strict=True))
    dataset = load("digits")
    assert dataset.labels is not None
    splits = (dataset.train, dataset.validation, dataset.test)
    for images, labels in zip(splits, dataset.labels, strict=True):
        rows = images.reshape(len(images), 64).astype(np.float64)
        assert labels.tolist() == [class_of[row.tobytes()] for row in rows]


@pytest.mark.parametrize("labels", [[-1] * 4, [None] * 4, "absent"], ids=str)
def test_images_without_classes_have_no_labels(labels, tmp_path):
    images = random_images(0, 4, (28, 28, 1))
    write_images(tmp_path / "train-0.parquet", images, "image", labels=[1, 2, 3, 4])
    labelled = load("mnist", data_dir=_with_test_split(tmp_path, images, [0] * 4))
    assert labelled.labels is not None
    dataset = load("mnist", data_dir=_with_test_split(tmp_path, images, labels))
    assert dataset.labels is None
    assert dataset.fingerprint == labelled.fingerprint


def _with_test_split(folder, images, labels):
    file = folder / "test-0.parquet"
    if labels == "absent":
        write_images(file, images, "image")
        pq.write_table(pq.read_table(file).drop_columns(["label"]), file)
    else:
        write_images(file, images, "image", labels=labels)
    return folder


def test_webp_is_read_too(tmp_path):
    _, shape, _, _ = SCHEMAS["cifar10"]
    images = random_images(0, 4, shape)
    for split in ("train", "test"):
        write_images(tmp_path / f"{split}-0.parquet", images, "img", format="WEBP")
    assert np.array_equal(load("cifar10", data_dir=tmp_path).test, images)


def test_folder_name_may_look_like_a_pattern(tmp_path):
    folder = tmp_path / "a[b]*c"
    _, test = _write_dataset(folder, "mnist")
    assert np.array_equal(load("mnist", data_dir=folder).test, test)


def test_imagenet32_without_validation_files_takes_test(tmp_path):
    _write_dataset(tmp_path, "imagenet32")
    file = next(tmp_path.glob("validation-*"))
    file.rename(tmp_path / "test-00000-of-00001.parquet")
    assert len(load("imagenet32", data_dir=tmp_path).test) == 5


def test_validation_split_is_fixed_and_leaves_test_alone(tmp_path):
    _write_dataset(tmp_path, "mnist")
    first = load("mnist", data_dir=tmp_path)
    again = load("mnist", data_dir=tmp_path)
    assert first.fingerprint == again.fingerprint
    other = random_images(2, 5, (28, 28, 1))
    write_images(tmp_path / "test-00000-of-00001.parquet", other, "image")
    changed = load("mnist", data_dir=tmp_path)
    assert np.array_equal(changed.validation, first.validation)
    assert changed.fingerprint != first.fingerprint


def test_examples_are_read_only(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        load("digits").train[0] = 0
    _write_dataset(tmp_path, "mnist")
    dataset = load("mnist", data_dir=tmp_path)
    for array in (dataset.train, dataset.train.base, dataset.validation, dataset.test):
        assert not array.flags.writeable


def test_images_are_in_memory_once(tmp_path):
    _, shape, _, _ = SCHEMAS["imagenet32"]
    images = random_images(0, 100, shape)
    encoded = [encode_image(image) for image in images]
    # Repeated, since encoding takes longest; more than are moved at once.
    write_images(tmp_path / "train-0.parquet", encoded * 45, "image")
    write_images(tmp_path / "validation-0.parquet", encoded[:2], "image")
    load("imagenet32", data_dir=_with_few(tmp_path / "few", encoded))
    tracemalloc.start()
    try:
        dataset = load("imagenet32", data_dir=tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    n_bytes = dataset.train.nbytes + dataset.validation.nbytes
    assert n_bytes == 45 * images.nbytes
    # Beside them, a thousand encoded ones at a time; a copy would double it.
    assert peak < 1.6 * n_bytes
    together = [*dataset.train, *dataset.validation]
    assert _by_content(together) == sorted(_by_content(images) * 45)


def _with_few(folder, encoded):
    for split in ("train", "validation"):
        write_images(folder / f"{split}-0.parquet", encoded[:5], "image")
    return folder


def test_digits_are_the_bundled_ones(no_network):
    from sklearn.datasets import load_digits

    dataset = load("digits")
    sizes = [len(x) for x in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [1437, 180, 180]
    together = np.concatenate([dataset.train, dataset.validation, dataset.test])
    assert _by_content(together) == _by_content(
        load_digits().images.astype(np.uint8)[..., None]
    )
    assert dataset.shape == (8, 8, 1)
    assert dataset.n_levels == 17 and together.max() == 16
    assert not dataset.flip


def test_unknown_name_lists_the_choices_and_the_nearest():
    with pytest.raises(ValueError, match="must be one of digits, .*'cifar10'?"):
        load("cifar-10")
    with pytest.raises(ValueError, match="checkerboard, or a folder.*got 'svhn'.*er.$"):
        load("svhn")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SCHEMAS])
def test_data_dir_is_rejected_where_there_are_no_files(name, tmp_path):
    with pytest.raises(ValueError, match=f"`data_dir` must not be given for {name}"):
        load(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", SCHEMAS)
def test_missing_folder_or_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="existing folder; got '.*nowhere'"):
        load(name, data_dir=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no train-.*--data-dir"):
        load(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", SCHEMAS)
def test_missing_test_split_is_named(name, tmp_path):
    _write_dataset(tmp_path, name)
    held_out = SCHEMAS[name][2]
    next(tmp_path.glob(f"{held_out}-*")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {held_out}-\*.parquet"):
        load(name, data_dir=tmp_path)


def test_missing_shard_is_named(tmp_path):
    _write_dataset(tmp_path, "mnist")
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="has 1 of 2, without number 0"):
        load("mnist", data_dir=tmp_path)


def test_truncated_file_is_named(tmp_path):
    _write_dataset(tmp_path, "mnist")
    file = tmp_path / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="train-00001-of-00002.* cannot be read"):
        load("mnist", data_dir=tmp_path)


def test_overwritten_data_are_noticed_and_the_file_is_named(tmp_path):
    _write_dataset(tmp_path, "mnist")
    file = tmp_path / "train-00001-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="train-00001-of-00002.*be (read|decoded)"):
        load("mnist", data_dir=tmp_path)


def test_empty_file_is_named(tmp_path):
    _write_dataset(tmp_path, "mnist")
    write_images(tmp_path / "test-00000-of-00001.parquet", [], "image")
    with pytest.raises(ValueError, match="test-00000.* at least 2 images; it has 0"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name, other", [("mnist", "cifar10"), ("cifar10", "mnist")])
def test_other_column_names_are_reported(name, other, tmp_path):
    _write_dataset(tmp_path, other)
    has, wants = SCHEMAS[other][0], SCHEMAS[name][0]
    message = f"train-00000.*must have the column `{wants}`.*it has `{has}`, `label`"
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=tmp_path)


def test_column_of_another_type_is_reported(tmp_path):
    _write_dataset(tmp_path, "mnist")
    file = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": [[0, 1], [2, 3]]}), file)
    with pytest.raises(ValueError, match="Column `image` of `.*test-0.* is list<"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "bad, message",
    [
        pytest.param(np.zeros((27, 28, 1), np.uint8), "28x28 .*is 28x27, L", id="size"),
        pytest.param(np.zeros((28, 28, 3), np.uint8), "mode L; .*, RGB", id="mode"),
        pytest.param(b"no image", "cannot be decoded", id="no image"),
        pytest.param(
            encode_image(random_images(0, 1, (28, 28, 1))[0])[:400],
            "cannot be decoded",
            id="truncated",
        ),
        pytest.param(None, "it is empty", id="no bytes"),
    ],
)
def test_bad_image_is_reported_with_its_row(bad, message, tmp_path):
    _write_dataset(tmp_path, "mnist")
    images = [*random_images(0, 3, (28, 28, 1)), bad]
    write_images(tmp_path / "test-00000-of-00001.parquet", images, "image")
    with pytest.raises(ValueError, match=f"Row 3 of `.*test-00000.*{message}"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", SCHEMAS)
def test_unreachable_hub_is_reported_without_waiting(name, tmp_path, monkeypatch):
    # Address 0 is this machine, where nothing answers at this port, and the cache is
    # empty. The Hub's client would sleep between two attempts.
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    unreachable = functools.partial(
        huggingface_hub.snapshot_download,
        endpoint="http://0:9",
        cache_dir=tmp_path,
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConnectionError, match=f"{name} could not be.*--data-dir"):
        load(name)
    assert not slept


def test_what_was_fetched_before_is_used_without_the_hub(tmp_path, monkeypatch):
    _, test = _write_dataset(tmp_path / "plain_text", "cifar10")
    asked = {}

    def cached(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert np.array_equal(load("cifar10").test, test)
    assert asked["repository"] == "uoft-cs/cifar10"
    assert asked["repo_type"] == "dataset"


@pytest.mark.parametrize("name", SCHEMAS)
def test_hub_is_asked_for_both_splits(name, monkeypatch):
    patterns = []

    def refuse(repository, *, repo_type, allow_patterns):
        patterns.extend(allow_patterns)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConnectionError, match="offline"):
        load(name)
    _, _, held_out, train_file = SCHEMAS[name]
    files = [train_file, train_file.replace("train-", f"{held_out}-")]
    assert all(any(fnmatch(file, p) for p in patterns) for file in files)
    assert not any(fnmatch("README.md", p) for p in patterns)


@pytest.mark.slow
@pytest.mark.skipif(
    "EQMDM_DATA_DIR" not in os.environ, reason="EQMDM_DATA_DIR names no data folder"
)
@pytest.mark.parametrize(
    "name, mean",
    [
        # As in the authors' pages and in the normalisation of many libraries.
        ("mnist", [0.1307]),
        ("fashion_mnist", [0.2860]),
        ("cifar10", [0.4914, 0.4822, 0.4465]),
    ],
)
def test_real_images_have_the_published_channel_means(name, mean, no_network):
    dataset = load(name, data_dir=os.environ["EQMDM_DATA_DIR"])
    images = np.concatenate([dataset.train, dataset.validation])
    assert len(images) == (50_000 if name == "cifar10" else 60_000)
    # Published to four digits.
    assert np.allclose(images.mean(axis=(0, 1, 2)) / 255, mean, rtol=0, atol=6e-5)
