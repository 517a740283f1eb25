import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from references import VARIANCE

import eqmdm
from helpers import slow, tree_allclose, within_standard_errors


def data_covariance(diffusion, t):
    """The covariance of y(t) for centred normal data."""
    kernel = diffusion.compute_kernel(t)
    a = kernel.mean_map
    return VARIANCE * jnp.outer(a, a) + kernel.root @ kernel.root.T


def gaussian_model(diffusion):
    def score(t, y):
        covariance = data_covariance(diffusion, jnp.asarray(t, y.dtype))
        flat = jnp.linalg.solve(covariance, y.reshape(len(y), -1))
        return -flat.reshape(y.shape)

    return eqmdm.FunctionModel(score, diffusion)


def solve(problem, solver, n_steps, key):
    solution = dfx.diffeqsolve(
        problem.terms,
        solver,
        problem.t0,
        problem.t1,
        (problem.t1 - problem.t0) / n_steps,
        problem.initial(key=key),
        adjoint=dfx.ForwardMode(),
        max_steps=n_steps + 1,
    )
    return solution.ys[-1]


@pytest.mark.parametrize("cls", [slow(eqmdm.VPSDE), eqmdm.CLD], ids=["VPSDE", "CLD"])
@pytest.mark.filterwarnings("ignore:The law of this diffusion")
def test_forward_sde_reaches_the_moments_of_the_kernel(cls, key):
    diffusion = cls(interval=eqmdm.TimeInterval(1e-3, 0.5))
    x = jnp.linspace(-2, 2, 8)

    def draw(key):
        key_path, key_start = jr.split(key)
        problem = eqmdm.forward_sde(diffusion, x, key=key_path)
        return solve(problem, dfx.SEA(), 60, key_start)

    y = jax.jit(jax.vmap(draw))(jr.split(key, 300))
    kernel = jax.jit(diffusion.compute_kernel)(diffusion.t1)
    mean = kernel.mean(x)
    assert within_standard_errors(y, mean)
    # Every coordinate of every path is a draw of its own.
    gap = jnp.moveaxis(y - mean[None], 1, 2).reshape(-1, diffusion.n_vars)
    products = gap[:, :, None] * gap[:, None, :]
    assert within_standard_errors(products, kernel.root @ kernel.root.T)


@pytest.mark.slow
def test_reverse_sde_with_the_exact_score_gives_the_data(key):
    diffusion = eqmdm.VPSDE()
    model = gaussian_model(diffusion)

    def draw(key):
        key_path, key_start = jr.split(key)
        problem = eqmdm.reverse_sde(model, (8,), key=key_path)
        return solve(problem, dfx.SEA(), 100, key_start)

    y = jax.jit(jax.vmap(draw))(jr.split(key, 300)).reshape(-1)
    assert within_standard_errors(y, 0.0)
    expected = data_covariance(diffusion, diffusion.t0)[0, 0]
    # The bias of 100 steps is below a percent, and five standard errors are 14.
    assert within_standard_errors(y**2, expected)


def test_reverse_sde_takes_a_path_of_the_users(key):
    diffusion = eqmdm.VPSDE()
    asked = []

    def path(t0, t1, structure, key):
        asked.append(structure.shape)
        return dfx.UnsafeBrownianPath(
            structure, key=key, levy_area=dfx.SpaceTimeLevyArea
        )

    model = gaussian_model(diffusion)
    problem = eqmdm.reverse_sde(model, (2,), key=key, path=path)
    assert asked == [(1, 2)]
    y = jax.jit(lambda key: solve(problem, dfx.SEA(), 10, key))(key)
    assert y.shape == (1, 2) and jnp.all(jnp.isfinite(y))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clocks_of_all_problems_increase(dtype, key):
    diffusion = eqmdm.CLD(interval=eqmdm.TimeInterval(0.01, 0.8))
    model = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
    x = jnp.zeros((3,), dtype)
    forward = eqmdm.forward_sde(diffusion, x, key=key)
    reverse = eqmdm.reverse_sde(model, (3,), key=key, dtype=dtype)
    flow = eqmdm.probability_flow(model, (3,), dtype=dtype)
    t0, t1 = (jnp.asarray(t, dtype) for t in (0.01, 0.8))
    close = dict(rtol=1e-6, atol=1e-8)
    for problem, start, end in (
        (forward, 0 * t0, t1),
        (reverse, t1, t0),
        (flow, t1, t0),
    ):
        assert problem.t0 < problem.t1
        times = problem.time(problem.t0), problem.time(problem.t1)
        assert tree_allclose(times, (start, end), **close)
        initial = problem.initial(key=key)
        assert initial.shape == (2, 3) and initial.dtype == dtype
    assert jnp.all(forward.initial(key=key)[0] == 0)


def test_reverse_drift_is_that_of_anderson(key):
    diffusion = eqmdm.CLD()
    model = gaussian_model(diffusion)
    y = jr.normal(key, (2, 3))
    s = jnp.asarray(0.4)
    reverse = eqmdm.reverse_sde(model, (3,), key=key)
    flow = eqmdm.probability_flow(model, (3,))
    t = diffusion.t1 - s
    F, G = diffusion.drift_matrix(t), diffusion.diffusion_matrix(t)
    push = G @ G.T @ jax.jit(model.score)(t, y)
    drift, noise = reverse.terms.terms
    close = dict(rtol=1e-12, atol=1e-12)
    assert tree_allclose(drift.vf(s, y, None), push - F @ y, **close)
    assert tree_allclose(flow.terms.vf(s, y, None), 0.5 * push - F @ y, **close)
    assert tree_allclose(noise.vf(s, y, None).matrix, G, **close)


@pytest.mark.parametrize("cls", [eqmdm.VPSDE, eqmdm.CLD], ids=["VPSDE", "CLD"])
def test_probability_flow_maps_the_marginal_at_t1_to_that_at_t0(cls):
    diffusion = cls(interval=eqmdm.TimeInterval(0.01, 1.0))
    model = gaussian_model(diffusion)
    problem = eqmdm.probability_flow(model, (diffusion.n_vars,))

    @jax.jit
    def compute():
        # The flow is linear: its matrix, from the columns of the identity.
        solution = dfx.diffeqsolve(
            problem.terms,
            dfx.Tsit5(),
            problem.t0,
            problem.t1,
            None,
            jnp.eye(diffusion.n_vars),
            stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
            max_steps=2000,
        )
        ends = (data_covariance(diffusion, t) for t in (diffusion.t1, diffusion.t0))
        return solution.ys[-1], *ends

    flow, at_end, at_cut = compute()
    # The solve's tolerance over some hundred steps.
    assert tree_allclose(flow @ at_end @ flow.T, at_cut, rtol=1e-6, atol=1e-7)


def test_time_reversed_flow_undoes_the_forward_one(key):
    # Along the exact flow the density is carried: a one-dimensional map of quantiles.
    diffusion = eqmdm.VPSDE()
    problem = eqmdm.probability_flow(gaussian_model(diffusion), (5,))
    y = jr.normal(key, (1, 5))

    @eqx.filter_jit
    def flow(y):
        solution = dfx.diffeqsolve(
            problem.terms,
            dfx.Tsit5(),
            problem.t0,
            problem.t1,
            None,
            y,
            stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
        )
        ends = [data_covariance(diffusion, t) for t in (diffusion.t1, diffusion.t0)]
        return solution.ys[-1], jnp.sqrt(ends[1] / ends[0])

    mapped, ratio = flow(y)
    assert tree_allclose(mapped, ratio[0, 0] * y, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("process", "cls"),
    [("forward", eqmdm.VPSDE), ("reverse", eqmdm.CLD), slow("flow", eqmdm.VPSDE)],
    ids=["forward", "reverse", "flow"],
)
def test_terms_on_a_noise_clock_are_those_in_time_by_the_chain_rule(process, cls, key):
    diffusion = cls(interval=eqmdm.TimeInterval(0.01, 0.8))
    model = eqmdm.FunctionModel(lambda t, y: -y / (1 + t), diffusion)
    x, y = jnp.linspace(-1, 1, 3), jr.normal(key, (diffusion.n_vars, 3))

    def make(clock):
        if process == "forward":
            return eqmdm.forward_sde(diffusion, x, key=key, clock=clock)
        if process == "reverse":
            return eqmdm.reverse_sde(model, (3,), key=key, clock=clock)
        return eqmdm.probability_flow(model, (3,), clock=clock)

    @eqx.filter_jit
    def evaluate(problem, t):
        s = problem.reading(t)
        terms = (problem.terms,) if process == "flow" else problem.terms.terms
        drift, *noise = (term.vf(s, y, None) for term in terms)
        # The rate of time, in either direction.
        _, speed = jax.jvp(problem.reading, (t,), (jnp.ones_like(t),))
        noise = [operator.matrix for operator in noise]
        return drift, noise, jnp.abs(1 / speed), problem.time(s)

    t = jnp.asarray(0.3)
    drift, noise, one, _ = evaluate(make(None), t)
    problem = make(eqmdm.LogSNRClock())
    new_drift, new_noise, rate, found = evaluate(problem, t)
    close = dict(rtol=1e-8, atol=1e-10)
    assert tree_allclose((one, found), (jnp.ones(()), t), **close)
    assert tree_allclose(new_drift, rate * drift, **close)
    assert tree_allclose(new_noise, [jnp.sqrt(rate) * G for G in noise], **close)
    high, low = jax.jit(jax.vmap(diffusion.log_snr))(jnp.asarray([0.01, 0.8]))
    assert problem.t0 < problem.t1
    assert tree_allclose(problem.t1 - problem.t0, high - low, rtol=1e-10, atol=0.0)


def test_t0_that_is_lost_in_counting_down_to_it_raises(key):
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-5.0, 20.0))
    model = gaussian_model(diffusion)
    message = "`diffusion` must have a t0 that float32 resolves next to its t1"
    options = {"key": key, "dtype": jnp.float32}
    with pytest.raises(ValueError, match=message):
        eqmdm.reverse_sde(model, (2,), **options)
    with pytest.raises(ValueError, match=message):
        eqmdm.sample(model, (2,), n_samples=2, sampler=dfx.SEA(), **options)
    # These do not need t0 to be resolved beside t1 in float32.
    eqmdm.sample(model, (2,), n_samples=2, n_steps=2, **options)
    eqmdm.reverse_sde(model, (2,), clock=eqmdm.LogSNRClock(), **options)
    eqmdm.reverse_sde(model, (2,), key=key)
