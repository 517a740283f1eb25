"""Tests of target laws, and of the recipe of the diffusion that has one."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_allclose

import eqmdm
from helpers import slow_but


NORMAL = eqmdm.GaussianMixtureTarget([1.0], [[0.3]], [[[0.6]]])
MIXTURE = eqmdm.GaussianMixtureTarget([0.3, 0.7], [[-1.0], [0.8]], [[[0.2]], [[0.5]]])
CORRELATED = eqmdm.GaussianMixtureTarget(
    [0.4, 0.6],
    [[-0.5, 0.2], [0.7, -0.3]],
    [[[0.5, 0.2], [0.2, 0.4]], [[0.8, -0.3], [-0.3, 0.6]]],
)
TARGETS = {
    "logistic": eqmdm.LogisticTarget(),
    "sharp logistic": eqmdm.LogisticTarget(0.2),
    "double well": eqmdm.DoubleWellTarget(),
    "deep double well": eqmdm.DoubleWellTarget(0.7, 5.0),
    "normal": NORMAL,
    "mixture": MIXTURE,
    "correlated": CORRELATED,
    "product": eqmdm.ProductTarget([eqmdm.DoubleWellTarget(), NORMAL]),
    "mixed product": eqmdm.ProductTarget([eqmdm.LogisticTarget(), MIXTURE]),
}
# The quick tests have one of each kind.
every_target = pytest.mark.parametrize(
    "name",
    slow_but(
        ["logistic", "double well", "normal", "correlated", "mixed product"], TARGETS
    ),
)


def quadrature(target):
    """A grid of states as coordinates, and the weight of the target at each. By the
    trapezium rule, which converges faster than any power for such densities."""
    n = 4001 if target.n_vars == 1 else 401
    width = np.sqrt(np.diag(target.covariance))
    # Logistic tails are e^-36 at the ends.
    axes = [np.linspace(-20 * w, 20 * w, n) for w in width]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(len(axes), -1)
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    log_density = lambda y: target.log_density(y[:, None])
    log_densities = jax.jit(jax.vmap(log_density, 1))(grid)
    return grid, np.exp(log_densities) * cell


@every_target
def test_density_is_normalised_and_has_the_covariance(name):
    target = TARGETS[name]
    grid, weights = quadrature(target)
    mean = grid @ weights
    centred = grid - mean[:, None]
    # The aliasing of the trapezium rule is far below; the table of a double well ends
    # where its density is 1e-17.
    assert_allclose(weights.sum(), 1, atol=1e-9)
    covariance = (centred * weights) @ centred.T
    assert_allclose(covariance, target.covariance, rtol=1e-8, atol=1e-9)


@every_target
def test_samples_have_the_law_of_the_density(name, key):
    target, n = TARGETS[name], 20_000
    draws = np.asarray(target.sample((n,), key=key))
    assert draws.shape == (target.n_vars, n)
    grid, weights = quadrature(target)
    # Smooth functions, which the quadrature resolves, at five standard errors.
    functions = [lambda y, i=i: np.tanh(2 * y[i] - 0.3) for i in range(len(draws))]
    functions += [lambda y: y[0] * y[-1], lambda y: np.cos(3 * y[0])]
    for function in functions:
        values = function(draws)
        error = values.std() / np.sqrt(n)
        assert abs(values.mean() - function(grid) @ weights) < 5 * error


def _process(target, **options):
    if target.n_vars == 1:
        return eqmdm.TargetDiffusion([[0.0]], [[0.7]], target, **options)
    return eqmdm.TargetDiffusion(
        [[0.0, -1.3], [1.3, 0.0]], [[0.2, 0.1], [0.1, 0.9]], target, **options
    )


@every_target
def test_target_is_stationary(name):
    # E_pi[L p] = 0 for every polynomial p, where L p = f . grad p + tr(G G^T hess p)/2.
    target = TARGETS[name]
    process = _process(target)
    grid, weights = quadrature(target)
    compute = jax.jit(lambda t, y: (process.drift(t, y), process.diffusion_matrix(t)))
    drift, spread = map(np.asarray, compute(jnp.asarray(0.4), grid))
    spread = 0.5 * spread @ spread.T
    variables = range(target.n_vars)
    for powers in itertools.product(range(5), repeat=target.n_vars):
        if not 0 < sum(powers) <= 4:
            continue
        terms = [drift[i] * _monomial(grid, powers, i) for i in variables]
        for i, j in itertools.product(variables, repeat=2):
            terms.append(spread[i, j] * _monomial(grid, powers, i, j))
        size = sum(np.abs(term) @ weights for term in terms)
        # Rounding of sums of 1e5 terms.
        assert abs(sum(terms) @ weights) < 1e-10 * (1 + size)


def _monomial(y, powers, *derivatives):
    """A product of powers, or its derivative with respect to some variables."""
    powers, factor = list(powers), 1
    for i in derivatives:
        factor *= powers[i]
        powers[i] = max(powers[i] - 1, 0)
    return factor * np.prod([v**k for v, k in zip(y, powers, strict=True)], axis=0)


def test_wrong_arguments_of_targets_raise():
    with pytest.raises(ValueError, match="`scale` must be positive"):
        eqmdm.LogisticTarget(0.0)
    with pytest.raises(ValueError, match="`barrier` must be positive"):
        eqmdm.DoubleWellTarget(1.0, -1.0)
    with pytest.raises(ValueError, match="`weights` must be positive and add up"):
        eqmdm.GaussianMixtureTarget([0.5, 0.6], [[0.0]], [[[1.0]]])
    with pytest.raises(ValueError, match="`means` must have a finite row for each"):
        eqmdm.GaussianMixtureTarget([1.0], [[np.nan]], [[[1.0]]])
    with pytest.raises(ValueError, match="`covariances` must be 1 positive definite"):
        eqmdm.GaussianMixtureTarget([1.0], [[0.0]], [[[-1.0]]])
    with pytest.raises(ValueError, match="`parts` must be at least 1"):
        eqmdm.ProductTarget([])


@pytest.mark.usefixtures("unchecked")
def test_target_of_another_type_raises():
    normal = eqmdm.Gaussian(jnp.eye(1))
    with pytest.raises(TypeError, match="`target` must be an `eqmdm.AbstractTarget`"):
        eqmdm.TargetDiffusion([[0.0]], [[1.0]], normal)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`parts` must be an `eqmdm.AbstractTarget`"):
        eqmdm.ProductTarget([normal])  # pyright: ignore[reportArgumentType]


class _Cauchy(eqmdm.AbstractTarget):
    """Half of the laws of `sample` and `log_density` may be wrong."""

    offset: float = 0.0

    @property
    def n_vars(self):
        return 1

    @property
    def covariance(self):
        return np.array([[np.inf]])

    def sample(self, shape, *, key):
        return jr.cauchy(key, (1, *shape)) - self.offset

    def log_density(self, y):
        # The density is zero below the offset, if there is one.
        outside = (y < 0) if self.offset else jnp.zeros_like(y, bool)
        values = -jnp.log1p(y**2) - jnp.log(jnp.pi)
        return jnp.sum(jnp.where(outside, -jnp.inf, values))


def test_target_without_second_moments_needs_a_reference():
    with pytest.raises(ValueError, match="`target` must have finite second moments"):
        eqmdm.TargetDiffusion([[0.0]], [[1.0]], _Cauchy())
    process = eqmdm.TargetDiffusion(
        [[0.0]], [[1.0]], _Cauchy(), reference_covariance=[[2.0]]
    )
    kernel = process.network_kernel(jnp.asarray(1.0))
    # It has settled: e^(-B / 2) is 0.08, and its square is lost.
    assert_allclose(kernel.root[0, 0] ** 2, 2.0, rtol=0.01)


def test_target_that_is_not_finite_at_its_samples_raises():
    with pytest.raises(ValueError, match="finite log-density, with a finite gradient"):
        eqmdm.TargetDiffusion(
            [[0.0]], [[1.0]], _Cauchy(1.0), reference_covariance=[[2.0]]
        )


def test_wrong_arguments_of_the_recipe_raise():
    target = TARGETS["product"]
    with pytest.raises(ValueError, match="`skew` must be skew-symmetric"):
        eqmdm.TargetDiffusion([[0.0, 1.0], [1.0, 0.0]], np.eye(2), target)
    with pytest.raises(ValueError, match="`dissipation` must be positive semidefinite"):
        eqmdm.TargetDiffusion(np.zeros((2, 2)), np.diag([1.0, -1.0]), target)
    with pytest.raises(ValueError, match="The noise must reach every variable"):
        eqmdm.TargetDiffusion(np.zeros((2, 2)), np.diag([1.0, 0.0]), target)
    with pytest.raises(ValueError, match="`stationary_covariance` must be 1 x 1"):
        eqmdm.TargetDiffusion([[0.0]], [[1.0]], target)
    with pytest.raises(ValueError, match="`target` must be a law of as many variables"):
        eqmdm.TargetDiffusion([[0.0]], [[1.0]], target, reference_covariance=[[1.0]])
    with pytest.raises(ValueError, match="`interval` must be an `eqmdm.TimeInterval`"):
        eqmdm.TargetDiffusion(
            [[0.0]], [[1.0]], NORMAL, interval=eqmdm.LogSNRInterval(-5.0, 9.0)
        )
    with pytest.raises(ValueError, match="`n_steps` must be at least 1"):
        eqmdm.Simulation(0)


@pytest.mark.usefixtures("unchecked")
def test_solver_of_odes_in_a_simulation_raises():
    import diffrax

    with pytest.raises(TypeError, match="`solver` must be a Diffrax solver for SDEs"):
        eqmdm.Simulation(solver=diffrax.Tsit5())
