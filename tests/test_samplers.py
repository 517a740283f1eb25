import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import STATIONARY as DIFFUSIONS, normal_denoiser

import eqmdm
from eqmdm import (
    SSCS,
    AncestralSampler,
    DPMSolver,
    EDMHeun,
    LangevinCorrector,
    LogSNRGrid,
    QuadraticGrid,
    UniformGrid,
)
from helpers import (
    slow,
    slow_but,
    slow_pairs_but,
    tree_allclose,
    within_standard_errors,
)


SAMPLERS = {
    "ancestral": AncestralSampler(),
    "sscs": SSCS(),
    "dpm-1": DPMSolver(order=1),
    "dpm-2": DPMSolver(),
    "dpm-3": DPMSolver(order=3),
    "edm-heun": EDMHeun(),
    "langevin-dpm": LangevinCorrector(DPMSolver()),
    "langevin-dpm-3": LangevinCorrector(DPMSolver(order=3)),
    "langevin-ancestral": LangevinCorrector(AncestralSampler(), n_steps=2),
}

POINT = 0.7


def point_denoiser(log_snr, z):
    """The exact denoiser of data that are one point."""
    del log_snr
    return jnp.full_like(z, POINT)


@eqx.filter_jit
def states_at_t0(sampler, model, y, times, key):
    """A sampler's own states before the last posterior mean."""

    def one(y, key):
        result = sampler.solve(model, y, times, key=key, saved=times[-1:])
        return result.trajectory.states[0]

    return jax.vmap(one)(y, jr.split(key, len(y)))


def point_model(diffusion, *, whole_state=False):
    """The exact model of data that are one point; only its score if `whole_state`."""
    model = eqmdm.DenoiserModel(point_denoiser, diffusion)
    return eqmdm.FunctionModel(model.score, diffusion) if whole_state else model


@functools.cache
def few_times(make):
    """A diffusion, a grid so coarse that only an exact step passes, and the kernels at
    its ends."""
    diffusion = make(interval=eqmdm.TimeInterval(0.05, 1.0))

    @jax.jit
    def compute():
        times = LogSNRGrid()(diffusion, 3, jnp.float64)
        return times, [diffusion.compute_kernel(t) for t in (times[0], times[-1])]

    return diffusion, *compute()


@functools.cache
def states_and_shrunk(name):
    """States at t1, and where their statistics are at t0 if nothing adds noise."""
    diffusion, _, (first, last) = few_times(DIFFUSIONS[name])

    @jax.jit
    @jax.vmap
    def compute(key):
        y = diffusion.prior.sample((), key=key)
        shrunk = jnp.exp(0.5 * (first.log_snr - last.log_snr))
        return y, POINT + shrunk * (first.project(y) - POINT)

    return *compute(jr.split(jr.key(0), 5)), jax.jit(jax.vmap(last.project))


# For one data point all estimates agree, so that the orders differ in nothing that is
# seen, and `MALDA` has every part of `VPSDE`.
@pytest.mark.parametrize("name", [slow("VPSDE"), "MALDA"])
@pytest.mark.parametrize("sampler", [slow("dpm-1"), slow("dpm-2"), "dpm-3"])
@pytest.mark.parametrize("whole_state", [False, True], ids=["statistic", "state"])
def test_samplers_without_noise_are_exact_for_one_data_point(
    sampler, name, whole_state, key
):
    diffusion, times, _ = few_times(DIFFUSIONS[name])
    y, expected, project = states_and_shrunk(name)
    model = point_model(diffusion, whole_state=whole_state)
    states = states_at_t0(SAMPLERS[sampler], model, y, times, key)
    assert states.shape == (5, diffusion.n_vars if whole_state else 1)
    actual = project(states) if whole_state else states[:, 0]
    assert tree_allclose(actual, expected, rtol=0, atol=1e-10)


@functools.cache
def draws_at_t1(make, n):
    """States at t1 of data that are one point."""
    _, _, (first, _) = few_times(make)
    draw = lambda key: first.sample(jnp.asarray(POINT), key=key)
    return jax.jit(jax.vmap(draw))(jr.split(jr.key(1), n))


@pytest.mark.parametrize("name", [slow("VPSDE"), "MALDA"])
@pytest.mark.parametrize(
    "sampler",
    ["ancestral", "langevin-ancestral", slow("langevin-dpm"), "langevin-dpm-3"],
)
def test_samplers_with_noise_are_exact_for_one_data_point(sampler, name, key):
    diffusion, times, (_, last) = few_times(DIFFUSIONS[name])
    y = draws_at_t1(DIFFUSIONS[name], 20_000)
    states = states_at_t0(SAMPLERS[sampler], point_model(diffusion), y, times, key)
    states = np.asarray(states)
    if "dpm" in sampler:
        noise = (states - POINT) * np.exp(0.5 * float(last.log_snr))
    else:
        root, mean_map = np.asarray(last.root), np.asarray(last.mean_map)
        noise = np.linalg.solve(root, (states - POINT * mean_map).T).T
    assert within_standard_errors(noise, 0.0)
    products = noise[:, :, None] * noise[:, None, :]
    assert within_standard_errors(products, np.eye(noise.shape[1]))


@pytest.mark.parametrize("name", slow_but(["ALDA"], ["CLD", "PSLD", "ALDA"]))
def test_ancestral_steps_are_the_conditionals_of_the_joint_law(name):
    diffusion = DIFFUSIONS[name](interval=eqmdm.TimeInterval(0.05, 1.0))
    times = UniformGrid()(diffusion, 4, jnp.float64)
    sampler = AncestralSampler()

    @jax.jit
    def compute():
        state = jnp.zeros((diffusion.n_vars,))
        model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
        _, kernels, steps, _ = sampler.prepare(model, times, state)
        covariances = jax.vmap(lambda L: L @ L.T)(kernels.root)
        forward = jax.vmap(diffusion.compute_transition)(times[1:], times[:-1])
        crossed = covariances[1:] @ jnp.swapaxes(forward.mean_map, 1, 2)
        gains = jax.vmap(lambda c, s: jnp.linalg.solve(s, c.T).T)(
            crossed, covariances[:-1]
        )
        left = covariances[1:] - gains @ jnp.swapaxes(crossed, 1, 2)
        of_root = steps.root @ jnp.swapaxes(steps.root, 1, 2)
        a = kernels.mean_map
        # What the data move the mean by, in units of the step's own noise.
        shift = a[1:] - jnp.einsum("nij,nj->ni", steps.mean_map, a[:-1])
        whitened = jax.vmap(jnp.linalg.solve)(steps.root, shift[..., None])
        gained = jnp.diff(kernels.sigma**-2)
        return (
            (steps.mean_map, of_root, jnp.sum(whitened**2, axis=(1, 2))),
            (gains, left, gained),
        )

    actual, expected = compute()
    # The textbook formulas lose up to eight digits on three variables.
    assert tree_allclose(actual[:2], expected[:2], rtol=1e-6, atol=1e-8)
    # Chain rule: a step's divergence from data a unit away is what SNR gains.
    assert tree_allclose(actual[2], expected[2], rtol=1e-6, atol=0)


@eqx.filter_jit
def run_model(sampler, make_model, diffusion, y, times, key):
    return sampler(make_model(diffusion), y, times, key=key)


@pytest.mark.parametrize(
    "name",
    [
        "ancestral",
        "sscs",
        "dpm-2",
        slow("dpm-3"),
        "edm-heun",
        slow("langevin-ancestral"),
        "langevin-dpm-3",
    ],
)
def test_samplers_take_the_evaluations_that_they_state(name, key):
    diffusion = eqmdm.VPSDE()
    times = LogSNRGrid()(diffusion, 4, jnp.float64)
    calls = []

    def denoiser(log_snr, z):
        jax.debug.callback(lambda _: calls.append(None), log_snr)
        return normal_denoiser(log_snr, z)

    y = diffusion.prior.sample((2,), key=key)
    make_model = lambda d: eqmdm.DenoiserModel(denoiser, d)
    x = run_model(SAMPLERS[name], make_model, diffusion, y, times, key)
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert len(calls) == SAMPLERS[name].n_evaluations(4)


def test_noise_follows_the_key(key):
    diffusion = eqmdm.VPSDE()
    times = QuadraticGrid()(diffusion, 4, jnp.float64)
    y = diffusion.prior.sample((2,), key=key)
    make_model = lambda d: eqmdm.DenoiserModel(normal_denoiser, d)
    for name, differs in (("ancestral", True), ("dpm-2", False)):
        first, second = (
            run_model(SAMPLERS[name], make_model, diffusion, y, times, k)
            for k in jr.split(key)
        )
        assert np.all((np.asarray(first) != np.asarray(second)) == differs)


def test_clipping_bounds_the_estimates(key):
    diffusion = eqmdm.VPSDE()
    times = LogSNRGrid()(diffusion, 5, jnp.float64)
    y = diffusion.prior.sample((200,), key=key)
    make_model = lambda d: eqmdm.DenoiserModel(lambda log_snr, z: 100 * z, d)
    for sampler in (AncestralSampler, SSCS, DPMSolver, EDMHeun):
        x = run_model(sampler(clip=(-2.0, 1.0)), make_model, diffusion, y, times, key)
        assert np.min(x) == -2 and np.max(x) == 1
    corrected = LangevinCorrector(DPMSolver(clip=(-2.0, 1.0)))
    assert corrected.clip == (-2.0, 1.0)


def test_heun_on_the_noise_level_needs_a_denoiser(key):
    diffusion = eqmdm.VPSDE()
    y, times = jnp.zeros((1, 2)), jnp.asarray([1.0, 0.1])
    message = "`DenoiserModel` for `EDMHeun`.*`FunctionModel`. Use `DPMSolver`"
    with pytest.raises(TypeError, match=message):
        model = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
        EDMHeun()(model, y, times, key=key)
    with pytest.raises(TypeError, match="got `NoiseModel`"):
        model = eqmdm.NoiseModel(lambda t, y: y, diffusion)
        LangevinCorrector(EDMHeun())(model, y, times, key=key)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_heun_ends_with_a_step_of_euler(n_steps, key):
    # Standard normal data: x_hat = z / (1 + sigma^2), and each step is a factor.
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    model = eqmdm.DenoiserModel(lambda l, z: z / (1 + jnp.exp(-l)), diffusion)
    times = LogSNRGrid()(diffusion, n_steps)

    @jax.jit
    def compute(y):
        kernels = jax.vmap(diffusion.compute_kernel)(times)
        return kernels.sigma, diffusion.compute_kernel(times[0]).project(y)

    slope = lambda sigma, z: sigma * z / (1 + sigma**2)
    y = np.ones((1, 1))
    sigmas, z = jax.device_get(compute(y))
    z = z[0]
    for start, end in zip(sigmas[:-1], sigmas[1:], strict=True):
        euler = z + (end - start) * slope(start, z)
        corrected = 0.5 * (slope(start, z) + slope(end, euler))
        z = euler if end == sigmas[-1] else z + (end - start) * corrected
    expected = np.asarray([z / (1 + sigmas[-1] ** 2)])
    x = EDMHeun()(model, jnp.asarray(y), times, key=key)
    assert tree_allclose(x, expected, rtol=1e-9, atol=0)
    if n_steps == 1:
        # A single estimate from noise, and never beyond the data.
        assert abs(expected[0] / y[0, 0]) < 1


@pytest.mark.parametrize("cls", [eqmdm.VESDE, eqmdm.SubVPSDE], ids=lambda c: c.__name__)
def test_splitting_refuses_diffusions_without_a_stationary_law(cls, key):
    message = f"must be stationary for `SSCS`.*`{cls.__name__}`. Use `AncestralSampler`"
    with pytest.raises(TypeError, match=message):
        model = eqmdm.FunctionModel(lambda t, y: -y, cls())
        SSCS()(model, jnp.zeros((1, 2)), jnp.asarray([1.0, 0.1]), key=key)


@pytest.mark.parametrize("cls", [eqmdm.VESDE, eqmdm.SubVPSDE], ids=lambda c: c.__name__)
def test_samplers_serve_diffusions_without_a_stationary_law(cls, key):
    diffusion, times, (_, last) = few_times(cls)
    y = draws_at_t1(cls, 5000)
    model = point_model(diffusion)
    states = states_at_t0(AncestralSampler(), model, y, times, key)[:, 0]
    mean_map, root = np.asarray(last.mean_map), np.asarray(last.root)
    noise = (np.asarray(states) - POINT * mean_map[0]) / root[0, 0]
    assert within_standard_errors(noise, 0.0)
    assert within_standard_errors(noise**2, 1.0)


def test_settings_out_of_range_raise():
    for cls in (AncestralSampler, SSCS, DPMSolver, EDMHeun):
        with pytest.raises(ValueError, match="`clip` must be .low, high., increasing"):
            cls(clip=(1.0, -1.0))
    for snr in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="`snr` must be positive and finite"):
            LangevinCorrector(DPMSolver(), snr=snr)
    with pytest.raises(ValueError, match="`n_steps` must be at least 1; got 0"):
        LangevinCorrector(DPMSolver(), n_steps=0)


def test_shapes_that_do_not_fit_raise(key, unchecked):
    diffusion = eqmdm.CLD()
    model = eqmdm.FunctionModel(lambda t, y: -y, diffusion)
    times = jnp.asarray([1.0, 0.1])
    for y in (jnp.zeros((3, 2)), jnp.zeros(())):
        with pytest.raises(ValueError, match="`y` must have a row for each of the 2"):
            DPMSolver()(model, y, times, key=key)
    for wrong in (times[:1], times[0], times[None]):
        with pytest.raises(ValueError, match="`times` must be a vector of two or more"):
            DPMSolver()(model, jnp.zeros((2, 2)), wrong, key=key)


@pytest.mark.parametrize(
    ("name", "whole_state"),
    slow_pairs_but(
        [("ancestral", False), ("dpm-3", True)],
        ["ancestral", "dpm-1", "dpm-2", "dpm-3"],
        [False, True],
    ),
)
def test_posterior_mean_is_part_of_the_scan(name, whole_state, key):
    # So that the network is in the program once.
    calls = []

    def denoiser(log_snr, z):
        calls.append(None)
        return normal_denoiser(log_snr, z)

    model = eqmdm.DenoiserModel(denoiser, eqmdm.CLD())
    if whole_state:
        model = eqmdm.FunctionModel(model.score, eqmdm.CLD())
    sampler = SAMPLERS[name]
    result = eqmdm.sample(
        model, (3,), key=key, n_samples=2, n_steps=4, sampler=sampler, full_output=True
    )
    assert len(calls) == 1
    assert jnp.all(result.n_evaluations == sampler.n_evaluations(4))
