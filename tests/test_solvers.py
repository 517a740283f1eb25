import functools
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import references
from references import MODE_STD, MODES, mixture_denoiser

import eqmdm
from eqmdm import (
    SSCS,
    AlignedRoot,
    AncestralSampler,
    CholeskyRoot,
    Collapsed,
    CollapsedHeun,
    DataPrediction,
    LangevinCorrector,
    LogSNRGrid,
    QuadraticGrid,
    UniformGrid,
)
from eqmdm._sampling.base import part
from helpers import slow, tree_allclose, within_standard_errors


DIFFUSIONS = {
    "VPSDE": eqmdm.VPSDE,
    "CLD": eqmdm.CLD,
    "PSLD": eqmdm.PSLD,
    "ALDA": eqmdm.ALDA,
    "MALDA": eqmdm.MALDA,
    "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
}
SAMPLERS = {
    "ancestral": AncestralSampler(),
    "sscs": SSCS(),
    "data-prediction-1": DataPrediction(order=1),
    "data-prediction-2": DataPrediction(),
    "data-prediction-3": DataPrediction(order=3),
    "data-prediction-cholesky": DataPrediction(root=CholeskyRoot()),
    "collapsed-1": Collapsed(order=1),
    "collapsed-2": Collapsed(),
    "collapsed-3": Collapsed(order=3),
    "collapsed-heun": CollapsedHeun(),
    "langevin-collapsed": LangevinCorrector(Collapsed()),
    "langevin-ancestral": LangevinCorrector(AncestralSampler(), n_steps=2),
}
WITHOUT_NOISE = [name for name in SAMPLERS if name.startswith(("data", "collapsed"))]

DATA_VARIANCE = 1.5


def gaussian_denoiser(log_snr, z):
    return z * (DATA_VARIANCE / (DATA_VARIANCE + jnp.exp(-log_snr)))


@eqx.filter_jit
def run(sampler, denoiser, diffusion, y, times, key):
    """A sample from each of the states along the first axis of `y`."""
    score = eqmdm.DenoiserScore(denoiser, diffusion)
    one = lambda y, key: sampler(score, diffusion, y, times, key=key)
    return jax.vmap(one)(y, jr.split(key, len(y)))


def prior_states(diffusion, n, key, shape=()):
    return jax.vmap(lambda key: diffusion.prior.sample(shape, key=key))(
        jr.split(key, n)
    )


POINT = 0.7


def point_denoiser(log_snr, z):
    """For data that are one point."""
    del log_snr
    return jnp.full_like(z, POINT)


@eqx.filter_jit
def states_at_the_cut(sampler, diffusion, y, times, key):
    """A sampler's own states before the last posterior mean, for data of one point."""
    score = eqmdm.DenoiserScore(point_denoiser, diffusion)

    def one(y, key):
        y, readings, coefficients = sampler.prepare(score, diffusion, times, y)
        memory = sampler.init(y)
        for i, key_step in enumerate(jr.split(key, len(times) - 1)):
            start, end, step = (
                part(tree, i)
                for tree in (readings, part(readings, slice(1, None)), coefficients)
            )
            y, memory = sampler.step(score, start, end, step, y, memory, key=key_step)
        return y

    return jax.vmap(one)(y, jr.split(key, len(y)))


def few_times(diffusion):
    """A grid so coarse that only an exact step passes."""
    return LogSNRGrid()(diffusion, 3, jnp.float64)


@pytest.mark.parametrize("name", ["VPSDE", "MALDA"])
@pytest.mark.parametrize(
    "sampler", [name for name in WITHOUT_NOISE if name != "collapsed-heun"]
)
def test_samplers_without_noise_are_exact_for_one_data_point(sampler, name, key):
    diffusion = DIFFUSIONS[name](interval=eqmdm.TimeInterval(0.05, 1.0))
    times = few_times(diffusion)
    y = prior_states(diffusion, 5, key)
    found = states_at_the_cut(SAMPLERS[sampler], diffusion, y, times, key)

    @jax.jit
    def compute():
        first, last = (diffusion.compute_kernel(t) for t in (times[0], times[-1]))
        noise = jnp.linalg.solve(first.root, (y - POINT * first.mean_map[None]).T)
        state = (POINT * last.mean_map[:, None] + last.root @ noise).T
        shrunk = jnp.exp(0.5 * (first.log_snr - last.log_snr))
        statistic = POINT + shrunk * (jax.vmap(first.project)(y) - POINT)
        return state, statistic, jax.vmap(last.project)(found) if match else None

    # The state itself where the root is the triangular one, else its statistic.
    match = sampler.startswith("data")
    state, statistic, of_found = compute()
    if "cholesky" in sampler:
        assert tree_allclose(found, state, rtol=0, atol=1e-10)
    elif match:
        assert tree_allclose(of_found, statistic, rtol=0, atol=1e-10)
    else:
        assert tree_allclose(found[:, 0], statistic, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["VPSDE", "MALDA"])
@pytest.mark.parametrize(
    "sampler", ["ancestral", "langevin-ancestral", "langevin-collapsed"]
)
def test_samplers_with_noise_are_exact_for_one_data_point(sampler, name, key):
    diffusion = DIFFUSIONS[name](interval=eqmdm.TimeInterval(0.05, 1.0))
    times = few_times(diffusion)
    key_start, key_noise = jr.split(key)
    first, last = (
        jax.jit(diffusion.compute_kernel)(t) for t in times[jnp.array([0, -1])]
    )
    draw = lambda key: first.sample(jnp.asarray(POINT), key=key)
    y = jax.jit(jax.vmap(draw))(jr.split(key_start, 20_000))
    found = states_at_the_cut(SAMPLERS[sampler], diffusion, y, times, key_noise)
    if "collapsed" in sampler:
        noise = (found - POINT) * jnp.exp(0.5 * last.log_snr)
    else:
        noise = jnp.linalg.solve(last.root, (found - POINT * last.mean_map[None]).T).T
    assert within_standard_errors(noise, 0.0)
    products = noise[:, :, None] * noise[:, None, :]
    assert within_standard_errors(products, jnp.eye(noise.shape[1]))


@pytest.mark.parametrize("name", ["CLD", "PSLD", "ALDA"])
def test_ancestral_steps_are_the_conditionals_of_the_joint_law(name):
    diffusion = DIFFUSIONS[name](interval=eqmdm.TimeInterval(0.05, 1.0))
    times = UniformGrid()(diffusion, 4, jnp.float64)
    sampler = AncestralSampler()

    @jax.jit
    def compute():
        state = jnp.zeros((diffusion.n_vars,))
        score = eqmdm.DenoiserScore(gaussian_denoiser, diffusion)
        _, readings, steps = sampler.prepare(score, diffusion, times, state)
        covariances = jax.vmap(lambda L: L @ L.T)(readings.kernel.root)
        forward = jax.vmap(diffusion.compute_transition)(times[1:], times[:-1])
        crossed = covariances[1:] @ jnp.swapaxes(forward.mean_map, 1, 2)
        gains = jax.vmap(lambda c, s: jnp.linalg.solve(s, c.T).T)(
            crossed, covariances[:-1]
        )
        left = covariances[1:] - gains @ jnp.swapaxes(crossed, 1, 2)
        of_root = steps.root @ jnp.swapaxes(steps.root, 1, 2)
        a = readings.kernel.mean_map
        # What the data move the mean by, in units of the step's own noise.
        shift = a[1:] - jnp.einsum("nij,nj->ni", steps.mean_map, a[:-1])
        whitened = jax.vmap(jnp.linalg.solve)(steps.root, shift[..., None])
        gained = jnp.diff(jnp.exp(readings.log_snr))
        return (
            (steps.mean_map, of_root, jnp.sum(whitened**2, axis=(1, 2))),
            (gains, left, gained),
        )

    actual, expected = compute()
    # The textbook formulas lose up to eight digits on three variables.
    assert tree_allclose(actual[:2], expected[:2], rtol=1e-6, atol=1e-8)
    # Chain rule: a step's divergence from data a unit away is what SNR gains.
    assert tree_allclose(actual[2], expected[2], rtol=1e-6, atol=0)


def fitted_order(n_steps, errors):
    return -np.polyfit(np.log(n_steps), np.log(errors), 1)[0]


# From a log-SNR so low that the first steps, of lower order, err below all others: the
# estimate hardly moves there.
SMOOTH_ENDS = {"interval": eqmdm.LogSNRInterval(-8.0, 2.0)}
ORDERS = {
    "collapsed-1": (Collapsed(order=1), "VPSDE", 1),
    "collapsed-2": (Collapsed(), "VPSDE", 2),
    "collapsed-3": (Collapsed(order=3), "VPSDE", 3),
    "collapsed-heun": (CollapsedHeun(), "VPSDE", 2),
    "cholesky-2": (DataPrediction(root=CholeskyRoot()), "CLD", 2),
    "cholesky-3": (DataPrediction(order=3, root=CholeskyRoot()), "CLD", 3),
}


@functools.cache
def reference_samples(name):
    """Starts, and samples from them by a fine grid."""
    diffusion = DIFFUSIONS[name](**SMOOTH_ENDS)
    y = prior_states(diffusion, 64, jr.key(7))
    times = LogSNRGrid()(diffusion, 2000, jnp.float64)
    root = CholeskyRoot() if name == "CLD" else AlignedRoot()
    sampler = DataPrediction(order=3, root=root)
    return y, run(sampler, mixture_denoiser, diffusion, y, times, jr.key(0))


@pytest.mark.parametrize(
    "case", [slow(case) if case.startswith("cholesky") else case for case in ORDERS]
)
def test_samplers_without_noise_converge_at_their_order(case, key):
    sampler, name, order = ORDERS[case]
    diffusion = DIFFUSIONS[name](**SMOOTH_ENDS)
    y, reference = reference_samples(name)
    counts, errors = (40, 120), []
    for n_steps in counts:
        times = LogSNRGrid()(diffusion, n_steps, jnp.float64)
        x = run(sampler, mixture_denoiser, diffusion, y, times, key)
        errors.append(float(jnp.sqrt(jnp.mean((x - reference) ** 2))))
    assert abs(fitted_order(counts, errors) - order) < 0.25, errors


@pytest.mark.parametrize("name", ["VPSDE", "MALDA"])
def test_aligned_root_moves_the_statistic_as_the_collapsed_sampler_does(name, key):
    diffusion = DIFFUSIONS[name](interval=eqmdm.TimeInterval(0.01, 1.0))
    times = UniformGrid()(diffusion, 12, jnp.float64)
    y = prior_states(diffusion, 20, key, (2,))
    of_state, of_statistic = (
        run(sampler(order=3), mixture_denoiser, diffusion, y, times, key)
        for sampler in (DataPrediction, Collapsed)
    )
    # The state's own rounding, over weights of the statistic up to 1e3.
    assert tree_allclose(of_state, of_statistic, rtol=0, atol=1e-9)


def data_covariance(kernel):
    a = kernel.mean_map
    return DATA_VARIANCE * jnp.outer(a, a) + kernel.root @ kernel.root.T


N_VARS = {"VPSDE": 1, "CLD": 2, "PSLD": 2, "ALDA": 3, "MALDA": 3}
N_VARS |= {"CriticalThirdOrder": 3}


@eqx.filter_jit
def splitting_errors(diffusions, grids):
    """The covariances at the cut, in units of the exact ones, for normal data.

    The score is linear, and so is a step given its noise: the law of its end follows
    from its coefficients without a draw.
    """

    def of_one(diffusion, times):
        score = eqmdm.DenoiserScore(gaussian_denoiser, diffusion)
        state = jnp.zeros((diffusion.n_vars,))
        _, _, steps = SSCS().prepare(score, diffusion, times, state)

        def advance(covariance, step):
            kernel = step.middle.kernel
            score = -jnp.linalg.inv(data_covariance(kernel))
            push = jnp.eye(len(score)) + step.of_score @ score + step.of_state
            for mean_map, root in (
                (step.before.mean_map, step.before.root),
                (push, jnp.zeros_like(push)),
                (step.after.mean_map, step.after.root),
            ):
                covariance = mean_map @ covariance @ mean_map.T + root @ root.T
            return covariance, None

        ends = (diffusion.compute_kernel(t) for t in (times[0], times[-1]))
        start, exact = (data_covariance(kernel) for kernel in ends)
        covariance, _ = jax.lax.scan(advance, start, steps)
        whiten = lambda m: jnp.linalg.solve(jnp.linalg.cholesky(exact), m)
        return whiten(whiten(covariance).T), jnp.diag(covariance) / jnp.diag(exact)

    over_grids = jax.vmap(of_one, in_axes=(None, 0))
    return eqx.filter_vmap(lambda d: over_grids(d, grids))(diffusions)


@pytest.mark.parametrize("n_vars", [1, 2, slow(3)], ids=["K1", "K2", "K3"])
def test_splitting_is_of_first_order_and_close_at_a_hundred_steps(n_vars):
    names = [name for name, count in N_VARS.items() if count == n_vars]
    t_range, counts = (1e-3, 1.0), (100, 200, 400, 800)
    named = [DIFFUSIONS[name](interval=eqmdm.TimeInterval(*t_range)) for name in names]
    grids = [QuadraticGrid()(named[0], n, jnp.float64) for n in counts]
    # Steps of no length at the end, so that one compilation serves all counts.
    longest = max(counts) + 1
    grids = [jnp.pad(g, (0, longest - len(g)), mode="edge") for g in grids]
    covariances, variances = splitting_errors(
        references.stacked(named), jnp.stack(grids)
    )
    errors = jnp.linalg.norm(covariances - jnp.eye(n_vars)[None, None], axis=(-2, -1))
    for name, error, variance in zip(names, errors, variances, strict=True):
        print(name, error, variance - 1)
        # Five standard errors of the variance of 10,000 draws.
        assert abs(variance[0, 0] - 1) < 5 * np.sqrt(2 / 10_000)
        assert jnp.all(jnp.abs(variance[2] - 1) < 0.1)
        assert jnp.all(jnp.diff(error) < 0)
        assert abs(fitted_order(counts[1:], np.asarray(error[1:])) - 1) < 0.25


@eqx.filter_jit
def run_all(sampler, diffusions, grids, key, n_samples):
    """Samples of the mixture by each of several diffusions, in the grids' dtype."""

    def of_one(diffusion, times):
        score = eqmdm.DenoiserScore(mixture_denoiser, diffusion)

        def one(key):
            key_start, key_noise = jr.split(key)
            y = diffusion.prior.sample((), key=key_start).astype(times.dtype)
            return sampler(score, diffusion, y, times, key=key_noise)

        return jax.vmap(one)(jr.split(key, n_samples))

    return eqx.filter_vmap(of_one)(diffusions, grids)


# The quadratic grid for what is slow where log-SNR is stationary, and enough steps that
# the bias is below the errors of the moments: ancestral steps lose a variance of some
# 0.4 times their length in log-SNR.
GRIDS = {
    "ancestral": (LogSNRGrid(), 1600),
    "sscs": (QuadraticGrid(), 400),
    "data-prediction-2": (LogSNRGrid(), 100),
    "data-prediction-cholesky": (QuadraticGrid(), 400),
    "collapsed-2": (LogSNRGrid(), 100),
    "collapsed-heun": (LogSNRGrid(), 200),
    "langevin-ancestral": (LogSNRGrid(), 800),
}


# Three variables are the hard case, and for some it is enough.
HARD_ONLY = "data-prediction-cholesky", "langevin-ancestral"
CASES = [
    (name, k) for name in GRIDS for k in (1, 2, 3) if k == 3 or name not in HARD_ONLY
]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "n_vars"), CASES)
def test_all_samplers_give_the_moments_of_the_data_in_float32(sampler, n_vars, key):
    names = [name for name, count in N_VARS.items() if count == n_vars]
    grid, n_steps = GRIDS[sampler]
    # From where nothing of the data is left; ALDA's cut is at a log-SNR of 48.
    t_range = 1e-3, 1.5
    named = [DIFFUSIONS[name](interval=eqmdm.TimeInterval(*t_range)) for name in names]
    times = jnp.stack([grid(d, n_steps, jnp.float32) for d in named])
    diffusions = references.stacked(named)
    x = run_all(SAMPLERS[sampler], diffusions, times, key, 10_000)
    assert x.dtype == jnp.float32
    modes = MODES.astype(np.float64)
    second = np.mean(modes**2) + MODE_STD**2
    fourth = np.mean(modes**4 + 6 * modes**2 * MODE_STD**2) + 3 * MODE_STD**4
    for name, draws in zip(names, np.asarray(x, np.float64), strict=True):
        print(name)
        assert within_standard_errors(draws, np.mean(modes))
        assert within_standard_errors(draws**2, second)
        assert within_standard_errors(draws**4, fourth)


@eqx.filter_jit
def run_score(sampler, make_score, diffusion, y, times, key):
    return sampler(make_score(diffusion), diffusion, y, times, key=key)


@eqx.filter_jit
def exact_score(diffusion, t, y):
    return eqmdm.DenoiserScore(mixture_denoiser, diffusion)(t, y)


def noise_predictor(diffusion):
    def network(t, y):
        root = diffusion.compute_kernel(t).root
        score = exact_score(diffusion, t, y)
        return -(root.T @ score.reshape(len(y), -1)).reshape(y.shape)

    return network


@final
class Foreign(eqmdm.AbstractScore):
    """A kind of score that the samplers know nothing of."""

    diffusion: eqmdm.AbstractLinearDiffusion

    def __call__(self, t, y):
        return exact_score(self.diffusion, t, y)

    def whitened_error(self, t, kernel, x, noise, y):
        raise AssertionError("samplers do not ask for this")

    def data_estimate(self, t, kernel, y):
        return mixture_denoiser(kernel.log_snr, kernel.project(y))


SCORES = {
    "free": lambda d: eqmdm.FreeScore(noise_predictor(d), d),
    "callable": lambda d: lambda t, y: exact_score(d, t, y),
    "foreign": Foreign,
}


def test_all_kinds_of_scores_lead_to_the_same_samples(key):
    diffusion = eqmdm.CLD(interval=eqmdm.TimeInterval(0.05, 1.0))
    times = QuadraticGrid()(diffusion, 6, jnp.float64)
    y = diffusion.prior.sample((3, 2), key=key)
    denoiser = lambda d: eqmdm.DenoiserScore(mixture_denoiser, d)
    # Which asks for the score in its steps, and for the estimate at its end.
    expected = run_score(SSCS(), denoiser, diffusion, y, times, key)
    assert expected.shape == (3, 2)
    for kind, make in SCORES.items():
        print(kind)
        actual = run_score(SSCS(), make, diffusion, y, times, key)
        assert tree_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["ancestral", "sscs", "data-prediction-3", "collapsed-heun", "langevin-ancestral"],
)
def test_samplers_take_the_evaluations_that_they_state(name, key):
    diffusion = eqmdm.VPSDE()
    times = LogSNRGrid()(diffusion, 4, jnp.float64)
    calls = []

    def denoiser(log_snr, z):
        jax.debug.callback(lambda _: calls.append(None), log_snr)
        return gaussian_denoiser(log_snr, z)

    y = diffusion.prior.sample((2,), key=key)
    make_score = lambda d: eqmdm.DenoiserScore(denoiser, d)
    x = run_score(SAMPLERS[name], make_score, diffusion, y, times, key)
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert len(calls) == SAMPLERS[name].n_evaluations(4)


def test_noise_follows_the_key(key):
    diffusion = eqmdm.VPSDE()
    times = QuadraticGrid()(diffusion, 4, jnp.float64)
    y = diffusion.prior.sample((2,), key=key)
    make_score = lambda d: eqmdm.DenoiserScore(gaussian_denoiser, d)
    for name, differs in (("ancestral", True), ("collapsed-2", False)):
        first, second = (
            run_score(SAMPLERS[name], make_score, diffusion, y, times, k)
            for k in jr.split(key)
        )
        assert jnp.all((first != second) == differs)


def test_clipping_bounds_the_estimates(key):
    diffusion = eqmdm.VPSDE()
    times = LogSNRGrid()(diffusion, 5, jnp.float64)
    y = diffusion.prior.sample((200,), key=key)
    make_score = lambda d: eqmdm.DenoiserScore(lambda log_snr, z: 100 * z, d)
    for sampler in (AncestralSampler, SSCS, DataPrediction, Collapsed, CollapsedHeun):
        x = run_score(sampler(clip=(-2.0, 1.0)), make_score, diffusion, y, times, key)
        assert jnp.min(x) == -2 and jnp.max(x) == 1
    corrected = LangevinCorrector(Collapsed(clip=(-2.0, 1.0)))
    assert corrected.clip == (-2.0, 1.0)


def test_stationary_points_of_log_snr_cost_no_accuracy(key):
    # ALDA's log-SNR stands still within these times; in float32 some of these steps
    # gain nothing of it.
    diffusion = eqmdm.ALDA(interval=eqmdm.TimeInterval(0.5, 1.2))
    y = prior_states(diffusion, 50, key)
    found = []
    for dtype in (jnp.float32, jnp.float64):
        times = UniformGrid()(diffusion, 700, dtype)
        start = y.astype(dtype)
        args = mixture_denoiser, diffusion, start, times, key
        found.append(run(DataPrediction(), *args))
    assert tree_allclose(found[0].astype(jnp.float64), found[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", [Collapsed(), CollapsedHeun()], ids=repr)
def test_collapsed_samplers_refuse_other_scores(sampler, key):
    diffusion = eqmdm.VPSDE()
    y, times = jnp.zeros((1, 2)), jnp.asarray([1.0, 0.1])
    name = type(sampler).__name__
    message = f"`DenoiserScore` for `{name}`.*`CallableScore`. Use `DataPrediction`"
    with pytest.raises(TypeError, match=message):
        sampler(lambda t, y: -y, diffusion, y, times, key=key)
    with pytest.raises(TypeError, match="got `FreeScore`"):
        score = eqmdm.FreeScore(lambda t, y: y, diffusion)
        LangevinCorrector(sampler)(score, diffusion, y, times, key=key)


@pytest.mark.parametrize("cls", [eqmdm.VESDE, eqmdm.SubVPSDE], ids=lambda c: c.__name__)
def test_splitting_refuses_diffusions_without_a_stationary_law(cls, key):
    message = f"must be stationary for `SSCS`.*`{cls.__name__}`. Use `AncestralSampler`"
    with pytest.raises(TypeError, match=message):
        SSCS()(
            lambda t, y: -y,
            cls(),
            jnp.zeros((1, 2)),
            jnp.asarray([1.0, 0.1]),
            key=key,
        )


@pytest.mark.parametrize("cls", [eqmdm.VESDE, eqmdm.SubVPSDE], ids=lambda c: c.__name__)
def test_samplers_serve_diffusions_without_a_stationary_law(cls, key):
    diffusion = cls(interval=eqmdm.TimeInterval(0.05, 1.0))
    times = few_times(diffusion)
    first, last = (
        jax.jit(diffusion.compute_kernel)(t) for t in times[jnp.array([0, -1])]
    )
    draw = lambda key: first.sample(jnp.asarray(POINT), key=key)
    y = jax.vmap(draw)(jr.split(key, 5000))
    found = states_at_the_cut(AncestralSampler(), diffusion, y, times, key)[:, 0]
    noise = (found - POINT * last.mean_map[0]) / last.root[0, 0]
    assert within_standard_errors(noise, 0.0)
    assert within_standard_errors(noise**2, 1.0)


def test_settings_out_of_range_are_refused():
    for cls in (DataPrediction, Collapsed):
        for order in (0, 4):
            with pytest.raises(ValueError, match=f"`order` must be 1, 2 or 3.*{order}"):
                cls(order=order)
    for cls in (AncestralSampler, SSCS, DataPrediction, Collapsed, CollapsedHeun):
        with pytest.raises(ValueError, match="`clip` must be .low, high., increasing"):
            cls(clip=(1.0, -1.0))
    for snr in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="`snr` must be positive and finite"):
            LangevinCorrector(Collapsed(), snr=snr)
    with pytest.raises(ValueError, match="`n_steps` must be at least 1; got 0"):
        LangevinCorrector(Collapsed(), n_steps=0)


def test_shapes_that_do_not_fit_are_refused(key, unchecked):
    diffusion = eqmdm.CLD()
    score, times = (lambda t, y: -y), jnp.asarray([1.0, 0.1])
    for y in (jnp.zeros((3, 2)), jnp.zeros(())):
        with pytest.raises(ValueError, match="`y` must have a row for each of the 2"):
            DataPrediction()(score, diffusion, y, times, key=key)
    for wrong in (times[:1], times[0], times[None]):
        with pytest.raises(ValueError, match="`times` must be a vector of two or more"):
            DataPrediction()(score, diffusion, jnp.zeros((2, 2)), wrong, key=key)


def wasserstein(x, y):
    return np.mean(np.abs(np.sort(x) - np.sort(y)), axis=-1)


# Of W1 to the data, in units of that between two sets of draws of the data.
BARS = {10: 14.0, 20: 4.0, 50: 1.5}


@pytest.mark.slow
@pytest.mark.parametrize("n_vars", [1, 2, 3], ids=lambda k: f"K{k}")
def test_few_evaluations_suffice_for_the_mixture(n_vars, key):
    named = {
        1: {"VPSDE": eqmdm.VPSDE},
        2: {"CLD": eqmdm.CLD, "PSLD": eqmdm.PSLD},
        3: {"CriticalThirdOrder": eqmdm.CriticalThirdOrder},
    }[n_vars]
    if n_vars == 3:
        skews, roots = references.random_recipes(3, n=3, seed=0)
        for i, (Q, B) in enumerate(zip(skews, roots, strict=True)):
            named[f"random {i}"] = functools.partial(
                eqmdm.LinearDiffusion, Q, dissipation_root=B
            )
    grids, diffusions = {n: [] for n in BARS}, []
    for make in named.values():
        t0 = float(make().time_at_log_snr(jnp.asarray(13.3)))
        diffusion = make(interval=eqmdm.TimeInterval(t0, 1.0))
        for n in BARS:
            grids[n].append(LogSNRGrid()(diffusion, n - 1, jnp.float32))
        diffusions.append(diffusion)
    stack = references.stacked(diffusions)
    generator = np.random.default_rng(0)

    def draw_data(n_sets):
        modes = generator.integers(4, size=(n_sets, 16_384))
        return MODES[modes] + MODE_STD * generator.standard_normal(modes.shape)

    # A standard deviation of 0.46 a pair: known to 2 per cent.
    unit = np.mean(
        [np.mean(wasserstein(draw_data(50), draw_data(50))) for _ in range(10)]
    )
    data = draw_data(8)
    for n, bar in BARS.items():
        for sampler, factor in ((Collapsed(), 1), (DataPrediction(), 2)):
            args = sampler, stack, jnp.stack(grids[n]), key, data.size
            x = np.asarray(run_all(*args), np.float64)
            for name, draws in zip(named, x, strict=True):
                ratio = np.mean(wasserstein(draws.reshape(data.shape), data)) / unit
                print(f"{name}, {sampler}, {n} evaluations: {ratio:.2f}")
                assert ratio <= factor * bar
