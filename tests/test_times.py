import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import norm

import eqmdm
from eqmdm._bound.times import stratified, stratified_standard_error
from helpers import slow, slow_but, within_standard_errors


SAMPLERS = {
    "uniform": eqmdm.UniformTimeSampler(),
    "importance": eqmdm.ImportanceTimeSampler(),
    "log_snr": eqmdm.LogSNRTimeSampler(),
    "density": eqmdm.LogSNRTimeSampler(density=lambda l: 1 / (1 + 0.1 * l**2)),
}
DIFFUSIONS = {
    # Its log-SNR is stationary at a time before t1.
    "ALDA": eqmdm.ALDA,
    "decayed": lambda: decayed_diffusion(),
    "log_snr_ends": lambda: eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-4.0, 8.0)),
}


def decayed_diffusion():
    """A diffusion whose mean map is numerically singular at t1."""
    q, B = np.random.default_rng(3).standard_normal((2, 3, 3))
    return eqmdm.LinearDiffusion(q - q.T, dissipation_root=B)


def times(sampler, diffusion, u):
    return jax.jit(jax.vmap(lambda u: sampler(diffusion, u)))(u)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_time_sampler_has_the_density_that_it_says(sampler, diffusion):
    rare_times = sampler in ("log_snr", "density") and diffusion == "ALDA"
    sampler, diffusion = SAMPLERS[sampler], DIFFUSIONS[diffusion]()
    n = 4000
    u = np.concatenate([[0.0], (np.arange(n) + 0.5) / n, [1.0]])
    slope = lambda u: jax.value_and_grad(sampler, argnums=1, has_aux=True)(diffusion, u)
    (t, density), rate = jax.device_get(jax.jit(jax.vmap(slope))(u))
    t0, t1 = float(diffusion.t0), float(diffusion.t1)
    np.testing.assert_allclose(t[[0, -1]], [t0, t1], rtol=1e-10)
    t, density, rate = t[1:-1], density[1:-1], rate[1:-1]
    # A quantile function and its density; roundings.
    np.testing.assert_allclose(rate * density, 1.0, rtol=1e-10)
    assert np.all(np.diff(t) > 0)
    if rare_times:
        # Too few quantiles fall where log-SNR is stationary for the sums below.
        return
    # Integrals with known values, by the midpoint rule on quantiles: its error is
    # below that of the 4000 cells for functions whose weights are bounded.
    np.testing.assert_allclose(np.mean(1 / density), t1 - t0, rtol=1e-3)
    np.testing.assert_allclose(np.mean(t / density), (t1**2 - t0**2) / 2, rtol=1e-3)
    mean_sine = np.mean(np.sin(6 * t) / density)
    np.testing.assert_allclose(
        mean_sine, (np.cos(6 * t0) - np.cos(6 * t1)) / 6, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("diffusion", [slow(eqmdm.CLD), decayed_diffusion])
def test_time_sampler_stays_within_the_ends_in_float32(sampler, diffusion):
    diffusion = diffusion()
    u = np.linspace(0, 1, 1001, dtype=np.float32)[:-1]
    t, density = map(np.asarray, times(SAMPLERS[sampler], diffusion, u))
    assert t.dtype == density.dtype == np.float32
    # A rounding at either end.
    assert t[0] >= 1e-3 * (1 - 1e-6)
    assert t[-1] <= 1 + 1e-6
    assert np.all(np.diff(t) > 0)
    exact_t, exact = times(SAMPLERS[sampler], diffusion, u.astype(np.float64))
    # A cell's share is a difference of two integrals of up to 30: 1e-5 relative to a
    # 256th of the whole. Draws at an edge may fall into the cell beside it.
    np.testing.assert_allclose(t, exact_t, rtol=1e-3)
    assert np.median(np.abs(density / np.asarray(exact, np.float32) - 1)) < 1e-3


@pytest.mark.parametrize("name", [slow("VPSDE"), "CLD"])
def test_importance_time_follows_the_size_of_the_integrand(name):
    diffusion = getattr(eqmdm, name)()

    def trace(t):
        kernel = diffusion.compute_kernel(t)
        whitened = kernel.whitening @ diffusion.diffusion_matrix(t)
        return jnp.sum(whitened**2)

    u = np.linspace(0.01, 0.99, 99)
    t, density = times(eqmdm.ImportanceTimeSampler(), diffusion, u)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    log_t0, log_t1 = np.log(diffusion.t0), np.log(diffusion.t1)
    grid = np.exp(log_t0 + (nodes + 1) / 2 * (log_t1 - log_t0))
    traces = jax.jit(jax.vmap(trace))(np.concatenate([t, grid]))
    at_t, on_grid = np.split(np.asarray(traces), [len(t)])
    whole = np.sum(on_grid * grid * weights) * (log_t1 - log_t0) / 2
    # Cells of 2.7 %, each with one density.
    np.testing.assert_allclose(density, at_t / whole, rtol=0.05)


@pytest.mark.parametrize("name", [slow("VPSDE"), "CLD"])
def test_log_snr_time_is_uniform_in_log_snr(name):
    diffusion = getattr(eqmdm, name)()
    u = np.linspace(0.01, 0.99, 99)
    t, _ = times(eqmdm.LogSNRTimeSampler(), diffusion, u)
    t = np.concatenate([[diffusion.t0], t, [diffusion.t1]])
    log_snrs = np.asarray(jax.jit(jax.vmap(diffusion.log_snr))(t))
    shares = (log_snrs[0] - log_snrs[1:-1]) / (log_snrs[0] - log_snrs[-1])
    # Exact at the edges of the cells, of which there are 256.
    np.testing.assert_allclose(shares, u, atol=1e-3)


def test_log_snr_time_has_the_density_that_is_given():
    diffusion = eqmdm.CLD()
    sampler = eqmdm.LogSNRTimeSampler(density=lambda l: jnp.exp(-0.5 * (l - 2) ** 2))
    u = np.linspace(0.01, 0.99, 99)
    t, _ = times(sampler, diffusion, u)
    log_snrs = np.asarray(jax.jit(jax.vmap(diffusion.log_snr))(t))
    # Cells of up to 0.1 in log-SNR, each with the density at its middle, and a floor of
    # 1e-4 of the whole.
    np.testing.assert_allclose(norm.sf(log_snrs - 2), u, atol=2e-3)


@pytest.mark.parametrize(
    "ends", [{}, {"interval": eqmdm.LogSNRInterval(-4.0, 8.0)}], ids=["t", "log_snr"]
)
def test_times_are_constants_to_the_parameters_of_a_diffusion(ends):
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(0), **ends)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(diffusion):
        draws = [s(diffusion, jnp.asarray(0.3)) for s in SAMPLERS.values()]
        return sum(t + density for t, density in draws)

    leaves = jax.tree.leaves(gradient(diffusion))
    assert len(leaves) == 2
    assert all(np.all(np.asarray(leaf) == 0) for leaf in leaves)


@pytest.mark.parametrize("n", [1, 7, 8])
def test_low_discrepancy_quantiles_are_uniform_each(n, key):
    draw = lambda key: eqmdm.low_discrepancy(n, key=key)
    u = np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, 10_000)))
    assert u.shape == (10_000, n)
    assert np.all((u >= 0) & (u < 1))
    assert within_standard_errors(u, 1 / 2)
    assert within_standard_errors((u - 0.5) ** 2, 1 / 12)
    assert within_standard_errors(u < 0.1, 0.1)


def test_low_discrepancy_quantiles_are_evenly_spaced(key):
    u = np.sort(eqmdm.low_discrepancy(9, key=key))
    # Roundings of numbers below 1.
    np.testing.assert_allclose(np.diff(u), 1 / 9, atol=1e-15)
    assert 0 <= u[0] < 1 / 9


STRATA = {
    1: [(0.0, 1.0)],
    2: [(0.0, 1.0)] * 2,
    7: [(0, 2 / 7)] * 2 + [(2 / 7, 4 / 7)] * 2 + [(4 / 7, 1)] * 3,
    8: [(i / 4, (i + 1) / 4) for i in range(4) for _ in range(2)],
}


@pytest.mark.parametrize("shift", [0.0, 0.618])
@pytest.mark.parametrize("n", STRATA)
def test_stratified_quantiles_are_uniform_within_their_strata(n, shift, key):
    draw = lambda key: stratified(n, key=key, shift=shift)
    u = np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, 10_000)))
    low, high = np.array(STRATA[n]).T
    within = (u - low) / (high - low)
    # A rounding at either edge.
    assert np.all((within > -1e-12) & (within < 1 + 1e-12)) and np.all(u < 1)
    assert within_standard_errors(within, 1 / 2)
    assert within_standard_errors((within - 0.5) ** 2, 1 / 12)


@pytest.mark.parametrize("n", [2, 7, 8])
def test_stratified_standard_error_is_unbiased(n, key):
    # A function whose mean differs from stratum to stratum, with noise of its own.
    def draw(key):
        key_time, key_noise = jr.split(key)
        u = stratified(n, key=key_time)
        return jnp.exp(2 * u) + jr.normal(key_noise, (n,))

    values = np.asarray(jax.jit(jax.vmap(draw))(jr.split(key, 20_000)))
    error = np.asarray(stratified_standard_error(values))
    means = values.mean(axis=1)
    exact = (np.exp(2) - 1) / 2
    assert within_standard_errors(means, exact)
    # The squares of both have the same mean.
    assert within_standard_errors(error**2 - (means - exact) ** 2, 0.0)


def test_stratified_standard_error_of_one_value_is_unknown():
    assert np.isnan(stratified_standard_error(np.ones((3, 1)))).all()


@pytest.mark.parametrize("sampler", [slow("importance"), "log_snr", slow("density")])
def test_functions_of_a_diffusion_may_close_over_what_is_traced(sampler):
    def density(rate):
        diffusion = eqmdm.TimeVaryingDiffusion(
            lambda t: -0.5 * rate * jnp.ones((1, 1), t.dtype),
            lambda t: jnp.sqrt(rate) * jnp.ones((1, 1), t.dtype),
            prior_covariance=[[1.0]],
        )
        return SAMPLERS[sampler](diffusion, jnp.asarray(0.3))[1]

    known = jax.jit(lambda: density(np.float64(2.0)))()
    # One table, in two programs.
    value, slope = jax.jit(jax.value_and_grad(density))(2.0)
    np.testing.assert_allclose(value, known, rtol=1e-10)
    assert slope == 0


@pytest.mark.parametrize("name", ["importance", "log_snr", "density"])
@pytest.mark.parametrize("diffusion", slow_but(["ALDA", "decayed"], DIFFUSIONS))
def test_times_of_constants_are_those_of_the_same_numbers_traced(name, diffusion):
    sampler, constant = SAMPLERS[name], DIFFUSIONS[diffusion]()
    interval = eqmdm.TimeInterval(float(constant.t0), float(constant.t1))
    recipe = constant.recipe
    matrices = [np.asarray(m) for m in (constant.skew_matrix, recipe.dissipation_root)]

    def build(skew, root):
        return eqmdm.LinearDiffusion(skew, dissipation_root=root, interval=interval)

    u = np.linspace(0, 1, 101)
    traced = jax.jit(
        lambda skew, root, u: jax.vmap(lambda u: sampler(build(skew, root), u))(u)
    )
    t, density = times(sampler, build(*matrices), u)
    t_traced, density_traced = traced(*matrices, u)
    # The rise over a cell is a difference of kernels that are good to 1e-12; the
    # smallest is 1e-4 of their size.
    np.testing.assert_allclose(t, t_traced, rtol=1e-8)
    np.testing.assert_allclose(density, density_traced, rtol=1e-6)
