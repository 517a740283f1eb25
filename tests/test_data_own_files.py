"""Tests of files and names of data that are missing, damaged or moved."""

import os

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from eqmdm.data import load
from image_files import write_images
from own_files import grey, two_columns, write_csv, write_folder, write_table


pytestmark = pytest.mark.usefixtures("no_network", "datasets_cache")


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
            write_table(path, {"x": [float(i) + 0.123 for i in range(99)]})
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
    first = load(write_csv(tmp_path / "a.csv", two_columns()))
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
    assert load(write_csv(folder / "own.csv", two_columns())).shape == (2,)
    with pytest.raises(ValueError, match=r"none of \*, \? and \[.*Rename it"):
        load(folder)


def test_file_without_a_column_of_the_others_is_named(tmp_path):
    folder = tmp_path / "own"
    write_csv(folder / "a.csv", two_columns())
    write_csv(folder / "b.csv", {"x": two_columns()["x"], "z": two_columns()["x"]})
    message = "b.csv` must have the column `y`, as the first file has; it has x, z"
    with pytest.raises(ValueError, match=message):
        load(folder)
    columns = two_columns(4) | {"label": [*"abab"]}
    write_csv(folder / "a.csv", columns)
    write_csv(folder / "b.csv", two_columns(4))
    with pytest.raises(ValueError, match="b.csv` must have the column `label`"):
        load(folder)


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
