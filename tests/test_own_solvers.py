"""Tests of the user's own solvers and samplers, named as `module:name`."""

import json
import sys

import diffrax as dfx
import equinox as eqx
import numpy as np
import pytest
from script_runs import (
    POINTS,
    copy_run,
    error_of,
    load_once,
    single_precision,
    working_in,
)

import eqmdm
from eqmdm._core.own import find_own
from eqmdm.cli import solvers
from eqmdm.cli.evaluate import settings
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.solver_study import program as solver_study
from eqmdm.cli.solver_study.options import SolverStudyOptions
from eqmdm.cli.solvers import find_method


OWN = '''
import diffrax
import eqmdm
import equinox as eqx
import jax.numpy as jnp
from typing import ClassVar


class MyEM(diffrax.Euler):
    """Counts as Diffrax's Euler does, which Diffrax's tables do not say of it."""


class TwoStage(diffrax.AbstractItoSolver):
    """The drift twice a step, and once before the first."""

    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 1

    def strong_order(self, terms):
        return 0.5

    def init(self, terms, t0, t1, y0, args):
        return terms.terms[0].vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        drift, noise = terms.terms
        middle = drift.vf(t0, y0, args)
        control = drift.contr(t0, t1)
        y1 = y0 + control * (middle + 0 * solver_state)
        y1 = y0 + control * drift.vf(t1, y1, args)
        y1 = y1 + noise.vf_prod(t0, y0, args, noise.contr(t0, t1))
        dense = dict(y0=y0, y1=y1)
        return y1, None, dense, solver_state, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


tight = diffrax.Dopri8()
denoising = eqmdm.DPMSolver(order=3)
number = 3


def second_order():
    return eqmdm.DPMSolver(order=2)


def nothing():
    return None


implicit = diffrax.Kvaerno3(root_finder=diffrax.VeryChord(rtol=1e-3, atol=1e-3))


class Fixed(eqmdm.AbstractSampler):
    """Its times are its own."""

    def times(self, diffusion, n_steps=None, dtype=None, *, through=None):
        return jnp.linspace(diffusion.t1, diffusion.t0, (n_steps or 2) + 1, dtype=dtype)

    def n_evaluations(self, n_steps):
        return n_steps

    def solve(self, model, y, times, *, key, saved=None):
        return eqmdm.SampleResult(y[0])
'''


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with single_precision():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return copy_run(tmp_path_factory.mktemp("points") / "run", *POINTS)


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    """A module in the working directory, which is not on the path otherwise."""
    directory = tmp_path_factory.mktemp("own-solvers")
    (directory / "own_solvers.py").write_text(OWN)
    with working_in(directory), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        find_own("own_solvers:number", argument="solver", kind="a number")
        yield
    # The result is cached by name.
    solvers._own_method.cache_clear()
    sys.modules.pop("own_solvers", None)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    for program in (sample, solver_study):
        monkeypatch.setattr(program, "load_trained", load_once)


@pytest.mark.parametrize(
    "name, solver, process",
    [
        ("own_solvers:MyEM", "MyEM", eqmdm.reverse_sde),
        ("ode-own_solvers:MyEM", "MyEM", eqmdm.probability_flow),
        # The solver suits no SDE, like Diffrax's Tsit5.
        ("own_solvers:tight", "Dopri8", eqmdm.probability_flow),
    ],
)
def test_solver_is_of_the_process_that_it_serves(name, solver, process):
    sampler = find_method(name).sampler
    assert isinstance(sampler, eqmdm.DiffraxSampler)
    assert type(sampler.solver).__name__ == solver
    assert sampler.process is process


@pytest.mark.parametrize(
    "name, expected",
    [
        ("own_solvers:denoising", eqmdm.DPMSolver(order=3)),
        ("own_solvers:second_order", eqmdm.DPMSolver(order=2)),
    ],
)
def test_sampler_is_taken_as_it_is_or_made(name, expected):
    assert eqx.tree_equal(find_method(name).sampler, expected)


def test_evaluations_that_are_not_known_are_counted():
    names = "ode-own_solvers:MyEM", "own_solvers:TwoStage"
    flow, two_stage = map(find_method, names)
    for method, a_step, besides in ((flow, 1, 1), (two_stage, 2, 2)):
        assert method.sampler.n_evaluations(7) is None
        for n_steps in (1, 7, 30):
            assert method.n_evaluations(n_steps) == a_step * n_steps + besides
    assert flow.steps_within(10) == 9
    # The same counts as in Diffrax's tables.
    assert flow.n_evaluations(5) == find_method("ode-euler").n_evaluations(5)


def test_own_euler_draws_the_samples_of_diffraxs(run, tmp_path):
    found = {}
    for solver in ("own_solvers:MyEM", "euler"):
        output = tmp_path / solver.replace(":", "-")
        arguments = [str(run), f"--solver={solver}", "--steps=3", "--n-samples=40"]
        sample.run(parse(SampleOptions, [*arguments, f"--output-dir={output}"]))
        with np.load(output / "samples.npz") as file:
            found[solver] = file["samples"]
            settings = json.loads(str(file["settings"]))
        assert settings["solver"] == solver
        assert settings["evaluations_per_sample"] == 4
    # One program, but for the name of a class.
    np.testing.assert_array_equal(*found.values())


def test_directory_of_samples_has_no_colon(run):
    options = parse(SampleOptions, [str(run), "--solver=own_solvers:MyEM"])
    assert options.directory.name == "samples-own_solvers-MyEM-50"


def test_own_solver_is_studied_beside_the_others(run, tmp_path):
    # As many steps and samples as above, so that one program is there already.
    arguments = [str(run), "--solvers=euler,own_solvers:MyEM", "--evaluations=4"]
    arguments += ["--n-samples=40", "--reference-samples=0"]
    arguments += [f"--output-dir={tmp_path / 'study'}"]
    solver_study.run(parse(SolverStudyOptions, arguments))
    lines = (tmp_path / "study" / "study.csv").read_text().splitlines()
    start = [line.split(",")[:5] for line in lines[2:]]
    assert start == [
        ["vpsde", "euler", "4", "3", "4"],
        ["vpsde", "own_solvers:MyEM", "4", "3", "4"],
    ]
    assert (tmp_path / "study" / "study.png").exists()


def test_ode_solver_of_an_evaluation_is_found():
    assert isinstance(settings.find_solver("own_solvers:tight"), dfx.Dopri8)
    with pytest.raises(ValueError, match="estimates its error .*makes a MyEM"):
        settings.find_solver("own_solvers:MyEM")


def test_solver_whose_evaluations_vary_is_not_studied(run):
    arguments = [str(run), "--solvers=own_solvers:implicit", "--evaluations=9"]
    line = error_of(solver_study.run, parse(SolverStudyOptions, arguments))
    assert "--solvers must take as many evaluations" in line
    assert "own_solvers:implicit vary" in line


@pytest.mark.parametrize(
    "solver, messages",
    [
        ("no_such_module:MyEM", ["cannot be imported (No module named"]),
        ("own_solvers:MyEMM", ["own_solvers has no MyEMM. Did you mean MyEM"]),
        ("own_solvers:", ["as module:name; got 'own_solvers:'"]),
        ("own_solvers:number", ["which is or makes a int"]),
        ("own_solvers:nothing", ["which is or makes a NoneType"]),
        ("ode-own_solvers:denoising", ["must not have the prefix ode-"]),
        # The suggestion comes before the list of all names.
        ("heunn", ["got 'heunn'. Did you mean heun", "The names are dpm"]),
    ],
)
def test_wrong_solver_is_one_clear_line(solver, messages, run):
    options = parse(SampleOptions, [str(run), f"--solver={solver}"])
    line = error_of(sample.run, options)
    assert line.startswith("error: --solver must")
    places = [line.index(message) for message in messages]
    assert places == sorted(places)


def test_grid_is_refused_for_a_sampler_that_has_none(run):
    arguments = [str(run), "--solver=own_solvers:Fixed", "--grid=uniform"]
    line = error_of(sample.run, parse(SampleOptions, arguments))
    assert "--grid must be left out" in line and "Fixed" in line
