"""Tests of the order of convergence of samplers, and of the law that they reach."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import references
from references import (
    MODE_STD,
    MODES,
    STATIONARY as DIFFUSIONS,
    VARIANCE,
    mixture_denoiser,
    normal_denoiser,
)

import eqmdm
from eqmdm import (
    SSCS,
    AncestralSampler,
    DPMSolver,
    EDMHeun,
    LangevinCorrector,
    LogSNRGrid,
    QuadraticGrid,
)
from helpers import slow, within_standard_errors


SAMPLERS = {
    "ancestral": AncestralSampler(),
    "sscs": SSCS(),
    "dpm-2": DPMSolver(),
    "edm-heun": EDMHeun(),
    "langevin-ancestral": LangevinCorrector(AncestralSampler(), n_steps=2),
}


def fitted_order(n_steps, errors):
    return -np.polyfit(np.log(n_steps), np.log(errors), 1)[0]


def data_covariance(kernel):
    a = kernel.mean_map
    return VARIANCE * jnp.outer(a, a) + kernel.root @ kernel.root.T


N_VARS = {"VPSDE": 1, "CLD": 2, "PSLD": 2, "ALDA": 3, "MALDA": 3}
N_VARS |= {"CriticalThirdOrder": 3}


@eqx.filter_jit
def splitting_errors(diffusions, grids):
    """The covariances at t0, in units of the exact ones, for normal data.

    The score is linear, and so is a step given its noise: the law of its end follows
    from its coefficients without a draw.
    """

    def of_one(diffusion, times):
        model = eqmdm.DenoiserModel(normal_denoiser, diffusion)
        state = jnp.zeros((diffusion.n_vars,))
        _, _, steps, _ = SSCS().prepare(model, times, state)

        def advance(covariance, step):
            score = -jnp.linalg.inv(data_covariance(step.middle))
            push = jnp.eye(len(score)) + step.score_weight @ score + step.state_weight
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


@pytest.mark.parametrize("n_vars", [slow(1), 2, slow(3)], ids=["K1", "K2", "K3"])
def test_splitting_is_of_first_order_and_close_at_a_hundred_steps(n_vars):
    names = [name for name, count in N_VARS.items() if count == n_vars]
    t_range, counts = (1e-3, 1.0), (100, 200, 400, 800)
    named = [DIFFUSIONS[name](interval=eqmdm.TimeInterval(*t_range)) for name in names]
    of_all = jax.jit(lambda: [QuadraticGrid()(named[0], n, float) for n in counts])
    # Steps of no length at the end, so that one compilation serves all counts.
    longest = max(counts) + 1
    grids = [np.pad(g, (0, longest - len(g)), mode="edge") for g in of_all()]
    covariances, variances = map(
        np.asarray,
        splitting_errors(references.stacked(named), jnp.asarray(np.stack(grids))),
    )
    errors = np.linalg.norm(covariances - np.eye(n_vars), axis=(-2, -1))
    for name, error, variance in zip(names, errors, variances, strict=True):
        print(name, error, variance - 1)
        # Five standard errors of the variance of 10,000 draws.
        assert abs(variance[0, 0] - 1) < 5 * np.sqrt(2 / 10_000)
        assert np.all(np.abs(variance[2] - 1) < 0.1)
        assert np.all(np.diff(error) < 0)
        assert abs(fitted_order(counts[1:], error[1:]) - 1) < 0.25


@eqx.filter_jit
def run_all(sampler, diffusions, grids, key, n_samples, *, whole_state=False):
    """Samples of the mixture by each of several diffusions, in the grids' dtype."""

    def of_one(diffusion, times):
        model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
        if whole_state:
            model = eqmdm.FunctionModel(model.score, diffusion)

        def one(key):
            key_start, key_noise = jr.split(key)
            y = diffusion.prior.sample((), key=key_start).astype(times.dtype)
            return sampler(model, y, times, key=key_noise)

        return jax.vmap(one)(jr.split(key, n_samples))

    return eqx.filter_vmap(of_one)(diffusions, grids)


# The quadratic grid for what is slow where log-SNR is stationary, and enough steps that
# the bias is below the errors of the moments: ancestral steps lose a variance of some
# 0.4 times their length in log-SNR.
GRIDS = {
    "ancestral": (LogSNRGrid(), 1600),
    "sscs": (QuadraticGrid(), 400),
    "dpm-2": (LogSNRGrid(), 100),
    "dpm-2-whole-state": (LogSNRGrid(), 100),
    "edm-heun": (LogSNRGrid(), 200),
    "langevin-ancestral": (LogSNRGrid(), 800),
}


# Three variables are the hard case, and for some it is enough.
HARD_ONLY = ("langevin-ancestral",)
CASES = [
    (name, k) for name in GRIDS for k in (1, 2, 3) if k == 3 or name not in HARD_ONLY
]


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "n_vars"), CASES)
def test_all_samplers_give_the_moments_of_the_data_in_float32(sampler, n_vars, key):
    names = [name for name, count in N_VARS.items() if count == n_vars]
    grid, n_steps = GRIDS[sampler]
    # From a log-SNR at which nothing remains of the data; ALDA's t0 is at 48.
    t_range = 1e-3, 1.5
    named = [DIFFUSIONS[name](interval=eqmdm.TimeInterval(*t_range)) for name in names]
    times = jnp.stack([grid(d, n_steps, jnp.float32) for d in named])
    diffusions = references.stacked(named)
    whole_state = sampler.endswith("whole-state")
    sampler = SAMPLERS[sampler.removesuffix("-whole-state")]
    x = run_all(sampler, diffusions, times, key, 10_000, whole_state=whole_state)
    assert x.dtype == jnp.float32
    modes = MODES.astype(np.float64)
    second = np.mean(modes**2) + MODE_STD**2
    fourth = np.mean(modes**4 + 6 * modes**2 * MODE_STD**2) + 3 * MODE_STD**4
    for name, draws in zip(names, np.asarray(x, np.float64), strict=True):
        print(name)
        assert within_standard_errors(draws, np.mean(modes))
        assert within_standard_errors(draws**2, second)
        assert within_standard_errors(draws**4, fourth)


def wasserstein(x, y):
    return np.mean(np.abs(np.sort(x) - np.sort(y)), axis=-1)


# The limits of W1 to the data, in units of W1 between two sets of draws of the data.
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
        args = DPMSolver(), stack, jnp.stack(grids[n]), key, data.size
        for whole_state, factor in ((False, 1), (True, 2)):
            x = np.asarray(run_all(*args, whole_state=whole_state), np.float64)
            for name, draws in zip(named, x, strict=True):
                ratio = np.mean(wasserstein(draws.reshape(data.shape), data)) / unit
                print(f"{name}, {n} evaluations, {whole_state}: {ratio:.2f}")
                assert ratio <= factor * bar
