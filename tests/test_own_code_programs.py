"""Tests of the user's own diffusions and networks in the programs."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from script_runs import error_of, shared_optimisers, single_precision, working_in

import eqmdm
from eqmdm.cli.evaluate import program as evaluate
from eqmdm.cli.evaluate.options import EvaluateOptions
from eqmdm.cli.parsing import parse
from eqmdm.cli.sample import program as sample
from eqmdm.cli.sample.options import SampleOptions
from eqmdm.cli.train import program as train
from eqmdm.cli.train.options import TrainOptions
from eqmdm.cli.trained import load_trained


TINY = "--data=points.npy --steps=2 --log-every=1 --batch-size=4 --validate-every=2 "
TINY += "--checkpoint-every=2 --n-samples=3 --sample-steps=3 --test-draws=2 "
TINY += "--test-examples=4"
CODE = """
import pathlib

import eqmdm
import equinox as eqx
import jax
import jax.numpy as jnp

pathlib.Path("imported").touch()


class Affine(eqx.Module):
    scale: jax.Array
    shift: jax.Array
    labels: jax.Array | None

    def __call__(self, t, y, *, condition=None):
        shift = self.shift if condition is None else self.labels[condition]
        return (1 + t) * self.scale * y + shift


def network(shape, n_vars, *, key, condition=None):
    del shape, n_vars, key
    labels = None if condition is None else jnp.zeros(condition.n_classes)
    return Affine(jnp.ones(()), jnp.zeros(()), labels)


def diffusion(interval=None, schedule=None):
    return eqmdm.LinearDiffusion(
        skew=[[0.0, -2.0], [2.0, 0.0]],
        dissipation=[[0.5, 0.0], [0.0, 2.0]],
        interval=interval,
    )


def target(interval=None):
    target = eqmdm.LogisticTarget()
    simulation = eqmdm.Simulation(4)
    return eqmdm.TargetDiffusion(
        [[0.0]], [[0.5]], target, interval=interval, simulation=simulation
    )


number = 3
nothing = lambda interval=None: 3
no_parameters = lambda shape, n_vars, *, key: (lambda t, y: y)
takes_nothing = lambda: None
"""
OWN = ["--network=own_models:network", "--diffusion=own_models:diffusion"]


@pytest.fixture(scope="module", autouse=True)
def programs():
    with single_precision(), shared_optimisers():
        yield


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("own-code")
    (directory / "own_models.py").write_text(CODE)
    points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.save(directory / "points.npy", points)
    labels = np.arange(60) % 3
    np.savez(directory / "labelled.npz", train=points, labels=labels)
    with working_in(directory):
        yield directory


def _train(*arguments):
    train.run(parse(TrainOptions, [*TINY.split(), *arguments]))


@pytest.fixture(scope="module")
def run(directory):
    _train(*OWN, "--score=denoiser", "--run-dir=run")
    return directory / "run"


def _is_trained(network):
    return type(network).__name__ == "Affine" and float(network.scale) != 1.0


def test_own_diffusion_and_network_are_trained(run):
    model = load_trained(run, data_dir=None, trust_code=True).model
    assert type(model.diffusion).__name__ == "LinearDiffusion"
    # The default interval of a denoiser reaches the user's class.
    low = float(model.diffusion.log_snr(model.diffusion.t1))
    assert low == pytest.approx(-9, abs=1e-3)
    assert _is_trained(model.network.network)


@pytest.mark.slow
def test_own_network_is_trained_to_be_a_free_score(directory):
    _train(*OWN, "--score=free", "--run-dir=run-free")
    run = directory / "run-free"
    model = load_trained(run, data_dir=None, trust_code=True).model
    assert type(model.diffusion).__name__ == "LinearDiffusion"
    assert _is_trained(model.network)


def test_run_with_own_code_goes_through_the_programs_that_trust_it(run):
    # In the batches of the training, so that the programs share what it compiled.
    arguments = ["run", "--trust-code", "--examples=4", "--route=elbo"]
    evaluate.run(parse(EvaluateOptions, arguments))
    arguments = ["run", "--trust-code", "--n-samples=3", "--steps=3"]
    sample.run(parse(SampleOptions, arguments))
    assert (run / "samples-dpm-3" / "samples.npz").exists()


@pytest.mark.slow
def test_process_that_is_not_linear_goes_through_the_programs(directory):
    own = [OWN[0], "--diffusion=own_models:target", "--score=free"]
    _train(*own, "--form=local", "--run-dir=run-target")
    run = directory / "run-target"
    assert (run / "test_bound.json").exists() and (run / "samples.png").exists()
    for route in ("elbo", "augmented"):
        arguments = ["run-target", "--trust-code", "--examples=3", f"--route={route}"]
        evaluate.run(parse(EvaluateOptions, arguments))
    arguments = ["run-target", "--trust-code", "--n-samples=3", "--steps=3"]
    sample.run(parse(SampleOptions, [*arguments, "--solver=shark"]))
    assert (run / "samples-shark-3" / "samples.npz").exists()
    for wrong, message in (
        ([], "--solver must be one of Diffrax's.*got dpm. Try --solver shark"),
        (["--solver=shark", "--clock=log_snr"], "--clock must be time for this run"),
        (["--solver=shark", "--grid=rho"], "--grid must be default or uniform or"),
    ):
        wrong = [*arguments, "--overwrite", *wrong]
        error = error_of(sample.run, parse(SampleOptions, wrong))
        assert re.search(message, error)


def test_own_network_gets_its_condition(directory):
    arguments = ["--data=labelled.npz", "--condition=label", "--run-dir=run-label"]
    _train(*OWN, *arguments, "--n-samples=0", "--test-examples=0")
    model = load_trained(directory / "run-label", data_dir=None, trust_code=True).model
    # They start at zero, so the condition has come to the network.
    labels = np.asarray(model.network.network.labels)
    assert labels.shape == (3,) and np.any(labels != 0)


def test_code_is_not_imported_only_because_a_run_names_it(run, directory, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    (directory / "imported").unlink(missing_ok=True)
    line = error_of(lambda given: evaluate.run(parse(EvaluateOptions, given)), ["run"])
    assert "network is own_models:network" in line and "pass --trust-code" in line
    with pytest.raises(ValueError, match="`like` must be given"):
        eqmdm.load_run(run)
    # Nor if the files ask for the builder of the program's own runs.
    path = run / "options.json"
    facts = json.loads(path.read_text())
    try:
        altered = facts | {"builder": "eqmdm.cli.build:model_from_options"}
        path.write_text(json.dumps(altered))
        with pytest.raises(ValueError, match="`like` must be given for a run with the"):
            eqmdm.load_run(run)
    finally:
        path.write_text(json.dumps(facts))
    assert not (directory / "imported").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--network=vnet"],
            "--network must be one of unet, mlp, .* got 'vnet'. Did you",
        ),
        (["--diffusion=cdl"], "--diffusion must be one of vpsde.* Did you mean cld"),
        (["--network=no_such:thing"], "module cannot be imported"),
        (["--network=own_models:netwrok"], "Did you mean network"),
        (["--diffusion=own_models:nothing"], "makes a int"),
        (["--network=own_models:no_parameters"], "has no parameters"),
        (
            ["--network=own_models:takes_nothing"],
            "can be called with shape, n_vars, key",
        ),
        (["--diffusion=own_models:takes_nothing"], "can be called with interval"),
    ],
)
def test_code_of_the_wrong_kind_is_named(arguments, message):
    options = parse(TrainOptions, [*TINY.split(), "--run-dir=wrong", *arguments])
    assert re.search(message, error_of(train.run, options))
    assert not Path("wrong").exists()
