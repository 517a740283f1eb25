"""Tests of the user's own tables."""

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from eqmdm.data import load
from own_files import SPLITS, rows_of, two_columns, write_csv, write_table


pytestmark = pytest.mark.usefixtures("no_network", "datasets_cache")


TABLES = ("own.csv", "own.jsonl", "own.parquet", "own.arrow", "saved")


@pytest.mark.parametrize("name", TABLES)
def test_table_is_standardised_by_its_training_split(name, tmp_path):
    columns = two_columns()
    path = write_table(tmp_path / name, columns)
    dataset = load(path)
    plain = load(path, standardise=False)
    expected = {
        np.asarray(row).tobytes() for row in zip(*columns.values(), strict=True)
    }
    assert set(sum(rows_of(plain), [])) == expected
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
    columns = two_columns()
    first = load(write_csv(tmp_path / "a.csv", columns))
    halved = {name: values / 2 for name, values in columns.items()}
    second = load(write_csv(tmp_path / "b.csv", halved))
    assert np.array_equal(first.train, second.train)
    assert first.fingerprint != second.fingerprint


def test_integers_are_dequantised_within_their_unit(tmp_path):
    columns = two_columns() | {"k": np.arange(40) - 7}
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
    columns = two_columns(9) | {"class": [*"abc"] * 3}
    dataset = load(write_csv(tmp_path / "own.csv", columns))
    assert dataset.shape == (2,) and dataset.labels.names == ("a", "b", "c")
    assert load(tmp_path / "own.csv", columns=["y"]).labels.names == ("a", "b", "c")


def test_column_of_lists_is_an_example_of_several_axes(tmp_path):
    series = np.random.Generator(np.random.PCG64(0)).normal(3, 2, (20, 7, 2))
    path = write_table(tmp_path / "own.jsonl", {"series": series.tolist()})
    dataset = load(path)
    assert dataset.shape == (7, 2) and len(set(dataset.standardisation.mean.flat)) == 1
    # The mean of 160 or more values of standard deviation 2.
    assert abs(dataset.standardisation.mean.flat[0] - 3) < 5 * 2 / 160**0.5
    ragged = [*series.tolist()[:5], series.tolist()[0][:6]]
    write_table(path, {"series": np.array([*ragged, None], object)[:-1]})
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
        assert set(sum(rows_of(dataset), [])) == expected


def test_column_without_a_name_is_not_taken_for_a_coordinate(tmp_path):
    path = write_csv(tmp_path / "own.csv", {"": np.arange(40)} | two_columns())
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
    columns = {key: value.tolist() for key, value in two_columns(8).items()}
    if bad == "two" and name not in ("own.csv", "own.jsonl"):
        columns["y"] = [*"aaaaa", bad, *"aa"]
        message, row = "number; it holds 'a'", 0
    else:
        columns["y"][5], row = bad, 5
    if name == "own.csv":
        columns["y"] = ["" if value is None else value for value in columns["y"]]
    path = write_table(tmp_path / name, columns)
    with pytest.raises(
        ValueError,
        match=rf"Column `y` of row {row} of `.*{name}` must hold a {message}",
    ):
        load(path)


def test_constant_column_is_named(tmp_path):
    columns = two_columns() | {"c": np.full(40, 0.1)}
    path = write_csv(tmp_path / "own.csv", columns)
    with pytest.raises(ValueError, match="column `c` of the training.* must vary.*0.1"):
        load(path)
    assert load(path, columns=["x"]).shape == (1,)


def test_columns_that_are_not_there_are_named(tmp_path):
    path = write_csv(tmp_path / "own.csv", two_columns())
    with pytest.raises(ValueError, match="`columns` must.*no `z`. It has `x`, `y`"):
        load(path, columns=["x", "z"])
    with pytest.raises(ValueError, match="`image_column` must name.*no images in `x`"):
        load(path, image_column="x")
    with pytest.raises(ValueError, match="`image_size` must be left out for a table"):
        load(path, image_size=4)
    with pytest.raises(ValueError, match="`in_memory` must be true"):
        load(path, in_memory=False)
