"""Diffusions of any matrices, schedule and interval, and their dense twins."""

import math
from typing import NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import settings, strategies as st
from references import LEARNED, as_arrays, exact_kernel

import eqmdm


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
        self.psi, self.root = in_float64(psi), in_float64(root)
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


def in_float64(matrix):
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


variances = numbers(0.25, 4)


def stationary_from_the_start(recipe, variance):
    """The recipe whose state has the law N(0, S) at every time, for normal data."""
    stationary = recipe.stationary.copy()
    stationary[:, 0] = 0
    stationary[0, 0] = math.sqrt(variance)
    start = stationary.copy()
    start[0, 0] = 0
    return recipe._replace(stationary=stationary, start=start)
