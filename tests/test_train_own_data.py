"""Tests of the programs on the user's own data."""

import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from script_runs import (
    error_of,
    make_run,
    shared_optimisers,
    single_precision,
    working_in,
)

import eqmdm
from eqmdm.cli.evaluate import program as evaluate
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.train import program as train
from eqmdm.cli.train.defaults import DEFAULTS, defaults_by_size
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import load_trained
from eqmdm.data import Dataset, load
from own_files import colour, grey, write_csv, write_folder


TINY = "--diffusion=vpsde --t-range 0.001 1 --steps=2 --log-every=1 --batch-size=4 "
TINY += "--validate-every=2 --checkpoint-every=2 --width=8 --n-blocks=1 --n-samples=3 "
TINY += "--test-draws=2 --test-examples=4"
# As in the test of samples below, so that the sampler compiles once.
SAMPLES = "--n-samples=50", "--sample-steps=20"
STD = np.asarray([0.01, 1e4])


@pytest.fixture(scope="module", autouse=True)
def programs():
    with single_precision(), shared_optimisers():
        yield


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
    """The working directory, in which paths are relative."""
    directory = tmp_path_factory.mktemp("own")
    with working_in(directory):
        yield directory


def _columns(n=60, seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    return {"x": 5 + STD[0] * rng.normal(size=n), "y": STD[1] * rng.normal(size=n)}


def _train(*arguments):
    train.run(parse(TrainOptions, [*TINY.split(), *map(str, arguments)]))


def _processor_seconds(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    known = [json.loads(line).get("processor_seconds") for line in lines]
    return [seconds for seconds in known if seconds is not None]


@pytest.fixture(scope="module")
def finished(directory):
    write_csv(directory / "own.csv", _columns())
    _train("--data=own.csv", "--run-dir=run", *SAMPLES)
    return directory / "run"


def test_run_on_a_table_keeps_what_it_found(finished):
    facts = json.loads((finished / "options.json").read_text())
    dataset = load(finished.parent / "own.csv")
    assert facts["data_found"] == dataset.description
    assert facts["options"]["data_fingerprint"] == dataset.fingerprint
    assert Path(facts["options"]["dataset"]) == finished.parent / "own.csv"
    assert facts["options"]["network"] == "mlp"


def test_metrics_have_the_processor_time_of_the_run(finished):
    first, second = _processor_seconds(finished)
    assert 0 < first < second


def test_bounds_of_a_table_have_the_jacobian_of_its_units(finished):
    bound = json.loads((finished / "test_bound.json").read_text())
    scale = load(finished.parent / "own.csv").standardisation
    expected = -np.sum(np.log(scale.std))
    assert np.isclose(bound["terms"]["data_transform"]["mean"], expected, rtol=1e-6)
    # Of the standard deviations that the table was drawn with, each to about a tenth.
    assert abs(expected + np.sum(np.log(STD))) < 0.6


@pytest.mark.parametrize("route", ["elbo", "collapsed"])
def test_likelihoods_of_a_table_are_in_its_units(route, finished, monkeypatch, capsys):
    # From another directory than that of the run, its data are found too.
    monkeypatch.chdir(finished)
    output = finished.parent / route
    # As many as in a batch of the training, so that the two share the compiled bound.
    arguments = [finished, f"--route={route}", "--examples=4", f"--output-dir={output}"]
    evaluate.run(parse(EvaluateOptions, list(map(str, arguments))))
    report = json.loads((output / "report.json").read_text())
    scale = load(finished.parent / "own.csv").standardisation
    found = report["terms"]["data_transform"]["mean"]
    assert np.isclose(found, scale.log_jacobian, rtol=1e-6)
    capsys.readouterr()


def test_samples_of_a_table_are_in_its_units(finished):
    output = finished.parent / "samples"
    arguments = [finished, "--n-samples=50", f"--output-dir={output}", "--steps=20"]
    sample.run(parse(SampleOptions, list(map(str, arguments))))
    (path,) = output.glob("*.npz")
    samples = np.load(path)["samples"]
    # Untrained, it samples normal data of the standard deviation of the training split.
    assert np.all(np.abs(samples.mean(0) - [5, 0]) < 1.5 * STD)
    assert np.all((samples.std(0) > 0.5 * STD) & (samples.std(0) < 2 * STD))


def test_likelihood_of_a_standardised_table_is_the_closed_form(key):
    mean, std = np.asarray([3.0, -1e5]), np.asarray([1e-3, 7e4])
    rows = mean + std * np.random.Generator(np.random.PCG64(0)).normal(size=(4000, 2))
    dataset = Dataset.from_arrays(rows, standardise=True)
    # The exact model of standard normal data.
    denoiser = lambda log_snr, z: z / (1 + jnp.exp(-log_snr))
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-12.0, 13.3))
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    scale = dataset.standardisation
    objective = eqmdm.Objective(log_jacobian=scale.log_jacobian)
    test = dataset.test[:200]
    found = eqmdm.evaluate(model, test, objective, key=key, n_draws=64)
    x = scale.inverse(test)
    expected = -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    error = np.sqrt(np.mean(found.standard_error**2) / len(test))
    # And a training split of 3,200 for mean and deviation: of second order in their
    # errors, which are 1 / sqrt(3200).
    difference = np.mean(found.terms["total"] - expected.sum(1))
    assert error < 0.05
    assert abs(difference) < 5 * error + 2 * 5 / np.sqrt(3200)
    assert abs(np.mean(expected.sum(1)) - np.mean(found.terms["total"])) < 1
    with pytest.raises(ValueError, match="`log_jacobian` must be left out"):
        eqmdm.Objective(levels=eqmdm.GreyLevels(256), log_jacobian=1.0)


def test_fit_takes_the_units_of_a_dataset(key):
    dataset = Dataset.from_arrays(np.stack([*_columns().values()], 1), standardise=True)
    network = eqmdm.nn.MLP((2,), 1, width=4, depth=1, key=key)
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    events = []
    options = {"steps": 1, "batch_size": 4, "log_every": 1, "validate_every": 1}
    eqmdm.fit(model, dataset, key=jr.key(0), callbacks=[events.append], **options)
    jacobian = np.float32(dataset.standardisation.log_jacobian)
    logged = [event.metrics for event in events if event.kind == "log"]
    validated = [event.evaluation for event in events if event.kind == "validation"]
    assert len(logged) == len(validated) == 1
    assert np.allclose(logged[0]["data_transform"], jacobian, rtol=1e-6)
    assert np.allclose(validated[0].terms["data_transform"], jacobian, rtol=1e-6)


def test_run_is_resumed_on_the_same_data_alone(finished, capsys):
    run = Path(shutil.copytree(finished, finished.parent / "resumed"))
    _train("--data=own.csv", f"--run-dir={run}", "--resume", "--steps=4", *SAMPLES)
    assert "resuming from step 2" in capsys.readouterr().out
    # The time of this process until then counts in both sittings.
    seconds = _processor_seconds(run)
    assert len(seconds) == 4 and seconds[2] > 2 * seconds[1]
    path = finished.parent / "changed.csv"
    write_csv(path, _columns(seed=1))
    options = parse(
        TrainOptions,
        [
            *TINY.split(),
            "--data=own.csv",
            f"--data-dir={path}",
            f"--run-dir={run}",
            "--resume",
        ],
    )
    assert "data_fingerprint" in error_of(train.run, options)
    with pytest.raises(ValueError, match="`data_dir` must hold the .*own.csv data of"):
        load_trained(run, data_dir=str(path))
    # The same data in another place.
    write_csv(finished.parent / "moved.csv", _columns())
    assert load_trained(run, data_dir="moved.csv").step == 4


def test_run_from_before_there_were_these_options_is_loaded(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    path = run / "options.json"
    facts = json.loads(path.read_text())
    for name in ("network", "columns", "standardise", "test_fraction", "image_size"):
        del facts["options"][name]
    path.write_text(json.dumps(facts))
    assert load_trained(run, data_dir=None).step == 2
    del facts["options"]["width"]
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="another program.*width"):
        load_trained(run, data_dir=None)


@pytest.mark.slow
def test_images_of_any_size_are_trained_on(directory, capsys):
    write_folder(directory / "images", colour(24, (5, 7)))
    _train("--data=images", "--run-dir=images-run", "--multipliers", "1", "1")
    out = capsys.readouterr().out
    assert "2 classes in column `label`; examples of 5x7x3, 256 levels" in out
    assert "by the size of examples: --network unet --steps" not in out
    trained = load_trained(directory / "images-run", data_dir=None)
    assert trained.dataset.labels.names == ("cat", "dog")
    assert (directory / "images-run" / "samples.png").stat().st_size > 0


@pytest.mark.slow
def test_sixteen_bit_images_are_trained_on(directory):
    write_folder(directory / "deep", grey(40, (4, 4), dtype=np.uint16))
    _train(
        "--data=deep",
        "--run-dir=deep-run",
        "--multipliers",
        "1",
        "--test-draws=64",
        "--test-fraction=0.5",
        "--test-examples=20",
    )
    bound = json.loads((directory / "deep-run" / "test_bound.json").read_text())
    bits = bound["terms"]["bits_per_dim"]
    # A network that is hardly trained takes uniform levels for normal ones of the same
    # standard deviation, 1 / sqrt(3) in units of which a level is 2**-15.
    expected = 15 + (0.5 + 0.5 * np.log(2 * np.pi / 3)) / np.log(2)
    assert abs(bits["mean"] - expected) < 5 * bits["standard_error"]
    assert bits["standard_error"] < 0.5


def test_code_is_not_run_for_being_named_by_a_run(directory):
    code = "import numpy as np\ndef points():\n"
    code += "    open('ran', 'w').close()\n    return np.arange(60.0).reshape(30, 2)\n"
    (directory / "own_code.py").write_text(code)
    make_run(directory / "code-run", *TINY.split(), "--data=own_code:points")
    (directory / "ran").unlink()
    with pytest.raises(ValueError, match="because code is not run.*own_code:points"):
        load_trained(directory / "code-run", data_dir=None)
    assert not (directory / "ran").exists()
    load_trained(directory / "code-run", data_dir="own_code:points")
    assert (directory / "ran").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data=absent.csv"], "--data must be a file or a folder that exists"),
        (["--data=mnits"], "--data must be one of digits.*Did you mean 'mnist'"),
        (["--dataset=digits", "--columns=a"], "--columns must be left out for digits"),
        (["--data=own.csv", "--columns=x,z"], "--columns must name columns.*no `z`"),
        (["--data=own.csv", "--test-fraction=2"], "--test-fraction must be between"),
        (["--data=own.csv", "--network=unet"], "--network must be mlp for examples"),
        (["--data=own.csv", "--image-size=3"], "--image-size must be left out for a t"),
        (["--data=own.csv", "--stream"], "without --stream"),
        (["--data=own.csv", "--n-levels=3"], "--n-levels must be left out"),
    ],
    ids=lambda value: "".join(value[1:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_data_are_one_line_that_names_the_option(arguments, message, finished):
    options = parse(TrainOptions, [*TINY.split(), "--run-dir=wrong", *arguments])
    assert re.search(message, error_of(train.run, options))
    assert not Path("wrong").exists()


def test_defaults_by_size_are_those_of_the_known_data_of_that_size():
    sizes = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "mixture": (2,)}
    for name, shape in sizes.items():
        n_levels = None if name == "mixture" else 256
        # Only for known data is it known that some levels are frequent.
        known = DEFAULTS[name] | {"preconditioning": "normal"}
        assert defaults_by_size(shape, n_levels, None) == known
    large = defaults_by_size((256, 192, 3), 256, None)
    # Batches of as many pixels, and levels down to a side of 12.
    assert large["multipliers"] == (1, 2, 2, 2, 2) and large["batch_size"] == 8
    assert defaults_by_size((32, 32, 3), 256, "mlp")["network"] == "mlp"
    assert defaults_by_size((100, 3), None, None)["width"] == 512
    assert defaults_by_size((9, 9, 3), None, "unet")["network"] == "unet"


@pytest.mark.parametrize("n_levels", [None, 17])
def test_model_for_data_has_their_scale_and_the_range_of_its_diffusion(n_levels, key):
    rng = np.random.Generator(np.random.PCG64(0))
    if n_levels is None:
        data = 0.3 + 2 * rng.normal(size=(500, 2))
        expected = np.sqrt(np.mean(data**2))
    else:
        levels = rng.integers(5, 17, size=(60, 4, 4, 1))
        data = Dataset.from_arrays(levels, n_levels=17)
        values = 2 * (data.train + 0.5) / 17 - 1
        expected = np.sqrt(np.mean(values**2))
    shape = (2,) if n_levels is None else data.shape
    network = eqmdm.nn.MLP(shape, 1, width=4, depth=1, key=key)
    diffusion = eqmdm.CLD()
    model = eqmdm.DenoiserModel.for_data(network, diffusion, data)
    # The transform of levels is computed in float32.
    assert np.isclose(model.data_std, expected, rtol=1e-6)
    low, high = model.log_snr_range
    ends = [float(diffusion.log_snr(t)) for t in (diffusion.t1, diffusion.t0)]
    # Above 14 the posterior of normal data serves.
    assert low < ends[0] < low + 0.02 and high == 14 < ends[1]
    with pytest.raises(TypeError, match="`data` must be floating-point"):
        eqmdm.DenoiserModel.for_data(network, diffusion, np.arange(6).reshape(3, 2))


@pytest.mark.slow
def test_lines_of_the_readme_train(directory, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.split("## Train on your own data\n")[1].split("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 2
    assert all(lines.count("\n") <= 6 for lines in examples)
    write_folder(directory / "pictures", grey(12, (4, 4)))
    monkeypatch.chdir(directory)
    counted = {"steps=500": "steps=2", "steps=10_000": "steps=2", "n_samples=1000": ""}
    counted |= {"width=32": "width=4, multipliers=(1,)"}
    for lines in examples:
        assert any(long in lines for long in counted)
        for long, short in counted.items():
            lines = lines.replace(long, short)
        names = {"eqmdm": eqmdm, "jr": jr}
        exec(lines, names)
        assert isinstance(names["model"], eqmdm.AbstractModel)
