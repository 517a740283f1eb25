"""Tests of the results of `eqmdm evaluate`."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from evaluations import BOUND, COARSE, FEW, LIKELIHOOD, evaluate, report_of
from script_runs import load_once

import eqmdm
from eqmdm._bound.estimate import compute_elbo
from eqmdm._bound.times import Focus
from eqmdm.cli import build
from eqmdm.cli.evaluate import program
from helpers import slow


BOUND_TERMS = ("reconstruction", "prior", "diffusion", "auxiliary")
TERMS = (*BOUND_TERMS, "dequantisation", "data_transform")
ODE_TERMS = ("log_likelihood", "dequantisation", "data_transform")


pytestmark = pytest.mark.usefixtures("in_float32")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    monkeypatch.setattr(program, "load_trained", load_once)


def _keys(number, draw):
    """The keys of the dequantisation and of the solve of an example."""
    key = jr.fold_in(jr.fold_in(jr.key(0), LIKELIHOOD), number)
    return jr.split(jr.fold_in(key, draw))


@jax.jit
def _encoded(example, key):
    """A digit of the run as encoded, the correction of its bound, and the part of it
    that is the Jacobian of the transform."""
    transform = eqmdm.LogitTransform()
    dequantiser = eqmdm.TruncatedNormalDequantiser(0.3)
    grey_levels = eqmdm.GreyLevels(17, transform, dequantiser)
    x, correction = grey_levels.encode(example, key=key, dtype=jnp.float32, check=False)
    return x, correction, transform.log_jacobian(transform.inverse(x))


def _expected(number, draw):
    """The terms that the stand-in gives for a digit, by the library alone."""
    key_encode, key_solve = _keys(number, draw)
    example = eqmdm.data.load("digits").test[number]
    x, correction, jacobian = _encoded(example, key_encode)
    value = jr.normal(key_solve, (), jnp.float32) - 0.5 * jnp.sum(x**2)
    return [float(term) for term in (value, correction - jacobian, jacobian)]


def test_log_likelihoods_are_those_of_the_library(points, tmp_path):
    table = evaluate(points, tmp_path, *FEW, *COARSE)
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

    report = report_of(tmp_path)
    term = report["terms"]["total"]
    np.testing.assert_allclose(term["mean"], np.mean(expected), rtol=1e-4)
    error = np.std(expected, ddof=1) / np.sqrt(21)
    np.testing.assert_allclose(term["standard_error"], error, rtol=1e-3)
    assert report["evaluations_per_example"] == np.mean(counts)
    assert (report["n_examples"], report["n_converged"]) == (21, 21)
    assert (tmp_path / "histogram.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("focus", [None, slow((-3.0, 3.0))])
def test_bounds_are_those_of_the_library(focus, logit_digits, tmp_path):
    n_draws = 3
    route = ["--route=elbo", f"--draws={n_draws}"]
    route += [] if focus is None else ["--focus", *map(str, focus)]
    table = evaluate(logit_digits, tmp_path, "--first=5", "--examples=4", *route)
    trained = load_once(logit_digits, data_dir=None)
    objective = build.build_objective(trained.options, trained.dataset)
    sampler = objective.time_sampler
    if focus is not None:
        sampler = eqmdm.LogSNRTimeSampler(density=Focus(*focus))
    how = objective.form, objective.decoder, sampler
    # `eqmdm.elbo` with a key of its own for the time, which is given here.
    find = jax.jit(lambda x, u, key: compute_elbo(trained.model, x, u, *how, key=key))
    key_time, key = jr.split(jr.fold_in(jr.key(0), BOUND))
    uniform = jax.jit(lambda key: jr.uniform(key, (), jnp.float32))
    for i, number in enumerate(range(5, 9)):
        draws = []
        # The golden ratio spreads the times of the examples.
        shift = jnp.float32((number * 0x9E3779B9 % 2**32 >> 8) / 2**24)
        # Three draws have one stratum, all of [0, 1).
        places = [
            (uniform(jr.fold_in(key_time, draw)) + shift) % 1 for draw in range(n_draws)
        ]
        for draw in range(n_draws):
            key_draw = jr.fold_in(jr.fold_in(key, number), draw)
            key_encode, key_bound = jr.split(key_draw)
            x, correction, _ = _encoded(trained.dataset.test[number], key_encode)
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
    means = {name: term["mean"] for name, term in report_of(tmp_path)["terms"].items()}
    assert means == {name: table[name].mean() for name in means}
    assert set(means) == {*TERMS, "total", "bits_per_dim"}


def test_terms_of_an_ode_route_are_means_over_draws(logit_digits, solver, tmp_path):
    table = evaluate(logit_digits, tmp_path, *FEW, "--draws=2")
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
    evaluate(points, tmp_path, *how, *arguments)
    given = solver.calls[-1]
    assert eqx.tree_equal(given["route"], route)
    assert eqx.tree_equal(given["divergence"], divergence)
    assert isinstance(given["solver"], dfx.Heun)
    assert eqx.tree_equal(
        given["stepsize_controller"], dfx.PIDController(rtol=1e-4, atol=1e-4)
    )
    assert given["max_steps"] == 9


def test_results_do_not_depend_on_the_batch_size(points, tmp_path):
    how = *FEW[:2], *COARSE
    small = evaluate(points, tmp_path / "7", *how, "--batch-size=7")
    large = evaluate(points, tmp_path / "64", *how, "--batch-size=64")
    for name in small:
        # float32 sums in another order.
        np.testing.assert_allclose(large[name], small[name], rtol=1e-4)


def test_draws_are_keyed_by_the_example(logit_digits, solver, tmp_path):
    whole = evaluate(logit_digits, tmp_path / "whole", *FEW)
    part = evaluate(logit_digits, tmp_path / "part", "--first=9", "--examples=7")
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][6:13])
    other = evaluate(logit_digits, tmp_path / "other", *FEW, "--seed=1")
    assert not np.isclose(other["total"], whole["total"], rtol=1e-5).any()


def test_solves_that_fail_are_named_and_the_others_kept(logit_digits, solver, tmp_path):
    table = evaluate(logit_digits, tmp_path, *FEW, "--max-steps=5")
    luck = [jr.normal(_keys(i, 0)[1], (), jnp.float32) for i in range(3, 24)]
    failed = [i for i, luck in enumerate(luck, start=3) if luck <= -0.5]
    assert 0 < len(failed) < 21
    assert table["example"][~table["converged"]].tolist() == failed
    assert np.isnan(table["total"][~table["converged"]]).all()
    kept = table["total"][table["converged"]]
    report, text = report_of(tmp_path), (tmp_path / "report.txt").read_text()
    assert report["not_converged"] == failed
    assert report["terms"]["total"]["mean"] == kept.mean()
    named = ", ".join(map(str, failed))
    assert f"{len(failed)} did not converge" in text and f"examples {named}." in text
    assert "Raise --max-steps, which was 5" in text
