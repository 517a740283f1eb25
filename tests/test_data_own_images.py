"""Tests of the user's own images."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eqmdm.data import load
from image_files import write_images
from own_files import colour, grey, png, rows_of, saved, write_folder


pytestmark = pytest.mark.usefixtures("no_network", "datasets_cache")


def test_folder_of_images_has_the_classes_of_its_folders(tmp_path):
    images = colour(30)
    dataset = load(write_folder(tmp_path / "own", images))
    assert dataset.name == "own" and dataset.n_levels == 256
    assert dataset.shape == (6, 5, 3)
    assert dataset.labels.names == ("cat", "dog")
    class_of = {image.tobytes(): i % 2 for i, image in enumerate(images)}
    for rows, labels in zip(rows_of(dataset), dataset.labels, strict=True):
        assert [class_of[row] for row in rows] == labels.tolist()
    assert sorted(sum(rows_of(dataset), [])) == sorted(class_of)
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
    assert set(sum(rows_of(dataset), [])) == {x.tobytes() for x in grey_images}
    quantised = [Image.fromarray(x).quantize(64) for x in colours]
    dataset = load(write_folder(tmp_path / "colour", [saved(x) for x in quantised]))
    expected = {np.asarray(x.convert("RGB")).tobytes() for x in quantised}
    assert dataset.shape == (6, 5, 3) and set(sum(rows_of(dataset), [])) == expected


def test_grey_images_among_colour_ones_become_colour(tmp_path):
    images = [*colour(3), *grey(3)]
    dataset = load(write_folder(tmp_path / "own", images))
    expected = {
        np.broadcast_to(x.reshape(6, 5, -1), (6, 5, 3)).tobytes() for x in images
    }
    assert set(sum(rows_of(dataset), [])) == expected


def test_sixteen_bits_and_one_bit_keep_their_levels(tmp_path):
    deep = grey(6, dtype=np.uint16)
    for name, options in {"png": {}, "tiff": {"format": "TIFF"}}.items():
        content = [saved(Image.fromarray(x), **options) for x in deep]
        dataset = load(write_folder(tmp_path / name, content))
        assert dataset.n_levels == 65_536 and dataset.train.dtype == np.uint16
        assert set(sum(rows_of(dataset), [])) == {x.tobytes() for x in deep}
    bits = grey(6) > 127
    dataset = load(write_folder(tmp_path / "bits", bits))
    assert set(np.unique(dataset.train)) == {0, 255}


def test_opaque_alpha_is_dropped(tmp_path):
    opaque = np.concatenate([colour(6), np.full((6, 6, 5, 1), 255, np.uint8)], -1)
    dataset = load(write_folder(tmp_path / "own", opaque))
    assert set(sum(rows_of(dataset), [])) == {x[..., :3].tobytes() for x in opaque}
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
    assert set(sum(rows_of(dataset), [])) == kept
    mixed = [*images[:5], grey(1, dtype=np.uint16)[0]]
    with pytest.raises(ValueError, match="one depth; got 5 of 8 bits, 1 of 16 bits"):
        load(write_folder(tmp_path / "deep", mixed))
    with pytest.raises(ValueError, match="`image_size` must be a side"):
        load(folder, image_size=0)
