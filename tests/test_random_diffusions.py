"""Random (Q, D) with random clocks, shapes and dtypes, through the public interface.

What comes out is compared with kernels in 60 digits, with dense matrices, or with the
closed forms that normal data have. Matrices, rates and times are drawn as arrays, so
that all examples of a case share its programs.
"""

import functools
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st
from random_recipes import (
    CASES,
    ONE,
    OTHER,
    Dense,
    few,
    normal,
    numbers,
    over,
    recipes,
    seeds,
    some,
)

import eqmdm
from helpers import slow


# Random diffusions end anywhere.
pytestmark = pytest.mark.filterwarnings("ignore:The law of this diffusion")


@eqx.filter_jit
def read_transitions(diffusion, r, s, t):
    read = jax.vmap(diffusion.transition)
    laws = read(jnp.stack([r, s, r]), jnp.stack([s, t, t]))
    first, second, both = (jax.tree.map(lambda x, i=i: x[i], laws) for i in range(3))
    return first.then(second), both


@over(ONE)
@few
@given(st.data())
def test_transitions_compose_to_the_one_over_both_intervals(case, data):
    recipe = data.draw(recipes(case))
    times = data.draw(numbers(0, 1, 3).map(np.sort))
    # At least a sixteenth of t1 apart.
    times = recipe.t1 * (0.875 * times + np.array([0, 0.0625, 0.125]))
    times = times.astype(case.dtype)
    composed, both = read_transitions(recipe.build(), *map(jnp.asarray, times))
    r, _, t = times.astype(float)
    dense = Dense(recipe, r, t, case.dtype)
    for law in (composed, both):
        assert law.root.dtype == law.mean_map.dtype == case.dtype
        # The two laws that are composed err as much each.
        error = np.abs(np.asarray(law.mean_map, float) - dense.psi)
        assert np.max(error) <= 2 * dense.mean_error
        error = np.abs(np.asarray(law.root, float) - dense.root)
        assert np.max(error / dense.rows[:, None]) <= 2 * dense.root_error


@eqx.filter_jit
def read_log_snrs(diffusion, times):
    log_snrs = jax.vmap(diffusion.log_snr)(times)
    between = 0.5 * (log_snrs[1:] + log_snrs[:-1])
    return log_snrs, between, jax.vmap(diffusion.time_at_log_snr)(between)


@over([CASES[3], CASES[4], slow(CASES[6])])
@few
@given(st.data())
def test_log_snr_is_that_of_dense_matrices_and_falls_and_its_time_is_found(case, data):
    recipe = data.draw(recipes(case))
    eps = float(jnp.finfo(case.dtype).eps)
    times = np.linspace(recipe.t0, recipe.t1, 5).astype(case.dtype)
    log_snrs, between, found = read_log_snrs(recipe.build(), jnp.asarray(times))
    assert log_snrs.dtype == found.dtype == case.dtype
    denses = [Dense(recipe, None, float(t), case.dtype) for t in times]
    bound = np.array([2 * d.data_error + eps * abs(math.log(d.snr)) for d in denses])
    error = np.abs(np.asarray(log_snrs, float) - [math.log(d.snr) for d in denses])
    assert np.all(error <= bound)
    # Where it is stationary, rounding may raise it.
    assert np.all(np.diff(np.asarray(log_snrs, float)) <= bound[1:] + bound[:-1])
    for t, log_snr in zip(found.tolist(), between.tolist(), strict=True):
        assert times[0] <= t <= times[-1]
        dense = Dense(recipe, None, t, case.dtype)
        # The search ends some roundings of the logarithm of the time away.
        bound = 2 * dense.data_error + eps * abs(log_snr)
        bound += 8 * eps * t * speed_of_log_snr(recipe, dense, t)
        assert abs(math.log(dense.snr) - log_snr) <= bound


def speed_of_log_snr(recipe, dense, t):
    """The rate at which log-SNR falls, |G^T Sigma^-1 a|^2 / SNR."""
    G = math.sqrt(2 * recipe.rate(t)) * recipe.noise
    return np.sum((G.T @ dense.weights) ** 2) * dense.snr


@eqx.filter_jit
def read_scores(diffusion, t, y):
    denoiser = lambda log_snr, z: jnp.tanh(z + 0.125 * log_snr)
    network = lambda t, y: jnp.sin(y + t)
    return (
        eqmdm.DenoiserModel(denoiser, diffusion).score(t, y),
        eqmdm.NoiseModel(network, diffusion).score(t, y),
    )


@over(ONE)
@few
@given(st.data(), seeds)
def test_scores_are_those_of_dense_matrices(case, data, seed):
    recipe = data.draw(recipes(case))
    t = jnp.asarray(data.draw(numbers(recipe.t0, recipe.t1)), case.dtype)
    y = normal(seed, (case.n_vars, *case.shape), case.dtype)
    scores = read_scores(recipe.build(), t, y)
    assert all(s.shape == y.shape and s.dtype == case.dtype for s in scores)
    t, y = float(t), np.asarray(y, float)
    dense = Dense(recipe, None, t, case.dtype)
    # In units of the rows of the root, where its inverse has the norm of `inverse`.
    rows = dense.rows.reshape(-1, *[1] * len(case.shape))
    inverse, norm = np.linalg.norm(dense.inverse, 2), np.linalg.norm
    b, u = dense.b, dense.whiten(y)
    in_rows = lambda state: np.tensordot(dense.inverse.T, state, 1)
    error = lambda score, exact: norm(rows * np.asarray(score, float) - exact)

    z = np.tensordot(b, u, 1) / dense.snr
    log_snr_error = 2 * dense.data_error
    z_error = (3 * dense.data_error + dense.root_error) * norm(u) / norm(b)
    x_hat = np.tanh(z + 0.125 * math.log(dense.snr))
    x_hat_error = z_error + 0.125 * log_snr_error * math.sqrt(x_hat.size)
    residual = b.reshape(rows.shape) * x_hat[None] - u
    bound = 2 * dense.root_error * norm(residual)
    bound += norm(b) * (dense.data_error * norm(x_hat) + x_hat_error)
    bound += inverse * dense.rounding * norm(y / rows)
    assert error(scores[0], in_rows(residual)) <= inverse * bound

    noise = np.sin(y + t)
    bound = inverse * dense.root_error * norm(noise)
    assert error(scores[1], -in_rows(noise)) <= bound


def curved_score(t, y):
    """The gradient of nothing."""
    return jnp.tanh(y[::-1]) + t * y


@eqx.filter_jit
def read_terms(diffusion, clock, share, y):
    """The times and the terms of the three processes at a fraction of their
    intervals."""
    key, dtype, shape = jr.key(0), y.dtype, y.shape[1:]
    options = {"dtype": dtype, "clock": clock}
    forward = eqmdm.forward_sde(diffusion, y[0], key=key, clock=clock)
    model = eqmdm.FunctionModel(curved_score, diffusion)
    reverse = eqmdm.reverse_sde(model, shape, key=key, **options)
    flow = eqmdm.probability_flow(model, shape, **options)

    def read(problem):
        s = problem.t0 + share * (problem.t1 - problem.t0)
        if problem is flow:
            return problem.time(s), problem.terms.vf(s, y, None), None
        drift, noise = problem.terms.terms
        return problem.time(s), drift.vf(s, y, None), noise.vf(s, y, None).matrix

    return [read(problem) for problem in (forward, reverse, flow)]


def check_terms(recipe, found, y, pace_at=lambda t: (1.0, 0.0)):
    """The terms by dense matrices, where time goes by at a pace that is known up to a
    relative error."""
    F, D = recipe.drift, recipe.noise @ recipe.noise.T
    # Of F, whose S^-1 is two solves.
    rounding = 16 * len(F) * np.linalg.cond(recipe.covariance)
    rounding *= float(jnp.finfo(y.dtype).eps)
    norm, product = np.linalg.norm, functools.partial(np.tensordot, axes=1)
    dtype, y = y.dtype, np.asarray(y, float)
    # f, -f + G G^T s and -f + G G^T s / 2.
    for (t, drift, matrix), (of_drift, of_score) in zip(
        found, [(1, 0), (-1, 1), (-1, 0.5)], strict=True
    ):
        assert drift.dtype == dtype and drift.shape == y.shape
        t = float(t)
        pace, pace_error = pace_at(t)
        rate, error = recipe.rate(t) * pace, rounding + pace_error
        score = np.tanh(y[::-1]) + t * y
        expected = of_drift * product(F, y) + of_score * product(2 * D, score)
        size = rate * (norm(F, 2) * norm(y) + 2 * norm(D, 2) * norm(score))
        assert norm(np.asarray(drift, float) - rate * expected) <= error * size
        if matrix is not None:
            assert matrix.dtype == dtype
            G = np.asarray(matrix, float)
            assert norm(G @ G.T - 2 * rate * D) <= error * 2 * rate * norm(D)


@over(OTHER)
@few
@given(st.data(), seeds)
def test_terms_are_those_of_dense_matrices(case, data, seed):
    recipe = data.draw(recipes(case))
    share = jnp.asarray(data.draw(numbers(0, 1)), case.dtype)
    y = normal(seed, (case.n_vars, *case.shape), case.dtype)
    found = read_terms(recipe.build(), None, share, y)
    check_terms(recipe, found, y)
    # The forward clock begins at 0, the reversed ones count down from t1.
    share, eps = float(share), float(jnp.finfo(case.dtype).eps)
    backwards = recipe.t1 - share * (recipe.t1 - recipe.t0)
    times = [float(t) for t, *_ in found]
    expected = [share * recipe.t1, backwards, backwards]
    assert np.allclose(times, expected, rtol=0, atol=4 * eps)


@pytest.mark.slow
@over([CASES[4]])
@some
@given(st.data(), seeds)
def test_terms_on_a_clock_of_the_noise_keep_its_pace_or_are_refused(case, data, seed):
    # So long that for some recipes the log-SNR is stationary in between.
    recipe = data.draw(recipes(case))
    recipe = recipe._replace(t1=4 * recipe.t1)
    share = jnp.asarray(data.draw(numbers(0, 1)), case.dtype)
    y = normal(seed, (case.n_vars, *case.shape), case.dtype)
    try:
        found = read_terms(recipe.build(), eqmdm.LogSNRClock(), share, y)
    except eqx.EquinoxRuntimeError as error:
        assert "log signal-to-noise ratio stands still near a time" in str(error)
        return

    def pace_at(t):
        dense = Dense(recipe, None, t, case.dtype)
        speed = speed_of_log_snr(recipe, dense, t)
        # Its root is the length of L^-1 G along a unit vector.
        of_noise = dense.whiten(math.sqrt(2 * recipe.rate(t)) * recipe.noise)
        error = (dense.data_error + 2 * dense.root_error) * np.linalg.norm(of_noise)
        return 1 / speed, 2 * error / math.sqrt(speed)

    check_terms(recipe, found, y, pace_at)
    ends = [Dense(recipe, None, t, case.dtype) for t in (recipe.t0, recipe.t1)]
    high, low = (math.log(dense.snr) for dense in ends)
    fallen = float(share) * (high - low)
    for (t, *_), log_snr in zip(
        found, [high - fallen, *[low + fallen] * 2], strict=True
    ):
        t, eps = float(t), float(jnp.finfo(case.dtype).eps)
        dense = Dense(recipe, None, t, case.dtype)
        bound = 2 * sum(law.data_error for law in (*ends, dense))
        # Newton's steps end some roundings of the logarithm of the time away.
        bound += 8 * eps * t * speed_of_log_snr(recipe, dense, t)
        assert abs(math.log(dense.snr) - log_snr) <= bound


@some
@given(st.data(), st.integers(2, 4))
def test_variables_that_no_noise_reaches_are_refused_by_name(data, n_vars):
    order = np.array(data.draw(st.permutations(range(n_vars))))
    n_reached = data.draw(st.integers(1, n_vars - 1))
    reached = np.isin(np.arange(n_vars), order[:n_reached])
    half = data.draw(numbers(0.5, 2, n_vars, n_vars))
    skew = np.tril(half) - np.tril(half).T
    noise = np.diag(data.draw(numbers(0.5, 1.5, n_vars)) * reached)
    start = np.diag([0.0, *data.draw(numbers(0.25, 1, n_vars - 1))])
    stationary = np.diag(data.draw(numbers(0.5, 2, n_vars)))
    as_given = data.draw(st.sampled_from([np.asarray, jnp.asarray]))

    def build(skew):
        return eqmdm.LinearDiffusion(
            as_given(skew),
            as_given(noise @ noise),
            stationary_covariance=as_given(stationary),
            start_covariance=as_given(start),
        )

    apart = reached[:, None] == reached[None]
    names = ["the data (variable 0)"]
    names += [f"auxiliary variable {i}" for i in range(1, n_vars)]
    unreached = [
        n for n, is_reached in zip(names, reached, strict=True) if not is_reached
    ]
    message = f"does not reach {re.escape(' and '.join(unreached))}, so"
    with pytest.raises(ValueError, match=message):
        build(skew * apart)
    # A chain, from the first that has noise of its own through all that have none.
    links = np.zeros_like(skew)
    for i, j in zip(order[n_reached - 1 :], order[n_reached:], strict=False):
        links[i, j], links[j, i] = 1.0, -1.0
    assert build(links).n_vars == n_vars
