import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from references import mixture_denoiser

import eqmdm
from eqmdm import DPMSolver, LogSNRGrid, UniformGrid
from helpers import slow, slow_but, tree_allclose


@eqx.filter_jit
def run(sampler, model, y, times, key):
    """A sample from each of the states along the first axis of `y`."""
    one = lambda y, key: sampler(model, y, times, key=key)
    return jax.vmap(one)(y, jr.split(key, len(y)))


def prior_states(diffusion, n, key, shape=()):
    draw = lambda key: diffusion.prior.sample(shape, key=key)
    return jax.jit(jax.vmap(draw))(jr.split(key, n))


def fitted_order(n_steps, errors):
    return -np.polyfit(np.log(n_steps), np.log(errors), 1)[0]


DATA_VARIANCE = 2.5


def gaussian_model(diffusion):
    """The exact denoiser of normal data."""
    denoiser = lambda log_snr, z: (
        z * (DATA_VARIANCE / (DATA_VARIANCE + jnp.exp(-log_snr)))
    )
    return eqmdm.DenoiserModel(denoiser, diffusion)


def relative_error(order, n_steps):
    """Of the standard deviation of samples of normal data, at ordinary intervals.

    The flow multiplies z by the ratio of its standard deviations.
    """
    low, high = -4.0, 11.0
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(low, high))
    sampler = DPMSolver(order=order)

    @jax.jit
    def compute(y, key):
        times = sampler.times(diffusion, n_steps)
        x = sampler(gaussian_model(diffusion), y, times, key=key)
        return x[0], diffusion.compute_kernel(times[0]).project(y)[0]

    x, z = map(float, compute(np.ones((1, 1)), jr.key(0)))
    spread = lambda log_snr: DATA_VARIANCE + np.exp(-log_snr)
    z = z * np.sqrt(spread(high) / spread(low))
    return x / (z * DATA_VARIANCE / spread(high)) - 1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_holds_at_ordinary_intervals(order):
    # Where the estimate moves from the first step on, so that the start counts.
    # A count between them would have no weight in the fit.
    counts = (60, 240)
    errors = [abs(relative_error(order, n_steps)) for n_steps in counts]
    # Terms of higher order still count at 60 steps; with a start of order 1 the fit of
    # order 3 was 2.2.
    assert order - 0.1 < fitted_order(counts, errors) < order + 0.6, errors


def test_order_three_is_as_accurate_as_its_formula():
    # Polynomial interpolation of the estimates written out, on the linear problem.
    low, high, n_steps = -4.0, 11.0, 20
    log_snrs = np.linspace(low, high, n_steps + 1)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    nodes, weights = 0.5 * (nodes + 1), 0.5 * weights
    estimate = lambda l, z: z * DATA_VARIANCE / (DATA_VARIANCE + np.exp(-l))

    def move(known, start, end, z):
        gain = end - start
        at = start + gain * nodes
        density = 0.5 * gain * np.exp(-0.5 * gain * (1 - nodes)) * weights
        values = sum(
            x * np.prod([(at - m) / (l - m) for m, _ in known if m != l], axis=0)
            for l, x in known
        )
        return np.exp(-0.5 * gain) * z + np.sum(density * values)

    first, second = log_snrs[:2]
    # Stages at thirds of the time of the first step; where exactly matters little.
    a, b = first + (second - first) / 3, first + 2 * (second - first) / 3
    start = first, estimate(first, 1.0)
    stage = a, estimate(a, move([start], first, a, 1.0))
    later = b, estimate(b, move([start, stage], first, b, 1.0))
    z = move([start, stage, later], first, second, 1.0)
    known = [later, start]
    for begin, end in zip(log_snrs[1:-1], log_snrs[2:], strict=True):
        now = begin, estimate(begin, z)
        z = move([now, *known], begin, end, z)
        known = [now, start] if known[0] is later else [now, known[0]]
    spread = lambda log_snr: DATA_VARIANCE + np.exp(-log_snr)
    expected = z / np.sqrt(spread(high) / spread(low)) - 1
    assert abs(relative_error(3, n_steps) / expected - 1) < 0.02
    # With a start of order 1 it was -4.4e-3.
    assert abs(expected) < 2e-3


# From a log-SNR so low that the first steps err below all others: the estimate hardly
# moves there.
SMOOTH_ENDS = {"interval": eqmdm.LogSNRInterval(-8.0, 2.0)}


@functools.cache
def reference_samples(name):
    """Starts, and samples from them by a fine grid."""
    diffusion = getattr(eqmdm, name)(**SMOOTH_ENDS)
    y = prior_states(diffusion, 64, jr.key(7))
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    times = LogSNRGrid()(diffusion, 2000)
    return model, y, run(DPMSolver(order=3), model, y, times, jr.key(0))


ORDERS = {
    "DPMSolver-1": (DPMSolver(order=1), "VPSDE", 1),
    "DPMSolver-2": (DPMSolver(order=2), "VPSDE", 2),
    "DPMSolver-3": (DPMSolver(order=3), "VPSDE", 3),
    "DPMSolver-3-CLD": (DPMSolver(order=3), "CLD", 3),
    "EDMHeun": (eqmdm.EDMHeun(), "VPSDE", 2),
}


@pytest.mark.parametrize("case", slow_but(["DPMSolver-3", "EDMHeun"], ORDERS))
def test_samplers_without_noise_converge_at_their_order(case, key):
    sampler, name, order = ORDERS[case]
    model, y, reference = reference_samples(name)
    counts, errors = (40, 120), []
    for n_steps in counts:
        x = run(sampler, model, y, sampler.times(model.diffusion, n_steps), key)
        gap = np.asarray(x) - np.asarray(reference)
        errors.append(np.sqrt(np.mean(gap**2)))
    assert abs(fitted_order(counts, errors) - order) < 0.25, errors


def as_function(model):
    """The same score, from a model that has no denoiser."""
    return eqmdm.FunctionModel(model.score, model.diffusion)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", [slow("VPSDE"), "MALDA"])
def test_whole_state_and_statistic_lead_to_the_same_samples(name, order, key):
    diffusion = getattr(eqmdm, name)(interval=eqmdm.TimeInterval(0.01, 1.0))
    times = UniformGrid()(diffusion, 12)
    y = prior_states(diffusion, 20, key, (2,))
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    statistic, state = (
        run(DPMSolver(order=order), each, y, times, key)
        for each in (model, as_function(model))
    )
    # The rounding of the state, over weights of the statistic up to 1e3.
    assert tree_allclose(state, statistic, rtol=0, atol=1e-8)


@pytest.mark.parametrize("order", [slow(2), 3])
def test_stationary_points_of_log_snr_cost_no_accuracy(order, key):
    # ALDA's log-SNR is stationary within these times; in float32 some of these steps
    # gain nothing of it.
    diffusion = eqmdm.ALDA(interval=eqmdm.TimeInterval(0.5, 1.2))
    y = prior_states(diffusion, 50, key)
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    single, double = (
        run(
            DPMSolver(order=order),
            model,
            y.astype(dtype),
            UniformGrid()(diffusion, 700, dtype),
            key,
        )
        for dtype in (jnp.float32, jnp.float64)
    )
    single = np.asarray(single, np.float64)
    assert tree_allclose(single, double, rtol=0, atol=1e-3)


# Its log-SNR is nearly stationary at two times between these.
STATIONARY = {"interval": eqmdm.TimeInterval(1e-3, 1.1)}


@pytest.mark.parametrize("order", [2, slow(3)])
def test_stationary_points_of_log_snr_cost_no_order(order, key):
    diffusion = eqmdm.ALDA(**STATIONARY)
    model = gaussian_model(diffusion)
    y = prior_states(diffusion, 8, key)

    @jax.jit
    def closed_form(y):
        kernels = [diffusion.compute_kernel(t) for t in (diffusion.t1, diffusion.t0)]
        variances = [DATA_VARIANCE + kernel.sigma**2 for kernel in kernels]
        z = jax.vmap(kernels[0].project)(y) * jnp.sqrt(variances[1] / variances[0])
        return z * DATA_VARIANCE / variances[1]

    expected, errors = np.asarray(closed_form(y)), []
    for n_steps in (80, 320):
        x = run(DPMSolver(order=order), model, y, LogSNRGrid()(diffusion, n_steps), key)
        errors.append(np.max(np.abs(np.asarray(x) / expected - 1)))
    # A factor of 4 in the steps.
    assert errors[1] < errors[0] / 4 ** (order - 0.5), errors


def test_estimates_of_a_great_log_snr_are_finite_in_single_precision(key):
    # exp(log_snr) is beyond float32.
    skew = np.diag([1.0, 1.0], -1) - np.diag([1.0, 1.0], 1)
    diffusion = eqmdm.LinearDiffusion(
        skew,
        dissipation_root=np.asarray([[0.0], [0.0], [1.0]]),
        interval=eqmdm.TimeInterval(1e-7, 1.0),
    )
    assert float(jax.jit(diffusion.log_snr)(diffusion.t0)) > 89
    for sampler in (DPMSolver(order=2), DPMSolver(order=3), eqmdm.EDMHeun()):
        options = {"sampler": sampler, "dtype": jnp.float32, "n_samples": 500}
        x = np.asarray(
            eqmdm.sample(gaussian_model(diffusion), (2,), key=key, **options)
        )
        assert np.all(np.isfinite(x))
        # Of data with a standard deviation of 1.6, from a prior that knows nothing of
        # them, and with steps of 2 in log-SNR.
        assert 1.0 < np.std(x) < 2.2


def test_orders_out_of_range_raise():
    for order in (0, 4):
        with pytest.raises(ValueError, match=f"`order` must be 1, 2 or 3.*{order}"):
            DPMSolver(order=order)
