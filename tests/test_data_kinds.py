"""Every kind of data, from its file to a bound.

    python -m pytest -n 0 tests/test_data_kinds.py --data-table FILE

writes what is found, in one process, as a table: benchmarks/results/data_kinds.md.
"""

import io
import json
import sys

import datasets
import jax.random as jr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import eqmdm
from eqmdm import nn
from eqmdm.data import load
from helpers import slow
from image_files import write_images
from own_files import saved, write_csv, write_folder


N = 60
_RANDOM = np.random.Generator(np.random.PCG64(0))
_LEVEL = _RANDOM.normal(size=N)


def _varied(shape, noise):
    """Data with one random number per example in all its coordinates, plus noise. A
    network must learn this, since untrained it treats coordinates as independent."""
    level = _LEVEL.reshape(N, *[1] * len(shape))
    return level + noise * _RANDOM.normal(size=(N, *shape))


def _images(shape, dtype):
    largest = np.iinfo(dtype).max
    return np.clip(largest * (0.5 + 0.15 * _varied(shape, 0.1)), 0, largest).astype(
        dtype
    )


# In units of their own, which are far from those that a network is given.
POINTS = np.asarray([1.7, 7e4]) + np.asarray([0.1, 1e4]) * _varied((2,), 0.1)
TABLE = dict(zip(["height", "mass"], POINTS.T, strict=True))
SERIES = 3 + 2 * _varied((4, 2), 0.1)
GREY, DEEP = _images((6, 5), np.uint8), _images((6, 5), np.uint16)
COLOUR = _images((6, 5, 3), np.uint8)
CODE = "import numpy as np\ndef points():\n    return np.load('points.npy')\n"


def _folder(path, images):
    return write_folder(path, images)


def _broken(path, good):
    """A truncated file, cut in the middle of a line if it has lines."""
    content = good.read_bytes()
    half = len(content) // 2
    end = content.find(b"\n", half) - 5 if good.suffix == ".jsonl" else half
    path.write_bytes(content[:end])
    return path


def _parquet_images(path):
    write_images(path, GREY[..., None], "image", labels=np.arange(N) % 3)
    return path


def _jsonl(path):
    rows = [dict(zip(TABLE, row, strict=True)) for row in POINTS.tolist()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _parquet(path):
    pq.write_table(pa.table(TABLE), path)
    return path


def _arrow(path):
    table = pa.table(TABLE)
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    return path


def _saved(path):
    datasets.Dataset.from_dict(TABLE).save_to_disk(str(path))
    return path


def _array(path, array):
    np.save(path, array)
    return path


def _archive(path):
    np.savez(path, train=GREY, labels=np.arange(N) % 3)
    return path


def _function(path):
    path.with_suffix(".py").write_text(CODE)
    np.save(path.parent / "points.npy", POINTS)
    return f"{path.stem}:points"


# What makes each kind, with what it is loaded, and its examples as they are.
KINDS = {
    "folder of grey images, 5x6": (
        lambda p: _folder(p / "own", GREY), {}, GREY[..., None]),
    "folder of colour images, 5x6": (lambda p: _folder(p / "own", COLOUR), {}, COLOUR),
    "folder of 16-bit images, 5x6": (
        lambda p: _folder(p / "own", DEEP), {}, DEEP[..., None]),
    "images in Parquet": (
        lambda p: _parquet_images(p / "own.parquet"), {}, GREY[..., None]),
    "images in Parquet, streamed": (
        lambda p: _parquet_images(p / "own.parquet"), {"in_memory": False},
        GREY[..., None]),
    "CSV": (lambda p: write_csv(p / "own.csv", TABLE), {}, POINTS),
    "JSON lines": (lambda p: _jsonl(p / "own.jsonl"), {}, POINTS),
    "Parquet table": (lambda p: _parquet(p / "own.parquet"), {}, POINTS),
    "Arrow table": (lambda p: _arrow(p / "own.arrow"), {}, POINTS),
    "directory saved by datasets": (lambda p: _saved(p / "own"), {}, POINTS),
    ".npy, floats of (n, 2)": (lambda p: _array(p / "own.npy", POINTS), {}, POINTS),
    ".npy, series of (n, 4, 2)": (lambda p: _array(p / "own.npy", SERIES), {}, SERIES),
    ".npy, uint8 images": (
        lambda p: _array(p / "own.npy", GREY), {}, GREY[..., None]),
    ".npz with labels": (lambda p: _archive(p / "own.npz"), {}, GREY[..., None]),
    "module:function": (lambda p: _function(p / "own_kind_of_data"), {}, POINTS),
}  # fmt: skip


@pytest.fixture(scope="module")
def table(request):
    """The rows of results, written at the end if the option is given."""
    rows = {}
    yield rows
    path = request.config.getoption("--data-table")
    if path is None:
        return
    head = "| kind | shape | trains, nats | bound, nats | error |\n"
    lines = [f"| {name} | {' | '.join(row)} |\n" for name, row in rows.items()]
    path.write_text(
        "# Kinds of data\n\n"
        "Made by `pytest -n 0 tests/test_data_kinds.py --data-table FILE`.\n"
        "Trains: how far the bound on training examples rises in 400 steps of `fit`,\n"
        "in nats. Bound: that on the test split for the exact model of normal data,\n"
        "less the closed form in the units of the data. Error: what a damaged file\n"
        "ends with.\n\n"
        f"{head}| --- | --- | --- | --- | --- |\n{''.join(lines)}"
    )


def _scale(dataset, encoded):
    return float(np.sqrt(np.mean(np.square(encoded, dtype=np.float64))))


def _encoded(dataset):
    """The training examples in the units of the network."""
    train = dataset.train[np.arange(len(dataset.train))]
    if dataset.n_levels is None:
        return train
    return 2 * (train.astype(np.float64) + 0.5) / dataset.n_levels - 1


def _model(dataset):
    """An untrained model, whose network is zero: exact for normal data. And the
    standard deviation of these."""
    network = nn.MLP(dataset.shape, 1, width=32, depth=1, key=jr.key(1))
    # One standard deviation for data of a kind, so that a program serves several.
    std = round(_scale(dataset, _encoded(dataset)), 2)
    denoiser = eqmdm.PreconditionedDenoiser(
        network, data_std=std, log_snr_range=(-9.0, 14.0)
    )
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    return eqmdm.DenoiserModel(denoiser, diffusion), std


def _objective(dataset):
    levels = None if dataset.n_levels is None else eqmdm.GreyLevels(dataset.n_levels)
    scale = dataset.standardisation
    jacobian = 0.0 if scale is None else scale.log_jacobian
    return eqmdm.Objective(levels=levels, log_jacobian=jacobian)


def _closed_form(dataset, raw, std):
    """The expected log-likelihood of examples in their own units, in nats."""
    raw = raw.astype(np.float64).reshape(len(raw), -1)
    if dataset.n_levels is None:
        mean, scale = (
            np.ravel(value)
            for value in (dataset.standardisation.mean, dataset.standardisation.std)
        )
        z = (raw - mean) / (scale * std)
        return np.sum(-(z**2) / 2 - np.log(scale * std) - np.log(2 * np.pi) / 2, axis=1)
    # Over uniform offsets, whose second moment about the middle of a level is a twelfth
    # of its squared width; and the probability of a level is its width times a density.
    width = 2 / dataset.n_levels
    square = ((raw + 0.5) * width - 1) ** 2 + width**2 / 12
    log_density = -square / (2 * std**2) - np.log(std) - np.log(2 * np.pi) / 2
    return np.sum(log_density + np.log(width), axis=1)


# One of points and one of images; the others take minutes together.
_FAST = ("CSV", "folder of grey images, 5x6")


@pytest.mark.parametrize("name", [n if n in _FAST else slow(n) for n in KINDS])
def test_kind_of_data_trains_and_is_bounded(name, table, tmp_path, monkeypatch):
    make, choices, raw = KINDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delitem(sys.modules, "own_kind_of_data", raising=False)
    dataset = load(make(tmp_path), **choices)
    assert dataset.shape == (raw.shape[1:] if raw.ndim > 1 else (1,))

    # The bound, of examples that are found again among those that were written.
    start, std = _model(dataset)
    objective, key = _objective(dataset), jr.key(1)
    # In batches of the training, so that its validation is the same program.
    evaluated = lambda model, x, n_draws: eqmdm.evaluate(
        model, x, objective, key=key, n_draws=n_draws, batch_size=32
    )
    evaluation = evaluated(start, dataset.test, 512)
    stored = dataset.test
    if dataset.standardisation is not None:
        stored = dataset.standardisation.inverse(stored)
    near = np.abs(stored[:, None].astype(float) - raw[None].astype(float))
    near = near.reshape(len(stored), len(raw), -1).max(-1)
    rows = near.argmin(1)
    # Standardised values are stored in float32.
    assert np.all(near.min(1) <= 1e-6 * np.abs(raw).max())
    difference = evaluation.terms["total"] - _closed_form(dataset, raw[rows], std)
    n_dims = raw[0].size
    error = np.sqrt(np.sum(evaluation.standard_error**2)) / len(rows)
    # With ends at log-SNR -9 the prior costs half the squared signal and no more.
    assert abs(difference.mean()) < 5 * error + n_dims * np.exp(-9.0)
    assert error < 1

    options = {"batch_size": 32, "log_every": 200, "validate_every": 400}
    optimiser = eqmdm.make_optimiser(1e-2, warmup=20)
    trained = eqmdm.fit(
        start, dataset, key=key, steps=400, optimiser=optimiser, **options
    )
    rows = dataset.train[np.arange(len(dataset.train))]
    before, after = (
        evaluated(model, rows, 16).terms["total"] for model in (start, trained)
    )
    gain = eqmdm.Estimate.from_mean(after - before)
    assert gain.value > 5 * gain.standard_error
    shape = "x".join(map(str, dataset.shape))
    found = [
        f"{mean:.2f} ± {deviation:.2f}"
        for mean, deviation in (gain, (difference.mean(), error))
    ]
    table[name] = [shape, *found, _error(name, tmp_path)]


def _error(name, tmp_path):
    """The error that a damaged file of a kind causes."""
    if name == "module:function":
        bad = "own_kind_of_data:absent"
    elif name.startswith("folder"):
        good = next((tmp_path / "own").rglob("*.png"))
        bad = _broken(good, good).parent.parent
    elif name.startswith("directory"):
        good = next((tmp_path / "own").rglob("*.arrow"))
        bad = _broken(good, good).parent
    else:
        good = next(p for p in tmp_path.glob("own.*"))
        if good.suffix == ".csv":
            good.write_text(good.read_text() + "1,2,3\n")
            bad = good
        else:
            bad = _broken(good, good)
    with pytest.raises(ValueError) as raised:
        load(bad)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert str(bad) in message
    return message.replace(str(tmp_path) + "/", "")


def test_pictures_are_what_pillow_reads():
    # So that the images above are no files of our own making alone.
    for image in (GREY[0], COLOUR[0], DEEP[0]):
        read = np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(image)))))
        assert np.array_equal(read, image)
