"""Averages of any length after the training, against direct sums over trajectories."""

import json
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from script_runs import POINTS, single_precision

import eqmdm
from eqmdm import nn
from eqmdm._training.profiles import (
    LENGTHS,
    PowerAverages,
    profile_exponent,
    reconstruction_weights,
)
from eqmdm._training.snapshots import read_snapshot, snapshot_steps
from eqmdm.cli.evaluate import program as evaluate
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse
from eqmdm.cli.train import program as train
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import load_trained
from helpers import slow, tree_allclose


EXPONENTS = [profile_exponent(length) for length in LENGTHS]


def _direct_weights(steps, exponent):
    """The weight of each step, in the order of the steps: a mean with weights that are
    the integrals of tau^gamma over unit intervals."""
    s = np.arange(1, steps + 1, dtype=float) / steps
    return np.diff(np.concatenate([[0.0], s]) ** (exponent + 1))


def _profile(tau, step, exponent):
    inside = (tau <= step) * (exponent + 1) * (np.minimum(tau, step) / step) ** exponent
    return inside / step


# --- Profiles ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.005, 0.05, 0.1, 0.2, 0.28])
def test_length_is_the_standard_deviation_of_the_profile(length):
    exponent = profile_exponent(length)
    # Gauss's rule of this order is exact for polynomials, and tau^gamma is smooth
    # enough for twelve digits after the substitution tau = s^2.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    s, weights = (nodes + 1) / 2, weights / 2
    density = weights * 2 * s * _profile(s**2, 1.0, exponent)
    mean = np.sum(density * s**2)
    variance = np.sum(density * (s**2 - mean) ** 2)
    assert np.sum(density) == pytest.approx(1, rel=1e-10)
    assert np.sqrt(variance) == pytest.approx(length, rel=1e-9)


def test_exponents_are_those_of_the_paper():
    # Karras et al. (2024) give two digits after the point.
    assert EXPONENTS == [pytest.approx(16.97, abs=5e-3), pytest.approx(6.94, abs=5e-3)]


@pytest.mark.parametrize("length", [0.0, -0.1, 0.289, 1.0, float("nan")])
def test_length_out_of_range_is_rejected(length):
    with pytest.raises(ValueError, match="`length` must be above 0 and below 0.288"):
        profile_exponent(length)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_average_is_the_direct_sum(dtype):
    steps = 3000
    path = np.cumsum(np.random.default_rng(0).normal(size=(steps, 3)), axis=0)
    path = path.astype(dtype)
    start = PowerAverages.create({"w": jnp.full(3, 1e6, dtype), "none": None})

    @jax.jit
    def run(averages):
        def step(averages, given):
            number, values = given
            return averages.updated({"w": values, "none": None}, number), None

        return jax.lax.scan(step, averages, (jnp.arange(1, steps + 1), path))[0]

    averages = run(start)
    # Each step rounds once, and later steps forget what was rounded before: about
    # gamma + 1 of the last steps in a hundred count. Relative to the largest value.
    largest = np.abs(path).max()
    tolerance = 100 * np.finfo(dtype).eps * largest
    assert averages.averages["w"].dtype == dtype
    for average, exponent in zip(averages.averages["w"], EXPONENTS, strict=True):
        expected = _direct_weights(steps, exponent) @ path.astype(float)
        np.testing.assert_allclose(average, expected, rtol=0, atol=tolerance)


# --- Weights -------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.25])
def test_weights_are_those_of_least_squares_on_a_grid(length):
    steps, exponent = np.repeat([100, 250, 400], 2), profile_exponent(length)
    exponents = EXPONENTS * 3
    weights, error = reconstruction_weights(steps, exponents, 400, exponent)
    # The midpoint rule on 200,000 intervals errs by 1e-8 at the jumps of profiles,
    # which are between intervals here.
    tau = (np.arange(200_000) + 0.5) * 400 / 200_000
    profiles = [_profile(tau, t, g) for t, g in zip(steps, exponents, strict=True)]
    basis, target = np.stack(profiles, 1), _profile(tau, 400, exponent)
    # The last weight is what is left of one.
    last = basis[:, -1]
    free, *_ = np.linalg.lstsq(basis[:, :-1] - last[:, None], target - last)
    expected = np.append(free, 1 - free.sum())
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    missed = np.linalg.norm(target - basis @ expected) / np.linalg.norm(target)
    assert error == pytest.approx(missed, rel=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_stored_average_is_its_own_reconstruction(number):
    steps = np.repeat(np.arange(10, 110, 10), 2)
    weights, error = reconstruction_weights(
        steps, EXPONENTS * 10, 100, EXPONENTS[number]
    )
    # `error` is the root of a difference of numbers of order 1, each rounded.
    assert error < 1e-6
    tau = np.linspace(0, 100, 1001)
    profiles = [_profile(tau, t, g) for t, g in zip(steps, EXPONENTS * 10, strict=True)]
    made = weights @ np.stack(profiles)
    target = _profile(tau, 100, EXPONENTS[number])
    np.testing.assert_allclose(made, target, atol=1e-5 * target.max())


@pytest.mark.parametrize("step", [1000, 830])
@pytest.mark.parametrize("length", [0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
def test_reconstruction_is_the_direct_sum_over_a_trajectory(length, step):
    rng, exponent = np.random.default_rng(0), profile_exponent(length)
    path = np.cumsum(rng.normal(size=(1000, 5)), axis=0)
    stored = [t for t in range(20, 1001, 20) if t <= step]
    averages = [_direct_weights(t, g) @ path[:t] for t in stored for g in EXPONENTS]
    weights, error = reconstruction_weights(
        np.repeat(stored, 2), EXPONENTS * len(stored), step, exponent
    )
    made = weights @ np.stack(averages)
    expected = _direct_weights(step, exponent) @ path[:step]
    # Cauchy-Schwarz: the profiles differ by `error` times the norm of the target, and
    # sums over steps are integrals over unit intervals, which only shrink it.
    norm = (exponent + 1) / np.sqrt((2 * exponent + 1) * step)
    bound = error * norm * np.linalg.norm(path[:step], axis=0)
    assert np.all(np.abs(made - expected) <= bound + 1e-9)
    if step == 1000 and length >= 0.05:
        # Between and beyond the stored lengths the bound is tight enough to be useful.
        assert error < 0.05


# --- Training ------------------------------------------------------------------------


SETTINGS = {"key": jr.key(0), "batch_size": 8, "log_every": 2, "checkpoint_every": 2}
SETTINGS |= {"optimiser": eqmdm.make_optimiser(1e-2), "ema_profiles": True}


def _points():
    return np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)


def _model():
    network = nn.MLP((2,), 1, width=8, depth=1, key=jr.key(1))
    return eqmdm.NoiseModel(network, eqmdm.VPSDE())


def _parameters(model):
    parameters = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return np.concatenate([np.asarray(leaf, float).ravel() for leaf in parameters])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 24 steps, and its parameters after each."""
    run_dir, path = tmp_path_factory.mktemp("profiles") / "run", []

    def keep(event):
        if event.kind == "step":
            path.append(_parameters(event.state.model))

    eqmdm.fit(
        _model(), _points(), steps=24, run_dir=run_dir, callbacks=[keep], **SETTINGS
    )
    return run_dir, np.stack(path)


@pytest.mark.parametrize(
    "length, step", [slow(0.05, 24), slow(0.1, 24), (0.1, 16), (0.2, 24)]
)
def test_average_of_a_run_is_the_direct_sum_of_its_steps(length, step, trained):
    run_dir, path = trained
    model = eqmdm.posthoc_ema(run_dir, length, step=step, like=_model())
    exponent = profile_exponent(length)
    expected = _direct_weights(step, exponent) @ path[:step]
    stored = np.repeat([t for t in range(2, step + 1, 2)], 2)
    weights, error = reconstruction_weights(
        stored, EXPONENTS * (len(stored) // 2), step, exponent
    )
    norm = (exponent + 1) / np.sqrt((2 * exponent + 1) * step)
    bound = error * norm * np.linalg.norm(path[:step], axis=0)
    # Snapshots are float32, and their weights add to the rounding.
    rounding = 1e-6 * np.abs(weights).sum() * np.abs(path).max()
    assert np.all(np.abs(_parameters(model) - expected) <= bound + rounding)
    assert eqx.tree_equal(model.diffusion, _model().diffusion)


def test_profiles_change_no_parameter_and_resume_to_the_bit(trained, tmp_path):
    run_dir, _ = trained
    straight = eqmdm.Run(run_dir).restore()
    without = SETTINGS | {"ema_profiles": False, "checkpoint_every": 24}
    eqmdm.fit(_model(), _points(), steps=24, run_dir=tmp_path / "without", **without)
    plain = eqmdm.Run(tmp_path / "without").restore().arrays
    assert not snapshot_steps(tmp_path / "without")
    assert len(straight.arrays) > len(plain)
    assert tree_allclose({k: straight.arrays[k] for k in plain}, plain, rtol=0, atol=0)
    place = {"run_dir": tmp_path / "stopped"}
    stop = lambda event: event.kind == "step" and event.step == 9
    eqmdm.fit(_model(), _points(), steps=24, callbacks=[stop], **SETTINGS, **place)
    eqmdm.fit(_model(), _points(), steps=24, **SETTINGS, **place)
    resumed = eqmdm.Run(tmp_path / "stopped").restore()
    assert tree_allclose(resumed.arrays, straight.arrays, rtol=0, atol=0)
    # The interruption left a snapshot of its own.
    assert set(snapshot_steps(tmp_path / "stopped")) == {*range(2, 25, 2), 9}
    for step in snapshot_steps(run_dir):
        one, other = (read_snapshot(d, step) for d in (run_dir, tmp_path / "stopped"))
        assert tree_allclose(one, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`ema_profiles` must be True"):
        eqmdm.fit(_model(), _points(), steps=30, **without, **place)


def test_run_of_before_an_option_is_resumed_without_it(tmp_path):
    run = eqmdm.Run(tmp_path)
    run.start({"width": 8})
    run.check_options({"width": 8, "ema_profiles": False})
    with pytest.raises(ValueError, match="must be off, as .*Turn `ema_profiles` off"):
        run.check_options({"width": 8, "ema_profiles": True})


def test_run_without_snapshots_says_how_to_get_them(trained, tmp_path):
    run_dir, _ = trained
    eqmdm.Run(tmp_path).start({"a": 1})
    with pytest.raises(ValueError, match="has none. Train with `ema_profiles`"):
        eqmdm.posthoc_ema(tmp_path, 0.05, like=_model())
    with pytest.raises(ValueError, match="has none up to step 1. Train"):
        eqmdm.posthoc_ema(run_dir, 0.05, step=1, like=_model())
    with pytest.raises(ValueError, match="`length` must be above 0"):
        eqmdm.posthoc_ema(run_dir, 0.5, like=_model())
    with pytest.raises(ValueError, match="`like` must be given"):
        eqmdm.posthoc_ema(run_dir, 0.05)


def test_length_that_snapshots_do_not_resolve_warns(trained):
    run_dir, _ = trained
    with pytest.warns(UserWarning, match="of length 0.005 with an error of .*% of its"):
        eqmdm.posthoc_ema(run_dir, 0.005, like=_model())


def test_damaged_snapshot_is_named(trained, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    path = run_dir / "averages" / "12.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="12.safetensors` must be a complete safetens"):
        eqmdm.posthoc_ema(run_dir, 0.05, like=_model())


# --- The program ---------------------------------------------------------------------


def test_length_without_an_average_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="`ema_length` must be left out with --no-ema"):
        EvaluateOptions(run=tmp_path, ema=False, ema_length=0.05).check()


@pytest.mark.slow
def test_evaluation_uses_the_average_of_the_length_that_is_asked_for(tmp_path):
    counts = "--steps=20 --batch-size=8 --log-every=2 --checkpoint-every=2 "
    counts += "--validate-every=20 --validation-examples=2 --n-samples=0 "
    counts += "--test-examples=0 --ema-profiles"
    arguments = [*POINTS, *counts.split(), f"--run-dir={tmp_path / 'run'}"]
    with single_precision():
        train.run(parse(TrainOptions, arguments))
        for more in (["--ema-length=0.07"], []):
            given = [str(tmp_path / "run"), "--route=elbo", "--examples=4", *more]
            evaluate.run(parse(EvaluateOptions, given))
        reports = {}
        for name in ("evaluation-elbo-test-ema0.07", "evaluation-elbo-test"):
            directory = tmp_path / "run" / name
            report = json.loads((directory / "report.json").read_text())
            reports[name] = report["terms"]["total"]["mean"]
            text = (directory / "report.txt").read_text()
            shown = "averaged (length 0.07)" if "ema" in name else "averaged"
            assert f"score, {shown} parameters" in text
        used = load_trained(tmp_path / "run", data_dir=None, ema_length=0.07)
        made = eqmdm.posthoc_ema(tmp_path / "run", 0.07)
    assert tree_allclose(_parameters(used.model), _parameters(made), rtol=0, atol=0)
    assert len(set(reports.values())) == 2
