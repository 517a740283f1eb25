"""Tests of the results of likelihoods: probes, draws, failures and errors."""

import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from likelihoods import LOOSE, TIGHT, WIDE, compute, mixture_draws, rms
from references import VARIANCE, mixture_denoiser, normal_denoiser
from scipy.stats import multivariate_normal

import eqmdm
from eqmdm import AugmentedRoute, CollapsedRoute
from helpers import equations, generator_of, slow, tree_allclose, within_standard_errors


class NormalisedFlow(eqmdm.AbstractRoute):
    """The flow of z in log-SNR, in units of its standard deviation for data of unit
    variance; written with public names alone."""

    def check(self, model, dtype):
        del dtype
        if not model.has_denoiser:
            raise TypeError("`model` must be a `DenoiserModel`.")

    def __call__(self, model, x, solver, *, key):
        diffusion = model.diffusion
        log_snrs = [diffusion.log_snr(t) for t in (diffusion.t0, diffusion.t1)]
        scale = lambda log_snr: jnp.sqrt(1 + jnp.exp(-log_snr)).astype(x.dtype)

        def flow(s):
            r = scale(-s)

            def function(u):
                z = r * u[0]
                share = 1 / (1 + jnp.exp(s))
                # du/ds for u = z / r, whose own change is -u exp(s) / 2 (1 + exp(s)).
                return 0.5 * ((z - model.denoise(-s, z)) / r - u[0] * (1 - share))[None]

            return jnp.zeros((1, 1), x.dtype), jnp.ones((1, 1), x.dtype), function

        first, last = (scale(log_snr) for log_snr in log_snrs)
        start, end = (-log_snr.astype(x.dtype) for log_snr in log_snrs)
        solution = solver(flow, start, end, x[None] / first, key=key)
        density = jnp.sum(norm.logpdf(solution.y[0]))
        values = density - x.size * jnp.log(first) + solution.divergences
        return eqmdm.Likelihood(
            log_likelihood=jnp.mean(values),
            standard_error=solver.standard_error(values),
            effective_sample_size=jnp.ones((), x.dtype),
            n_evaluations=solution.n_evaluations,
            result=solution.result,
        )


def test_a_route_of_ones_own_gives_the_likelihood(key):
    x, closed = (part[:64] for part in mixture_draws())
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    one = lambda x: eqmdm.log_likelihood(model, x, key=key, route=NormalisedFlow())
    result = jax.jit(jax.vmap(one))(x)
    # The bar of the built-in routes.
    assert rms(result.log_likelihood - closed) < 5e-4
    other = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
    with pytest.raises(TypeError, match="must be a `DenoiserModel`"):
        eqmdm.log_likelihood(other, jnp.zeros(()), key=key, route=NormalisedFlow())


_CLD = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-8.0, 6.0))


@pytest.mark.parametrize(
    ("route", "diffusion"),
    [
        (CollapsedRoute(), eqmdm.VPSDE()),
        (AugmentedRoute(2), _CLD),
        slow(CollapsedRoute(), _CLD),
        slow(AugmentedRoute(2), eqmdm.VPSDE()),
    ],
)
def test_program_does_not_call_back_to_the_host(route, diffusion, key):
    # XLA's persistent cache holds no program that does.
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: jnp.tanh(z) + c, data_std=1.0, log_snr_range=(-20.0, 40.0)
    )
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    run = lambda x, key: eqmdm.log_likelihood(model, x, key=key, route=route)
    program = jax.jit(run).lower(jnp.zeros(3), key).as_text()
    assert "tanh" in program
    assert "callback" not in program


@pytest.mark.parametrize("route", [CollapsedRoute(), AugmentedRoute()])
def test_network_is_compiled_once(route, key):
    def network(c, z):
        # An operation that nothing else in the program has.
        return jax.lax.lgamma(1.5 + 0.1 * z**2)

    denoiser = eqmdm.PreconditionedDenoiser(network, 1.0, (-20.0, 40.0))
    model = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE())
    run = lambda x, key: eqmdm.log_likelihood(model, x, key=key, route=route)
    program = jax.jit(run).lower(jnp.zeros(3), key).as_text()
    # With its derivative, which is that of the value.
    assert program.count("chlo.lgamma") == 1


def test_first_product_of_a_probe_is_taken_once_for_a_batch(key):
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((3, 7)), generator.standard_normal((7, 3))
    denoiser = lambda log_snr, z: jnp.tanh(z @ weights[0]) @ weights[1]
    model = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE())
    one = lambda x: eqmdm.log_likelihood(model, x, key=key).log_likelihood
    jaxpr = jax.make_jaxpr(jax.vmap(one))(jnp.zeros((5, 3))).jaxpr
    shapes = [
        equation.outvars[0].aval.shape
        for equation in equations(jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    # The values of a batch of five; the derivative along a probe, which all share.
    assert (5, 7) in shapes and (7,) in shapes


def correlated_problem(key):
    """Normal data of six correlated coordinates, at an end where noise is small."""
    generator = generator_of(key)
    factor = generator.standard_normal((6, 6))
    values, vectors = np.linalg.eigh(factor @ factor.T / 6 + 0.1 * np.eye(6))

    def denoiser(log_snr, z):
        gains = values / (values + jnp.exp(-log_snr))
        return vectors @ (gains * (vectors.T @ z))

    def log_density(x, noise):
        covariance = vectors @ ((values + noise)[:, None] * vectors.T)
        return multivariate_normal.logpdf(x, np.zeros(6), covariance)

    return denoiser, log_density


@pytest.mark.parametrize("route", [CollapsedRoute(), slow(AugmentedRoute())])
def test_probes_are_unbiased_and_their_standard_error_is_right(route, key):
    denoiser, log_density = correlated_problem(key)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    x = np.linspace(-1, 1, 6)
    expected = log_density(x, math.exp(-WIDE[1]))
    exact = compute(denoiser, diffusion, jnp.asarray(x[None]), key, route=route)
    [exact] = np.asarray(exact.log_likelihood)
    assert abs(exact - expected) < 1e-3
    n_probes = 4
    result = compute(
        denoiser,
        diffusion,
        jnp.asarray(np.broadcast_to(x, (256, 6))),
        key,
        route=route,
        divergence=eqmdm.HutchinsonDivergence(n_probes),
        in_turn=True,
    )
    values = np.asarray(result.log_likelihood)
    assert within_standard_errors(values, exact)
    # The variance that a result states of itself is unbiased for its true one.
    spread = (values - np.mean(values)) ** 2
    stated = np.asarray(result.standard_error) ** 2
    assert np.mean(stated) > 1e-4
    assert within_standard_errors(256 / 255 * spread - stated, 0.0)


def test_probes_are_fixed_within_a_solve(key):
    denoiser, _ = correlated_problem(key)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    x = jnp.asarray(np.broadcast_to(np.linspace(-1, 1, 6), (8, 6)))
    results = [
        compute(
            denoiser,
            diffusion,
            x,
            key,
            divergence=eqmdm.HutchinsonDivergence(),
            tolerance=tolerance,
            in_turn=True,
        )
        for tolerance in (LOOSE, TIGHT)
    ]
    values = [np.asarray(result.log_likelihood) for result in results]
    assert all(np.all(np.isnan(result.standard_error)) for result in results)
    # With probes drawn at each step, other steps would give other draws, which are
    # hundreds of times as far apart as this.
    assert np.max(np.abs(values[0] - values[1])) < 2e-3
    assert np.std(values[0]) > 0.1


def normal_model(diffusion):
    """The law of the state at t0 under the flow of normal data, as dense matrices."""

    def covariance(t):
        kernel = diffusion.compute_kernel(t)
        a = kernel.mean_map
        return VARIANCE * a[:, None] * a[None] + kernel.root @ kernel.root.T

    def field(s, M, args):
        t = diffusion.t1 - s
        G = diffusion.diffusion_matrix(t)
        push = 0.5 * G @ G.T @ jnp.linalg.inv(covariance(t))
        return -(diffusion.drift_matrix(t) + push) @ M

    @jax.jit
    def run():
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Dopri8(),
            jnp.zeros(()),
            diffusion.t1 - diffusion.t0,
            None,
            jnp.eye(diffusion.n_vars),
            stepsize_controller=dfx.PIDController(rtol=1e-10, atol=1e-10),
        )
        root = solution.ys[-1] @ diffusion.prior.root
        kernel = diffusion.compute_kernel(diffusion.t0)
        return root @ root.T, kernel.mean_map, kernel.root @ kernel.root.T

    return run()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_importance_weights_tighten_the_bound_up_to_the_closed_form(key):
    # An early end, so that the prior does not fit and draws differ; not so early that
    # the weights would have no fourth moment.
    diffusion = eqmdm.CLD(interval=eqmdm.TimeInterval(5e-3, 0.26))
    model, a, kernel_covariance = normal_model(diffusion)
    x = jnp.asarray(0.9)
    weights = jnp.linalg.solve(kernel_covariance, a)
    weights = weights / (a @ weights)
    along = model @ weights
    variance = weights @ along
    expected = norm.logpdf(x, 0.0, jnp.sqrt(variance))
    # The velocity at z = x: as it is drawn, and as the model has it.
    q_mean, p_mean = a[1] * x, along[1] * x / variance
    noise = weights @ kernel_covariance @ weights
    q_variance = kernel_covariance[1, 1] - a[1] ** 2 * noise
    p_variance = model[1, 1] - along[1] ** 2 / variance
    ratio = q_variance / p_variance
    gap = (q_mean - p_mean) ** 2 / p_variance
    bound = expected - 0.5 * (ratio + gap - 1 - jnp.log(ratio))

    def estimate(route, n_keys):
        x_repeated = jnp.full(n_keys, x)
        return compute(normal_denoiser, diffusion, x_repeated, key, route=route)

    bounds = estimate(AugmentedRoute(), 4096).log_likelihood
    # Enough that no weights are worth fewer than the ten draws that an error needs.
    weighted = estimate(AugmentedRoute(64, True), 128)
    means = jnp.mean(bounds), jnp.mean(weighted.log_likelihood)
    print("1 and 64 draws", [f"{m:.4f}" for m in means], f"closed form {expected:.4f}")
    assert within_standard_errors(bounds, bound)
    assert bound < expected - 0.01 and means[0] < means[1]
    # The bias of the logarithm of a mean of 64 weights is a fraction of the error here.
    assert within_standard_errors(weighted.log_likelihood, expected)
    # The error that results state of themselves is that of their spread.
    stated = jnp.sqrt(jnp.mean(weighted.standard_error**2))
    assert 0.8 < stated / jnp.std(weighted.log_likelihood) < 1.25


def test_a_result_does_not_depend_on_its_batch(key):
    model = eqmdm.DenoiserModel(mixture_denoiser, eqmdm.VPSDE())
    x = mixture_draws()[0][:8]
    batch, route = jnp.asarray(x), CollapsedRoute()
    many = compute(mixture_denoiser, model.diffusion, batch, key, route=route)
    one = eqmdm.log_likelihood(model, jnp.asarray(x[3]), key=key)
    # To rounding.
    close = dict(rtol=1e-10, atol=1e-10)
    actual = np.asarray(many.log_likelihood)[3]
    assert tree_allclose(actual, one.log_likelihood, **close)
    assert np.asarray(many.n_evaluations)[3] == one.n_evaluations


def test_a_solve_that_fails_leaves_the_others_of_its_batch(key):
    diffusion = eqmdm.VPSDE()
    x = jnp.asarray([0.2, jnp.nan, -0.9])
    for route in (CollapsedRoute(), AugmentedRoute()):
        options = {"max_steps": 100, "route": route}
        result = compute(mixture_denoiser, diffusion, x, key, **options)
        assert result.converged.tolist() == [True, False, True]
        assert np.isnan(result.log_likelihood).tolist() == [False, True, False]
        assert np.isnan(result.standard_error).tolist() == [False, True, False]
        # More steps than there are allowed.
        options |= {"tolerance": 1e-14}
        result = compute(mixture_denoiser, diffusion, x, key, **options)
        assert not np.any(result.converged)
        assert np.all(np.isnan(result.log_likelihood))
        failed = result.result == dfx.RESULTS.max_steps_reached
        assert failed.tolist() == [True] * 3


def test_a_result_says_why_it_failed(key):
    # NaN at one time, which a solver with fixed steps does not notice.
    function = lambda t, y: jnp.where(t > 0.5, jnp.nan, -y)
    model = eqmdm.FunctionModel(function, eqmdm.VPSDE())
    times = np.linspace(model.diffusion.t0, model.diffusion.t1, 20)
    result = eqmdm.log_likelihood(
        model,
        jnp.zeros(2),
        key=key,
        stepsize_controller=dfx.StepTo(jnp.asarray(times)),
    )
    assert result.result == dfx.RESULTS.nonfinite and not result.converged
    assert np.isnan(result.log_likelihood)


@pytest.mark.parametrize("route", [eqmdm.CollapsedRoute, eqmdm.AugmentedRoute])
def test_fixed_steps_may_end_within_rounding_of_the_clock(route, key):
    # Diffrax wants the exact ends, which another computation of them rarely gives.
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.CLD())
    ends = np.asarray([model.diffusion.t0, model.diffusion.t1])
    first, last = -np.asarray(jax.jit(jax.vmap(model.diffusion.log_snr))(ends))

    def value(shift):
        steps = np.linspace(first + shift, last - shift, 20)
        return eqmdm.log_likelihood(
            model,
            jnp.zeros(2),
            key=key,
            route=route(clock=eqmdm.LogSNRClock()),
            solver=dfx.Heun(),
            stepsize_controller=dfx.StepTo(jnp.asarray(steps)),
        ).log_likelihood

    # Four roundings at the largest reading; the inner steps move as little.
    assert tree_allclose(value(1e-14), value(-1e-14), rtol=1e-10, atol=0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="ts"):
        value(1e-6)


def test_likelihood_shows_its_values(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    result = eqmdm.log_likelihood(model, jnp.zeros(2), key=key)
    shown = f"log_likelihood={float(result.log_likelihood):.6g}, standard_error=0"
    assert shown in repr(result) and "converged=1 of 1" in repr(result)
    one = lambda x: eqmdm.log_likelihood(model, x, key=key)
    batch = repr(jax.jit(jax.vmap(one))(jnp.zeros((3, 2))))
    assert "log_likelihood=float64[3]" in batch and "converged=3 of 3" in batch


def test_integers_raise(key, unchecked):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`x` must be floating-point data; got int32"):
        eqmdm.log_likelihood(model, jnp.zeros(2, jnp.int32), key=key)


def test_collapsed_route_raises_without_a_denoiser(key):
    with pytest.raises(TypeError, match="`route` must be an `AugmentedRoute`"):
        eqmdm.log_likelihood(
            eqmdm.FunctionModel(lambda t, y: -y, eqmdm.VPSDE()),
            jnp.zeros(2),
            key=key,
            route=CollapsedRoute(),
        )


def test_counts_below_one_raise(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    with pytest.raises(ValueError, match="`max_steps` must be at least 1; got 0"):
        eqmdm.log_likelihood(model, jnp.zeros(2), key=key, max_steps=0)
    with pytest.raises(ValueError, match="`n_draws` must be at least 1; got 0"):
        AugmentedRoute(0)


def test_tolerance_below_the_precision_of_the_dtype_raises(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    x = jnp.zeros(2, jnp.float32)
    controller = dfx.PIDController(rtol=TIGHT, atol=TIGHT)
    with pytest.raises(ValueError, match="`stepsize_controller` must have a relative"):
        eqmdm.log_likelihood(model, x, key=key, stepsize_controller=controller)


def test_final_log_snr_below_the_range_of_the_denoiser_raises(key):
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-3.0, 9.0)
    )
    model = eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE())
    message = "`model` must have a diffusion that ends within the log-SNR range"
    run = lambda x: eqmdm.log_likelihood(model, x, key=key).log_likelihood
    for function in (run, eqx.filter_jit(run)):
        with pytest.raises(ValueError, match=message):
            function(jnp.zeros(2))
