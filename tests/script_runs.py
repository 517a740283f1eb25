"""Runs for the tests of the scripts that take one up."""

import contextlib
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import pytest
import tyro

import eqmdm
from eqmdm.cli import build
from eqmdm.cli.train.options import TrainOptions


SCRIPTS = Path(__file__).parents[1] / "scripts"
# Ends in time, which take no search to find.
POINTS = "--dataset=mixture --diffusion=vpsde --width=8 --n-blocks=1".split()
POINTS += ["--t-range", "0.001", "1"]
DIGITS = ["--dataset=digits", *POINTS[1:], "--multipliers", "1"]


@contextlib.contextmanager
def single_precision():
    """Programs compute in float32, as they do by themselves."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


def make_run(directory, *arguments, checkpoint=True):
    """A run that was stopped before its first step."""
    options = tyro.cli(
        TrainOptions, args=[*arguments, f"--run-dir={directory}"]
    ).resolved()
    dataset = eqmdm.data.load(options.dataset)
    diffusion = build.build_diffusion(options, jr.key(0))
    network = build.build_network(options, dataset, diffusion, jr.key(1))
    optimiser = eqmdm.make_optimiser(1e-3)
    state = eqmdm.TrainState.create((network, diffusion), optimiser, key=jr.key(2))
    # Averages that can be told from the parameters.
    averages = {name: 0.5 * value for name, value in state.ema.items()}
    state = eqx.tree_at(lambda state: state.ema, state, averages)
    run = eqmdm.Run(directory)
    run.start(build.as_json(options, dataset), build.facts(options), state.model)
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
    """The one line that a wrong command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main(options)
    (line,) = str(stopped.value.code).splitlines()
    assert line.startswith("error: ")
    return line
