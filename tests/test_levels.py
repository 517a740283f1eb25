import functools
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from eqmdm._levels import (
    AbstractDequantiser,
    CentreDequantiser,
    GreyLevels,
    LogitTransform,
    ScaleTransform,
    TruncatedNormalDequantiser,
    UniformDequantiser,
    bits_per_dim,
)
from helpers import tree_allclose, within_standard_errors


TRANSFORMS = [
    pytest.param(ScaleTransform(), id="scale"),
    pytest.param(LogitTransform(), id="logit"),
    pytest.param(LogitTransform(alpha=1e-6), id="logit_1e-6"),
    pytest.param(LogitTransform(alpha=0.4), id="logit_0.4"),
]
DEQUANTISERS = [
    pytest.param(UniformDequantiser(), id="uniform"),
    pytest.param(TruncatedNormalDequantiser(0.3), id="truncated_normal"),
    pytest.param(TruncatedNormalDequantiser(20.0), id="wide_truncated_normal"),
    pytest.param(CentreDequantiser(), id="centres"),
]
# Of the other byte order than this machine's.
_FOREIGN_INT = np.dtype(np.int32).newbyteorder()
STDS = [0.02, 0.3, 1.0, 20.0]


@final
class _Ends(AbstractDequantiser):
    """A dequantiser with the two extreme offsets, for levels that are given twice."""

    @property
    def gives_density(self):
        return True

    def __call__(self, levels, *, key, dtype):
        offset = jnp.array([[0.0], [1 - 2**-24]], dtype)
        return jnp.broadcast_to(offset, levels.shape), jnp.zeros((), dtype)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform_has_the_inverse_that_it_says(transform):
    p = jnp.linspace(0, 1, 101)
    # A logit of 14, for the smallest `alpha`, is good to 14 roundings.
    recovered = transform.inverse(transform.forward(p))
    assert tree_allclose(recovered, p, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_log_jacobian_of_a_transform_is_that_of_autodiff(transform, key):
    p = jr.uniform(key, (2, 3))
    jacobian = jax.jacfwd(transform.forward)(p).reshape(6, 6)
    sign, expected = jnp.linalg.slogdet(jacobian)
    assert sign == 1
    # A determinant of six factors.
    actual = transform.log_jacobian(p)
    assert tree_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_transform_keeps_its_digits_at_the_ends_in_float32(transform, end):
    near = jnp.abs(end - jnp.array([0.0, 1e-7, 1e-5, 1e-3], jnp.float32))
    exact = near.astype(jnp.float64)
    # Logarithms of 14 at most, with a few roundings in each.
    for method in (transform.forward, transform.log_jacobian):
        actual = method(near).astype(jnp.float64)
        assert tree_allclose(actual, method(exact), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1, 1.0, math.nan])
def test_logit_refuses_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="`alpha` must be strictly between 0 and 1/2"):
        LogitTransform(alpha=alpha)


@pytest.mark.parametrize("dequantiser", DEQUANTISERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_offsets_are_in_their_level(dequantiser, dtype, key):
    levels = jnp.zeros((100, 100), jnp.int32)
    offset, log_q = dequantiser(levels, key=key, dtype=dtype)
    assert offset.shape == levels.shape
    assert log_q.shape == ()
    assert offset.dtype == log_q.dtype == dtype
    assert jnp.all((offset >= 0) & (offset < 1))


def test_uniform_offsets_have_uniform_moments(key):
    levels = jnp.zeros(100_000, jnp.int32)
    offset, log_q = UniformDequantiser()(levels, key=key, dtype=jnp.float64)
    assert log_q == 0
    assert within_standard_errors(offset, 1 / 2)
    assert within_standard_errors((offset - 0.5) ** 2, 1 / 12)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_truncated_normal_density_integrates_to_one(std, dtype):
    dequantiser = TruncatedNormalDequantiser(std)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    log_density = jax.vmap(dequantiser.log_density)
    density = jnp.exp(log_density(jnp.asarray((nodes + 1) / 2, dtype)))
    total = np.sum(np.asarray(density, np.float64) * weights) / 2
    # 200 nodes are exact to rounding; an exponent of up to 300 loses as many roundings
    # where the density is nothing, and a few where it matters.
    assert abs(total - 1) < 50 * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("std", STDS)
def test_truncated_normal_offsets_have_the_moments_of_their_density(std, key):
    dequantiser = TruncatedNormalDequantiser(std)
    levels = jnp.zeros(100_000, jnp.int32)
    offset, log_q = dequantiser(levels, key=key, dtype=jnp.float64)

    nodes, weights = np.polynomial.legendre.leggauss(200)
    log_density = jax.vmap(dequantiser.log_density)
    density = np.exp(log_density(jnp.asarray((nodes + 1) / 2))) * weights / 2
    for power in (2, 4):
        expected = np.sum(density * (nodes / 2) ** power)
        assert within_standard_errors((offset - 0.5) ** power, expected)
    assert within_standard_errors(offset, 1 / 2)
    # The same sum in another order, of 1e5 terms.
    expected = jnp.sum(log_density(offset))
    assert tree_allclose(log_q, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_truncated_normal_refuses_std_that_is_not_positive(std):
    with pytest.raises(ValueError, match="`std` must be positive"):
        TruncatedNormalDequantiser(std)


def test_level_centres_are_the_middles_and_need_no_correction(key):
    grey_levels = GreyLevels(4, dequantiser=CentreDequantiser())
    x, correction = grey_levels.encode(jnp.arange(4), key=key)
    assert jnp.array_equal(x, jnp.array([-0.75, -0.25, 0.25, 0.75]))
    assert correction == 0


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dequantiser", DEQUANTISERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_decode_undoes_encode(transform, dequantiser, dtype, key):
    grey_levels = GreyLevels(256, transform, dequantiser)
    levels = np.tile(np.arange(256), (40, 1))
    x, correction = grey_levels.encode(levels, key=key, dtype=dtype)
    assert x.dtype == correction.dtype == dtype
    assert np.array_equal(grey_levels.decode(x), levels)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("n_levels", [2, 17, 255, 256, 65_536])
def test_decode_undoes_encode_at_the_ends_of_levels(transform, n_levels, key):
    grey_levels = GreyLevels(n_levels, transform, _Ends())
    levels = np.tile(np.arange(n_levels), (2, 1))
    x, _ = grey_levels.encode(levels, key=key, dtype=jnp.float32)
    assert np.array_equal(grey_levels.decode(x), levels)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_sixteen_bit_levels_in_float32_have_the_mass_of_a_smooth_density(
    transform, key
):
    # A triangular density on [0, 1] is linear over a level, so that the mean of its
    # values at offsets is its mass, whatever symmetric law the offsets have.
    grey_levels = GreyLevels(65_536, transform)
    levels = np.random.RandomState(0).randint(1, 65_536, 20_000)
    levels = levels.astype(np.uint16)
    encode = lambda level, key: grey_levels.encode(level, key=key, dtype=jnp.float32)
    x, correction = jax.vmap(encode)(levels, jr.split(key, len(levels)))
    assert x.dtype == jnp.float32
    p = transform.inverse(x.astype(jnp.float64))
    # The density of x is 2 p / (dx/dp); the correction takes the Jacobian back.
    log_jacobian = jax.vmap(transform.log_jacobian)(p)
    log_density = jnp.log(2 * p) - log_jacobian
    bound = log_density + correction.astype(jnp.float64)
    mass = np.log((2 * levels.astype(np.float64) + 1) / 65_536**2)
    # By Jensen's inequality the mean is below by a 24th of the squared relative slope,
    # on average over levels less than 1e-5 nats; each differs by its offset.
    error = np.asarray(bound) - mass
    assert abs(error.mean()) < 5 * error.std() / len(error) ** 0.5 + 1e-5
    bits = bits_per_dim(jnp.asarray(mass), n_dims=1)
    assert tree_allclose(
        bits_per_dim(bound, n_dims=1).mean(), bits.mean(), rtol=0.0, atol=1e-4
    )


def test_decode_puts_values_outside_in_the_end_levels():
    levels = GreyLevels(5).decode(jnp.array([-7.0, -1.0, 0.0, 1.0, 7.0]))
    assert jnp.array_equal(levels, jnp.array([0, 0, 2, 4, 4], jnp.int32))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_edges_enclose_what_encode_gives_and_tile_the_line(transform, dtype, key):
    grey_levels = GreyLevels(17, transform)
    x, _ = grey_levels.encode(jnp.arange(17), key=key, dtype=dtype)
    low, high = grey_levels.edges(x)
    assert low.dtype == high.dtype == dtype
    assert jnp.all((low < x) & (x < high))
    assert low[0] == -jnp.inf and high[-1] == jnp.inf
    # Equal to the bit, or the masses of the levels would not sum to one.
    assert jnp.array_equal(high[:-1], low[1:])
    # One rounding of each coordinate's forward map.
    expected = transform.forward(jnp.arange(1, 17) / 17)
    rtol = 16 * float(jnp.finfo(dtype).eps)
    assert tree_allclose(high[:-1].astype(jnp.float64), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("n_levels", [2, 17, 256, 65_536])
def test_correction_makes_a_uniform_density_the_uniform_mass(transform, n_levels, key):
    # If p is uniform on [0, 1], x has the density 1 / |dx/dp| and a level the mass 1/n:
    # the bound is tight with uniform offsets.
    grey_levels = GreyLevels(n_levels, transform)
    levels = jr.randint(key, (4, 5, 2), 0, n_levels)
    x, correction = grey_levels.encode(levels, key=key)
    log_density = -transform.log_jacobian(transform.inverse(x))
    bits = bits_per_dim(log_density + correction, n_dims=levels.size)
    # Forty logarithms, through the inverse and back.
    assert tree_allclose(bits, jnp.asarray(math.log2(n_levels)), rtol=1e-11, atol=0.0)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_correction_is_the_jacobian_and_the_width_of_a_level(transform, key):
    levels = jnp.array([[0, 3, 16], [9, 9, 1]])
    grey_levels = GreyLevels(17, transform)
    x, correction = grey_levels.encode(levels, key=key)
    expected = grey_levels.log_jacobian(x) - 6 * math.log(17)
    # The smallest `alpha` makes the inverse of the end levels lose digits.
    assert tree_allclose(correction, expected, rtol=1e-9, atol=1e-9)


def test_levels_without_a_density_have_no_jacobian(key):
    grey_levels = GreyLevels(17, LogitTransform(), CentreDequantiser())
    x, correction = grey_levels.encode(jnp.array([0, 16]), key=key)
    assert correction == grey_levels.log_jacobian(x) == 0


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_correction_of_truncated_normal_offsets_gives_a_mass(std, key):
    # exp(log p(x) - log q) averages to the mass of the level, by importance sampling;
    # here for p(x) standard normal.
    grey_levels = GreyLevels(4, dequantiser=TruncatedNormalDequantiser(std))
    levels = jnp.array([2, 3])
    encode = jax.jit(jax.vmap(lambda k: grey_levels.encode(levels, key=k)))
    x, correction = encode(jr.split(key, 20_000))
    weights = jnp.exp(jnp.sum(jax.scipy.stats.norm.logpdf(x), axis=1) + correction)
    edges = jax.scipy.stats.norm.cdf(jnp.array([0.0, 0.5, 1.0]))
    assert within_standard_errors(weights, jnp.prod(jnp.diff(edges)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_encode_takes_numpy_integers_of_any_width(dtype, key):
    levels = np.array([0, 255], dtype)
    x, _ = GreyLevels(256).encode(levels, key=key, dtype=jnp.float32)
    assert -1 <= x[0] < x[1] < 1


@pytest.mark.parametrize("dtype", [jnp.float32, bool])
def test_encode_refuses_levels_that_are_not_integers(dtype, key):
    with pytest.raises(TypeError, match="`levels` must be integers"):
        GreyLevels(256).encode(jnp.zeros(3, dtype), key=key)


@pytest.mark.parametrize("level", [-1, 17])
def test_encode_refuses_levels_out_of_range(level, key):
    encode = lambda levels: GreyLevels(17).encode(levels, key=key)
    must = "`levels` must be from 0 to 16"
    levels = jnp.array([3, level])
    with pytest.raises(ValueError, match=f"{must}; got {min(3, level)} to "):
        encode(levels)
    with pytest.raises(eqx.EquinoxRuntimeError, match=must):
        eqx.filter_jit(encode)(levels)


@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_check_returns_levels_in_range_and_refuses_others(module):
    levels = module.asarray([[0, 3], [16, 1]], dtype="uint8")
    assert GreyLevels(17).check(levels) is levels
    assert GreyLevels(17).check(levels[:0]).size == 0
    with pytest.raises(ValueError, match="from 0 to 15; got 0 to 16. Is `n_levels`"):
        GreyLevels(16).check(levels)
    with pytest.raises(TypeError, match="`levels` must be integers, from 0 to 16"):
        GreyLevels(17).check(levels.astype("float32"))


@pytest.mark.parametrize("convert", [list, "foreign"], ids=["list", "foreign"])
def test_check_converts_levels(convert, unchecked):
    rows = [[0, 3], [16, 1]]
    levels = rows if convert is list else np.asarray(rows, _FOREIGN_INT)
    checked = GreyLevels(17).check(levels)
    assert checked.dtype.isnative
    assert np.array_equal(checked, rows)


def test_encode_of_foreign_byte_order_is_that_of_the_same_levels(key):
    levels = np.arange(17, dtype=_FOREIGN_INT)
    grey_levels = GreyLevels(17)
    for check in (True, False):
        x, _ = grey_levels.encode(levels, key=key, check=check)
        assert np.array_equal(grey_levels.decode(x), np.arange(17))


@pytest.mark.parametrize(
    "n_levels, dtype", [(2**16 + 1, jnp.float32), (256, jnp.bfloat16)]
)
def test_encode_refuses_dtypes_that_cannot_resolve_the_levels(n_levels, dtype, key):
    with pytest.raises(ValueError, match=f"`dtype` must resolve {n_levels} levels"):
        GreyLevels(n_levels).encode(jnp.arange(2), key=key, dtype=dtype)


def test_grey_levels_refuse_fewer_than_two():
    with pytest.raises(ValueError, match="`n_levels` must be at least 2; got 1"):
        GreyLevels(1)


@pytest.mark.parametrize("n_levels", [2, 10, 256])
def test_bits_per_dim_of_the_uniform_law_is_the_logarithm_of_the_levels(n_levels):
    n_dims = 12
    log_mass = jnp.full(3, -n_dims * math.log(n_levels))
    expected = jnp.full(3, math.log2(n_levels))
    # Three roundings.
    actual = bits_per_dim(log_mass, n_dims=n_dims)
    assert tree_allclose(actual, expected, rtol=1e-15, atol=1e-15)


def test_bits_per_dim_refuses_data_without_dimensions():
    with pytest.raises(ValueError, match="`n_dims` must be at least 1; got 0"):
        bits_per_dim(jnp.zeros(()), n_dims=0)


@pytest.mark.parametrize(
    "dtype, n_levels, checked",
    [("uint8", 256, False), ("uint8", 255, True), ("int16", 256, True)],
)
def test_levels_are_checked_only_where_they_may_be_out_of_range(
    dtype, n_levels, checked, key
):
    encode = lambda levels, **options: GreyLevels(n_levels).encode(
        levels, key=key, **options
    )
    jaxpr = str(jax.make_jaxpr(encode)(jnp.zeros(3, dtype)))
    assert ("callback" in jaxpr) == checked
    unchecked = functools.partial(encode, check=False)
    assert "callback" not in str(jax.make_jaxpr(unchecked)(jnp.zeros(3, dtype)))


def test_decode_and_bits_take_lists(unchecked):
    assert np.array_equal(GreyLevels(5).decode([-7.0, 0.0, 7.0]), [0, 2, 4])
    log_mass = [-math.log(2), -math.log(4)]
    # Two roundings.
    np.testing.assert_allclose(bits_per_dim(log_mass, n_dims=1), [1, 2], rtol=1e-15)
