"""Helpers that several test files share."""

import ast
import contextlib
import functools
import itertools
import math

import jax
import jax.monitoring
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest


NOT_FINITE = math.nan, math.inf, -math.inf
_ARRAY = jax.Array | np.ndarray | np.generic

# Options for `jax.jit`: the optimisation level of users, which `conftest.py` lowers.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if jax.__version__.startswith("0.10."):
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True
# For claims about rounding errors in float32.
optimised_jit = functools.partial(jax.jit, compiler_options=OPTIMISED)

_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}


def generator_of(key):
    """NumPy's generator of random numbers, seeded by a key: it compiles nothing, where
    JAX compiles a draw for each shape."""
    return np.random.default_rng(np.asarray(jr.key_data(key)))


def normal(key, shape):
    """Standard normal numbers by `generator_of`."""
    return generator_of(key).standard_normal(shape)


def slow(*values):
    """Marks one of a test's sets of parameters as slow, where others say as much."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(quick, parameters):
    """The parameters, of which only those in `quick` are not slow."""
    return [p if p in quick else slow(p) for p in parameters]


def slow_pairs_but(quick, first, second):
    """All pairs, of which only those in `quick` are not slow."""
    every = itertools.product(first, second)
    return [pair if pair in quick else slow(*pair) for pair in every]


def tree_allclose(actual, expected, *, rtol, atol):
    """Whether two trees agree in structure, shapes, dtypes and values.

    Values agree where `|actual - expected| <= atol + rtol * |expected|`; NaN agrees
    with nothing. JAX and NumPy arrays are interchangeable, and weak types count as
    strong. On failure the first difference in form, or the worst leaf, is printed for
    pytest to show.
    """
    actual_leaves, actual_structure = jtu.tree_flatten_with_path(actual)
    expected_leaves, expected_structure = jtu.tree_flatten_with_path(expected)
    if actual_structure != expected_structure:
        print(f"structure: {actual_structure}, expected {expected_structure}")
        return False

    worst_excess, worst = 0.0, ""
    for (path, x), (_, y) in zip(actual_leaves, expected_leaves, strict=True):
        name = jtu.keystr(path) or "the only leaf"
        if _form(x) != _form(y):
            print(f"{name}: {_form(x)}, expected {_form(y)}")
            return False
        if not isinstance(x, _ARRAY | float | complex):
            if x != y:
                print(f"{name}: {x!r}, expected {y!r}")
                return False
            continue
        x, y = _widened(x), _widened(y)
        with np.errstate(invalid="ignore"):
            error = np.where(x == y, 0.0, np.abs(x - y))
            # Infinite for a NaN, and if only one of the two values is infinite.
            excess = error - (atol + rtol * np.where(np.isfinite(y), np.abs(y), 0.0))
            excess = np.where(np.isnan(excess), np.inf, excess)
        if excess.size and excess.max() > worst_excess:
            worst_excess = excess.max()
            index = np.unravel_index(excess.argmax(), excess.shape)
            worst = (
                f"{name}{list(map(int, index)) or ''}: {x[index]}, "
                f"expected {y[index]}; error {error[index]:.3g} with "
                f"rtol={rtol:.3g}, atol={atol:.3g}; "
                f"{(excess > 0).sum()} of {excess.size} entries differ"
            )
    if worst:
        print(worst)
    return not worst


def _form(leaf):
    """The properties of a leaf that must be equal at any tolerance."""
    if isinstance(leaf, _ARRAY):
        return leaf.shape, str(leaf.dtype)
    return type(leaf)


def _widened(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jr.key_data(leaf)
    leaf = np.asarray(leaf)
    # Booleans and integers too; integers beyond 2**53 lose their last digits.
    is_complex = np.issubdtype(leaf.dtype, np.complexfloating)
    return leaf.astype(np.complex128 if is_complex else np.float64)


def within_standard_errors(samples, expected, *, n=5.0):
    """Whether the mean of independent samples, along axis 0, is the expected one.

    Every entry of the mean must be within `n` of its own standard errors, estimated
    from the samples. At five a correct entry fails once in two million, if the mean is
    close to normal.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim == 0 or len(samples) < 2:
        raise ValueError(
            f"`samples` must be at least two along axis 0; got shape {samples.shape}."
        )
    standard_error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return estimate_within_standard_errors(
        samples.mean(axis=0), expected, standard_error, n=n
    )


def estimate_within_standard_errors(estimate, expected, standard_error, *, n=5.0):
    """Whether every entry is within `n` standard errors, which are given."""
    estimate, expected, standard_error = np.broadcast_arrays(
        *(np.asarray(x, np.float64) for x in (estimate, expected, standard_error))
    )
    error = np.abs(estimate - expected)
    # Negated comparison, so that NaN fails.
    outside = ~(error <= n * standard_error)
    if not outside.any():
        return True
    with np.errstate(divide="ignore", invalid="ignore"):
        n_errors = np.where(outside, error / standard_error, 0.0)
    index = np.unravel_index(n_errors.argmax(), n_errors.shape)
    print(
        f"{list(map(int, index)) or 'the only entry'}: {estimate[index]}, expected "
        f"{expected[index]}; {n_errors[index]:.3g} standard errors of "
        f"{standard_error[index]:.3g}, at most {n:.3g} allowed; {outside.sum()} of "
        f"{outside.size} entries outside"
    )
    return False


@contextlib.contextmanager
def counted():
    """The numbers of programs traced, lowered and compiled within the context."""
    n_programs = {name: 0 for name in _EVENTS.values()}

    def count(event, duration, **details):
        del duration, details
        if event in _EVENTS:
            n_programs[_EVENTS[event]] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield n_programs
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def equations(jaxpr):
    """All equations of a jaxpr, those of its inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            # Closed and open ones.
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def imported_names(file, *, package):
    """The dotted name of everything that a file, in a given package, imports.

    Absolute names, for relative imports too; `package` is a tuple of the parts of its
    own dotted name. Imports inside functions count.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else ()
            parts += (node.module,) if node.module else ()
            yield from (".".join((*parts, alias.name)) for alias in node.names)
