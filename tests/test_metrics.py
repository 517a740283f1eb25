import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import eqmdm
from helpers import estimate_within_standard_errors, within_standard_errors


def _normal(seed, *shape):
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)


def _sliced(x, y, key, **options):
    return eqmdm.sliced_wasserstein(x, y, key=key, **options)


DISTANCES = [
    pytest.param(
        lambda x, y: _sliced(x, y, jr.key(0), n_projections=64), id="sliced_wasserstein"
    ),
    pytest.param(eqmdm.maximum_mean_discrepancy, id="maximum_mean_discrepancy"),
    pytest.param(eqmdm.frechet_distance, id="frechet_distance"),
]


@pytest.mark.parametrize("distance", DISTANCES)
def test_distance_is_of_the_samples_whatever_their_order_shape_and_type(distance):
    x, y = _normal(0, 90, 2, 3), 1.5 * _normal(1, 60, 2, 3)
    value = distance(x, y).value
    shuffled = np.random.Generator(np.random.PCG64(2)).permutation(x)
    flat = jnp.asarray(y).reshape(60, 6)
    # Sums in float64, in another order.
    np.testing.assert_allclose(distance(shuffled, y).value, value, rtol=1e-10)
    np.testing.assert_allclose(distance(x.reshape(90, 6), flat).value, value, rtol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distance_is_symmetric(distance):
    # Equal pairwise distances, so that both have the same median bandwidth.
    x = _normal(0, 50, 3)
    y = x @ scipy.stats.ortho_group.rvs(3, random_state=0) + 0.3
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_standard_error_is_that_of_repeated_sets(distance):
    # Laws that differ, where no statistic is degenerate.
    repeats = [
        distance(_normal(2 * i, 200, 3), 1 + 1.5 * _normal(2 * i + 1, 150, 3))
        for i in range(60)
    ]
    values, errors = np.asarray(repeats).T
    # The spread of 60 values is known to 1 / sqrt(120), of which this is 3.3.
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), values.std(), rtol=0.3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_standard_error_between_sets_of_one_law_is_on_the_safe_side(distance):
    repeats = [
        distance(_normal(2 * i, 60, 2), _normal(2 * i + 1, 50, 2)) for i in range(60)
    ]
    values, errors = np.asarray(repeats).T
    ratio = np.sqrt(np.mean(errors**2)) / values.std()
    # Too large by sqrt(2) for a degenerate statistic; the spread of 60 values is known
    # to 1 / sqrt(120).
    assert 1 < ratio < 1.3 * math.sqrt(2)


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.3, 1.3)])
def test_standard_error_of_more_features_than_samples_is_on_the_safe_side(shift, scale):
    # Singular covariances, as of thousands of features.
    repeats = [
        eqmdm.frechet_distance(
            _normal(2 * i, 44, 60), shift + scale * _normal(2 * i + 1, 50, 60)
        )
        for i in range(60)
    ]
    values, errors = np.asarray(repeats).T
    ratio = np.sqrt(np.mean(errors**2)) / values.std()
    # As above. Here no statistic is linear in the samples, even between two laws.
    assert 1 < ratio < 1.3 * math.sqrt(2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sliced_wasserstein_of_points_on_a_line_is_the_closed_form(order, key):
    # In one dimension every direction is +-1.
    x, y = np.asarray([0.0, 1.0, 3.0, 0.5] * 10), np.asarray([5.0, 6.0, 8.0, 5.5] * 10)
    value, _ = _sliced(x, y, key, order=order, n_projections=3)
    np.testing.assert_allclose(value, 5.0, rtol=1e-12)


@pytest.mark.parametrize("n, m", [(40, 40), (45, 60), (41, 97), (200, 40)])
def test_sliced_wasserstein_in_one_dimension_is_that_of_scipy(n, m, key):
    x, y = _normal(0, n), 0.3 + 2 * _normal(1, m)
    value, _ = _sliced(x, y, key, order=1, n_projections=2)
    expected = scipy.stats.wasserstein_distance(x, y)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_sliced_wasserstein_is_the_mean_over_directions_with_its_jackknife(key):
    x, y = _normal(0, 45, 3), 0.3 + 2 * _normal(1, 63, 3)
    theta = np.asarray(jr.normal(key, (8, 3), jnp.float32), np.float64)
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)

    def expected(x, y):
        return np.mean([scipy.stats.wasserstein_distance(x @ u, y @ u) for u in theta])

    value, error = _sliced(x, y, key, order=1, n_projections=8, n_groups=4)
    np.testing.assert_allclose(value, expected(x, y), rtol=1e-12)
    left_out = [
        expected(*(z[np.arange(len(z)) % 4 != group] for z in (x, y)))
        for group in range(4)
    ]
    np.testing.assert_allclose(error, np.sqrt(3 * np.var(left_out)), rtol=1e-10)


def test_sliced_wasserstein_of_unequal_sets_is_that_of_repeated_samples(key):
    x, y = _normal(0, 40, 3), _normal(1, 60, 3) + 0.2
    value = _sliced(x, y, key, n_projections=16).value
    repeated = _sliced(
        np.repeat(x, 3, axis=0), np.repeat(y, 2, axis=0), key, n_projections=16
    ).value
    np.testing.assert_allclose(repeated, value, rtol=1e-12)


def test_sliced_wasserstein_between_normals_is_the_closed_form():
    # The squared distance along theta is (theta . m)^2 + (s - 1)^2.
    d, scale, n = 4, 1.7, 2000
    mean = np.asarray([0.5, -1.0, 0.2, 0.0])
    expected = np.sum(mean**2) / d + (scale - 1) ** 2
    squares = []
    for i in range(20):
        x, y = _normal(2 * i, n, d), mean + scale * _normal(2 * i + 1, n, d)
        squares.append(
            _sliced(x, y, jr.key(i), n_projections=32, n_groups=2).value ** 2
        )
    # Of the squared distance between two sets of one law, which is some 10 / n.
    assert abs(np.mean(squares) - expected) < 20 / n + 5 * np.std(squares) / math.sqrt(
        20
    )


def test_sliced_wasserstein_depends_on_its_key_alone(key):
    x, y = _normal(0, 50, 3), _normal(1, 50, 3)
    first = _sliced(x, y, key, n_projections=8)
    with jax.enable_x64(False):
        assert _sliced(x, y, key, n_projections=8) == first
    assert _sliced(x, y, jr.fold_in(key, 1), n_projections=8) != first


def test_maximum_mean_discrepancy_is_the_sum_over_pairs():
    x, y = _normal(0, 9, 2), _normal(1, 7, 2)
    bandwidths = [0.5, 2.0]

    def kernel(a, b):
        square = np.sum((a - b) ** 2)
        return np.mean([np.exp(-square / (2 * h**2)) for h in bandwidths])

    def statistic(x, y):
        within = lambda z: np.mean(
            [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        )
        return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])

    value, error = eqmdm.maximum_mean_discrepancy(x, y, bandwidths=bandwidths)
    np.testing.assert_allclose(value, statistic(x, y), rtol=1e-10)
    variance = 0.0
    for left_out in (
        [statistic(np.delete(x, i, axis=0), y) for i in range(9)],
        [statistic(x, np.delete(y, i, axis=0)) for i in range(7)],
    ):
        variance += (len(left_out) - 1) * np.var(left_out)
    np.testing.assert_allclose(error, math.sqrt(variance), rtol=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_maximum_mean_discrepancy_has_the_mean_between_normals(shift):
    d, scale, h = 3, 1.4, 1.1

    def expected_kernel(variance, shift):
        # Of a - b, normal with this mean in each coordinate.
        total = h**2 + variance
        return (h**2 / total) ** (d / 2) * math.exp(-d * shift**2 / (2 * total))

    if not shift:
        scale = 1.0
    expected = expected_kernel(2, 0) + expected_kernel(2 * scale**2, 0)
    expected -= 2 * expected_kernel(1 + scale**2, shift)
    values = [
        eqmdm.maximum_mean_discrepancy(
            _normal(2 * i, 60, d),
            shift + scale * _normal(2 * i + 1, 80, d),
            bandwidths=[h],
        ).value
        for i in range(60)
    ]
    assert within_standard_errors(values, expected)


def test_maximum_mean_discrepancy_in_parts_is_that_at_once(monkeypatch):
    x, y = _normal(0, 70, 3), _normal(1, 50, 3) + 0.5
    at_once = eqmdm.maximum_mean_discrepancy(x, y)
    monkeypatch.setattr("eqmdm._metrics._CHUNK", 130)
    # Sums in float64, in another order.
    in_parts = eqmdm.maximum_mean_discrepancy(x, y)
    np.testing.assert_allclose(in_parts, at_once, rtol=1e-10)


def test_default_bandwidths_follow_the_units_of_the_data():
    x, y = _normal(0, 50, 3), _normal(1, 50, 3) + 0.5
    value = eqmdm.maximum_mean_discrepancy(x, y)
    scaled = eqmdm.maximum_mean_discrepancy(100 * x, 100 * y)
    np.testing.assert_allclose(scaled, value, rtol=1e-9)


def test_frechet_distance_is_that_of_the_moments():
    # With SciPy's square root of the product, of another algorithm.
    x = _normal(0, 300, 5) @ _normal(1, 5, 5) + _normal(2, 5)
    y = _normal(3, 200, 5) @ _normal(4, 5, 5)
    C, D = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(C @ D).real
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(
        C + D - 2 * root
    )
    np.testing.assert_allclose(eqmdm.frechet_distance(x, y).value, expected, rtol=1e-9)


def test_frechet_distance_of_moved_samples_is_exact():
    x = _normal(0, 100, 4)
    factor, shift = np.asarray([2.0, 0.5, 1.0, 3.0]), np.asarray([1.0, 0.0, -2.0, 0.3])
    # The optimal map between these normals is the linear one that made them only where
    # the covariance is diagonal.
    x = np.linalg.qr(x - x.mean(axis=0))[0] * math.sqrt(99)
    expected = np.sum(shift**2) + np.sum((factor - 1) ** 2)
    value = eqmdm.frechet_distance(x, factor * x + shift).value
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize("n", [40, 200])
def test_frechet_distance_of_equal_sets_is_zero(n):
    # Of fewer samples than features too, whose covariances are singular.
    x = _normal(0, n, 64)
    assert abs(eqmdm.frechet_distance(x, x[::-1], n_groups=2).value) < 1e-10 * 64


@pytest.mark.parametrize("d", [1, 6])
def test_frechet_distance_has_the_stated_bias(d):
    n = 400
    values = [
        eqmdm.frechet_distance(
            _normal(2 * i, n, d), _normal(2 * i + 1, n, d), n_groups=2
        ).value
        for i in range(100)
    ]
    error = np.std(values) / math.sqrt(len(values))
    # The next order is smaller by d / n.
    error += 2 * d / n * np.mean(values) / 5
    expected = d * (d + 5) / (2 * n)
    assert estimate_within_standard_errors(np.mean(values), expected, error)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    "x, y, message",
    [
        (np.zeros((50, 2)), np.zeros((50, 3)), "one shape"),
        (np.zeros((2, 2)), np.zeros((50, 2)), "`x` must be at least"),
        (np.zeros((50, 2)), np.full((50, 2), np.nan), "`y` must be finite; 50 of 50"),
    ],
    ids=["shapes", "too few", "not finite"],
)
def test_unusable_samples_are_refused(distance, x, y, message):
    with pytest.raises(ValueError, match=message):
        distance(x, y)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"order": 0}, "`order` must be at least 1; got 0"),
        ({"n_projections": 0}, "`n_projections` must be at least 1; got 0"),
        ({"n_groups": 1}, "`n_groups` must be at least 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sliced_wasserstein_refuses_impossible_numbers(options, message, key):
    with pytest.raises(ValueError, match=message):
        _sliced(np.zeros((50, 2)), np.zeros((50, 2)), key, **options)


def test_frechet_distance_refuses_one_group():
    with pytest.raises(ValueError, match="`n_groups` must be at least 2"):
        eqmdm.frechet_distance(np.zeros((50, 2)), np.zeros((50, 2)), n_groups=1)


@pytest.mark.parametrize("bandwidths", [[], [1.0, 0.0], [-1.0], [math.nan], [math.inf]])
def test_maximum_mean_discrepancy_refuses_bandwidths_that_are_not_positive(bandwidths):
    x = _normal(0, 10, 2)
    with pytest.raises(ValueError, match="`bandwidths` must be one or more positive"):
        eqmdm.maximum_mean_discrepancy(x, x + 1, bandwidths=bandwidths)


def test_data_of_equal_samples_have_no_default_bandwidth():
    x, y = _normal(0, 10, 2), np.zeros((10, 2))
    with pytest.raises(ValueError, match="`bandwidths` must be one or more positive"):
        eqmdm.maximum_mean_discrepancy(x, y)


@pytest.mark.parametrize("distance", DISTANCES)
def test_samples_of_any_kind_of_array_have_the_same_distance(distance, unchecked):
    x, y = _normal(0, 50, 3), _normal(1, 50, 3) + 0.5
    expected = distance(x, y)
    assert distance(x.astype(x.dtype.newbyteorder()), y.tolist()) == expected


@pytest.mark.parametrize("distance", DISTANCES)
def test_samples_that_are_no_real_numbers_raise_by_name(distance, unchecked):
    x = _normal(0, 50, 3)
    with pytest.raises(TypeError, match="`y` must be an array of real numbers"):
        distance(x, 1j * x)
