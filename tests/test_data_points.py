import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqmdm.data import load


NAMES = ["mixture", "rings", "checkerboard"]
EXTENT = 3.5
SPACING = 0.0175


@pytest.fixture(scope="module", params=NAMES)
def dataset(request):
    return load(request.param)


@pytest.fixture(scope="module")
def grid(dataset):
    """Midpoints of small squares, and the log density there."""
    # The checkerboard's edges, multiples of 0.875, lie between midpoints, so the rule
    # is exact for it. The other two are smooth on the scale of 0.08, 4.5 spacings, and
    # for them the rule's error is below exp(-2 (4.5 pi)**2).
    axis = np.arange(-EXTENT + SPACING / 2, EXTENT, SPACING)
    y = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    return y, jax.jit(jax.vmap(dataset.log_density))(y)


def _integral(values):
    return float(jnp.sum(values)) * SPACING**2


def test_log_density_integrates_to_one(grid):
    _, log_density = grid
    # The tolerance is rounding in a sum of 160,000 terms.
    assert _integral(jnp.exp(log_density)) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_draws_have_the_moments_of_the_density(dataset, grid, split):
    def moments(y, log_density):
        x0, x1 = y[:, 0], y[:, 1]
        square = x0**2 + x1**2
        return {
            "means": x0,
            "other mean": x1,
            "variance": x0**2,
            "other variance": x1**2,
            "covariance": x0 * x1,
            "square of the square": square**2,
            "octagon": np.cos(8 * np.arctan2(x1, x0)),
            "board": np.sin(2 * np.pi * x0 / 1.75) * np.sin(2 * np.pi * x1 / 1.75),
            "entropy": -log_density,
        }

    y, log_density = map(np.asarray, grid)
    weights = np.exp(log_density)
    exact = moments(y, np.where(weights > 0, log_density, 0))
    draws = getattr(dataset, split).astype(np.float64)
    drawn = moments(draws, np.asarray(jax.jit(jax.vmap(dataset.log_density))(draws)))
    for name, values in drawn.items():
        expected = _integral(weights * exact[name])
        standard_error = values.std() / np.sqrt(len(values))
        # The second term is rounding, for the constant log density of the board.
        allowed = 5 * standard_error + 1e-9
        assert abs(values.mean() - expected) < allowed, name


def test_draws_fill_the_plane_as_the_density_does(dataset, grid):
    y, log_density = map(np.asarray, grid)
    edges = np.linspace(-EXTENT, EXTENT, 17)
    bins = (edges, edges)
    mass, _, _ = np.histogram2d(*y.T, bins=bins, weights=np.exp(log_density))
    counts, _, _ = np.histogram2d(*dataset.train.T, bins=bins)
    expected = mass * SPACING**2 * len(dataset.train)
    # The statistic is approximately chi-square where the expected counts are large.
    large = expected > 20
    statistic = np.sum((counts - expected)[large] ** 2 / expected[large])
    freedom = large.sum()
    assert freedom > 30
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_variance_is_about_one(dataset):
    assert np.allclose(dataset.train.var(axis=0), 1, atol=0.05)


def test_splits_are_fixed_and_disjoint(dataset):
    sizes = [len(x) for x in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [100_000, 10_000, 10_000]
    assert dataset.shape == (2,)
    assert dataset.train.dtype == np.float32
    assert dataset.n_levels is None and not dataset.flip
    points = np.concatenate([dataset.train, dataset.validation, dataset.test])
    assert len(np.unique(points, axis=0)) == len(points)
    assert load(dataset.name).fingerprint == dataset.fingerprint


def test_log_density_in_float32_agrees_with_float64(dataset):
    y = dataset.test[:1000]
    log_density = jax.jit(jax.vmap(dataset.log_density))
    single, double = log_density(y), log_density(y.astype(np.float64))
    assert single.dtype == jnp.float32
    # A relative error of 6e-8 in a radius of 2 is 1.5e-6 standard deviations of 0.08,
    # and a draw is at most 5 of these away: squared and halved, 1e-5.
    assert np.allclose(single, double, rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", ["mixture", "rings"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_score_is_finite_everywhere(name, dtype):
    y = jnp.array([[0.0, 0.0], [1e-30, 0.0], [20.0, -30.0]], dtype)
    score = jax.jit(jax.vmap(jax.grad(load(name).log_density)))(y)
    assert score.dtype == dtype
    assert jnp.all(jnp.isfinite(score))


def test_rings_have_no_score_at_the_centre():
    score = jax.jit(jax.grad(load("rings").log_density))(jnp.zeros(2))
    assert jnp.array_equal(score, jnp.zeros(2))


@pytest.mark.parametrize(
    "y, on_board",
    [
        pytest.param((0.1, 0.1), True, id="black"),
        pytest.param((0.1, -0.1), False, id="white"),
        pytest.param((1.74, 1.74), True, id="corner"),
        pytest.param((1.76, 0.1), False, id="right of it"),
        pytest.param((-1.8, -0.1), False, id="left of it"),
    ],
)
def test_checkerboard_is_uniform_on_black_and_impossible_elsewhere(y, on_board):
    log_density = load("checkerboard").log_density(jnp.asarray(y))
    # Eight squares of side 0.875.
    expected = -np.log(8 * 0.875**2) if on_board else -np.inf
    assert float(log_density) == pytest.approx(expected, rel=1e-14)
