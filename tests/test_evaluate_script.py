import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pyarrow.parquet as pq
import pytest
from script_runs import (
    DIGITS,
    POINTS,
    copy_run,
    error_of,
    load_once,
    make_newer,
    make_run,
    single_precision,
)

import eqmdm
from eqmdm._bound.elbo import compute_elbo
from eqmdm.cli import build, plots
from eqmdm.cli.evaluate import program
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.evaluate.results import EvaluationResults
from eqmdm.cli.evaluate.settings import resolve
from eqmdm.cli.parsing import parse


# Three batches.
FEW = "--first=3 --examples=21 --batch-size=7".split()
# Compiled in the least time.
COARSE = "--tolerance=1e-3 --solver=heun --clock=log_snr".split()
FILES = "settings.json report.json report.txt examples.parquet histogram.png".split()
BOUND_TERMS = ("reconstruction", "prior", "diffusion", "auxiliary")
TERMS = (*BOUND_TERMS, "dequantisation", "data_transform")
ODE_TERMS = ("log_likelihood", "dequantisation", "data_transform")
# The purposes of keys.
BOUND, LIKELIHOOD = 4, 6


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with single_precision():
        yield


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("points") / "run", *POINTS)


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("free") / "run", *POINTS, "--score=free")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    logit = "--transform=logit", "--dequantisation=truncated_normal"
    return copy_run(tmp_path_factory.mktemp("digits") / "run", *DIGITS, *logit)


def _options(run, *arguments):
    return parse(EvaluateOptions, [str(run), *arguments])


def _evaluate(run, directory, *arguments):
    program.run(_options(run, *arguments, f"--output-dir={directory}"))
    return _table(directory)


def _table(directory):
    table = pq.read_table(directory / "examples.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def _report(directory):
    return json.loads((directory / "report.json").read_text())


def _trained_of(run, ema=True):
    return load_once(run, data_dir=None, ema=ema)


def _error(run, *arguments):
    return error_of(program.run, _options(run, *arguments))


class Solver:
    """A fast substitute for `eqmdm.log_likelihood` with known results."""

    def __init__(self):
        self.calls = []  # one for each compilation

    def __call__(self, model, x, *, key, **how):
        self.calls.append(how)
        luck = jr.normal(key, (), x.dtype)
        # Too few steps, depending on the example.
        converged = luck > (-jnp.inf if how["max_steps"] > 5 else -0.5)
        value = jnp.where(converged, luck - 0.5 * jnp.sum(x**2), jnp.nan)
        count = jnp.asarray(7, jnp.int32)
        result = dfx.RESULTS.where(
            converged, dfx.RESULTS.successful, dfx.RESULTS.max_steps_reached
        )
        error, size = 0 * value + 0.25, jnp.ones_like(value)
        return eqmdm.Likelihood(value, error, size, count, result)


SOLVER = Solver()


@pytest.fixture
def solver(monkeypatch):
    monkeypatch.setattr(eqmdm, "log_likelihood", SOLVER)
    # A picture takes longer to draw than all the rest.
    draw = lambda path, values, *_: path.write_bytes(values.tobytes())
    monkeypatch.setattr(plots, "histogram", draw)
    return SOLVER


def _keys(number, draw):
    """The keys of the dequantisation and of the solve of an example."""
    key = jr.fold_in(jr.fold_in(jr.key(0), LIKELIHOOD), number)
    return jr.split(jr.fold_in(key, draw))


def _expected(number, draw):
    """The terms that the stand-in gives for a digit, by the library alone."""
    key_encode, key_solve = _keys(number, draw)
    transform = eqmdm.LogitTransform()
    dequantiser = eqmdm.TruncatedNormalDequantiser(0.3)
    grey_levels = eqmdm.GreyLevels(17, transform, dequantiser)
    example = eqmdm.data.load("digits").test[number]
    x, correction = grey_levels.encode(example, key=key_encode, dtype=jnp.float32)
    jacobian = transform.log_jacobian(transform.inverse(x))
    value = jr.normal(key_solve, (), jnp.float32) - 0.5 * jnp.sum(x**2)
    return [float(term) for term in (value, correction - jacobian, jacobian)]


# --- The numbers ---------------------------------------------------------------------


def test_log_likelihoods_are_those_of_the_library(points, tmp_path):
    table = _evaluate(points, tmp_path, *FEW, *COARSE)
    trained = load_once(points, data_dir=None)
    examples = trained.dataset.test[3:24]
    results = [
        eqmdm.log_likelihood(
            trained.model,
            jnp.asarray(x),
            key=jr.key(0),
            route=eqmdm.CollapsedRoute(eqmdm.LogSNRClock()),
            solver=dfx.Heun(),
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-3),
        )
        for x in examples
    ]
    expected = [float(result.log_likelihood) for result in results]
    # float32, rounded differently in a batch.
    np.testing.assert_allclose(table["total"], expected, rtol=1e-4)
    np.testing.assert_array_equal(table["example"], np.arange(3, 24))
    counts = [int(result.n_evaluations) for result in results]
    np.testing.assert_array_equal(table["evaluations"], counts)
    assert table["converged"].all() and not table["standard_error"].any()

    report = _report(tmp_path)
    term = report["terms"]["total"]
    np.testing.assert_allclose(term["mean"], np.mean(expected), rtol=1e-4)
    error = np.std(expected, ddof=1) / np.sqrt(21)
    np.testing.assert_allclose(term["standard_error"], error, rtol=1e-3)
    assert report["evaluations_per_example"] == np.mean(counts)
    assert (report["n_examples"], report["n_converged"]) == (21, 21)
    assert (tmp_path / "histogram.png").read_bytes().startswith(b"\x89PNG")


def test_bounds_are_those_of_the_library(digits, tmp_path):
    n_draws = 3
    route = "--route=elbo", f"--draws={n_draws}"
    table = _evaluate(digits, tmp_path, "--first=5", "--examples=4", *route)
    trained = load_once(digits, data_dir=None)
    objective = build.build_objective(trained.options, trained.dataset)
    form, decoder = objective.form, objective.decoder
    how = form, decoder, objective.time_sampler
    # `eqmdm.elbo` with a key of its own for the time, which is given here.
    find = jax.jit(lambda x, u, key: compute_elbo(trained.model, x, u, *how, key=key))
    key_time, key = jr.split(jr.fold_in(jr.key(0), BOUND))
    for i, number in enumerate(range(5, 9)):
        draws = []
        # The golden ratio spreads the times of the examples.
        shift = jnp.float32((number * 0x9E3779B9 % 2**32 >> 8) / 2**24)
        # Three draws have one stratum, all of [0, 1).
        places = [
            (jr.uniform(jr.fold_in(key_time, draw), (), jnp.float32) + shift) % 1
            for draw in range(n_draws)
        ]
        for draw in range(n_draws):
            key_draw = jr.fold_in(jr.fold_in(key, number), draw)
            key_encode, key_bound = jr.split(key_draw)
            x, correction = objective.levels.encode(
                trained.dataset.test[number], key=key_encode, dtype=jnp.float32
            )
            bound = find(x, places[draw], key_bound)
            terms = {name: getattr(bound, name) for name in BOUND_TERMS}
            draws.append(terms | {"total": bound.total + correction})
        # The rounding of float32 times near t0.
        for name in (*BOUND_TERMS, "total"):
            mean = np.mean([float(terms[name]) for terms in draws])
            np.testing.assert_allclose(table[name][i], mean, rtol=1e-3)
        totals = [float(terms["total"]) for terms in draws]
        error = np.std(totals, ddof=1) / np.sqrt(n_draws)
        np.testing.assert_allclose(table["standard_error"][i], error, rtol=1e-2)
    np.testing.assert_allclose(table["total"], sum(table[n] for n in TERMS), rtol=1e-5)
    bits = -table["total"] / (64 * np.log(2))
    np.testing.assert_allclose(table["bits_per_dim"], bits, rtol=1e-12)
    assert set(table["evaluations"]) == {2 * n_draws}
    means = {name: term["mean"] for name, term in _report(tmp_path)["terms"].items()}
    assert means == {name: table[name].mean() for name in means}
    assert set(means) == {*TERMS, "total", "bits_per_dim"}


def test_terms_of_an_ode_route_are_means_over_draws(digits, solver, tmp_path):
    table = _evaluate(digits, tmp_path, *FEW, "--draws=2")
    for i in (0, 6, 20):
        draws = [_expected(3 + i, draw) for draw in (0, 1)]
        for name, mean in zip(ODE_TERMS, np.mean(draws, axis=0), strict=True):
            np.testing.assert_allclose(table[name][i], mean, rtol=1e-5)
        totals = np.sum(draws, axis=1)
        np.testing.assert_allclose(table["total"][i], totals.mean(), rtol=1e-5)
        error = np.std(totals, ddof=1) / np.sqrt(2)
        # A difference of two totals in float32.
        np.testing.assert_allclose(table["standard_error"][i], error, rtol=1e-3)
    assert set(table["evaluations"]) == {14}


@pytest.mark.parametrize(
    "arguments, route, divergence",
    [
        ([], eqmdm.CollapsedRoute(), eqmdm.ExactDivergence()),
        (
            ["--route=augmented", "--aux-draws=3", "--importance-weighted"],
            eqmdm.AugmentedRoute(3, True),
            eqmdm.ExactDivergence(),
        ),
        (
            ["--route=augmented", "--clock=angle", "--divergence=hutchinson"],
            eqmdm.AugmentedRoute(clock=eqmdm.AngleClock()),
            eqmdm.HutchinsonDivergence(4),
        ),
        (["--probes=2"], eqmdm.CollapsedRoute(), eqmdm.HutchinsonDivergence(2)),
    ],
)
def test_options_choose_the_method(
    points, solver, tmp_path, arguments, route, divergence
):
    how = "--examples=2", "--solver=heun", "--tolerance=1e-4", "--max-steps=9"
    _evaluate(points, tmp_path, *how, *arguments)
    given = solver.calls[-1]
    assert eqx.tree_equal(given["route"], route)
    assert eqx.tree_equal(given["divergence"], divergence)
    assert isinstance(given["solver"], dfx.Heun)
    assert eqx.tree_equal(
        given["stepsize_controller"], dfx.PIDController(rtol=1e-4, atol=1e-4)
    )
    assert given["max_steps"] == 9


# --- What results do not depend on ---------------------------------------------------


def test_results_do_not_depend_on_the_batch_size(points, tmp_path):
    how = *FEW[:2], *COARSE
    small = _evaluate(points, tmp_path / "7", *how, "--batch-size=7")
    large = _evaluate(points, tmp_path / "64", *how, "--batch-size=64")
    for name in small:
        # float32 sums in another order.
        np.testing.assert_allclose(large[name], small[name], rtol=1e-4)


def test_draws_are_keyed_by_the_example(digits, solver, tmp_path):
    whole = _evaluate(digits, tmp_path / "whole", *FEW)
    part = _evaluate(digits, tmp_path / "part", "--first=9", "--examples=7")
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][6:13])
    other = _evaluate(digits, tmp_path / "other", *FEW, "--seed=1")
    assert not np.isclose(other["total"], whole["total"], rtol=1e-5).any()


class _Killed(BaseException):
    """An exception that no handler catches, like a SIGKILL."""


def test_evaluation_continues_after_a_kill_at_any_write(
    digits, solver, tmp_path, monkeypatch
):
    expected = _evaluate(digits, tmp_path / "whole", *FEW)
    picture = (tmp_path / "whole" / "histogram.png").read_bytes()
    count = _kill_before_writes(monkeypatch)
    _evaluate(digits, tmp_path / "counted", *FEW)
    n_writes = count.n
    # The settings, three parts, the table, the picture, the report twice and a tidy-up.
    assert n_writes == 9
    for n in range(n_writes):
        directory = tmp_path / str(n)
        count.n, count.last = 0, n
        with pytest.raises(_Killed):
            _evaluate(digits, directory, *FEW)
        count.last = None
        table = _evaluate(digits, directory, *FEW)
        for name in expected:
            np.testing.assert_array_equal(table[name], expected[name])
        assert (directory / "histogram.png").read_bytes() == picture
        assert sorted(path.name for path in directory.iterdir()) == sorted(FILES)


def _kill_before_writes(monkeypatch):
    """Count writes to the disk, and stop before the one after number `last`."""
    count = SimpleNamespace(n=0, last=None)

    def watched(function):
        def call(*args, **kwargs):
            if count.last is not None and count.n >= count.last:
                raise _Killed
            count.n += 1
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (Path, "replace"),
        (Path, "unlink"),
        (os, "fsync"),
        (plots, "histogram"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return count


KILLED = """
import os, signal, sys
from pathlib import Path
from eqmdm.cli.evaluate.settings import resolve
from eqmdm.cli.evaluate.results import EvaluationResults
results = EvaluationResults(Path({directory!r}), {{"seed": 0}}, anew=False)
for i in range(3):
    if i == 2:
        with (results.directory / "parts.jsonl").open("a") as file:
            file.write('{{"rows": [{{"example": 2, "tot')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    results.add([{{"example": i, "total": i / 7}}], 1.0, compiled=i == 0)
"""


def test_results_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    code = KILLED.format(directory=str(tmp_path))
    process = subprocess.run([sys.executable, "-c", code])
    assert process.returncode == -signal.SIGKILL
    results = EvaluationResults(tmp_path, {"seed": 0}, anew=False)
    assert results.rows == {i: {"example": i, "total": i / 7} for i in (0, 1)}
    results.add([{"example": 2, "total": 2 / 7}], 1.0, compiled=True)
    again = EvaluationResults(tmp_path, {"seed": 0}, anew=False)
    assert again.write_table()["total"].tolist() == [0, 1 / 7, 2 / 7]
    assert again.timing == (1.0, False)


def test_complete_evaluation_is_shown_and_not_repeated(
    digits, solver, tmp_path, capsys
):
    _evaluate(digits, tmp_path, *FEW)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == set(FILES)
    capsys.readouterr()
    _evaluate(digits, tmp_path, *FEW)
    assert "already complete" in (shown := capsys.readouterr().out)
    assert files["report.txt"].decode() in shown
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # Another seed, in its place.
    _evaluate(digits, tmp_path, *FEW, "--seed=1", "--overwrite")
    assert _report(tmp_path)["settings"]["seed"] == 1


def test_solves_that_fail_are_named_and_the_others_kept(digits, solver, tmp_path):
    table = _evaluate(digits, tmp_path, *FEW, "--max-steps=5")
    luck = [jr.normal(_keys(i, 0)[1], (), jnp.float32) for i in range(3, 24)]
    failed = [i for i, luck in enumerate(luck, start=3) if luck <= -0.5]
    assert 0 < len(failed) < 21
    assert table["example"][~table["converged"]].tolist() == failed
    assert np.isnan(table["total"][~table["converged"]]).all()
    kept = table["total"][table["converged"]]
    report, text = _report(tmp_path), (tmp_path / "report.txt").read_text()
    assert report["not_converged"] == failed
    assert report["terms"]["total"]["mean"] == kept.mean()
    named = ", ".join(map(str, failed))
    assert f"{len(failed)} did not converge" in text and f"examples {named}." in text
    assert "Raise --max-steps, which was 5" in text


# --- Errors --------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(), (0.01, 0.8)], ids=["own", "other"])
def test_denoiser_is_evaluated_under_another_diffusion(points, tmp_path, ends):
    arguments = ["--diffusion=cld", *FEW, "--route=elbo"]
    if ends:
        arguments += ["--t-range", *map(str, ends)]
    columns = _evaluate(points, tmp_path, *arguments)
    model = eqmdm.load_run(points)
    vpsde = model.diffusion
    low, high = (float(vpsde.log_snr(t)) for t in (vpsde.t1, vpsde.t0))
    interval = eqmdm.TimeInterval(*ends) if ends else eqmdm.LogSNRInterval(low, high)
    diffusion = eqmdm.CLD(interval=interval)
    expected = eqmdm.evaluate(
        model.under(diffusion),
        eqmdm.data.load("mixture").test[3:24],
        eqmdm.Objective(time_sampler=eqmdm.LogSNRTimeSampler()),
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
        _evaluate(points, directory, *FEW, "--route=elbo", *["--no-ema"] * (not ema))
        used[ema] = json.loads((directory / "settings.json").read_text())["parameters"]
        kind = "averaged" if ema else "last"
        assert f", {kind} parameters" in (directory / "report.txt").read_text()
    for ema in (True, False):
        assert used[ema] == _trained_of(points, ema=ema).parameters
    assert used[True] != used[False]
    default = resolve(_options(points, *FEW, "--no-ema"), _trained_of(points))
    assert default.output_dir.name.endswith("-last")


def test_free_score_is_refused_other_ends(free):
    line = _error(free, "--t-range", "0.01", "1")
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
    assert re.search(message, _error(points, *arguments))


def test_collapsed_route_is_refused_for_a_free_score(free):
    error = _error(free, "--route=collapsed")
    assert "--route must be augmented or elbo" in error and "got collapsed" in error


def test_clock_that_the_diffusion_cannot_invert_is_refused(points, monkeypatch):
    def refuse(*_, **how):
        assert isinstance(how["clock"], eqmdm.LogSNRClock)
        raise ValueError("its log signal-to-noise ratio stands still")

    # A diffusion for which it does takes long to compile.
    monkeypatch.setattr(eqmdm, "probability_flow", refuse)
    error = _error(points, "--route=augmented", "--clock=log_snr")
    assert "--clock must be time" in error and "got log_snr" in error


def test_ode_needs_levels_made_continuous(digits, tmp_path):
    run = shutil.copytree(digits, tmp_path / "run")
    facts = json.loads((run / "options.json").read_text())
    facts["options"] |= {"dequantisation": "discrete", "decoder": "discrete"}
    (run / "options.json").write_text(json.dumps(facts))
    error = _error(run, "--route=collapsed")
    assert "--dequantisation must be given" in error
    assert "Use --dequantisation uniform" in error


def test_wrong_runs_are_refused(tmp_path):
    assert "RUN must be a directory that `eqmdm train` wrote" in _error(tmp_path)
    run = make_run(tmp_path / "run", *POINTS, checkpoint=False)
    assert "RUN must have a checkpoint" in _error(run)
    assert "from a newer eqmdm" in (error := _error(make_newer(run)))
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
    error = _error(run)
    assert "RUN must be the directory of a run of `eqmdm train`" in error
    assert change in error and "load_run" in error


def test_other_settings_do_not_continue_an_evaluation(digits, solver, tmp_path):
    _evaluate(digits, tmp_path / "results", *FEW)
    output = f"--output-dir={tmp_path / 'results'}"
    error = _error(digits, *FEW, output, "--tolerance=1e-3")
    assert "--tolerance must be 1e-05" in error and "got 0.001" in error
    (tmp_path / "notes.txt").write_text("mine")
    error = _error(digits, *FEW, f"--output-dir={tmp_path}", "--overwrite")
    assert "--output-dir must be new, empty or" in error
    assert (tmp_path / "notes.txt").read_text() == "mine"
