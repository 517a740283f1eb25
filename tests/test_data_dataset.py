import numpy as np
import pandas
import pytest

from eqmdm.data import Dataset, Labels, load


SPLITS = ("train", "validation", "test")


def _points(n, dim=2):
    return np.random.Generator(np.random.PCG64(n)).normal(size=(n, dim))


def _levels(n, dtype=np.uint8):
    generator = np.random.Generator(np.random.PCG64(n))
    return generator.integers(0, 17, (n, 4, 4, 1)).astype(dtype)


def _dataset(**changed):
    arguments = {split: _points(n) for split, n in zip(SPLITS, (9, 4, 5), strict=True)}
    return Dataset("own", **(arguments | changed))


def _image_dataset(**changed):
    arguments = {split: _levels(n) for split, n in zip(SPLITS, (9, 4, 5), strict=True)}
    return Dataset("own", **(arguments | {"n_levels": 17} | changed))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: x.tolist(),
        lambda x: pandas.DataFrame(x),
    ],
    ids=["byte order", "list", "data frame"],
)
def test_splits_of_any_kind_of_array_are_the_same_data(split, convert, unchecked):
    dataset = _dataset()
    converted = _dataset(**{split: convert(getattr(dataset, split))})
    examples = getattr(converted, split)
    assert isinstance(examples, np.ndarray) and examples.dtype.isnative
    assert np.array_equal(examples, getattr(dataset, split))
    assert converted.fingerprint == dataset.fingerprint


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "value, error, message",
    [
        (_points(5) * 1j, TypeError, "must be an array of real numbers"),
        (np.asarray([[1.0, None]]), TypeError, "must be an array of real numbers"),
        (
            np.ones((5, 2), int),
            TypeError,
            "must be floating-point data.*no `n_levels`.*int64",
        ),
        (_points(0), ValueError, "must hold one example or more"),
        (_points(5) * np.inf, ValueError, "must be finite"),
    ],
    ids=["complex", "objects", "integers", "empty", "not finite"],
)
def test_splits_that_are_no_points_raise_by_name(
    split, value, error, message, unchecked
):
    with pytest.raises(error, match=f"`{split}` {message}"):
        _dataset(**{split: value})


@pytest.mark.parametrize("split", SPLITS[1:])
def test_splits_of_different_shapes_raise_by_name(split, unchecked):
    must = rf"`{split}` must hold examples of the shape.*`train`, \(2,\); got \(3,\)"
    with pytest.raises(ValueError, match=must):
        _dataset(**{split: _points(5, dim=3)})


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("wrong", [-1, 17])
def test_levels_out_of_range_raise_by_name(split, wrong):
    levels = _levels(5, np.int16)
    levels[3, 2, 1, 0] = wrong
    with pytest.raises(
        ValueError, match=f"`{split}` must be from 0 to 16; got.*{wrong}"
    ):
        _image_dataset(**{split: levels})
    with pytest.raises(TypeError, match=f"`{split}` must be integers, from 0 to 16"):
        _image_dataset(**{split: levels.astype(float)})


def test_number_of_levels_and_flips_are_checked():
    with pytest.raises(ValueError, match="`n_levels` must be at least 2; got 1"):
        _image_dataset(n_levels=1)
    with pytest.raises(ValueError, match=r"`flip` must be false.*shape is \(2,\)"):
        _dataset(flip=True)
    assert _image_dataset(flip=True).flip


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(6, int), np.zeros(4), np.asarray([0, 1, -1, 0]), np.zeros((4, 1), int)],
    ids=["number", "floats", "negative", "shape"],
)
def test_labels_that_do_not_go_with_the_examples_raise_by_name(wrong):
    right = [np.zeros(n, np.int64) for n in (9, 4, 5)]
    assert np.array_equal(_dataset(labels=Labels(*right)).labels.test, right[2])
    labels = Labels(right[0], wrong, right[2])
    with pytest.raises(ValueError, match="`labels.validation` must be 4 integers"):
        _dataset(labels=labels)


def _fingerprint_after(change, given):
    dataset = _dataset(train=given)
    change()
    examples = dataset.train.copy()
    fingerprint = dataset.fingerprint
    assert np.array_equal(examples, _points(9))
    return fingerprint


def test_data_do_not_change_with_arrays_of_the_caller():
    expected = _dataset().fingerprint
    array = _points(9)
    earlier_view = array[:]
    assert _fingerprint_after(lambda: earlier_view.fill(0), array) == expected
    whole = np.concatenate([_points(9), _points(3)])
    view = whole[:9]
    view.setflags(write=False)
    assert _fingerprint_after(lambda: whole.fill(0), view) == expected


def test_arrays_that_nobody_can_write_to_are_not_copied(tmp_path):
    np.save(tmp_path / "points.npy", _points(9))
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    frozen = _points(9)
    frozen.setflags(write=False)
    for array in (mapped, frozen):
        assert np.shares_memory(_dataset(train=array).train, array)


@pytest.mark.parametrize("split", SPLITS)
def test_data_set_is_read_only(split):
    with pytest.raises(ValueError, match="read-only"):
        getattr(_dataset(), split)[0] = 0
    given = _points(9)
    _dataset(train=given)
    # The caller's array is unchanged.
    given[0] = 0


def test_repr_is_a_line():
    dataset = load("digits")
    expected = (
        "Dataset('digits', 1,437 + 180 + 180 examples of (8, 8, 1), 17 levels, "
        f"fingerprint {dataset.fingerprint[:12]})"
    )
    assert repr(dataset) == expected
    assert repr(_dataset()).startswith("Dataset('own', 9 + 4 + 5 examples of (2,), fi")
