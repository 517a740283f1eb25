"""Tests of conditions in data sets and programs."""

import csv
import json
import re
import shutil
from pathlib import Path

import datasets
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from script_runs import (
    error_of,
    load_once,
    make_run,
    shared_optimisers,
    single_precision,
    working_in,
)

import eqmdm
from eqmdm import nn
from eqmdm.cli.evaluate import program as evaluate
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.solver_study import program as solver_study
from eqmdm.cli.solver_study.options import SolverStudyOptions
from eqmdm.cli.train import program as train
from eqmdm.cli.train.options import TrainOptions
from eqmdm.data import Dataset, load
from own_files import grey, write_csv, write_folder


TINY = "--diffusion=vpsde --t-range 0.001 1 --steps=4 --log-every=2 --batch-size=8 "
TINY += "--validate-every=4 --checkpoint-every=2 --width=8 --n-blocks=1 --n-samples=6 "
TINY += "--sample-steps=3 --test-draws=2 --learning-rate=0.1 --warmup=1"
# The batch of the training, so that the programs share its compiled bound.
BOUND = "--route=elbo --draws=4 --examples=9 --batch-size=8".split()
NUMBERS = "--data=table.csv --columns=x,y --condition=a,b --drop-condition=0 "
NUMBERS += "--label-column=none"
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module", autouse=True)
def programs():
    with single_precision(), shared_optimisers(), pytest.MonkeyPatch.context() as patch:
        for program in (evaluate, sample, solver_study):
            patch.setattr(program, "load_trained", load_once)
        yield


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("conditions")
    with working_in(directory):
        yield directory


def _table(n=90):
    random = np.random.default_rng(0)
    classes = np.arange(n) % 3
    first = random.normal(size=n)
    return {
        "x": first + 4 * classes,
        "y": random.normal(size=n),
        "a": np.round(first, 3),
        "b": random.integers(0, 9, n),
        "label": np.asarray(CLASSES)[classes],
    }


def _run(program, options, *arguments):
    program.run(parse(options, list(map(str, arguments))))


@pytest.fixture(scope="module")
def by_label(directory):
    write_csv(directory / "table.csv", _table(450))
    arguments = ["--data=table.csv", "--columns=x,y", "--condition=label"]
    _run(train, TrainOptions, *TINY.split(), *arguments, "--run-dir=by-label")
    return directory / "by-label"


@pytest.fixture(scope="module")
def by_numbers(directory):
    """A run that was stopped before its first step."""
    write_csv(directory / "table.csv", _table(450))
    return make_run(directory / "by-numbers", *TINY.split(), *NUMBERS.split())


# ----- Data sets


def test_columns_of_a_table_are_conditions_in_every_split(directory):
    table = _table()
    write_csv(directory / "t.csv", table)
    dataset = load("t.csv", condition=["a", "b"])
    # By default the examples are the other columns.
    assert dataset.shape == (2,)
    assert ", conditions in a, b;" in dataset.description
    known = {
        (a, b): x for a, b, x in zip(table["a"], table["b"], table["x"], strict=True)
    }
    n = 0
    for split in ("train", "validation", "test"):
        conditions = getattr(dataset.conditions, split)
        x = dataset.standardisation.inverse(getattr(dataset, split))
        assert len(conditions) == len(x)
        for (a, b), value in zip(conditions.tolist(), x[:, 0], strict=True):
            assert_allclose(known[round(a, 3), int(b)], value, rtol=1e-4)
            n += 1
    assert n == 90


def test_labels_are_conditions_by_their_name(directory):
    write_csv(directory / "t.csv", _table())
    dataset = load("t.csv", condition="label", columns=["x"])
    for split in ("train", "validation", "test"):
        labels = getattr(dataset.labels, split)
        assert_array_equal(getattr(dataset.conditions, split), labels)
    assert load("digits", condition="label").conditions is not None
    assert load("digits").conditions is None


def test_arrays_and_functions_have_conditions_of_that_name(directory):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    c = np.arange(40, dtype=np.float32)[:, None]
    np.savez(directory / "x.npz", train=x, conditions=c)
    dataset = load("x.npz", condition="conditions", standardise=False)
    order = dataset.conditions.train[:, 0].astype(int)
    assert_array_equal(dataset.train, x[order])
    assert load("x.npz").conditions is None
    (directory / "own_conditions.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    x = np.arange(40.0)[:, None]\n"
        "    return {'train': x, 'conditions': 2 * x}\n"
    )
    dataset = load("own_conditions:data", condition="conditions", standardise=False)
    assert_array_equal(dataset.conditions.test, 2 * dataset.test)


def test_images_are_conditioned_on_their_folders_and_on_columns(directory):
    write_folder(directory / "pictures", grey(30), CLASSES)
    dataset = load("pictures", condition="label")
    assert dataset.labels.names == CLASSES
    assert_array_equal(dataset.conditions.train, dataset.labels.train)
    paths = sorted((directory / "pictures").rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    rows = {"image": images, "angle": np.arange(30.0)}
    features = datasets.Features(
        image=datasets.Image(), angle=datasets.Value("float64")
    )
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(directory / "angles.parquet"))
    for in_memory in (True, False):
        dataset = load("angles.parquet", condition="angle", in_memory=in_memory)
        assert dataset.conditions.train.shape == (24, 1)
        assert sorted(np.concatenate([*dataset.conditions])[:, 0]) == list(range(30))


@pytest.mark.parametrize(
    "name, choices, match",
    [
        (
            "t.csv",
            {"condition": "c"},
            "`condition` must be label, or name columns of .*c",
        ),
        (
            "t.csv",
            {"condition": "label", "label_column": "none", "columns": ["x"]},
            "has no labels",
        ),
        ("t.csv", {"condition": ["label"], "columns": ["x"]}, None),
        ("t.csv", {"condition": ["a", "label"]}, "must hold a number"),
        ("mixture", {"condition": "label"}, "which has no labels"),
        ("digits", {"condition": ["a"]}, "`condition` must be left out for digits"),
        ("x.npy", {"condition": "a"}, "must be label or conditions"),
        ("x.npy", {"condition": "conditions"}, "no array of that name"),
    ],
)
def test_conditions_that_are_not_there_are_named(name, choices, match, directory):
    write_csv(directory / "t.csv", _table())
    np.save(directory / "x.npy", np.zeros((20, 2), np.float32) + np.arange(2))
    if match is None:
        assert load(name, **choices).conditions is not None
        return
    with pytest.raises(ValueError, match=match):
        load(name, **choices)


@pytest.mark.parametrize(
    "conditions, match",
    [
        (np.zeros(3), "`conditions` must hold one for each example"),
        (np.full(20, np.inf), "`conditions.train` must be"),
        ("label", '"label" together with `labels`; got .* without labels'),
        ("other", '`conditions` must be arrays, or "label"'),
        ((np.zeros(20), np.zeros(20)), "`conditions` must be a tuple of one array"),
    ],
)
def test_arrays_of_conditions_are_checked(conditions, match):
    with pytest.raises(ValueError, match=match):
        Dataset.from_arrays(np.arange(40.0).reshape(20, 2), conditions=conditions)


# ----- Programs


def test_a_conditional_run_is_loaded_with_its_condition(by_label, by_numbers):
    model = eqmdm.load_run(by_label)
    assert model.network.network.condition == nn.ClassCondition(3)
    kind = eqmdm.load_run(by_numbers).network.network.condition
    conditions = load("table.csv", columns=["x", "y"], condition=["a", "b"]).conditions
    assert_allclose(kind.mean, conditions.train.mean(axis=0), rtol=1e-5)
    facts = json.loads((by_label / "options.json").read_text())["options"]
    assert facts["data"]["condition"] == {"n_classes": 3, "names": list(CLASSES)}


def test_a_conditional_run_resumes(by_label):
    # A copy, since the other tests load the run once.
    resumed = shutil.copytree(by_label, "resumed")
    arguments = ["--data=table.csv", "--columns=x,y", "--condition=label", "--resume"]
    arguments += [f"--run-dir={resumed}", "--steps=6", "--validate-every=4"]
    tiny = [a for a in TINY.split() if not a.startswith("--steps")]
    _run(train, TrainOptions, *tiny, *arguments)
    assert max(eqmdm.Run(resumed).steps) == 6


def _samples(run, *arguments):
    _run(sample, SampleOptions, run, "--n-samples=6", "--steps=3", *arguments)


def test_samples_of_classes_in_turn_and_of_one(by_label, no_pictures):
    _samples(by_label, "--output-dir=in-turn")
    _samples(by_label, "--output-dir=all-bees", "--condition=bee")
    _samples(by_label, "--output-dir=all-ones", "--condition=1")
    with (
        np.load("in-turn/samples.npz") as turn,
        np.load("all-bees/samples.npz") as bees,
    ):
        # Samples 1 and 4 are bees in both, from the same noise.
        assert_allclose(turn["samples"][1::3], bees["samples"][1::3], rtol=1e-4)
        assert not np.allclose(turn["samples"][0], bees["samples"][0], rtol=1e-2)
        assert json.loads(str(bees["settings"]))["condition"] == "bee"
        with np.load("all-ones/samples.npz") as ones:
            assert_array_equal(ones["samples"], bees["samples"])


def test_guided_samples_differ_and_are_recorded(by_label):
    _samples(by_label, "--condition=2")
    _samples(
        by_label, "--condition=2", "--guidance=2", "--guidance-interval", "-3", "4"
    )
    plain, guided = by_label / "samples-dpm-3-2", by_label / "samples-dpm-3-2-guided2"
    with np.load(plain / "samples.npz") as one, np.load(guided / "samples.npz") as two:
        assert not np.allclose(one["samples"], two["samples"], rtol=1e-6)
        settings = json.loads(str(two["settings"]))
    # Twice the four evaluations of three steps.
    assert settings["evaluations_per_sample"] == 8
    assert settings["guidance"] == 2 and settings["guidance_interval"] == [-3, 4]


def test_samples_given_numbers_and_those_of_test_examples(by_numbers, no_pictures):
    _samples(by_numbers, "--output-dir=of-test")
    _samples(by_numbers, "--output-dir=of-numbers", "--condition=0.5,nan")
    with np.load("of-numbers/samples.npz") as found:
        assert np.isfinite(found["samples"]).all()


def test_an_evaluation_uses_the_conditions_of_its_examples(by_label, no_pictures):
    _run(evaluate, EvaluateOptions, by_label, *BOUND, "--by=label")
    _run(evaluate, EvaluateOptions, by_label, *BOUND, "--unconditional")
    reports = [
        json.loads((by_label / f"evaluation-elbo-test{end}/report.json").read_text())
        for end in ("", "-unconditional")
    ]
    own, without = (report["terms"]["total"]["mean"] for report in reports)
    assert own != without
    assert reports[1]["settings"]["unconditional"] is True


@pytest.mark.parametrize("route", ["elbo", "collapsed"])
def test_classification_agrees_with_the_library(by_label, route, no_pictures):
    arguments = BOUND if route == "elbo" else [f"--route={route}", "--examples=9"]
    arguments = [*arguments, "--classify", "--format=csv"]
    _run(evaluate, EvaluateOptions, by_label, *arguments)
    directory = by_label / f"classification-{route}-test"
    found = json.loads((directory / "classification.json").read_text())
    assert found["n_examples"] == 9 and found["n_classes"] == 3
    assert np.sum(found["confusion"]) == 9
    assert (directory / "calibration.png").exists()
    assert "log loss" in (directory / "classification.csv").read_text()
    if route == "elbo":
        return
    # The same likelihoods, in the units that the model sees.
    dataset = load("table.csv", columns=["x", "y"], condition="label")
    model = eqmdm.load_run(by_label)
    log_p = np.stack(
        [
            eqmdm.class_log_probabilities(model, x, 3, key=jr.key(0))
            for x in jnp.asarray(dataset.test[:9], jnp.float32)
        ]
    )
    labels = dataset.labels.test[:9]
    # The two solve in different batches. Each of some 250 steps may be wrong by the
    # tolerance, 1e-5, for the label and for the other classes.
    assert_allclose(
        found["log_loss"][0], -log_p[np.arange(9), labels].mean(), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize(
    "program, options, run, arguments, match",
    [
        (
            sample,
            SampleOptions,
            "by-label",
            ["--condition=wasp"],
            "ant, bee, cat, or none",
        ),
        (
            sample,
            SampleOptions,
            "by-label",
            ["--condition=3"],
            "must be a class of this",
        ),
        (
            sample,
            SampleOptions,
            "by-numbers",
            ["--condition=1"],
            "2 numbers separated by",
        ),
        (sample, SampleOptions, "by-numbers", ["--guidance=2"], "--drop-condition 0"),
        (
            sample,
            SampleOptions,
            "by-numbers",
            ["--condition=none"],
            "--drop-condition 0",
        ),
        (
            sample,
            SampleOptions,
            "by-label",
            ["--guidance-interval", "-3", "4"],
            "must come with a `?--guidance",
        ),
        (evaluate, EvaluateOptions, "by-numbers", ["--classify"], "--condition label"),
        (evaluate, EvaluateOptions, "by-numbers", ["--unconditional"], "--drop-cond"),
        (
            evaluate,
            EvaluateOptions,
            "by-label",
            ["--classify", "--unconditional"],
            "must not both be given",
        ),
    ],
)
def test_programs_refuse_conditions_by_name(
    program, options, run, arguments, match, by_label, by_numbers
):
    line = error_of(lambda given: _run(program, options, run, *given), arguments)
    assert re.search(match, line)


def test_a_solver_study_of_a_conditional_run(by_label):
    arguments = ["--n-samples=40", "--evaluations=4", "--solvers=dpm"]
    arguments += ["--reference-samples=6", "--reference-steps=3"]
    arguments += ["--output-dir=study"]
    _run(solver_study, SolverStudyOptions, by_label, *arguments)
    with Path("study/study.csv").open() as file:
        rows = {row["solver"]: row for row in csv.DictReader(file)}
    assert float(rows["dpm"]["reference_rms"]) > 0


@pytest.mark.slow
def test_a_run_is_trained_on_numbers(directory):
    write_csv(directory / "table.csv", _table(450))
    arguments = [*TINY.split(), *NUMBERS.split(), "--run-dir=on-numbers"]
    _run(train, TrainOptions, *arguments)
    assert (directory / "on-numbers" / "test_bound.json").exists()


@pytest.mark.slow
def test_conditions_of_images_are_classes_of_their_folders(directory):
    write_folder(directory / "pictures", grey(30), CLASSES)
    arguments = ["--data=pictures", "--condition=label", "--network=unet", "--width=8"]
    arguments += ["--multipliers", "1", "--run-dir=pictures-run"]
    _run(train, TrainOptions, *TINY.split(), *arguments)
    assert (directory / "pictures-run" / "samples.png").exists()
