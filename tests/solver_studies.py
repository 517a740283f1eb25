"""Studies of solvers that tests run in their own process, with known samples."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
from script_runs import error_of

import eqmdm
from eqmdm.cli.parsing import parse
from eqmdm.cli.solver_study import picture, program
from eqmdm.cli.solver_study.options import SolverStudyOptions


def options_of(run, *arguments):
    return parse(SolverStudyOptions, [str(run), *arguments])


def study(run, *arguments):
    program.run(options_of(run, *arguments))


def error(run, *arguments):
    return error_of(program.run, options_of(run, *arguments))


def rows_of(directory):
    with (directory / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {(r["diffusion"], r["solver"], int(r["allowed"])): r for r in rows}


class Sampler:
    """Stands for `eqmdm.sample`, at no time: its errors are known."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, shape, **how):
        self.calls.append((model.diffusion, how))
        sampler = how["sampler"]
        if isinstance(sampler, eqmdm.SSCS):
            raise TypeError("no\nlaw")
        x = np.random.Generator(np.random.PCG64(0)).standard_normal((1000, *shape))
        numbers = how["first"] + np.arange(how["n_samples"])
        is_tight = how.get("n_steps", 1000) == 1000
        # Halves of the samples err by 3 and by 4.
        gaps = np.where(numbers % 2, 4.0, 3.0) * (0 if is_tight else 1 / how["n_steps"])
        x = x[numbers] + gaps.reshape(-1, *(1 for _ in shape))
        if isinstance(sampler, eqmdm.AncestralSampler):
            x[numbers == 50] = np.nan
        return jnp.asarray(x, how["dtype"])


# Compiled once for all studies: each call outside of `jit` compiles its loop.
_shuffled_indices = jax.jit(eqmdm.data.shuffled_indices, static_argnums=(2, 3))


def use_known_samples(monkeypatch):
    """A `Sampler` in place of `eqmdm.sample`, and no picture, which takes longer to
    draw than all the rest."""
    monkeypatch.setattr(picture, "draw", lambda path, *_, **__: path.touch())
    monkeypatch.setattr(eqmdm.data, "shuffled_indices", _shuffled_indices)
    sampler = Sampler()
    monkeypatch.setattr(eqmdm, "sample", sampler)
    return sampler
