"""Evaluations of runs, and a fast substitute for their solves."""

import dataclasses
import functools
import json

import diffrax as dfx
import jax.numpy as jnp
import jax.random as jr
import pyarrow.parquet as pq
from script_runs import error_of, load_once

import eqmdm
from eqmdm.cli import plots
from eqmdm.cli.evaluate import program
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse


# The purposes of keys.
BOUND, LIKELIHOOD = 4, 6
# Three batches.
FEW = "--first=3 --examples=21 --batch-size=7".split()
# Compiled in the least time.
COARSE = "--tolerance=1e-3 --solver=heun --clock=log_snr".split()


# Cached, since most tests parse the same.
_parsed = functools.cache(lambda *arguments: parse(EvaluateOptions, arguments))


def options_of(run, *arguments):
    return _parsed(str(run), *arguments)


def evaluate(run, directory, *arguments):
    options = options_of(run, *arguments)
    program.run(dataclasses.replace(options, output_dir=directory))
    return table_of(directory)


def table_of(directory):
    table = pq.read_table(directory / "examples.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def report_of(directory):
    return json.loads((directory / "report.json").read_text())


def trained_of(run, ema=True):
    return load_once(run, data_dir=None, ema=ema)


def error_line(run, *arguments):
    return error_of(program.run, options_of(run, *arguments))


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


def use_fast_solver(monkeypatch):
    monkeypatch.setattr(eqmdm, "log_likelihood", SOLVER)
    without_pictures(monkeypatch)
    return SOLVER


def without_pictures(monkeypatch):
    """Neither histograms nor pictures of samples, which take longer to draw than all
    the rest."""
    draw = lambda path, values, *_: path.write_bytes(values.tobytes())
    monkeypatch.setattr(plots, "histogram", draw)
    monkeypatch.setattr(plots, "samples", lambda path, *_, **__: path.touch())
