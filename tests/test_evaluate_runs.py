"""Tests of the models that are evaluated, and of options that are wrong."""

import dataclasses
import json
import re
import shutil

import jax.random as jr
import numpy as np
import pytest
from evaluations import (
    BOUND,
    FEW,
    error_line,
    evaluate,
    options_of,
    trained_of,
)
from script_runs import POINTS, load_once, make_newer, make_run

import eqmdm
from eqmdm.cli.evaluate import program
from eqmdm.cli.evaluate.settings import resolve
from helpers import slow


pytestmark = pytest.mark.usefixtures("in_float32", "no_pictures")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


@pytest.mark.parametrize("ends", [slow(()), (0.01, 0.8)], ids=["own", "other"])
def test_denoiser_is_evaluated_under_another_diffusion(points, tmp_path, ends):
    arguments = ["--diffusion=cld", *FEW, "--route=elbo"]
    if ends:
        arguments += ["--t-range", *map(str, ends)]
    columns = evaluate(points, tmp_path, *arguments)
    trained = trained_of(points)
    vpsde = trained.model.diffusion
    low, high = (float(vpsde.log_snr(t)) for t in (vpsde.t1, vpsde.t0))
    interval = eqmdm.TimeInterval(*ends) if ends else eqmdm.LogSNRInterval(low, high)
    diffusion = eqmdm.CLD(interval=interval)
    other = dataclasses.replace(trained, model=trained.model.under(diffusion))
    expected = eqmdm.evaluate(
        # On the devices and in the form of the program, which compiled the same.
        other.over_devices(7).model,
        eqmdm.data.load("mixture").test[3:24],
        eqmdm.Objective(
            form=eqmdm.LowVariance(), time_sampler=eqmdm.LogSNRTimeSampler()
        ),
        key=jr.fold_in(jr.key(0), BOUND),
        n_draws=8,
        batch_size=7,
        first=3,
    )
    np.testing.assert_allclose(columns["total"], expected.terms["total"], rtol=1e-5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["diffusion"] == "cld"
    high = float(diffusion.log_snr(diffusion.t0))
    np.testing.assert_allclose(report["log_snr_range"][1], high, rtol=1e-6)


def test_last_parameters_are_evaluated_without_ema(points, tmp_path):
    used = {}
    for ema in (True, False):
        directory = tmp_path / str(ema)
        evaluate(points, directory, *FEW, "--route=elbo", *["--no-ema"] * (not ema))
        used[ema] = json.loads((directory / "settings.json").read_text())["parameters"]
        kind = "averaged" if ema else "last"
        assert f", {kind} parameters" in (directory / "report.txt").read_text()
    for ema in (True, False):
        assert used[ema] == trained_of(points, ema=ema).parameters
    assert used[True] != used[False]
    default = resolve(options_of(points, *FEW, "--no-ema"), trained_of(points))
    assert default.output_dir.name.endswith("-last")


def test_free_score_is_refused_other_ends(free):
    line = error_line(free, "--t-range", "0.01", "1")
    assert "--diffusion must be vpsde alone, and its interval must be left out" in line


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--first=10000"], "--first must be below 10000"),
        (["--first=5", "--examples=9996"], "--examples must be at most 9995"),
        (["--examples=0"], "--examples must be at least 1; got 0"),
        (["--draws=0"], "--draws must be at least 1; got 0"),
        (["--draws=2"], "--draws must be left out for points"),
        (["--probes=0"], "--probes must be at least 1; got 0"),
        (["--probes=2", "--divergence=exact"], "--probes must be left out"),
        (["--aux-draws=0"], "--aux-draws must be at least 1; got 0"),
        (["--aux-draws=2"], "--aux-draws must be left out on the route collapsed"),
        (["--route=elbo", "--probes=2"], "--probes must be left out on the route elbo"),
        (["--focus"], "--focus must be left out on the route collapsed"),
        (["--route=elbo", "--focus", "1"], "--focus must be two increasing log-SNRs"),
        (
            ["--tolerance=1e-9"],
            "--tolerance must be at least 4.8e-07, .*float32.*1e-09",
        ),
        (
            ["--solver=tsit"],
            "--solver must be an ODE.*'tsit'. Did you mean tsit5.* names are",
        ),
        (
            ["--solver=shark"],
            "--solver must be an ODE solver that estimates its error.*'shark'",
        ),
        (["--clock=time"], "--clock must be angle or log_snr on the route collapsed"),
        (["--data-dir=/nowhere"], "--data-dir must not be given for mixture"),
    ],
)
def test_wrong_options_are_refused(points, arguments, message):
    assert re.search(message, error_line(points, *arguments))


def test_collapsed_route_is_refused_for_a_free_score(free):
    error = error_line(free, "--route=collapsed")
    assert "--route must be augmented or elbo" in error and "got collapsed" in error


def test_clock_that_the_diffusion_cannot_invert_is_refused(points, monkeypatch):
    def refuse(*_, **how):
        assert isinstance(how["clock"], eqmdm.LogSNRClock)
        raise ValueError("its log signal-to-noise ratio stands still")

    # A diffusion for which it does takes long to compile.
    monkeypatch.setattr(eqmdm, "probability_flow", refuse)
    error = error_line(points, "--route=augmented", "--clock=log_snr")
    assert "--clock must be time" in error and "got log_snr" in error


def test_ode_needs_levels_made_continuous(logit_digits, tmp_path):
    run = shutil.copytree(logit_digits, tmp_path / "run")
    facts = json.loads((run / "options.json").read_text())
    facts["options"] |= {"dequantisation": "discrete", "decoder": "discrete"}
    (run / "options.json").write_text(json.dumps(facts))
    error = error_line(run, "--route=collapsed")
    assert "--dequantisation must be given" in error
    assert "Use --dequantisation uniform" in error


def test_wrong_runs_are_refused(tmp_path):
    assert "RUN must be a directory that `eqmdm train` wrote" in error_line(tmp_path)
    run = make_run(tmp_path / "run", *POINTS, checkpoint=False)
    assert "RUN must have a checkpoint" in error_line(run)
    assert "from a newer eqmdm" in (error := error_line(make_newer(run)))
    assert "99.0.0" in error and "Upgrade" in error


@pytest.mark.parametrize("change", ["data_fingerprint", "width", "own"])
def test_run_of_another_program_is_refused(points, tmp_path, change):
    run = shutil.copytree(points, tmp_path / "run")
    facts = json.loads((run / "options.json").read_text())
    if change == "own":
        facts["options"]["own"] = 3
    else:
        del facts["options"][change]
    (run / "options.json").write_text(json.dumps(facts))
    error = error_line(run)
    assert "RUN must be the directory of a run of `eqmdm train`" in error
    assert change in error and "load_run" in error
