import dataclasses
import json
import re

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from script_runs import (
    POINTS,
    error_of,
    load_once,
    make_newer,
    make_run,
)

import eqmdm
from eqmdm import DiffraxSampler
from eqmdm.cli import plots
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program
from eqmdm.cli.sample.options import SampleOptions


# The purpose of the key.
SAMPLES = 5


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


def _options(run, *arguments):
    return parse(SampleOptions, [str(run), *arguments])


def _sample(run, directory, *arguments):
    program.run(_options(run, *arguments, f"--output-dir={directory}"))
    with np.load(directory / "samples.npz") as file:
        settings = json.loads(str(file["settings"]))
        return file["samples"], file["numbers"], settings


def _error(run, *arguments):
    return error_of(program.run, _options(run, *arguments))


class Sampler:
    """A fast substitute for `eqmdm.sample` with known results."""

    def __init__(self):
        self.calls = []
        self.lost = ()

    def __call__(self, model, shape, **how):
        self.calls.append((model, how))
        numbers = how["first"] + np.arange(how["n_samples"])
        x = np.stack([self.value(number, shape) for number in numbers])
        x[np.isin(numbers, self.lost)] = np.nan
        return jnp.asarray(x, how["dtype"])

    @staticmethod
    def value(number, shape):
        return np.full(shape, np.sin(number))


@pytest.fixture
def sampler(monkeypatch):
    # A picture takes longer to draw than all the rest.
    monkeypatch.setattr(plots, "samples", lambda path, *_, **__: path.touch())
    sampler = Sampler()
    monkeypatch.setattr(eqmdm, "sample", sampler)
    return sampler


def test_samples_are_those_of_the_library(digits, tmp_path, capsys):
    how = "--solver=dpm-1", "--grid=uniform", "--steps=3", "--n-samples=5"
    images, numbers, settings = _sample(digits, tmp_path, *how, "--batch-size=2")
    # On the devices of the program, which compiled the same.
    model = load_once(digits, data_dir=None).over_devices(2).model
    x = eqmdm.sample(
        model,
        (8, 8, 1),
        key=jr.fold_in(jr.key(0), SAMPLES),
        n_samples=2,
        first=2,
        sampler=eqmdm.DPMSolver(order=1, grid=eqmdm.UniformGrid()),
        n_steps=3,
        dtype=np.float32,
    )
    expected = np.asarray(eqmdm.GreyLevels(17).decode(x))
    assert images.dtype == np.uint8 and images.shape == (5, 8, 8, 1)
    # The second batch, by the same program.
    np.testing.assert_array_equal(images[2:4], expected)
    assert images.std() > 1
    np.testing.assert_array_equal(numbers, np.arange(5))
    assert settings["evaluations_per_sample"] == 4
    assert settings["seconds_per_sample"] > 0
    assert (settings["solver"], settings["steps"]) == ("dpm-1", 3)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "4 evaluations of the network" in shown
    assert "s without compilation" in shown


def test_points_are_drawn_by_a_solver_of_diffrax(free, tmp_path):
    how = "--solver=ode-euler", "--steps=2", "--n-samples=3"
    x, _, settings = _sample(free, tmp_path, *how)
    # On the devices of the program, which compiled the same.
    model = load_once(free, data_dir=None).over_devices(3).model
    expected = eqmdm.sample(
        model,
        (2,),
        key=jr.fold_in(jr.key(0), SAMPLES),
        n_samples=3,
        sampler=DiffraxSampler(dfx.Euler(), eqmdm.probability_flow),
        n_steps=2,
        dtype=np.float32,
    )
    # The same program.
    np.testing.assert_array_equal(x, expected)
    assert settings["evaluations_per_sample"] == 3
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--solver=heun"], {"sampler": DiffraxSampler(dfx.Heun()), "n_steps": 50}),
        (
            ["--solver=tsit5", "--clock=log_snr", "--grid=uniform", "--steps=7"],
            {
                "sampler": DiffraxSampler(
                    dfx.Tsit5(),
                    eqmdm.probability_flow,
                    clock=eqmdm.LogSNRClock(),
                    grid=eqmdm.UniformGrid(),
                ),
                "n_steps": 7,
            },
        ),
        (
            ["--grid=rho", "--rho=3"],
            {"sampler": eqmdm.DPMSolver(grid=eqmdm.RhoGrid(3.0)), "n_steps": 50},
        ),
        (
            ["--solver=langevin-dpm", "--grid=quadratic"],
            {
                "sampler": eqmdm.LangevinCorrector(
                    eqmdm.DPMSolver(grid=eqmdm.QuadraticGrid())
                ),
                "n_steps": 50,
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_choose_the_method(points, sampler, tmp_path, arguments, expected):
    _sample(points, tmp_path, *arguments)
    _, how = sampler.calls[-1]
    common = {"key", "n_samples", "first", "dtype", "conditions"}
    assert how.keys() - common == expected.keys()
    assert eqx.tree_equal({name: how[name] for name in expected}, expected)


def test_batches_share_a_size_and_follow_the_numbers(points, sampler, tmp_path):
    x, numbers, settings = _sample(
        points, tmp_path, "--n-samples=7", "--batch-size=3", "--seed=4"
    )
    calls = [(how["first"], how["n_samples"]) for _, how in sampler.calls]
    assert calls == [(0, 3), (3, 3), (6, 3)]
    assert len({str(how["key"]) for _, how in sampler.calls}) == 1
    expected = [sampler.value(number, (2,)) for number in range(7)]
    np.testing.assert_array_equal(x, np.float32(expected))
    np.testing.assert_array_equal(numbers, np.arange(7))
    assert settings["seed"] == 4


def test_either_parameters_can_be_used(points, sampler, tmp_path):
    _, _, averaged = _sample(points, tmp_path / "averaged")
    _, _, last = _sample(points, tmp_path / "last", "--no-ema")
    for ema, (model, _) in zip((True, False), sampler.calls[::2], strict=True):
        assert eqx.tree_equal(model, eqmdm.load_run(points, ema=ema))
    assert averaged["ema"] and not last["ema"]
    assert averaged["parameters"] != last["parameters"]


def test_samples_that_are_not_finite_are_named_and_the_others_kept(
    digits, sampler, tmp_path, capsys
):
    sampler.lost = (1, 4)
    images, numbers, _ = _sample(digits, tmp_path, "--n-samples=6", "--batch-size=3")
    assert numbers.tolist() == [0, 2, 3, 5]
    grey_levels = eqmdm.GreyLevels(17)
    expected = [sampler.value(number, (8, 8, 1)) for number in numbers]
    decoded = grey_levels.decode(jnp.asarray(expected, jnp.float32))
    np.testing.assert_array_equal(images, decoded)
    shown = capsys.readouterr().out
    assert "2 of 6 samples are not finite and left out: 1, 4." in shown
    assert "Raise --steps, which was 50" in shown
    sampler.lost = range(6)
    error = _error(digits, "--n-samples=6", f"--output-dir={tmp_path / 'none'}")
    assert "there are no samples to write" in error


def test_samples_are_not_replaced_unasked(points, sampler, tmp_path):
    _sample(points, tmp_path)
    error = _error(points, f"--output-dir={tmp_path}", "--seed=1")
    assert "--output-dir must not hold samples already" in error
    other = "--seed=1", "--overwrite", "--picture-format=svg"
    _, _, settings = _sample(points, tmp_path, *other)
    assert settings["seed"] == 1
    # No picture of the samples that were there is left.
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"samples.npz", "samples.svg"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--solver=tsit6"],
            "--solver must be .* solver, .*got 'tsit6'. Did you mean .*tsit5",
        ),
        (["--steps=0"], "--steps must be at least 1; got 0"),
        (["--n-samples=0"], "--n-samples must be at least 1; got 0"),
        (["--batch-size=0"], "--batch-size must be at least 1; got 0"),
        (["--seed=-1"], "--seed must be at least 0; got -1"),
        (["--clock=angle"], "--clock must be time for the solver dpm"),
        (["--grid=rho", "--rho=0"], "--rho must be positive and finite; got 0.0"),
    ],
)
def test_wrong_options_are_refused(points, arguments, message):
    assert re.search(message, _error(points, *arguments))


def test_solver_of_denoisers_is_refused_for_a_free_score(free):
    error = _error(free, "--solver=edm-heun")
    assert "--solver must not need a denoiser" in error
    assert "got edm-heun. Use dpm" in error


def test_clock_that_the_diffusion_cannot_invert_is_refused(points, monkeypatch):
    trained = load_once(points, data_dir=None)
    model = trained.model.under(eqmdm.ALDA())
    trained = dataclasses.replace(trained, model=model)
    monkeypatch.setattr(program, "load_trained", lambda *_, **__: trained)
    error = _error(points, "--solver=sea", "--clock=log_snr")
    assert "--clock must be time" in error and "got log_snr" in error


def test_wrong_runs_are_refused(tmp_path):
    assert "RUN must be a directory that `eqmdm train` wrote" in _error(tmp_path)
    run = make_run(tmp_path / "run", *POINTS, checkpoint=False)
    assert "RUN must have a checkpoint" in _error(run)
    assert "from a newer eqmdm" in _error(make_newer(run))
