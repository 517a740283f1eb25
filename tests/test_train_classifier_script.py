import contextlib
import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from script_runs import error_of, single_precision

import eqmdm
from eqmdm.cli.parsing import parse
from eqmdm.cli.solver_study.features import find_features
from eqmdm.cli.train_classifier import classifier, program
from eqmdm.cli.train_classifier.options import ClassifierOptions


@pytest.fixture(scope="module", autouse=True)
def scripts():
    # Optax's schedules and Adam mix integers and floats.
    with single_precision(), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def digits():
    return eqmdm.data.load("digits")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a narrow classifier, and what the program printed."""

    path = tmp_path_factory.mktemp("classifier") / "digits.npz"
    args = ["--dataset=digits", f"--output={path}"]
    args += ["--width=4", "--steps=200", "--learning-rate=0.01"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        program.run(parse(ClassifierOptions, args))
    return path, printed.getvalue()


@pytest.fixture
def file(trained):
    return trained[0]


def _logits(model, images):
    return np.asarray(jax.jit(jax.vmap(model))(images))


def test_accuracy_on_held_out_digits_is_printed_and_high(trained, digits):
    path, printed = trained
    model, facts = classifier.load(path)
    assert facts["data_fingerprint"] == digits.fingerprint
    right = np.argmax(_logits(model, digits.test), axis=1) == digits.labels.test
    accuracy, n = right.mean(), len(digits.test)
    # A chance of 1 in 10; linear classifiers reach 0.95.
    assert accuracy > 0.96
    error = right.std() / np.sqrt(n)
    assert f"accuracy {accuracy:.4f} +- {error:.4f} on {n} test images" in printed


def test_logits_are_linear_in_the_features(file, digits):
    model, _ = classifier.load(file)
    features = find_features(str(file), digits)
    assert features is not None
    # More than one batch, the last of which is not full.
    found = features.function(digits.train[:300])
    assert found.shape == (300, classifier.N_FEATURES)
    logits = found @ np.asarray(model.head.weight).T + np.asarray(model.head.bias)
    expected = _logits(model, digits.train[:300])
    # float32, in which the logits are sums of 64 terms.
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_classifier_is_of_the_training_split_and_the_seed_alone(digits):
    labels = digits.labels
    others = {"validation": 0 * digits.validation, "test": 0 * digits.test}
    labels = dataclasses.replace(
        labels, validation=9 - labels.validation, test=9 - labels.test
    )
    other = dataclasses.replace(digits, labels=labels, **others)
    weights = [
        jax.tree.leaves(classifier.train(data, steps=3, seed=seed, width=2)[0])
        for data, seed in ((digits, 1), (other, 1), (digits, 2))
    ]
    # To the last bit.
    assert all(map(np.array_equal, weights[0], weights[1]))
    assert not all(map(np.array_equal, weights[0], weights[2]))


def test_features_are_left_out_where_there_is_nothing_to_train_by(digits, capsys):
    assert find_features("none", digits) is None
    unlabelled = dataclasses.replace(digits, labels=None)
    assert find_features(None, unlabelled) is None
    assert "no Fréchet distance" in capsys.readouterr().out
    assert find_features(None, eqmdm.data.load("mixture")) is None


def test_features_may_be_a_function(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "import numpy\ndef means(x):\n    return x.mean(axis=(1, 2))\n"
    source += "def flat(x):\n    return x.mean(axis=(1, 2, 3))\n"
    (tmp_path / "my_features.py").write_text(source)
    features = find_features("my_features:means", digits)
    assert features is not None and features.identity == {
        "features": "my_features:means"
    }
    # More than one batch.
    expected = digits.train[:600].mean(axis=(1, 2))
    np.testing.assert_allclose(
        features.function(digits.train[:600]), expected, rtol=1e-6
    )
    flat = find_features("my_features:flat", digits)
    assert flat is not None
    with pytest.raises(ValueError, match="a row of features for each image"):
        flat.function(digits.train[:10])


@pytest.mark.parametrize(
    "given, message",
    [
        ("nowhere.npz", "there is no nowhere.npz"),
        ("no_such_module:f", "No module named"),
        ("json:no_such_function", "no_such_function"),
        ("text.npz", "that `eqmdm train-classifier` wrote"),
        ("cut.npz", "that `eqmdm train-classifier` wrote"),
        ("arrays.npz", "that `eqmdm train-classifier` wrote"),
        ("narrower.npz", "in narrower.npz have other shapes"),
        ("other.npz", "must be a classifier of the data of the run"),
    ],
    ids=lambda value: value if ":" in value or value.endswith("npz") else "",
)
def test_features_that_do_not_fit_are_refused(
    given, message, file, digits, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("text")
    model, facts = classifier.load(file)
    Path("cut.npz").write_bytes(file.read_bytes()[:1000])
    np.savez("arrays.npz", facts="{}")
    classifier.save(Path("other.npz"), model, facts | {"data_fingerprint": "0" * 64})
    classifier.save(Path("narrower.npz"), model, facts | {"width": 2})
    with pytest.raises(ValueError, match=message):
        find_features(given, digits)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "--steps must be at least 1; got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1; got 0"),
        ({"width": -1}, "--width must be at least 1; got -1"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive; got 0.0"),
        ({"output": __file__}, "--output must be a new file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_option_is_one_clear_line(wrong, message, tmp_path):

    options = {"output": tmp_path / "new.npz"} | wrong
    options["output"] = Path(options["output"])
    options = ClassifierOptions(dataset="digits", **options)
    assert message in error_of(program.run, options)


def test_classifier_needs_labels(digits):
    unlabelled = dataclasses.replace(digits, labels=None)
    with pytest.raises(ValueError, match="digits must have labels"):
        classifier.train(unlabelled)
