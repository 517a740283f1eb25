import json
import os
import socket
import sys

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from eqmdm.data import Dataset, Labels, load
from image_files import write_images
from own_files import colour, grey, png, saved, write_csv, write_folder


SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _rows(dataset):
    """The examples of each split, as keys."""
    return [[x.tobytes() for x in getattr(dataset, split)] for split in SPLITS]


def _columns(n=40, seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    return {"x": 5 + 0.01 * rng.normal(size=n), "y": 1e6 * rng.normal(size=n)}


# --- Splits --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(), ("validation",), ("test",), SPLITS[1:]], ids=str)
@pytest.mark.parametrize("n", [3, 10, 57])
def test_splits_never_overlap_and_hold_every_example(given, n):
    x = np.arange(2.0 * n).reshape(n, 2)
    others = {split: -1.0 - np.arange(8.0).reshape(4, 2) for split in given}
    dataset = Dataset.from_arrays(x, **others)
    from_train = [
        rows
        for split, rows in zip(SPLITS, _rows(dataset), strict=True)
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
        write_csv(tmp_path / f"{split}.csv", _columns(n, seed=n))
    dataset = load(tmp_path, standardise=False)
    assert len(dataset.test) == 4 and len(dataset.train) + len(dataset.validation) == 12
    assert "(validation cut from train by a fixed choice)" in dataset.description


# --- Images --------------------------------------------------------------------------


def test_folder_of_images_has_the_classes_of_its_folders(tmp_path):
    images = colour(30)
    dataset = load(write_folder(tmp_path / "own", images))
    assert dataset.name == "own" and dataset.n_levels == 256
    assert dataset.shape == (6, 5, 3)
    assert dataset.labels.names == ("cat", "dog")
    class_of = {image.tobytes(): i % 2 for i, image in enumerate(images)}
    for rows, labels in zip(_rows(dataset), dataset.labels, strict=True):
        assert [class_of[row] for row in rows] == labels.tolist()
    assert sorted(sum(_rows(dataset), [])) == sorted(class_of)
    assert ", 2 classes in column `label`;" in dataset.description


@pytest.mark.parametrize("in_memory", [True, False])
def test_parquet_images_keep_their_labels_whatever_the_column_is_called(
    in_memory, tmp_path
):
    images = colour(20)
    path = tmp_path / "own.parquet"
    write_images(path, images, "picture", labels=list(range(20)))
    table = pq.read_table(path).rename_columns(["picture", "kind"])
    texts = pa.array([f"class {i % 3}" for i in range(20)])
    pq.write_table(table.set_column(1, "kind", texts), path)
    dataset = load(path, label_column="kind", in_memory=in_memory)
    assert dataset.labels.names == ("class 0", "class 1", "class 2")
    class_of = {image.tobytes(): i % 3 for i, image in enumerate(images)}
    train = [x.tobytes() for x in dataset.train[np.arange(len(dataset.train))]]
    assert [class_of[row] for row in train] == dataset.labels.train.tolist()
    assert load(path, in_memory=in_memory).labels is None
    with pytest.raises(ValueError, match="`label_column` must be a column.*no `class`"):
        load(path, label_column="class", in_memory=in_memory)
    with pytest.raises(ValueError, match="`image_column` must name.*`picture`"):
        load(path, image_column="kind", in_memory=in_memory)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned clockwise by a quarter.
    wide = colour(4, (8, 16), seed=3)
    # Constant blocks, which JPEG hardly changes.
    wide[:] = np.repeat(np.repeat(wide[:, ::8, ::8], 8, 1), 8, 2)
    options = {"format": "JPEG", "exif": exif, "quality": 100, "subsampling": 0}
    content = [saved(Image.fromarray(image), **options) for image in wide]
    folder = write_folder(tmp_path / "folder", content, classes=None)
    upright = {image.tobytes() for image in np.rot90(wide, -1, (1, 2)) // 16}
    dataset = load(folder)
    assert dataset.shape == (16, 8, 3)
    near = lambda x: (
        np.abs(x.astype(int)[:, None] - np.rot90(wide, -1, (1, 2)).astype(int))
        .max((2, 3, 4))
        .min(1)
    )
    # Rounding in YCbCr, of 2 levels at the most in each of its two directions.
    assert len(upright) == 4 and near(dataset.train).max() <= 4
    # The representation in `datasets`.
    own = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", streaming=True
    )
    assert all(np.array(row["image"]).shape == (16, 8, 3) for row in own)
    write_images(tmp_path / "p" / "train-0.parquet", content, "image")
    write_images(tmp_path / "p" / "test-0.parquet", content, "image")
    with pytest.raises(ValueError, match="28x28 .*it is 8x16, RGB"):
        load("mnist", data_dir=tmp_path / "p")
    for in_memory in (True, False):
        found = load(tmp_path / "p" / "train-0.parquet", in_memory=in_memory)
        assert found.shape == (16, 8, 3)
        assert np.array_equal(found.test, dataset.test)


def test_palette_is_grey_or_colour_by_its_content(tmp_path):
    grey_images, colours = grey(4), colour(4)
    palette = [saved(Image.fromarray(x).convert("P")) for x in grey_images]
    dataset = load(write_folder(tmp_path / "grey", palette))
    assert dataset.shape == (6, 5, 1)
    assert set(sum(_rows(dataset), [])) == {x.tobytes() for x in grey_images}
    quantised = [Image.fromarray(x).quantize(64) for x in colours]
    dataset = load(write_folder(tmp_path / "colour", [saved(x) for x in quantised]))
    expected = {np.asarray(x.convert("RGB")).tobytes() for x in quantised}
    assert dataset.shape == (6, 5, 3) and set(sum(_rows(dataset), [])) == expected


def test_grey_images_among_colour_ones_become_colour(tmp_path):
    images = [*colour(3), *grey(3)]
    dataset = load(write_folder(tmp_path / "own", images))
    expected = {
        np.broadcast_to(x.reshape(6, 5, -1), (6, 5, 3)).tobytes() for x in images
    }
    assert set(sum(_rows(dataset), [])) == expected


def test_sixteen_bits_and_one_bit_keep_their_levels(tmp_path):
    deep = grey(6, dtype=np.uint16)
    for name, options in {"png": {}, "tiff": {"format": "TIFF"}}.items():
        content = [saved(Image.fromarray(x), **options) for x in deep]
        dataset = load(write_folder(tmp_path / name, content))
        assert dataset.n_levels == 65_536 and dataset.train.dtype == np.uint16
        assert set(sum(_rows(dataset), [])) == {x.tobytes() for x in deep}
    bits = grey(6) > 127
    dataset = load(write_folder(tmp_path / "bits", bits))
    assert set(np.unique(dataset.train)) == {0, 255}


def test_opaque_alpha_is_dropped(tmp_path):
    opaque = np.concatenate([colour(6), np.full((6, 6, 5, 1), 255, np.uint8)], -1)
    dataset = load(write_folder(tmp_path / "own", opaque))
    assert set(sum(_rows(dataset), [])) == {x[..., :3].tobytes() for x in opaque}
    content = [saved(Image.fromarray(x).convert("LA")) for x in grey(6)]
    assert load(write_folder(tmp_path / "la", content)).shape == (6, 5, 1)


_RGBA = Image.fromarray(np.concatenate([colour(1), grey(1)[..., None]], -1)[0])
_RGB = Image.fromarray(colour(1)[0])
_ANIMATION = {"save_all": True, "append_images": [Image.fromarray(grey(1, seed=9)[0])]}
# Files that lose information or cannot be read, with the message for each.
BAD_IMAGES = {
    "alpha": (saved(_RGBA), "must be opaque.*Paste it on a background"),
    "transparent palette": (saved(_RGB.quantize(4), transparency=0), "must be opaque"),
    "cmyk": (saved(_RGB.convert("CMYK"), "JPEG"), "mode is CMYK.*convert it to RGB"),
    "float": (
        saved(Image.fromarray(np.zeros((6, 5), np.float32)), "TIFF"),
        "pixels are floats",
    ),
    "48 bits": (
        png(5, 6, 16, 2, (b"\0" + bytes(30)) * 6),
        "must have 8 bits in each channel",
    ),
    "32 bits": (
        saved(Image.fromarray(np.full((6, 5), 70_000, np.int32)), "TIFF"),
        "at most 16 bits.*70000 to 70000",
    ),
    "frames": (saved(Image.fromarray(grey(1)[0]), "GIF", **_ANIMATION), "it has 2 fra"),
    "bomb": (png(60_000, 60_000, 8, 0, b""), "must have at most 89,478,485 pixels"),
    "smaller bomb": (png(10_000, 10_000, 8, 0, b""), "must have at most 89,478,485"),
    "no image": (b"no image", "cannot be decoded"),
    "empty": (b"", "it has 0 bytes"),
    "truncated": (saved(_RGB)[:-40], "cannot be decoded"),
}


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content, message", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image_is_named_with_what_to_do(content, message, tmp_path):
    images = [*(saved(Image.fromarray(x)) for x in colour(5)), content]
    folder = write_folder(tmp_path / "own", images)
    with pytest.raises(ValueError, match=rf"`.*own/dog/005.png` .*{message}"):
        load(folder)
    path = tmp_path / "own.parquet"
    write_images(path, images, "image")
    with pytest.raises(ValueError, match=rf"Row 5 of `.*own.parquet` .*{message}"):
        load(path)
    with pytest.raises(ValueError, match=rf"Row 5 of `.*own.parquet` .*{message}"):
        load(path, in_memory=False).train[:]


def test_mixed_sizes_are_counted_or_resized(tmp_path):
    images = [*colour(5), *colour(2, (6, 7))]
    folder = write_folder(tmp_path / "own", images, classes=None)
    counts = r"5 of 5x6, 2 of 7x6, the first of 7x6 in `.*own/005.png`.*`image_size`"
    with pytest.raises(ValueError, match=counts):
        load(folder)
    assert load(folder, image_size=4).shape == (4, 4, 3)
    dataset = load(folder, image_size=(6, 5))
    assert dataset.shape == (6, 5, 3)
    # Images of this size are unchanged, and the others lose columns at both sides.
    kept = {x.tobytes() for x in images[:5]} | {
        np.ascontiguousarray(x[:, 1:-1]).tobytes() for x in images[5:]
    }
    assert set(sum(_rows(dataset), [])) == kept
    mixed = [*images[:5], grey(1, dtype=np.uint16)[0]]
    with pytest.raises(ValueError, match="one depth; got 5 of 8 bits, 1 of 16 bits"):
        load(write_folder(tmp_path / "deep", mixed))
    with pytest.raises(ValueError, match="`image_size` must be a side"):
        load(folder, image_size=0)


# --- Labels --------------------------------------------------------------------------


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


# --- Tables --------------------------------------------------------------------------


def _write_table(path, columns):
    if path.suffix == ".csv":
        return write_csv(path, columns)
    if path.suffix == ".jsonl":
        columns = {name: np.asarray(x, object).tolist() for name, x in columns.items()}
        rows = zip(*columns.values(), strict=True)
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return path
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    else:
        datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path


TABLES = ("own.csv", "own.jsonl", "own.parquet", "own.arrow", "saved")


@pytest.mark.parametrize("name", TABLES)
def test_table_is_standardised_by_its_training_split(name, tmp_path):
    columns = _columns()
    path = _write_table(tmp_path / name, columns)
    dataset = load(path)
    plain = load(path, standardise=False)
    expected = {
        np.asarray(row).tobytes() for row in zip(*columns.values(), strict=True)
    }
    assert set(sum(_rows(plain), [])) == expected
    scale = dataset.standardisation
    assert scale.columns == ("x", "y")
    # Computed in float64, from the training split alone.
    np.testing.assert_allclose(scale.mean, plain.train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale.std, plain.train.std(0), rtol=1e-10)
    assert dataset.train.dtype == np.float32
    for split in SPLITS:
        # Half a unit in the last place of float32, in units of the standard deviation.
        error = scale.inverse(getattr(dataset, split)) - getattr(plain, split)
        assert np.all(np.abs(error) <= 4 * 2.0**-24 * scale.std)
    assert dataset.fingerprint != plain.fingerprint
    chosen = load(path, columns=["y"])
    assert chosen.shape == (1,) and "columns y," in chosen.description


def test_same_values_in_other_units_have_another_fingerprint(tmp_path):
    columns = _columns()
    first = load(write_csv(tmp_path / "a.csv", columns))
    halved = {name: values / 2 for name, values in columns.items()}
    second = load(write_csv(tmp_path / "b.csv", halved))
    assert np.array_equal(first.train, second.train)
    assert first.fingerprint != second.fingerprint


def test_integers_are_dequantised_within_their_unit(tmp_path):
    columns = _columns() | {"k": np.arange(40) - 7}
    path = write_csv(tmp_path / "own.csv", columns)
    plain = load(path, standardise=False)
    together = np.concatenate([getattr(plain, split) for split in SPLITS])
    offsets = together[:, 2] - np.floor(together[:, 2])
    assert sorted(np.floor(together[:, 2])) == sorted(columns["k"])
    assert 0 <= offsets.min() < 0.2 < 0.8 < offsets.max() < 1
    dataset = load(path)
    values = dataset.standardisation.inverse(dataset.train)[:, 2]
    assert set(values) <= set(columns["k"])
    assert "(k of integers, dequantised)" in dataset.description
    assert load(path).fingerprint == dataset.fingerprint


def test_classes_of_a_table_are_no_coordinates(tmp_path):
    columns = _columns(9) | {"class": [*"abc"] * 3}
    dataset = load(write_csv(tmp_path / "own.csv", columns))
    assert dataset.shape == (2,) and dataset.labels.names == ("a", "b", "c")
    assert load(tmp_path / "own.csv", columns=["y"]).labels.names == ("a", "b", "c")


def test_column_of_lists_is_an_example_of_several_axes(tmp_path):
    series = np.random.Generator(np.random.PCG64(0)).normal(3, 2, (20, 7, 2))
    path = _write_table(tmp_path / "own.jsonl", {"series": series.tolist()})
    dataset = load(path)
    assert dataset.shape == (7, 2) and len(set(dataset.standardisation.mean.flat)) == 1
    # The mean of 160 or more values of standard deviation 2.
    assert abs(dataset.standardisation.mean.flat[0] - 3) < 5 * 2 / 160**0.5
    ragged = [*series.tolist()[:5], series.tolist()[0][:6]]
    _write_table(path, {"series": np.array([*ragged, None], object)[:-1]})
    with pytest.raises(
        ValueError, match=r"Column `series` of row 5 .*first, \(7, 2\); got \(6, 2\)"
    ):
        load(path)


def test_arrays_in_columns_are_lists_of_one_shape(tmp_path):
    x = np.random.Generator(np.random.PCG64(0)).normal(size=(12, 4, 3)).astype("f4")
    kinds = {
        "array": (x, datasets.Array2D((4, 3), "float32")),
        "fixed": (x[:, :, 0], datasets.List(datasets.Value("float32"), length=4)),
    }
    for name, (values, feature) in kinds.items():
        features = datasets.Features({"x": feature})
        path = tmp_path / f"{name}.parquet"
        rows = datasets.Dataset.from_dict({"x": values.tolist()}, features=features)
        pq.write_table(rows.data.table, path)
        dataset = load(path, standardise=False)
        assert dataset.shape == values.shape[1:]
        expected = {row.astype(np.float64).tobytes() for row in values}
        assert set(sum(_rows(dataset), [])) == expected


def test_column_without_a_name_is_not_taken_for_a_coordinate(tmp_path):
    path = write_csv(tmp_path / "own.csv", {"": np.arange(40)} | _columns())
    with pytest.raises(ValueError, match="number 0 of .*has none.*index=False"):
        load(path)
    assert load(path, columns=["x", "y"]).shape == (2,)


def test_empty_name_is_not_the_working_directory():
    with pytest.raises(ValueError, match="must be one of digits.*got ''"):
        load("")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "bad, message",
    [
        (None, "number; (the value is missing|it holds nan)"),
        (np.inf, "finite number; it holds inf"),
        ("two", "number; it holds '\"?two\"?'"),
    ],
    ids=["missing", "infinite", "text"],
)
def test_value_that_is_no_number_is_named(name, bad, message, tmp_path):
    columns = {key: value.tolist() for key, value in _columns(8).items()}
    if bad == "two" and name not in ("own.csv", "own.jsonl"):
        columns["y"] = [*"aaaaa", bad, *"aa"]
        message, row = "number; it holds 'a'", 0
    else:
        columns["y"][5], row = bad, 5
    if name == "own.csv":
        columns["y"] = ["" if value is None else value for value in columns["y"]]
    path = _write_table(tmp_path / name, columns)
    with pytest.raises(
        ValueError,
        match=rf"Column `y` of row {row} of `.*{name}` must hold a {message}",
    ):
        load(path)


def test_constant_column_is_named(tmp_path):
    columns = _columns() | {"c": np.full(40, 0.1)}
    path = write_csv(tmp_path / "own.csv", columns)
    with pytest.raises(ValueError, match="column `c` of the training.* must vary.*0.1"):
        load(path)
    assert load(path, columns=["x"]).shape == (1,)


def test_columns_that_are_not_there_are_named(tmp_path):
    path = write_csv(tmp_path / "own.csv", _columns())
    with pytest.raises(ValueError, match="`columns` must.*no `z`. It has `x`, `y`"):
        load(path, columns=["x", "z"])
    with pytest.raises(ValueError, match="`image_column` must name.*no images in `x`"):
        load(path, image_column="x")
    with pytest.raises(ValueError, match="`image_size` must be left out for a table"):
        load(path, image_size=4)
    with pytest.raises(ValueError, match="`in_memory` must be true"):
        load(path, in_memory=False)


# --- Arrays and functions ------------------------------------------------------------


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


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("content", [b"", b"\x00broken\xff", None], ids=str)
def test_broken_file_is_named_in_one_line(content, suffix, tmp_path):
    path = tmp_path / f"own.{suffix}"
    if content is None:
        # The second half is cut off.
        if suffix.startswith("np"):
            (np.save if suffix == "npy" else np.savez)(path, np.zeros((9, 3)))
        elif suffix == "csv":
            pytest.skip("half of a CSV file may well be one")
        else:
            _write_table(path, {"x": [float(i) + 0.123 for i in range(99)]})
        content = path.read_bytes()[: path.stat().st_size // 2 + 3]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"own.{suffix}` must ") as raised:
        load(path)
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.args[0].rstrip().endswith(".")


def test_errors_of_a_broken_file_are_not_logged_beside(tmp_path, capfd):
    path = tmp_path / "own.csv"
    path.write_text("x,y\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match="cannot be read beyond row 0.*line 3"):
        load(path)
    assert capfd.readouterr() == ("", "")


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
    for rows, labels in zip(_rows(dataset), dataset.labels, strict=True):
        assert [number[row] for row in rows] == labels.tolist()
    assert isinstance(dataset.labels, Labels)
    with pytest.raises(ValueError, match="one for each example; there are 29 for.* 30"):
        Dataset.from_arrays(x, labels=classes[1:])
    with pytest.raises(ValueError, match="`labels` must be a tuple of one array"):
        Dataset.from_arrays(x, test=x[:3], labels=(classes,))
    texts = Dataset.from_arrays(x, labels=["b", "a"] * 15).labels
    assert texts.names == ("a", "b")


# --- Places --------------------------------------------------------------------------


def test_missing_file_says_what_can_be_used(tmp_path):
    for name in ("own.npy", str(tmp_path / "own"), "a/b/c"):
        with pytest.raises(
            FileNotFoundError, match=f"nothing at '{name}'.*folder of images.*npy"
        ):
            load(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="in the folder `.*empty` .*none"):
        load(tmp_path / "empty")
    (tmp_path / "own.txt").write_text("text")
    with pytest.raises(ValueError, match="is a file that ends in '.txt'"):
        load(tmp_path / "own.txt")
    folder = write_folder(tmp_path / "images", grey(1), classes=None)
    with pytest.raises(ValueError, match="is a single image. Give the folder"):
        load(folder / "000.png")


def test_hub_name_that_cannot_be_fetched_is_named_in_one_line(tmp_path, monkeypatch):
    asked = []

    def refuse(repository, *, repo_type, allow_patterns):
        asked.append((repository, repo_type))
        raise LocalEntryNotFoundError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConnectionError, match=r"nothing at 'org/name'.*\(offline\).$"):
        load("org/name")
    assert asked == [("org/name", "dataset")]

    def fetched(repository, *, repo_type, allow_patterns):
        for configuration in ("one", "two"):
            for split in ("train", "test"):
                path = tmp_path / configuration / f"{split}.csv"
                write_csv(path, {configuration: np.arange(9.0) ** 2})
        named = "".join(
            f"  - config_name: {name}\n    data_files:\n"
            + "".join(
                f"      - split: {split}\n        path: {name}/{split}.csv\n"
                for split in ("train", "test")
            )
            for name in ("one", "two")
        )
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{named}---\n")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    dataset = load("org/name", configuration="two")
    assert dataset.standardisation.columns == ("two",) and dataset.name == "name"
    with pytest.raises(FileNotFoundError, match="one.*two"):
        load("org/name")


def test_data_that_have_moved_are_found_by_data_dir(tmp_path):
    first = load(write_csv(tmp_path / "a.csv", _columns()))
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    moved = load(tmp_path / "a.csv", data_dir=tmp_path / "b.csv")
    assert moved.fingerprint == first.fingerprint and moved.name == first.name == "a"
    with pytest.raises(FileNotFoundError, match="`data_dir` must be where the data of"):
        load(tmp_path / "a.csv", data_dir=tmp_path / "c.csv")


@pytest.mark.parametrize(
    "choice",
    [{"image_size": 4}, {"columns": ["x"]}, {"n_levels": 4}, {"test_fraction": 0.3}],
    ids=lambda choice: next(iter(choice)),
)
def test_known_data_take_no_choices(choice):
    with pytest.raises(
        ValueError, match=f"`{next(iter(choice))}` must be left out for"
    ):
        load("digits", **choice)


def test_path_may_look_like_a_pattern_only_for_a_file(tmp_path):
    folder = tmp_path / "a[b]*c"
    assert load(write_csv(folder / "own.csv", _columns())).shape == (2,)
    with pytest.raises(ValueError, match=r"none of \*, \? and \[.*Rename it"):
        load(folder)


def test_file_without_a_column_of_the_others_is_named(tmp_path):
    folder = tmp_path / "own"
    write_csv(folder / "a.csv", _columns())
    write_csv(folder / "b.csv", {"x": _columns()["x"], "z": _columns()["x"]})
    message = "b.csv` must have the column `y`, as the first file has; it has x, z"
    with pytest.raises(ValueError, match=message):
        load(folder)
    columns = _columns(4) | {"label": [*"abab"]}
    write_csv(folder / "a.csv", columns)
    write_csv(folder / "b.csv", _columns(4))
    with pytest.raises(ValueError, match="b.csv` must have the column `label`"):
        load(folder)


# --- Files that change ---------------------------------------------------------------


def test_file_replaced_under_the_same_time_is_read_again(tmp_path):
    path = tmp_path / "own.parquet"
    times = (1_600_000_000, 1_600_000_000)
    for seed in (0, 1):
        images = grey(8, seed=seed)[..., None]
        write_images(path, images, "image")
        os.utime(path, times)
        dataset = load(path, in_memory=False)
        found = dataset.train[np.arange(len(dataset.train))]
        together = np.concatenate([found, dataset.validation, dataset.test])
        assert {x.tobytes() for x in together} == {x.tobytes() for x in images}


def test_streamed_files_without_rows_say_so(tmp_path):
    write_images(tmp_path / "train-0.parquet", [], "image")
    write_images(tmp_path / "test-0.parquet", grey(4, (28, 28))[..., None], "image")
    with pytest.raises(ValueError, match="train-0.parquet` must hold images; it has 0"):
        load("mnist", data_dir=tmp_path, in_memory=False)
    images = grey(8, (28, 28))[..., None]
    write_images(tmp_path / "train-1.parquet", images, "image")
    dataset = load("mnist", data_dir=tmp_path, in_memory=False)
    found = dataset.train[np.arange(len(dataset.train))]
    together = np.concatenate([found, dataset.validation])
    assert {x.tobytes() for x in together} == {x.tobytes() for x in images}


def test_streamed_file_with_damaged_pages_is_named(tmp_path):
    for split in ("train", "test"):
        images = grey(30, (28, 28))[..., None]
        write_images(tmp_path / f"{split}-0.parquet", images, "image")
    path = tmp_path / "train-0.parquet"
    content = bytearray(path.read_bytes())
    # Of the header of the first page, and on.
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train-0.parquet` must be a complete Parquet"):
        load("mnist", data_dir=tmp_path, in_memory=False)


def test_dataset_says_what_it_is(tmp_path):
    dataset = load(write_folder(tmp_path / "own", colour(12)))
    assert len(dataset.description.splitlines()) == 1
    for part in ("a folder of images", "6x5x3", "256 levels", "10 train", "1 test"):
        assert part in dataset.description
    assert load("digits").description == ""
