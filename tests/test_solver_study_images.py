import json

import jax
import pytest
from script_runs import load_once
from solver_studies import error, options_of, rows_of, study, use_known_samples

from eqmdm.cli.solver_study import program
from eqmdm.cli.solver_study.comparison import SolverComparison
from eqmdm.cli.train_classifier import classifier


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


@pytest.fixture(scope="module")
def digits_trained(digits):
    return load_once(digits, data_dir=None)


@pytest.fixture
def sampler(monkeypatch):
    return use_known_samples(monkeypatch)


@pytest.mark.parametrize("n, floor", [(180, "held out"), (181, "training")])
def test_floor_is_of_held_out_data_where_there_are_enough(
    n, floor, digits, digits_trained
):
    trained = digits_trained
    options = options_of(digits, f"--n-samples={n}")
    study = SolverComparison(options, {"vpsde": trained}, None)
    assert study.real_split == floor and study.n_held_out == n
    data = trained.dataset
    rows = lambda *parts: [x.tobytes() for part in parts for x in part]
    reference, real = rows(study._held_out), rows(study._real)
    held_out = rows(data.validation, data.test)
    assert set(reference) <= set(held_out)
    # A few of the digits are equal.
    pool = held_out if floor == "held out" else rows(data.train)
    assert set(real) <= set(pool)
    if floor == "held out":
        assert sorted(reference + real) == sorted(held_out)


def test_images_are_compared_by_features_that_are_trained_once(
    digits, sampler, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(classifier._STEPS, "digits", 5)
    options = "--solvers=euler --evaluations=3 --n-samples=80".split()
    # Optax's schedules and Adam mix integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        study(digits, *options)
    file = tmp_path / "runs" / "features-digits.npz"
    accuracy = classifier.load(file)[1]["accuracy"]
    written = file.read_bytes()
    assert f"held-out accuracy {accuracy:.4f}" in capsys.readouterr().out
    settings = json.loads((digits / "solver_study" / "settings.json").read_text())
    assert settings["features_accuracy"]["accuracy"] == accuracy
    rows = rows_of(digits / "solver_study")
    real, drawn = rows["", "real data", 0], rows["vpsde", "euler", 3]
    assert float(drawn["frechet"]) > 2 * float(real["frechet"]) > 0
    # In the grey range, which is 1, normal samples are far off.
    assert 0.1 < float(drawn["sliced_wasserstein"]) < 1
    study(digits, *options)
    assert file.read_bytes() == written
    line = error(digits, *options, "--features=none")
    assert "--features must be classifier" in line


def test_too_many_samples_are_refused_before_a_classifier_is_trained(
    digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert "--n-samples must be at most" in error(digits, "--n-samples=5000")
    assert not (tmp_path / "runs").exists()
