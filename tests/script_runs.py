"""Trained runs for the tests of programs that load one."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import pytest

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.bases import fit_basis
from eqmdm.cli.parsing import parse
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import load_trained


SCRIPTS = Path(__file__).parents[1] / "scripts"
# An interval in time, which needs no search for t0 and t1.
POINTS = "--dataset=mixture --diffusion=vpsde --width=8 --n-blocks=1".split()
POINTS += ["--t-range", "0.001", "1"]
DIGITS = ["--dataset=digits", *POINTS[1:], "--multipliers", "1"]


@contextlib.contextmanager
def single_precision():
    """A context in which programs compute in float32, as they do outside of tests."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@contextlib.contextmanager
def shared_optimisers():
    """A context in which equal options make the same optimiser, so that a resumed run
    does not compile the step of the run again."""
    with pytest.MonkeyPatch.context() as patch:
        made_once = functools.cache(eqmdm.make_optimiser)
        patch.setattr(eqmdm, "make_optimiser", made_once)
        yield


@contextlib.contextmanager
def working_in(directory):
    """A context with another working directory, in which paths are relative."""
    before = Path.cwd()
    os.chdir(directory)
    yield directory
    os.chdir(before)


@functools.cache
def _shared_run(arguments):
    """A run that is cached per process, since making one compiles some 50 programs."""
    directory = Path(tempfile.mkdtemp()) / "run"
    atexit.register(shutil.rmtree, directory.parent, ignore_errors=True)
    return make_run(directory, *arguments)


def copy_run(directory, *arguments):
    """A run with these options that was stopped before its first step."""
    return Path(shutil.copytree(_shared_run(arguments), directory))


# Cached, since loading a run takes longer than many tests.
load_once = functools.cache(load_trained)


def make_run(directory, *arguments, checkpoint=True):
    """A run that was stopped before its first step."""
    arguments = [*arguments, f"--run-dir={directory}"]
    options = parse(TrainOptions, arguments)
    dataset = build.load_data(options)
    options = options.resolved(dataset.shape, dataset.n_levels)
    diffusion = build.build_diffusion(options, jr.key(0))
    data = build.DataFacts.of(options, dataset)
    basis = fit_basis(options, dataset)
    model = build.build_model(options, data, diffusion, jr.key(1), basis)
    optimiser = eqmdm.make_optimiser(1e-3)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(2))
    # Averages that differ from the parameters.
    averages = jax.tree.map(lambda value: 0.5 * value, state.ema)
    state = eqx.tree_at(lambda state: state.ema, state, averages)
    run = eqmdm.Run(directory)
    identity = build.as_json(options, dataset, data)
    run.start(identity, build.facts(options.seed), builder=build.MODEL_BUILDER)
    if checkpoint:
        run.save(state)
        run.close()
    return directory


def make_newer(directory):
    """The run of a version that is not out yet."""
    path = directory / "options.json"
    facts = json.loads(path.read_text())
    facts["versions"]["eqmdm"] = "99.0.0"
    path.write_text(json.dumps(facts))
    return directory


def error_of(main, options):
    """The one line with which a wrong command ends."""
    with pytest.raises(SystemExit) as stopped:
        main(options)
    (line,) = str(stopped.value.code).splitlines()
    assert line.startswith("error: ")
    return line
