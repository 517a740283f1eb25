"""Tests of the programs on runs of `eqmdm train --snr vector`."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from evaluations import BOUND, evaluate
from script_runs import (
    DIGITS,
    POINTS,
    copy_run,
    error_of,
    load_once,
)

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.bases import basis_of, fit_basis
from eqmdm.cli.evaluate import program as evaluate_program
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample_program
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.train.options import TrainOptions
from helpers import slow_but, tree_allclose


pytestmark = pytest.mark.usefixtures("in_float32", "no_pictures")

BASES = {
    "pixels": eqmdm.PixelBasis,
    "haar": eqmdm.HaarBasis,
    "cosine": eqmdm.CosineBasis,
    "principal-components": eqmdm.PrincipalComponents,
}


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(evaluate_program, "load_trained", load_once)
    monkeypatch.setattr(sample_program, "load_trained", load_once)


@pytest.fixture(
    scope="module",
    params=slow_but(["haar"], BASES),
)
def run_in_basis(request, in_float32, tmp_path_factory):
    """A run that was stopped before its first step, and its kind of basis."""
    directory = tmp_path_factory.mktemp("vector") / "run"
    arguments = *DIGITS, "--snr=vector", f"--basis={request.param}"
    return copy_run(directory, *arguments), BASES[request.param]


def test_run_loads_with_its_basis(run_in_basis, tmp_path):
    run, cls = run_in_basis
    model = eqmdm.load_run(run)
    assert model.takes_snr_vector
    basis = basis_of(model)
    assert type(basis) is cls
    trained = load_once(run, data_dir=None)
    fitted = fit_basis(trained.options, trained.dataset)
    # Equal to the last bit, as stored.
    x = jr.normal(jr.key(0), basis.shape)
    forward = eqx.filter_jit(lambda basis: basis.forward(x))
    assert tree_allclose(forward(basis), forward(fitted), rtol=0.0, atol=0.0)
    eqmdm.save_pretrained(model, tmp_path / "shared", run_dir=run)
    shared = eqmdm.load_pretrained(tmp_path / "shared")
    log_snr = jnp.linspace(-4.0, 9.0, x.size).reshape(x.shape)
    denoise = eqx.filter_jit(lambda model: model.denoise(log_snr, x))
    denoised = [denoise(m) for m in (model, shared)]
    assert np.isfinite(denoised[0]).all()
    assert tree_allclose(*denoised, rtol=0.0, atol=0.0)


def test_samples_are_pixels(run_in_basis, tmp_path):
    run, _ = run_in_basis
    arguments = ["--n-samples=3", "--steps=2", f"--output-dir={tmp_path}"]
    sample_program.run(parse(SampleOptions, [str(run), *arguments]))
    trained = load_once(run, data_dir=None)
    x = eqmdm.sample(
        # On the devices of the program, which compiled the same.
        trained.over_devices(3).model,
        trained.dataset.shape,
        key=build.purpose_key(0, build.Purpose.SAMPLES),
        n_samples=3,
        n_steps=2,
        dtype=trained.dtype,
    )
    x = np.asarray(x)
    inverse = basis_of(trained.model).inverse
    decode = jax.jit(lambda x: eqmdm.GreyLevels(17).decode(jax.vmap(inverse)(x)))
    expected = np.asarray(decode(x))
    found = np.load(tmp_path / "samples.npz")["samples"]
    # Rounding moves few pixels, if any, over the edge of a level.
    assert (found == expected).mean() > 0.99
    # Without the basis, by default the same is found from the data.
    again = build.decode(trained.options, trained.dataset, x)
    assert (again == found).mean() > 0.99


def test_bounds_are_those_of_the_coefficients(run_in_basis, tmp_path):
    run, _ = run_in_basis
    few = "--first=3 --examples=5 --batch-size=5 --draws=2".split()
    table = evaluate(run, tmp_path, *few, "--route=elbo")
    trained = load_once(run, data_dir=None)
    # What the bound does not depend on is left out: the vectors of the training.
    objective = eqmdm.Objective(
        levels=eqmdm.GreyLevels(17), basis=basis_of(trained.model)
    )
    expected = eqmdm.evaluate(
        trained.over_devices(5).model,
        trained.dataset.test[3:8],
        objective,
        key=build.purpose_key(0, BOUND),
        n_draws=2,
        batch_size=5,
        first=3,
    )
    # The same sums in float32, of another program.
    assert tree_allclose(
        table["bits_per_dim"], expected.terms["bits_per_dim"], rtol=1e-5, atol=0.0
    )


def test_likelihoods_are_those_of_the_coefficients(
    run_in_basis, digits, solver, tmp_path
):
    run, _ = run_in_basis
    few = "--first=3 --examples=5 --batch-size=5 --route=collapsed".split()
    # The stand-in depends on the data by their norm, which a basis does not change.
    found, expected = (
        evaluate(run, tmp_path / name, *few)["log_likelihood"]
        for name, run in {"told": run, "scalar": digits}.items()
    )
    # Sums of 64 squares of numbers up to 1 in float32.
    assert tree_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_diagnosis_is_that_of_the_library(run_in_basis, tmp_path, capsys):
    run, _ = run_in_basis
    arguments = "--diagnose --examples=4 --draws=1 --batch-size=4".split()
    options = parse(EvaluateOptions, [str(run), *arguments, f"--output-dir={tmp_path}"])
    evaluate_program.run(options)
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "path_dependence.json").read_text())
    assert report["examples"] == 4 and len(report["orders"]) == report["masks"]
    staggering = eqmdm.Estimate(**report["staggering"])
    assert f"less together: {staggering}" in shown
    assert f"{report['rms_order']:.2g} root mean square" in shown


def test_diagnosis_needs_a_denoiser_of_vectors(digits, run_in_basis):
    run, _ = run_in_basis
    line = error_of(
        evaluate_program.run, parse(EvaluateOptions, [str(digits), "--diagnose"])
    )
    assert "--diagnose must be left out for this run" in line
    too_many = ["--diagnose", "--first=100", "--examples=1000"]
    line = error_of(evaluate_program.run, parse(EvaluateOptions, [str(run), *too_many]))
    assert "--examples must be within the test split of 180" in line


def test_points_have_principal_components(in_float32, tmp_path):
    run = copy_run(
        tmp_path / "run", *POINTS, "--snr=vector", "--basis=principal-components"
    )
    arguments = ["--n-samples=3", "--steps=2", f"--output-dir={tmp_path / 'samples'}"]
    sample_program.run(parse(SampleOptions, [str(run), *arguments]))
    assert np.load(tmp_path / "samples" / "samples.npz")["samples"].shape == (3, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--basis=haar"], "`basis` must be left out without --snr vector; got haar"),
        (["--scalar-share=0.6"], "`scalar_share` must be left out without"),
        (["--snr=vector", "--score=free"], "`snr` must be scalar for the free score"),
        (
            ["--snr=vector", "--basis=haar", "--dequantisation=discrete"],
            "`basis` must be pixels for discrete levels",
        ),
        (["--snr=vector", "--scalar-share=1"], "`scalar_share` must be strictly"),
    ],
)
def test_options_that_contradict_one_another_are_refused(arguments, message):
    options = parse(TrainOptions, ["--data=digits", *arguments])
    with pytest.raises(ValueError, match=message):
        options.resolved()


def test_a_run_of_an_earlier_version_is_told_one_snr(digits):
    path = digits / "options.json"
    record = json.loads(path.read_text())
    for name in ("snr", "basis", "scalar_share"):
        del record["options"][name]
    path.write_text(json.dumps(record))
    assert not eqmdm.load_run(digits).takes_snr_vector
