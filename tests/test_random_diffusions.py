"""Random (Q, D) with random clocks, shapes and dtypes, through the public interface.

What comes out is compared with kernels in 60 digits, with dense matrices, or with the
closed forms that normal data have. Matrices, rates and times are drawn as arrays, so
that all examples of a case share its programs.
"""

import functools
import math
import re
from typing import NamedTuple, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from references import LEARNED, as_arrays, exact_kernel

import eqmdm
from helpers import slow, within_standard_errors


# Random diffusions end anywhere.
pytestmark = pytest.mark.filterwarnings("ignore:The law of this diffusion")

# Hypothesis derives its examples from each test's name: see `conftest.py`.
few, some = (settings(max_examples=n) for n in (4, 8))
seeds = st.integers(0, 2**31 - 1)


class Case(NamedTuple):
    """The static properties that a program is compiled for."""

    n_vars: int
    clock: str
    shape: tuple[int, ...]
    dtype: str


CASES = [
    Case(1, "linear", (), "float64"),
    Case(1, "cosine", (2, 1, 2), "float32"),
    Case(2, "cosine", (3,), "float64"),
    Case(2, "constant", (), "float32"),
    Case(3, "constant", (2, 1, 2), "float64"),
    Case(3, "linear", (3,), "float32"),
    Case(4, "linear", (2,), "float64"),
    Case(4, "cosine", (), "float32"),
]
# Two halves: each has all counts of variables, and both dtypes.
ONE, OTHER = CASES[0::4] + CASES[3::4], CASES[1::4] + CASES[2::4]


def over(cases):
    name = lambda case: f"K{case.n_vars}-{case.clock}-{case.dtype}"
    return pytest.mark.parametrize("case", cases, ids=name)


# --- What is drawn -------------------------------------------------------------------


class Recipe(NamedTuple):
    """Q, and roots of D, S and the covariance at the start; a schedule; an interval."""

    skew: np.ndarray
    noise: np.ndarray
    stationary: np.ndarray
    start: np.ndarray
    clock: str
    rates: tuple[float, float]
    t0: float
    t1: float

    def integral(self, t):
        """B(t)."""
        low, high = self.rates
        if self.clock == "constant":
            return low * t
        if self.clock == "linear":
            return t * (low + (high - low) * t / 2)
        return -math.log1p(-(math.sin(self._angle * t) ** 2))

    def rate(self, t):
        low, high = self.rates
        if self.clock == "constant":
            return low
        if self.clock == "linear":
            return low + (high - low) * t
        return 2 * self._angle * math.tan(self._angle * t)

    @property
    def _angle(self):
        return math.acos(math.exp(-self.rates[1] / 2))

    @property
    def covariance(self):
        """S."""
        return self.stationary @ self.stationary.T

    @property
    def drift(self):
        """F, per unit of the clock."""
        pull = self.skew + self.noise @ self.noise.T
        return -np.linalg.solve(self.covariance, pull.T).T

    def build(self):
        """The diffusion, of arrays."""
        low, high = self.rates
        clock = {
            "constant": lambda: eqmdm.ConstantSchedule(low),
            "linear": lambda: eqmdm.LinearSchedule(low, high),
            "cosine": lambda: eqmdm.CosineSchedule(high),
        }[self.clock]()
        diffusion = eqmdm.LinearDiffusion(
            self.skew,
            dissipation_root=self.noise,
            stationary_covariance=self.covariance,
            start_covariance=self.start @ self.start.T,
            schedule=clock,
            interval=eqmdm.TimeInterval(self.t0, self.t1),
            learn=LEARNED,
        )
        return as_arrays(diffusion)


@st.composite
def numbers(draw, low, high, *shape):
    size = math.prod(shape)
    values = st.floats(low, high, width=32)
    return np.array(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)


@st.composite
def roots(draw, n, low, high):
    """A triangular root with its diagonal between `low` and `high`."""
    values, diagonal = draw(numbers(-0.25, 0.25, n, n)), draw(numbers(low, high, n))
    return np.tril(values, -1) + np.diag(diagonal)


@st.composite
def recipes(draw, case):
    """Random recipes: noise of any rank, strong couplings of each variable to the next,
    so that noise reaches the data, and weaker couplings of all others."""
    n = case.n_vars
    half = np.tril(draw(numbers(-1, 1, n, n)), -1) + 1.5 * np.eye(n, k=-1)
    noise = draw(numbers(-0.25, 0.25, n, n)) + np.eye(n)
    # Columns of zeros keep the shape, and with it the program. The last variables keep
    # their noise.
    noise[:, : n - draw(st.integers(1, n))] = 0
    return Recipe(
        half - half.T,
        noise,
        draw(roots(n, 0.75, 1.5)),
        np.pad(draw(roots(n - 1, 0.125, 1.0)), ((1, 0), (1, 0))),
        case.clock,
        tuple(sorted(draw(numbers(0.5, 4, 2)).tolist())),
        float(draw(numbers(0.0625, 0.25))),
        float(draw(numbers(0.75, 1))),
    )


def normal(seed, shape, dtype="float64"):
    return jr.normal(jr.key(seed), shape, dtype)


# --- What it is compared with --------------------------------------------------------


class Dense:
    """The law of y(t) given y(s), or given the data from `s = None`, and how far a
    kernel in a dtype may be from it.

    The rows of a root in a dtype are off by some roundings of their size: one for each
    term, more with every doubling of the time, and those of S^-1. In units of its row,
    and of the state's own deviations, everything else follows to first order.
    """

    def __init__(self, recipe, s, t, dtype):
        tau = recipe.integral(t) - (0.0 if s is None else recipe.integral(s))
        start = recipe.start if s is None else 0 * recipe.start
        psi, root = exact_kernel(
            recipe.skew, recipe.noise, recipe.stationary, start, tau
        )
        self.psi, self.root = _in_float64(psi), _in_float64(root)
        self.a = self.psi[:, 0]
        self.rows = np.linalg.norm(self.root, axis=1)
        self.b = np.linalg.solve(self.root, self.a)
        self.snr = self.b @ self.b
        self.weights = np.linalg.solve(self.root.T, self.b) / self.snr
        n_roundings = 1 + np.linalg.norm(recipe.drift, 2) * tau
        n_roundings *= 16 * len(self.a) * np.linalg.cond(recipe.covariance)
        self.rounding = n_roundings * float(jnp.finfo(dtype).eps)
        # Psi is a contraction in the norm of S.
        self.mean_error = self.rounding * np.linalg.cond(recipe.stationary)
        self.inverse = np.linalg.inv(self.root / self.rows[:, None])
        # Of the root relative to its rows, and of L^-1 times a state.
        self.root_error = self.rounding * np.linalg.cond(self.inverse)

    @property
    def data_error(self):
        """The error of b = L^-1 a, relative to its size."""
        inverse = np.linalg.norm(self.inverse, 2) / np.min(self.rows)
        return self.root_error + inverse * self.mean_error / math.sqrt(self.snr)

    def whiten(self, y):
        return np.tensordot(np.linalg.inv(self.root), y, 1)


def _in_float64(matrix):
    return np.array(matrix.tolist(), float).reshape(matrix.rows, matrix.cols)


def normal_log_density(x, variance):
    return np.sum(-0.5 * x**2 / variance - 0.5 * np.log(2 * np.pi * variance))


@final
class NormalDenoiser(eqx.Module):
    """The posterior mean of normal data."""

    variance: jax.Array

    def __call__(self, log_snr, z):
        variance = self.variance.astype(z.dtype)
        return z * (variance / (variance + jnp.exp(-log_snr)))


# --- Kernels -------------------------------------------------------------------------


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


# --- Scores and terms ----------------------------------------------------------------


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


# --- Bounds --------------------------------------------------------------------------

variances = numbers(0.25, 4)


def expected_bound(recipe, variance, x, dtype):
    r"""The expectations of a bound's terms given `x`, and how far the prior's may be.

    With $u = v \mathrm{SNR}$ the error of the posterior mean is $x / (1 + u)$ and, of
    its own noise, $u / (1 + u)$, so the integrand over log-SNR is $(u x^2 / v + u^2) /
    (1 + u)^2$, whose integral is elementary.
    """
    at_cut, at_end = (Dense(recipe, None, t, dtype) for t in (recipe.t0, recipe.t1))
    u, u_end = variance * at_cut.snr, variance * at_end.snr
    square = np.sum(x**2) / variance
    error = u * (square + x.size * u) / (1 + u) ** 2
    density = 0.5 * x.size * math.log(at_cut.snr / (2 * math.pi))
    reconstruction = density - 0.5 * error
    gained = 1 / (1 + u_end) - 1 / (1 + u)
    integral = square * gained + x.size * (math.log((1 + u) / (1 + u_end)) - gained)

    # KL(N(a x, Sigma) || N(0, S)).
    whiten = lambda matrix: np.linalg.solve(recipe.stationary, matrix)
    root, a = whiten(at_end.root), whiten(at_end.a)
    log_det = np.linalg.slogdet(root)[1]
    per_dim = 0.5 * (np.sum(root**2) - len(a)) - log_det
    divergence = x.size * per_dim + 0.5 * (a @ a) * np.sum(x**2)
    # Each diagonal entry of the root is off by `root_error` of itself, and so on.
    inverse = np.linalg.norm(np.linalg.inv(recipe.stationary), 2)
    bound = x.size * (np.sum(root**2) + len(a)) * at_end.root_error
    bound += np.sum(x**2) * np.linalg.norm(a) * inverse * at_end.mean_error
    return reconstruction, -divergence, -0.5 * integral, 2 * bound


@eqx.filter_jit
def read_bounds(diffusion, variance, x, keys):
    model = eqmdm.DenoiserModel(NormalDenoiser(variance), diffusion)
    return jax.vmap(lambda key: eqmdm.elbo(model, x, key=key))(keys)


@over([*OTHER[:3], slow(OTHER[3])])
@few
@given(st.data(), variances, seeds)
def test_terms_of_a_bound_average_to_their_closed_forms(case, data, variance, seed):
    recipe = data.draw(recipes(case))
    key_data, key_bounds = jr.split(jr.key(seed))
    x = 2 * jr.normal(key_data, case.shape, case.dtype)
    keys = jr.split(key_bounds, 4000)
    bounds = read_bounds(recipe.build(), jnp.asarray(variance), x, keys)
    x = np.asarray(x, float)
    *expected, prior_error = expected_bound(recipe, variance, x, case.dtype)
    reconstruction, prior, diffusion = expected
    assert all(leaf.dtype == case.dtype for leaf in jax.tree.leaves(bounds))
    assert within_standard_errors(bounds.reconstruction, reconstruction)
    assert np.max(np.abs(np.asarray(bounds.prior, float) - prior)) <= prior_error
    assert within_standard_errors(bounds.diffusion, diffusion)
    assert not np.any(bounds.auxiliary)


# --- Likelihoods ---------------------------------------------------------------------

TOLERANCES = {"float32": 1e-5, "float64": 1e-9}


@eqx.filter_jit
def read_likelihood(diffusion, variance, x, route, tolerance):
    model = eqmdm.DenoiserModel(NormalDenoiser(variance), diffusion)
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    options = {"route": route, "stepsize_controller": controller}
    return eqmdm.log_likelihood(model, x, key=jr.key(0), **options)


def check_likelihood(recipe, variance, x, route, expected, size):
    dtype = x.dtype.name
    tolerance = jnp.asarray(TOLERANCES[dtype], dtype)
    variance = jnp.asarray(variance)
    result = read_likelihood(recipe.build(), variance, x, route, tolerance)
    assert result.converged and result.log_likelihood.dtype == dtype
    # The tolerance over a hundred steps: in the volume of each coordinate, and relative
    # in a state at the end, whose square is a part of the density.
    error = abs(float(result.log_likelihood) - expected)
    assert error <= 100 * TOLERANCES[dtype] * size


@over(OTHER)
@some
@given(st.data(), variances, seeds)
def test_collapsed_likelihood_of_normal_data_is_its_closed_form(
    case, data, variance, seed
):
    recipe = data.draw(recipes(case))
    x = 2 * normal(seed, case.shape, case.dtype)
    at_cut, at_end = (Dense(recipe, None, t, "float64") for t in (recipe.t0, recipe.t1))
    # dz / d sigma = sigma z / (v + sigma^2), so z grows as the deviation of z does; at
    # the end the prior of z is that of w . y.
    start, end = (variance + 1 / dense.snr for dense in (at_cut, at_end))
    prior = np.sum((recipe.stationary.T @ at_end.weights) ** 2)
    z = np.asarray(x, float) * math.sqrt(end / start)
    expected = normal_log_density(z, prior) + 0.5 * x.size * math.log(end / start)
    size = x.size + np.sum(z**2) / prior
    check_likelihood(recipe, variance, x, eqmdm.CollapsedRoute(), expected, size)


def stationary_from_the_start(recipe, variance):
    """The recipe whose state has the law N(0, S) at every time, for normal data."""
    stationary = recipe.stationary.copy()
    stationary[:, 0] = 0
    stationary[0, 0] = math.sqrt(variance)
    start = stationary.copy()
    start[0, 0] = 0
    return recipe._replace(stationary=stationary, start=start)


@over([CASES[3], CASES[4]])
@few
@given(st.data(), variances, seeds)
def test_augmented_likelihood_of_stationary_data_is_their_density_for_every_draw(
    case, data, variance, seed
):
    recipe = stationary_from_the_start(data.draw(recipes(case)), variance)
    x = math.sqrt(variance) * normal(seed, case.shape, case.dtype)
    dense = Dense(recipe, None, recipe.t0, "float64")
    # The prior is exact wherever the diffusion ends.
    expected = normal_log_density(np.asarray(x, float), variance + 1 / dense.snr)
    size = case.n_vars * x.size + np.sum(np.asarray(x, float) ** 2) / variance
    check_likelihood(recipe, variance, x, eqmdm.AugmentedRoute(), expected, size)


# --- Samples -------------------------------------------------------------------------


@final
class Readout(eqx.Module):
    """The denoiser of data that are one point; but at t0 the statistic itself, so that
    samplers return it."""

    point: jax.Array
    threshold: jax.Array

    def __call__(self, log_snr, z):
        point = self.point.astype(z.dtype)
        return jnp.where(log_snr < self.threshold.astype(z.dtype), point, z)


N_STEPS = 3


def make_readout(recipe, point, dtype):
    """A readout for a data point, with the laws at t0 and at t1.

    The grid is uniform in log-SNR: the threshold is in the middle of its last step.
    """
    at_cut, at_end = (Dense(recipe, None, t, dtype) for t in (recipe.t0, recipe.t1))
    high, low = math.log(at_cut.snr), math.log(at_end.snr)
    threshold = high - (high - low) / (2 * N_STEPS)
    readout = Readout(jnp.asarray(point), jnp.asarray(threshold))
    return readout, at_cut, at_end


WITHOUT_NOISE = {
    "order 2": eqmdm.DPMSolver(),
    "order 3": eqmdm.DPMSolver(order=3),
}


@eqx.filter_jit
def read_samples(diffusion, readout, y, times):
    model = eqmdm.DenoiserModel(readout, diffusion)
    return {
        name: sampler(model, y, times, key=jr.key(0))
        for name, sampler in WITHOUT_NOISE.items()
    }


points = numbers(-2, 2)


@over([CASES[3], CASES[4], slow(CASES[7])])
@few
@given(st.data(), points, seeds)
def test_samplers_without_noise_lead_a_state_to_where_one_point_has_it(
    case, data, point, seed
):
    recipe = data.draw(recipes(case))
    readout, at_cut, at_end = make_readout(recipe, point, case.dtype)
    diffusion = recipe.build()
    times = eqmdm.LogSNRGrid()(diffusion, N_STEPS, case.dtype)
    y = normal(seed, (case.n_vars, *case.shape), case.dtype)
    samples = read_samples(diffusion, readout, y, times)
    # The deviation from the point, in units of the root, stays as it is.
    a = at_end.a.reshape(-1, *[1] * len(case.shape))
    noise = at_end.whiten(np.asarray(y, float) - a * point)
    along = np.tensordot(at_end.b, noise, 1) / at_end.snr
    shrunk = point + along * math.sqrt(at_end.snr / at_cut.snr)
    # Of every step: what the coefficients make of the point and of the deviation, and
    # at the cut, where it is read out, and at the horizon, what they made of the state.
    denses = [Dense(recipe, None, float(t), case.dtype) for t in times]
    error = max(dense.data_error + dense.root_error for dense in denses)
    size = np.linalg.norm(noise) + math.sqrt(at_end.snr) * abs(point)
    size = abs(point) + size / math.sqrt(at_cut.snr)
    for name, sample in samples.items():
        assert sample.shape == case.shape and sample.dtype == case.dtype
        distance = np.max(np.abs(np.asarray(sample, float) - shrunk))
        assert distance <= 8 * N_STEPS * error * size, name


SOLVERS = {
    "ancestral": eqmdm.AncestralSampler(),
    "dpm": eqmdm.DPMSolver(),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("ancestral", CASES[2]),
        ("ancestral", CASES[4]),
        pytest.param("ancestral", CASES[6], marks=pytest.mark.slow),
        ("dpm", CASES[3]),
        ("dpm", CASES[4]),
    ],
    ids=lambda value: value if isinstance(value, str) else f"K{value.n_vars}",
)
@few
@given(st.data(), points, seeds)
def test_samples_from_the_prior_have_the_law_that_one_point_gives_them(
    name, case, data, point, seed
):
    recipe = data.draw(recipes(case))
    readout, at_cut, at_end = make_readout(recipe, point, case.dtype)
    diffusion = recipe.build()
    options = {"sampler": SOLVERS[name], "n_samples": 500, "n_steps": N_STEPS}
    options["dtype"] = case.dtype
    model = eqmdm.DenoiserModel(readout, diffusion)
    x = eqmdm.sample(model, case.shape, key=jr.key(seed), **options)
    assert x.shape == (500, *case.shape) and x.dtype == case.dtype
    # The statistic is the point with noise of variance 1 / SNR, which only gains noise
    # with time: given its end, of its variance it keeps the share `ratio`.
    ratio = at_end.snr / at_cut.snr
    of_prior = np.sum((recipe.stationary.T @ at_end.weights) ** 2)
    if name == "ancestral":
        kept, variance = ratio, (1 - ratio) / at_cut.snr + ratio**2 * of_prior
    else:
        kept, variance = math.sqrt(ratio), ratio * of_prior
    gap = np.asarray(x, float).reshape(-1) - (1 - kept) * point
    gap = gap / math.sqrt(variance)
    assert within_standard_errors(gap, 0.0)
    assert within_standard_errors(gap**2, 1.0)


@eqx.filter_jit
def read_splittings(diffusion, variance, y, times, keys):
    model = eqmdm.DenoiserModel(NormalDenoiser(variance), diffusion)
    one = lambda key: eqmdm.SSCS()(model, y, times, key=key)
    return jax.vmap(one)(keys)


@over([CASES[3], CASES[4]])
@few
@given(st.data(), variances, seeds)
def test_splitting_of_stationary_data_is_their_own_process_backwards(
    case, data, variance, seed
):
    recipe = stationary_from_the_start(data.draw(recipes(case)), variance)
    key_start, key_noise = jr.split(jr.key(seed))
    y = jr.normal(key_start, (case.n_vars, *case.shape), case.dtype)
    times = jnp.linspace(recipe.t1, recipe.t0, N_STEPS + 1).astype(case.dtype)
    keys = jr.split(key_noise, 1000)
    variance = jnp.asarray(variance)
    x = read_splittings(recipe.build(), variance, y, times, keys)
    # On any grid: there is nothing left for the score to do.
    at_cut = Dense(recipe, None, recipe.t0, case.dtype)
    backwards = recipe._replace(skew=-recipe.skew)
    backwards = Dense(backwards, recipe.t0, recipe.t1, case.dtype)
    # What is returned is the posterior mean, v z / (v + 1 / SNR).
    weights = at_cut.weights / (1 + 1 / (float(variance) * at_cut.snr))
    mean = np.tensordot(weights @ backwards.psi, np.asarray(y, float), 1)
    gap = np.asarray(x, float) - mean[None]
    gap = gap.reshape(-1) / np.linalg.norm(weights @ backwards.root)
    assert within_standard_errors(gap, 0.0)
    assert within_standard_errors(gap**2, 1.0)


# --- What there is no kernel of ------------------------------------------------------


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
