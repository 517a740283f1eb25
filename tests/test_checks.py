import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas
import pytest

import eqmdm
from eqmdm import nn
from eqmdm._core.checks import as_array, as_examples, check_finite, check_levels
from helpers import counted


KEY = jr.key(0)
CLD = eqmdm.CLD()


def _denoiser(log_snr, z):
    return z / (1 + jnp.exp(-log_snr))


MODEL = eqmdm.DenoiserModel(_denoiser, CLD)
SHORT = jnp.ones(2, jnp.bfloat16)
ENTRANCES_OF_PRECISION = {
    "elbo": lambda: eqmdm.elbo(MODEL, SHORT, key=KEY),
    "discrete_elbo": lambda: eqmdm.discrete_elbo(
        MODEL, SHORT, times=jnp.array([1.0, 0.5]), key=KEY
    ),
    "log_likelihood": lambda: eqmdm.log_likelihood(MODEL, SHORT, key=KEY),
    "perturbation_kernel": lambda: CLD.perturbation_kernel(jnp.asarray(0.5, "float16")),
    "transition": lambda: CLD.transition(jnp.asarray(0.0), jnp.asarray(0.5, "float16")),
    "time_at_log_snr": lambda: CLD.time_at_log_snr(jnp.asarray(1.0, "bfloat16")),
    "forward_sde": lambda: eqmdm.forward_sde(CLD, SHORT, key=KEY),
    "reverse_sde": lambda: eqmdm.reverse_sde(MODEL, (2,), key=KEY, dtype=jnp.bfloat16),
    "probability_flow": lambda: eqmdm.probability_flow(MODEL, (2,), dtype="float16"),
    "sample": lambda: eqmdm.sample(MODEL, (2,), key=KEY, dtype=jnp.int32),
    "grid": lambda: eqmdm.UniformGrid()(CLD, 3, jnp.bfloat16),
    "evaluate": lambda: eqmdm.evaluate(
        eqmdm.NoiseModel(nn.MLP((2,), 2, width=8, dtype=jnp.bfloat16, key=KEY), CLD),
        np.ones((3, 2), np.float32),
        eqmdm.Objective(),
        key=KEY,
    ),
}


@pytest.mark.parametrize("entrance", ENTRANCES_OF_PRECISION)
def test_what_is_too_short_for_kernels_is_refused_by_name(entrance, unchecked):
    with pytest.raises(TypeError, match=r"`\w+` must be float32 or float64.*got \w+"):
        ENTRANCES_OF_PRECISION[entrance]()


COUNTS = {
    "n_steps": lambda n: eqmdm.sample(MODEL, (2,), key=KEY, n_steps=n),
    "n_samples": lambda n: eqmdm.sample(MODEL, (2,), key=KEY, n_samples=n),
    "max_steps": lambda n: eqmdm.log_likelihood(
        MODEL, jnp.ones(2), key=KEY, max_steps=n
    ),
    "n_vars": lambda n: eqmdm.LearnedDiffusion(n, key=KEY),
    "n_levels": eqmdm.GreyLevels,
    "n_probes": eqmdm.HutchinsonDivergence,
    "n_draws": eqmdm.AugmentedRoute,
    "accumulate": lambda n: eqmdm.make_optimiser(accumulate=n),
    "warmup": lambda n: eqmdm.make_optimiser(warmup=n),
    "n": lambda n: eqmdm.low_discrepancy(n, key=KEY),
    "depth": lambda n: nn.MLP((2,), 1, depth=n, key=KEY),
}


@pytest.mark.parametrize("name", COUNTS)
def test_count_that_is_none_is_refused_by_name(name, unchecked):
    with pytest.raises(TypeError, match=f"`{name}` must be an integer; got 2.5"):
        COUNTS[name](2.5)
    with pytest.raises(ValueError, match=f"`{name}` must be at least .; got -1"):
        COUNTS[name](-1)


@pytest.mark.parametrize("shape", [(-2,), (2, 0), (2.5,)])
def test_shape_of_no_example_is_refused(shape, unchecked):
    for call in (eqmdm.sample, eqmdm.reverse_sde):
        with pytest.raises(ValueError, match="`shape` must be the sizes of one"):
            call(MODEL, shape, key=KEY)


EXACT = np.asarray([[1.5, -2.0], [0.25, 3e38]], np.float32)
FRAME = pandas.DataFrame(EXACT)
ACCEPTED = {
    "numpy": EXACT,
    "jax": jnp.asarray(EXACT),
    "foreign byte order": EXACT.astype(EXACT.dtype.newbyteorder()),
    "list": EXACT.tolist(),
    "list of arrays": [*EXACT],
    "list of JAX arrays": [jnp.asarray(row) for row in EXACT],
    "data frame": FRAME,
    "unmasked": np.ma.masked_array(EXACT, mask=False),
    "strided": np.repeat(EXACT, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("given", ACCEPTED)
def test_arrays_of_any_kind_keep_their_values(given):
    array = as_array("x", ACCEPTED[given])
    assert isinstance(array, jax.Array | np.ndarray)
    assert np.array_equal(array, EXACT)
    # As XLA reads them.
    assert np.array_equal(jax.device_put(array), EXACT)


@pytest.mark.parametrize("given", ["numpy", "jax"])
def test_arrays_that_need_no_conversion_are_not_copied(given):
    assert as_array("x", ACCEPTED[given]) is ACCEPTED[given]


def test_list_of_traced_numbers_becomes_a_traced_array():
    double = jax.jit(lambda a: 2 * as_array("x", [a, 1.0]))
    assert np.array_equal(double(3.0), [6.0, 2.0])


REJECTED = {
    "complex": (np.ones(2, complex), "type ndarray of dtype complex128.*imaginary"),
    "complex JAX": (jnp.ones(2, complex), "of dtype complex128.*imaginary"),
    "objects": (np.asarray([1.0, None]), "type ndarray of dtype object.*numeric type"),
    "mixed frame": (
        pandas.DataFrame({"a": [1.0], "b": ["text"]}),
        r"type DataFrame of dtype object.*`to_numpy\(float\)`",
    ),
    "text": (["a", "b"], "type list of dtype <U1"),
    "dates": (np.zeros(2, "datetime64[s]"), r"of dtype datetime64\[s\]"),
    "records": (np.zeros(2, [("a", float)]), "type ndarray of dtype .*'a'"),
    "ragged": (
        [[1.0], [1.0, 2.0]],
        "type list, which cannot be converted.*inhomogeneous",
    ),
    "ragged JAX": ([jnp.ones(1), jnp.ones(2)], "type list, which cannot be converted"),
    "dictionary": ({"a": 1.0}, "type dict of dtype object"),
    "nothing": (None, "type NoneType of dtype object"),
    "key": (KEY, "of dtype key"),
    "masked": (np.ma.masked_array([1.0, 2.0], mask=[True, False]), "masked values"),
}


@pytest.mark.parametrize("given", REJECTED)
def test_what_is_no_array_of_real_numbers_raises_by_name(given):
    value, message = REJECTED[given]
    must = "`data` must be an array of real numbers.*"
    with pytest.raises(TypeError, match=must + message):
        as_array("data", value)


@pytest.mark.parametrize("value", [np.zeros((0, 3)), 1.0, []])
def test_no_examples_raise_by_name(value):
    with pytest.raises(ValueError, match="`data` must hold one example or more"):
        as_examples("data", value)
    assert as_examples("data", [1.0]).shape == (1,)


@pytest.mark.parametrize("library", [np, jnp])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_raise_by_name(library, dtype, wrong):
    array = library.asarray([1.0, -2.0, 3.0], jnp.dtype(dtype))
    check_finite("x", array)
    check_finite("x", array[:0])
    check_finite("x", array.astype(int))
    for place in range(3):
        numbers = [wrong if i == place else 1.0 for i in range(3)]
        with pytest.raises(ValueError, match="`x` must be finite"):
            check_finite("x", library.asarray(numbers, jnp.dtype(dtype)))


def test_numbers_that_overflow_on_the_way_to_jax_raise_by_name():
    large = np.asarray([1e300])
    check_finite("x", large)
    with jax.enable_x64(False), pytest.raises(ValueError, match="`x` must be finite"):
        check_finite("x", large)


@pytest.mark.parametrize("library", [np, jnp])
def test_levels_out_of_range_raise_by_name(library):
    check_levels("x", library.asarray([0, 16]), 17)
    for wrong in (-1, 17):
        with pytest.raises(
            ValueError, match=f"`x` must be from 0 to 16; got .*{wrong}"
        ):
            check_levels("x", library.asarray([wrong, 3]), 17)
    with pytest.raises(TypeError, match="`x` must be integers, from 0 to 16"):
        check_levels("x", library.asarray([0.0]), 17)


def test_checks_compile_nothing_on_a_cpu():
    x, levels = jnp.ones((3, 7)), jnp.ones((3, 7), jnp.int32)
    with counted() as n_programs:
        check_finite("x", as_array("x", x))
        check_levels("levels", as_array("levels", levels), 17)
    assert n_programs["compiled"] == 0


def test_known_arrays_are_checked_within_a_trace():
    known = jnp.asarray([1.0, jnp.nan])

    @jax.jit
    def closes_over(y):
        check_finite("x", known)
        return y

    with pytest.raises(ValueError, match="`x` must be finite"):
        closes_over(1.0)
