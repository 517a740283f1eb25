import csv
import hashlib
import json
import pathlib
import pickle
import zipfile

import equinox as eqx
import inception_case as case
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import safetensors.numpy
from script_runs import DIGITS, copy_run, error_of, load_once, single_precision

import eqmdm
from eqmdm.cli.build import Purpose
from eqmdm.cli.parsing import parse
from eqmdm.cli.solver_study import features, inception_file, picture, program
from eqmdm.cli.solver_study.features import find_features
from eqmdm.cli.solver_study.inception import Inception, resized
from eqmdm.cli.solver_study.inception_file import load_inception
from eqmdm.cli.solver_study.inception_layers import kernel_shapes
from eqmdm.cli.solver_study.options import SolverStudyOptions
from helpers import slow


# Of torch-fidelity 0.4.0, by `benchmarks/peers/inception_features.py`.
REFERENCES = json.loads(
    pathlib.Path(__file__).with_name("inception_features.json").read_text()
)
NAMES = list(case.SHAPES)


def _rms(errors):
    return np.sqrt(np.mean(np.square(errors)))


def _float32_error(name):
    """The root-mean-square error that float32 gives torch-fidelity for an image.

    It depends on how the network amplifies roundings, which no rule of thumb tells.
    """
    rows = (REFERENCES[f"{dtype} 299 {name}"] for dtype in ("float32", "float64"))
    return _rms(np.subtract(*rows))


@pytest.fixture(scope="module")
def tensors():
    return case.weights(kernel_shapes())


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.of.inception"
    # The count of batches is in files that recent versions of PyTorch write.
    counts = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.asarray(7)}
    safetensors.numpy.save_file(tensors | counts, path)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("digits") / "run", *DIGITS)


@pytest.fixture(scope="module")
def dataset(digits):
    with single_precision():
        return load_once(digits, data_dir=None).dataset


def _colour(image):
    return jnp.asarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _features(network, image, size):
    return np.asarray(eqx.filter_jit(network)(_colour(image), size=size))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [case.SIZES[0], slow(case.SIZES[1])])
def test_features_are_those_of_torch_fidelity(size, name, tensors):
    network = Inception(tensors, np.float64)
    found = _features(network, case.images()[name], size)
    assert found.shape == (2048,)
    expected = np.asarray(REFERENCES[f"float64 {size} {name}"])
    # Half the spacing of float32, to which it rounds what it computes in float64.
    np.testing.assert_allclose(
        found[:: case.STRIDE], expected, rtol=2.0**-24, atol=1e-10
    )


@pytest.mark.parametrize("name", ["32x32x3", *map(slow, NAMES[::2])])
def test_features_in_float32_are_those_of_torch_fidelity(name, file):
    found = _features(load_inception(file), case.images()[name], 299)
    assert found.dtype == np.float32
    expected = np.asarray(REFERENCES[f"float64 299 {name}"])
    # Roundings in another order, of equal size.
    error = _rms(found[:: case.STRIDE] - expected)
    assert error < 2 * _float32_error(name)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n, size", [(5, 23), (28, 75), (40, 30)])
def test_resized_ramp_is_a_ramp_from_the_same_corner(axis, n, size):
    ramp = np.moveaxis(np.broadcast_to(np.arange(n)[:, None, None], (n, 7, 2)), 0, axis)
    found = jax.jit(resized, static_argnums=1)(jnp.asarray(ramp, float), size)
    found = np.moveaxis(np.asarray(found), axis, 0)
    # Beyond the last pixel it is constant. The ratio has the precision of float32.
    expected = np.minimum(np.arange(size) * n / size, n - 1)
    expected = np.broadcast_to(expected[:, None, None], (size, size, 2))
    np.testing.assert_allclose(found, expected, rtol=2.0**-24)


def test_features_of_grey_levels_are_those_of_the_image_of_8_bits(
    file, dataset, monkeypatch, capsys
):
    monkeypatch.setattr(features, "_INCEPTION_BATCH", 2)
    # One batch that is not full. That several are put together is tested with a
    # classifier.
    images = dataset.test[:1]
    with single_precision():
        found = find_features(str(file), dataset)
        rows = found.function(images)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert found.identity == {"features": f"inception {digest}"}
    assert f"the Inception network in {file}" in capsys.readouterr().out
    # The digits have 17 grey levels.
    pixels = np.rint(images * 255.0 / 16).astype(np.uint8)
    assert pixels.min() == 0 and pixels.max() == 255
    with single_precision():
        network = load_inception(file)
        expected = [_features(network, image, 299) for image in pixels]
    assert rows.shape == (1, 2048)
    # Batches of another size may round otherwise; both sides err.
    assert _rms(rows - np.asarray(expected)) < 4 * _float32_error("28x28x1")


def test_colour_and_grey_alone_suit_the_network(file):
    images = np.zeros((60, 8, 8, 2), np.uint8)
    two = eqmdm.data.Dataset.from_arrays(images, images, images)
    with pytest.raises(ValueError, match="neither grey nor in colour; .* 2 channels"):
        find_features(str(file), two)


def _zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


@pytest.mark.parametrize("is_old", [False, True])
def test_pickle_of_pytorch_is_refused_with_the_conversion(is_old, dataset, tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    if is_old:
        path.write_bytes(pickle.dumps({"fc.bias": 0}, protocol=2))
    else:
        _zip(path, "archive/data.pkl", "archive/data/0")
    with pytest.raises(ValueError, match=r"pickle of PyTorch.*torch\.load.*save_file"):
        find_features(str(path), dataset)


def test_archive_of_something_else_is_no_classifier(dataset, tmp_path):
    path = tmp_path / "inception.safetensors"
    _zip(path, "readme")
    with pytest.raises(
        ValueError, match="must be a file that `eqmdm train-classifier`"
    ):
        find_features(str(path), dataset)


def test_cut_off_file_is_refused(file, dataset, tmp_path):
    path = tmp_path / "inception.safetensors"
    path.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="must be a complete safetensors file"):
        find_features(str(path), dataset)


NAME = "Mixed_7c.branch_pool"
CHANGES = {
    "missing": (
        lambda tensors: tensors.pop(f"{NAME}.bn.bias"),
        rf"lacks {NAME}\.bn\.bias\.",
    ),
    "several missing": (
        lambda tensors: [tensors.pop(f"{NAME}.bn.{n}") for n in ("bias", "weight")],
        rf"lacks {NAME}\.bn\.weight and 1 more\.",
    ),
    "of torchvision": (
        lambda tensors: tensors.update({"fc.weight": np.zeros((1000, 2048))}),
        r"\(1008, 2048\) for fc\.weight; .* has \(1000, 2048\) there\..*torchvision",
    ),
    "other shapes": (
        lambda tensors: tensors.update({k: v.T for k, v in tensors.items()}),
        r"has \(3, 3, 3, 32\) there, and 94 more differ\.",
    ),
    "integers": (
        lambda tensors: tensors.update({f"{NAME}.bn.bias": np.zeros(192, int)}),
        rf"finite floating-point numbers.* others in {NAME}\.bn\.bias\.",
    ),
    "not finite": (
        lambda tensors: tensors.update({f"{NAME}.bn.bias": np.full(192, np.nan)}),
        rf"finite floating-point numbers.* others in {NAME}\.bn\.bias\.",
    ),
    "negative variance": (
        lambda tensors: tensors.update({f"{NAME}.bn.running_var": np.full(192, -1.0)}),
        rf"variances that are not negative.* others in {NAME}\.bn\.running_var\.",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_unsuitable_tensors_are_named(change, tensors, monkeypatch, tmp_path):
    apply, message = CHANGES[change]
    tensors = dict(tensors)
    apply(tensors)
    # In place of a file of 96 MB.
    monkeypatch.setattr(inception_file, "read_arrays", lambda path: tensors)
    with pytest.raises(ValueError, match=message):
        load_inception(tmp_path / "inception.safetensors")


def _options(run, *arguments):
    return parse(SolverStudyOptions, [str(run), *arguments])


def test_file_that_is_refused_is_one_clear_line(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)
    path = tmp_path / "weights"
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    with single_precision():
        line = error_of(program.run, _options(digits, f"--features={path}"))
    assert "--features must hold the tensors of the Inception network" in line
    assert "lacks Conv2d_1a_3x3.conv.weight and 470 more" in line


@pytest.mark.slow
def test_study_compares_by_inception_features(
    file, digits, dataset, tmp_path, monkeypatch
):
    # Without padding of 40 images.
    monkeypatch.setattr(features, "_INCEPTION_BATCH", 20)
    captions = []
    monkeypatch.setattr(picture, "draw", lambda *given, **_: captions.append(given[2]))
    monkeypatch.setattr(program, "load_trained", load_once)
    arguments = "--solvers=dpm --evaluations=3 --n-samples=40 --reference-samples=0"
    arguments = f"{arguments} --features={file} --output-dir={tmp_path}".split()
    with single_precision():
        program.run(_options(digits, *arguments))
        found = find_features(str(file), dataset)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["features"] == found.identity["features"]
    assert captions[0].endswith("Features: an Inception network")
    with (tmp_path / "study.csv").open() as table:
        real, drawn = csv.DictReader(table)
    # Held-out digits and others; then samples of an untrained network.
    key = jr.fold_in(jr.key(0), Purpose.HELD_OUT)
    held_out = np.concatenate([dataset.validation, dataset.test])
    rows = np.asarray(eqmdm.data.shuffled_indices(key, 0, 80, len(held_out)))
    first, others = (found.function(held_out[part]) for part in (rows[:40], rows[40:]))
    expected = eqmdm.frechet_distance(others, first)
    actual = float(real["frechet"]), float(real["frechet_error"])
    # Equal features, printed in full.
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    # Most of either is the bias, which is the same.
    distance, error = float(drawn["frechet"]), float(drawn["frechet_error"])
    assert distance - actual[0] > 5 * np.hypot(error, actual[1])
