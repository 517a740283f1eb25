import functools
import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm
from references import (
    MODE_STD as STD,
    MODES,
    VARIANCE,
    mixture_denoiser,
    normal_denoiser,
    stacked,
)

import eqmdm
from eqmdm import AugmentedRoute, CollapsedRoute, LogSNRClock
from helpers import OPTIMISED, slow, tree_allclose, within_standard_errors


# Truncation and the prior's mismatch are then below 1e-4 nats.
WIDE = (-13.3, 13.3)
# The diffusions, by their number of variables.
NAMES = {
    1: ["VPSDE"],
    2: ["CLD", "PSLD"],
    3: ["ALDA", "MALDA", "CriticalThirdOrder"],
}
LOOSE, TIGHT = 1e-5, 1e-9


def _compute(denoiser, diffusions, x, keys, tolerance, options):
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)

    def under(diffusion):
        model = eqmdm.DenoiserModel(denoiser, diffusion)
        one = lambda x, key: eqmdm.log_likelihood(
            model, x, key=key, stepsize_controller=controller, **options
        )
        return jax.vmap(one)(x, keys)

    return eqx.filter_vmap(under)(diffusions)


_COMPUTE = {
    jnp.dtype("float32"): eqx.filter_jit(_compute, compiler_options=OPTIMISED),
    jnp.dtype("float64"): eqx.filter_jit(_compute),
}


def compute_all(denoiser, diffusions, x, key, *, tolerance=LOOSE, **options):
    """The likelihoods of a batch under a denoiser, by each of several diffusions of as
    many variables.

    Numbers are traced, so that diffusions which differ in them alone share a program.
    """
    tolerance = jnp.asarray(tolerance, x.dtype)
    keys = jr.split(key, len(x))
    run = _COMPUTE[x.dtype]
    return run(denoiser, stacked(diffusions), x, keys, tolerance, options)


def compute(denoiser, diffusion, x, key, **options):
    """The results of `compute_all` for one diffusion."""
    results = compute_all(denoiser, [diffusion], x, key, **options)
    return jax.tree.map(lambda leaf: leaf[0], results)


@jax.jit
def ends(diffusion):
    """The log-SNRs at t0 and t1, and the variance of z at t1 under the prior, by dense
    matrices."""

    @jax.vmap
    def at_end(t):
        kernel = diffusion.compute_kernel(t)
        return kernel.log_snr, kernel.mean_map, kernel.root

    log_snrs, a, root = at_end(jnp.stack([diffusion.t0, diffusion.t1]))
    weights = jnp.linalg.solve(root[1] @ root[1].T, a[1])
    root = weights @ diffusion.prior.root
    return *log_snrs, root @ root / (a[1] @ weights) ** 2


@functools.cache
def mixture_case():
    """Draws of the mixture, with log-densities in closed form and by a tight solve
    between the wide log-SNRs.

    The solve takes the divergence from the posterior variance of the data, not from a
    derivative of the denoiser. At its t1 the prior of z has the variance 1 / SNR, to
    some parts in a million, for every stationary diffusion.
    """
    log_snr0, log_snr1 = WIDE[1], WIDE[0]
    modes = jnp.asarray(MODES)

    def field(s, state, args):
        z, _ = state
        noise = jnp.exp(s - log_snr0)
        spread = STD**2 + noise
        gap = z - modes
        weights = jax.nn.softmax(-0.5 * gap**2 / spread)
        means = modes + gap * STD**2 / spread
        mean = weights @ means
        variance = STD**2 * noise / spread + weights @ (means - mean) ** 2
        return 0.5 * (z - mean), 0.5 * (1 - variance / noise)

    @jax.jit
    @jax.vmap
    def solve(x):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Dopri8(),
            jnp.zeros(()),
            jnp.asarray(log_snr0 - log_snr1),
            None,
            (x, jnp.zeros(())),
            stepsize_controller=dfx.PIDController(rtol=1e-10, atol=1e-10),
            adjoint=dfx.ForwardMode(),
        )
        z, change = solution.ys[0][-1], solution.ys[1][-1]
        return norm.logpdf(z, 0.0, math.exp(-0.5 * log_snr1)) + change

    generator = np.random.default_rng(0)
    x = generator.choice(MODES, 512) + STD * generator.standard_normal(512)
    # One reference then serves both precisions.
    x = x.astype(np.float32).astype(np.float64)
    components = -0.5 * ((x[:, None] - MODES) / STD) ** 2
    closed = np.log(np.mean(np.exp(components), axis=1) / (STD * math.sqrt(2 * np.pi)))
    return jnp.asarray(x), closed, np.asarray(solve(jnp.asarray(x)))


def rms(error):
    return np.sqrt(np.mean(np.asarray(error, np.float64) ** 2))


def check_mixture(names, route, key):
    """The results, in both precisions, by each diffusion."""
    diffusions = [
        getattr(eqmdm, name)(interval=eqmdm.LogSNRInterval(*WIDE)) for name in names
    ]
    x, closed, tight = mixture_case()
    for dtype in (jnp.float32, jnp.float64):
        batch = x.astype(dtype)
        results = compute_all(mixture_denoiser, diffusions, batch, key, route=route)
        assert results.log_likelihood.dtype == dtype
        for i, name in enumerate(names):
            result = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), results)
            error = result.log_likelihood.astype(np.float64) - tight
            largest, from_closed = np.max(np.abs(error)), rms(error + tight - closed)
            print(
                f"{name} in {dtype.__name__}: against a tight solve rms "
                f"{rms(error):.2e}, max {largest:.2e}; against the closed form "
                f"{from_closed:.2e}; {np.mean(result.n_evaluations):.1f} evaluations"
            )
            assert np.all(result.converged)
            # A tolerance of 1e-5 over some twenty steps; truncation beside it.
            assert rms(error) < 2e-4 and largest < 2e-3
            assert from_closed < 5e-4
            yield name, result


@pytest.mark.parametrize("n_vars", [slow(1), 2, slow(3)], ids=["K1", "K2", "K3"])
def test_collapsed_likelihood_of_a_mixture_is_exact(n_vars, key):
    for _, result in check_mixture(NAMES[n_vars], CollapsedRoute(), key):
        assert np.all(result.standard_error == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VPSDE", "CLD"])
def test_augmented_likelihood_of_a_mixture_is_exact_for_every_draw(name, key):
    for _, result in check_mixture([name], AugmentedRoute(2), key):
        # Draws agree where score and prior are exact, but for the error of the solves.
        largest = 0.0 if name == "VPSDE" else 2e-3
        assert np.max(result.standard_error) <= largest


def test_evaluations_are_as_few_as_stated(key):
    x, _, _ = mixture_case()
    # With one variable nothing is drawn, so any count of draws is one solve.
    routes = CollapsedRoute(LogSNRClock()), AugmentedRoute(2), CollapsedRoute()
    results = [
        compute(mixture_denoiser, eqmdm.VPSDE(), x, key, route=route)
        for route in routes
    ]
    means = [np.mean(result.n_evaluations) for result in results]
    print("evaluations in log-SNR, t and angle:", [f"{mean:.1f}" for mean in means])
    assert means[0] <= 160 and means[1] <= 90
    # The default takes the fewest.
    assert means[2] < means[1] < means[0]
    # With one variable all are the flow of the same density.
    for result in results[1:]:
        assert rms(result.log_likelihood - results[0].log_likelihood) < 2e-4


@pytest.mark.parametrize("solver", [dfx.Tsit5(), dfx.Heun()], ids=["Tsit5", "Heun"])
def test_evaluations_are_counted(solver):
    calls = []

    def denoiser(log_snr, z):
        jax.debug.callback(lambda: calls.append(0))
        return normal_denoiser(log_snr, z)

    diffusion = eqmdm.VPSDE()
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
    log_snr0, log_snr1, _ = ends(diffusion)
    grid = jnp.linspace(-log_snr0, -log_snr1, 8)
    for control in (controller, dfx.StepTo(grid)):
        calls.clear()
        result = eqmdm.log_likelihood(
            model,
            jnp.asarray(0.7),
            key=jr.key(0),
            route=CollapsedRoute(LogSNRClock()),
            solver=solver,
            stepsize_controller=control,
        )
        jax.effects_barrier()
        assert result.n_evaluations == len(calls)


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("VPSDE", CollapsedRoute()),
        ("CLD", CollapsedRoute()),
        ("MALDA", CollapsedRoute()),
        # With one variable its flow too is a known multiple of x.
        ("VPSDE", AugmentedRoute()),
    ],
    ids=["VPSDE", "CLD", "MALDA", "augmented"],
)
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_likelihood_of_normal_data_includes_the_mismatch_of_the_prior(name, route, key):
    diffusion = getattr(eqmdm, name)(interval=eqmdm.TimeInterval(2e-3, 0.4))
    x = jnp.linspace(-3, 3, 12).reshape(2, 3, 1, 2)
    result = compute(normal_denoiser, diffusion, x, key, route=route, tolerance=TIGHT)
    *log_snrs, prior_variance = ends(diffusion)
    start, end = (VARIANCE + jnp.exp(-log_snr) for log_snr in log_snrs)
    stretch = jnp.sqrt(end / start)
    log_density = norm.logpdf(stretch * x, 0.0, jnp.sqrt(prior_variance))
    expected = jnp.sum(log_density + jnp.log(stretch), axis=(1, 2, 3))
    # The mismatch that this is about.
    exact = jnp.sum(norm.logpdf(x, 0.0, jnp.sqrt(start)), axis=(1, 2, 3))
    assert jnp.max(jnp.abs(expected - exact)) > 0.05
    # The tolerance over some hundred steps.
    assert tree_allclose(result.log_likelihood, expected, rtol=0.0, atol=1e-6)


@pytest.mark.slow
def test_augmented_likelihood_of_normal_data_is_the_closed_form_for_any_score(key):
    diffusion = eqmdm.MALDA(interval=eqmdm.LogSNRInterval(*WIDE))
    model = eqmdm.FunctionModel(
        eqmdm.DenoiserModel(normal_denoiser, diffusion).score, diffusion
    )
    controller = dfx.PIDController(rtol=TIGHT, atol=TIGHT)
    x = jnp.linspace(-3, 3, 6).reshape(3, 1, 2)

    @jax.jit
    def run(x, keys):
        one = lambda x, key: eqmdm.log_likelihood(
            model, x, key=key, stepsize_controller=controller
        )
        return jax.vmap(one)(x, keys).log_likelihood

    std = math.sqrt(VARIANCE + math.exp(-WIDE[1]))
    expected = jnp.sum(norm.logpdf(x, 0.0, std), axis=(1, 2))
    # A share of e^-13.3 of the prior's variance is missing.
    actual = run(x, jr.split(key, 3))
    assert tree_allclose(actual, expected, rtol=0.0, atol=2e-5)


@pytest.mark.slow
def test_clock_of_the_augmented_route_changes_its_steps_alone(key):
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-8.0, 6.0))
    x = jnp.linspace(-2, 2, 4)
    # Draws of one key: the same auxiliaries.
    in_time, in_log_snr = (
        compute(normal_denoiser, diffusion, x, key, route=AugmentedRoute(clock=clock))
        for clock in (None, LogSNRClock())
    )
    assert np.any(in_time.n_evaluations != in_log_snr.n_evaluations)
    error = in_time.log_likelihood - in_log_snr.log_likelihood
    # Two solves at a tolerance of 1e-5, each of some twenty steps.
    assert np.max(np.abs(error)) < 2e-4


def test_clock_of_the_noise_raises_where_log_snr_is_not_monotone(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.ALDA())
    route = AugmentedRoute(clock=LogSNRClock())
    with pytest.raises(ValueError, match="`clock` must be"):
        eqmdm.log_likelihood(model, jnp.zeros(()), key=key, route=route)


def test_solver_for_sdes_raises(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    with pytest.raises(TypeError, match="`solver` must be one for ODEs.*got `SEA`"):
        eqmdm.log_likelihood(model, jnp.zeros(2), key=key, solver=dfx.SEA())


def test_default_route_follows_the_model(key):
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    function = eqmdm.FunctionModel(denoiser.score, diffusion)
    x = jnp.asarray(0.3)
    for model, route in ((denoiser, CollapsedRoute()), (function, AugmentedRoute())):
        chosen = eqmdm.log_likelihood(model, x, key=key)
        given = eqmdm.log_likelihood(model, x, key=key, route=route)
        assert tree_allclose(chosen, given, rtol=0.0, atol=0.0)


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
    x, closed, _ = mixture_case()
    x, closed = x[:64], closed[:64]
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    one = lambda x: eqmdm.log_likelihood(model, x, key=key, route=NormalisedFlow())
    result = jax.jit(jax.vmap(one))(x)
    # The bar of the built-in routes.
    assert rms(result.log_likelihood - closed) < 5e-4
    other = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
    with pytest.raises(TypeError, match="must be a `DenoiserModel`"):
        eqmdm.log_likelihood(other, x[0], key=key, route=NormalisedFlow())


@pytest.mark.parametrize(
    "diffusion",
    [eqmdm.VPSDE(), eqmdm.CLD(interval=eqmdm.LogSNRInterval(-8.0, 6.0))],
    ids=["VPSDE", "CLD"],
)
@pytest.mark.parametrize("route", [CollapsedRoute(), AugmentedRoute(2)])
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


def test_preconditioned_denoiser_keeps_its_digits_at_high_log_snr(key):
    # Data of another width than the one that the preconditioning is told.
    std, data_std, low, high = 0.2, 0.5, -14.0, 27.0

    def network(c, z):
        noise = jnp.exp(c * (high - low) - high)
        # (x_hat - c_skip z) / c_out for x_hat = z std^2 / (std^2 + noise).
        gap = data_std**2 - std**2
        return -z * jnp.sqrt(noise) * gap / (data_std * (std**2 + noise))

    denoiser = eqmdm.PreconditionedDenoiser(network, data_std, (low, high))
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-13.3, high - 0.01))
    x = jnp.linspace(-0.6, 0.6, 7)
    x = x.astype(jnp.float32)
    result = compute(denoiser, diffusion, x, key)
    assert jnp.all(result.converged)
    expected = norm.logpdf(x.astype(jnp.float64), 0.0, std)
    # Three standard deviations out a tolerance of 1e-5 leaves that much.
    actual = result.log_likelihood.astype(jnp.float64)
    assert tree_allclose(actual, expected, rtol=0.0, atol=5e-4)


@pytest.mark.parametrize("route", [CollapsedRoute(), AugmentedRoute()])
def test_mixture_in_two_dimensions_is_exact(route, key):
    means = jnp.asarray([[-1.5, 0.3], [-0.4, -1.0], [0.5, 1.2], [1.6, 0.0]])

    def denoiser(log_snr, z):
        noise = jnp.exp(-log_snr)
        spread = STD**2 + noise
        gaps = jnp.sum((z[None] - means) ** 2, axis=1)
        weights = jax.nn.softmax(-0.5 * gaps / spread)
        return (STD**2 * z + noise * (weights @ means)) / spread

    key_mode, key_noise = jr.split(key)
    x = means[jr.randint(key_mode, (128,), 0, 4)] + STD * jr.normal(key_noise, (128, 2))
    components = jnp.sum(norm.logpdf(x[:, None], means[None], STD), axis=2)
    expected = jax.nn.logsumexp(components, axis=1) - math.log(4)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    result = compute(denoiser, diffusion, x, key, route=route)
    # The limit for one dimension, per dimension.
    assert rms(result.log_likelihood - expected) < 1e-3


def correlated_problem(key):
    """Normal data of six correlated coordinates, at an end where noise is small."""
    factor = jr.normal(key, (6, 6))
    values, vectors = jnp.linalg.eigh(factor @ factor.T / 6 + 0.1 * jnp.eye(6))

    def denoiser(log_snr, z):
        gains = values / (values + jnp.exp(-log_snr))
        return vectors @ (gains * (vectors.T @ z))

    def log_density(x, noise):
        covariance = vectors @ ((values + noise)[:, None] * vectors.T)
        return multivariate_normal.logpdf(x, jnp.zeros(6), covariance)

    return denoiser, log_density


@pytest.mark.parametrize("route", [CollapsedRoute(), AugmentedRoute()])
def test_probes_are_unbiased_and_their_standard_error_is_right(route, key):
    denoiser, log_density = correlated_problem(key)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    x = jnp.linspace(-1, 1, 6)
    expected = log_density(x, math.exp(-WIDE[1]))
    exact = compute(denoiser, diffusion, x[None], key, route=route)
    assert tree_allclose(exact.log_likelihood[0], expected, rtol=0.0, atol=1e-3)
    n_probes = 4
    result = compute(
        denoiser,
        diffusion,
        jnp.broadcast_to(x, (256, 6)),
        key,
        route=route,
        divergence=eqmdm.HutchinsonDivergence(n_probes),
    )
    assert within_standard_errors(result.log_likelihood, exact.log_likelihood[0])
    # The variance that a result states of itself is unbiased for its true one.
    spread = (result.log_likelihood - jnp.mean(result.log_likelihood)) ** 2
    stated = result.standard_error**2
    assert jnp.mean(stated) > 1e-4
    assert within_standard_errors(256 / 255 * spread - stated, 0.0)


def test_probes_are_fixed_within_a_solve(key):
    denoiser, _ = correlated_problem(key)
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(*WIDE))
    x = jnp.broadcast_to(jnp.linspace(-1, 1, 6), (8, 6))
    results = [
        compute(
            denoiser,
            diffusion,
            x,
            key,
            divergence=eqmdm.HutchinsonDivergence(),
            tolerance=tolerance,
        )
        for tolerance in (LOOSE, TIGHT)
    ]
    values = [result.log_likelihood for result in results]
    assert all(jnp.all(jnp.isnan(result.standard_error)) for result in results)
    # With probes drawn at each step, other steps would give other draws, which are
    # hundreds of times as far apart as this.
    assert jnp.max(jnp.abs(values[0] - values[1])) < 2e-3
    assert jnp.std(values[0]) > 0.1


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
    weighted = estimate(AugmentedRoute(16, True), 256)
    means = jnp.mean(bounds), jnp.mean(weighted.log_likelihood)
    print("1 and 16 draws", [f"{m:.4f}" for m in means], f"closed form {expected:.4f}")
    assert within_standard_errors(bounds, bound)
    assert bound < expected - 0.01 and means[0] < means[1]
    # Of the logarithm of a mean of 16 weights the bias is a third of the error here.
    assert within_standard_errors(weighted.log_likelihood, expected)
    # The error that results state of themselves is that of their spread.
    stated = jnp.sqrt(jnp.mean(weighted.standard_error**2))
    assert 0.8 < stated / jnp.std(weighted.log_likelihood) < 1.25


def test_a_result_does_not_depend_on_its_batch(key):
    model = eqmdm.DenoiserModel(mixture_denoiser, eqmdm.VPSDE())
    x, _, _ = mixture_case()
    many = compute(mixture_denoiser, model.diffusion, x, key, route=CollapsedRoute())
    one = eqmdm.log_likelihood(model, x[3], key=key)
    # To rounding.
    close = dict(rtol=1e-10, atol=1e-10)
    assert tree_allclose(many.log_likelihood[3], one.log_likelihood, **close)
    assert many.n_evaluations[3] == one.n_evaluations


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
    ends = model.diffusion.t0, model.diffusion.t1
    result = eqmdm.log_likelihood(
        model,
        jnp.zeros(2),
        key=key,
        stepsize_controller=dfx.StepTo(jnp.linspace(*ends, 20)),
    )
    assert result.result == dfx.RESULTS.nonfinite and not result.converged
    assert np.isnan(result.log_likelihood)


def test_likelihood_shows_its_values(key):
    model = eqmdm.DenoiserModel(normal_denoiser, eqmdm.VPSDE())
    result = eqmdm.log_likelihood(model, jnp.zeros(2), key=key)
    shown = f"log_likelihood={float(result.log_likelihood):.6g}, standard_error=0"
    assert shown in repr(result) and "converged=1 of 1" in repr(result)
    one = lambda x: eqmdm.log_likelihood(model, x, key=key)
    batch = repr(jax.vmap(one)(jnp.zeros((3, 2))))
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
