import errno
import json
import math

import numpy as np
import pytest

from eqmdm._core.files import to_json, write_atomically, write_json


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"\x00\xff", b"\x00\xff"),
        ("Fréchet\n", "Fréchet\n".encode()),
        (lambda file: file.write(b"written"), b"written"),
    ],
    ids=["bytes", "text", "function"],
)
def test_write_replaces_the_file_and_leaves_nothing_beside_it(
    content, expected, tmp_path
):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_atomically(path, content)
    assert path.read_bytes() == expected
    assert [*tmp_path.iterdir()] == [path]


def test_write_takes_what_numpy_writes(tmp_path):
    path = tmp_path / "arrays.npz"
    write_atomically(path, lambda file: np.savez(file, x=np.arange(3)))
    with np.load(path) as arrays:
        assert np.array_equal(arrays["x"], np.arange(3))


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
    ids=["full disk", "interrupt"],
)
def test_failed_write_leaves_the_previous_file(failure, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(file):
        file.write(b"half")
        raise failure

    with pytest.raises(type(failure)) as caught:
        write_atomically(path, fail)
    if isinstance(failure, OSError):
        assert str(caught.value) == f"{path} cannot be written ({failure.strerror})."
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


def test_write_to_a_missing_directory_names_the_file(tmp_path):
    with pytest.raises(OSError, match="missing/file cannot be written"):
        write_atomically(tmp_path / "missing" / "file", b"")


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    data = {"a": [1.5, math.nan, (math.inf, "text")], "b": {"c": -math.inf, "d": 3}}
    write_json(tmp_path / "data.json", data)
    text = (tmp_path / "data.json").read_text()
    assert text == to_json(data)
    expected = {"a": [1.5, None, [None, "text"]], "b": {"c": None, "d": 3}}
    assert json.loads(text, parse_constant=pytest.fail) == expected
