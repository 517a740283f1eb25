"""Tests of samples, and of the calls that draw them."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sampled_mixture import (
    MEANS,
    SAMPLERS,
    STD,
    adaptive,
    flow,
    mixture_denoiser,
    sample,
)

import eqmdm
from helpers import slow, slow_but, tree_allclose, within_standard_errors


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        slow(eqmdm.VPSDE, {"n_steps": 150, "sampler": dfx.SEA()}),
        (eqmdm.CLD, {"n_steps": 150, "sampler": dfx.SEA()}),
        (eqmdm.CLD, {}),
        (eqmdm.VPSDE, {"n_steps": 60, "sampler": flow(dfx.Heun())}),
    ],
    ids=["VPSDE", "CLD", "default", "flow"],
)
def test_samples_with_the_exact_denoiser_have_the_moments_of_the_data(
    cls, options, key
):
    # Up to a time at which nothing remains of the data.
    diffusion = cls(interval=eqmdm.TimeInterval(1e-3, 1.3))
    x = sample(diffusion, (4,), key=key, n_samples=400, **options)
    means = np.asarray(MEANS)
    offsets = means - np.mean(means)
    first, second, fourth = (np.mean(offsets**power) for power in (1, 2, 4))
    expected = (
        first,
        second + STD**2,
        fourth + 6 * second * STD**2 + 3 * STD**4,
    )
    gap = np.asarray(x).reshape(-1) - np.mean(means)
    for power, moment in zip((1, 2, 4), expected, strict=True):
        assert within_standard_errors(gap**power, moment)
    # The mixture's gap is almost empty: 1e-4 of its mass is within 0.1 of the middle.
    assert np.mean(np.abs(gap) < 0.1) < 5e-3


def test_a_sample_depends_on_its_number_alone(key):
    diffusion = eqmdm.VPSDE()
    options = {"n_steps": 8, "sampler": eqmdm.AncestralSampler()}
    many, few, later = (
        np.asarray(
            sample(diffusion, (2,), key=key, n_samples=n, first=first, **options)
        )
        for n, first in ((5, 0), (2, 0), (2, 3))
    )
    assert few.shape == (2, 2) and many.shape == (5, 2)
    assert len(np.unique(many)) == 10
    # Another batch size may be fused otherwise, so to rounding.
    close = dict(rtol=1e-12, atol=1e-12)
    assert tree_allclose(few, many[:2], **close)
    assert tree_allclose(later, many[3:], **close)


def test_steps_are_those_of_the_grid_on_the_clock(key):
    diffusion, clock = eqmdm.VPSDE(), eqmdm.LogSNRClock()
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)
    times = jnp.asarray([1.0, 0.7, 0.5, 0.1, float(diffusion.t0)])
    sampler = flow(dfx.Euler(), grid=eqmdm.CustomGrid(times), clock=clock)
    # As many steps as the grid has.
    x = sample(diffusion, (2,), key=key, n_samples=1, sampler=sampler)

    @jax.jit
    def by_hand(key):
        key_start, _ = jr.split(jr.fold_in(key, 0))
        y = diffusion.prior.sample((2,), key=key_start)
        log_snrs, rates = jax.vmap(jax.value_and_grad(diffusion.log_snr))(times)

        def step(y, of_step):
            t, gain, rate = of_step
            F, G = diffusion.drift_matrix(t), diffusion.diffusion_matrix(t)
            slope = F @ y - 0.5 * G @ G.T @ model.score(t, y)
            return y + gain / rate * slope, None

        y, _ = jax.lax.scan(step, y, (times[:-1], jnp.diff(log_snrs), rates[:-1]))
        kernel = diffusion.compute_kernel(times[-1])
        return model.data_estimate(kernel, y)

    # Log-SNR is inverted to some 1e-10 of a time.
    assert tree_allclose(np.asarray(x)[0], by_hand(key), rtol=1e-8, atol=1e-8)


def test_the_flow_leads_every_solver_from_a_start_to_the_same_sample(key):
    diffusion = eqmdm.VPSDE()
    draw = lambda **options: sample(diffusion, (2,), key=key, n_samples=8, **options)
    tight = draw(sampler=adaptive(1e-8))
    # Second order at 400 steps, where the fifth order is exact.
    for sampler in (eqmdm.DPMSolver(), flow(dfx.Heun())):
        x = draw(sampler=sampler, n_steps=400)
        assert tree_allclose(x, tight, rtol=0.0, atol=1e-2)
        assert not tree_allclose(x, tight, rtol=0.0, atol=1e-9)


def test_a_solve_that_needs_more_steps_is_not_a_number_and_the_others_are_kept(key):
    draw = lambda max_steps: sample(
        eqmdm.VPSDE(),
        (1,),
        key=key,
        n_samples=64,
        sampler=adaptive(1e-5, max_steps=max_steps),
        full_output=True,
    )
    enough, few = draw(1000), draw(15)
    all_x, x = np.asarray(enough.x), np.asarray(few.x)
    done = np.isfinite(x[:, 0])
    assert np.all(np.isfinite(all_x)) and 0 < np.sum(done) < 64
    assert tree_allclose(x[done], all_x[done], rtol=1e-10, atol=1e-10)
    # With the reason, and the evaluations that were made: six a step, one at the start
    # and one at the end.
    successful, too_many = dfx.RESULTS.successful, dfx.RESULTS.max_steps_reached
    assert np.all(enough.result == successful)
    assert np.all(np.where(done, few.result == successful, few.result == too_many))
    counts, all_counts = map(np.asarray, (few.n_evaluations, enough.n_evaluations))
    assert np.all(counts[~done] == 6 * 15 + 2)
    assert np.all(all_counts[~done] > 6 * 15 + 2)
    assert np.all(all_counts[done] == counts[done])


def test_a_sample_that_is_not_finite_says_so(key):
    model = eqmdm.DenoiserModel(
        lambda l, z: jnp.where(z > 0, z, jnp.nan), eqmdm.VPSDE()
    )
    result = eqmdm.sample(model, (), key=key, n_steps=1, full_output=True)
    failed = np.isnan(result.x)
    assert 0 < np.sum(failed) < 64
    assert np.all(failed == (result.result == dfx.RESULTS.nonfinite))


def test_adaptive_steps_serve_an_sde(key):
    controller = dfx.PIDController(rtol=1e-2, atol=1e-2, dtmin=1e-5)
    sampler = eqmdm.DiffraxSampler(dfx.ShARK(), stepsize_controller=controller)
    x = sample(eqmdm.VPSDE(), (2,), key=key, n_samples=8, sampler=sampler)
    gaps = np.abs(np.asarray(x)[..., None] - np.asarray(MEANS))
    assert np.all(np.min(gaps, axis=-1) < 6 * STD)


@pytest.mark.parametrize("solver", [dfx.Euler(), dfx.ShARK()], ids=["Euler", "ShARK"])
def test_sample_takes_other_solvers(solver, key):
    x = sample(eqmdm.VPSDE(), (2,), key=key, n_samples=3, n_steps=20, sampler=solver)
    # The data lie within some standard deviations of the two means.
    assert x.shape == (3, 2) and np.all(np.abs(x) < 4)


def test_samples_have_the_dtype_that_is_asked_for_and_follow_the_key(key):
    options = {"n_samples": 2, "n_steps": 4, "dtype": jnp.float32}
    draws = [
        np.asarray(sample(eqmdm.VPSDE(), (2,), key=k, **options))
        for k in (key, jr.key(0))
    ]
    for x in draws:
        assert x.dtype == np.float32 and np.all(np.isfinite(x))
    assert np.all(draws[0] != draws[1])


def test_any_score_serves_as_a_model(key):
    # Standard normal data under a diffusion that keeps them: the score is -y.
    diffusion = eqmdm.VPSDE()
    x = eqmdm.sample(
        eqmdm.FunctionModel(lambda t, y: -y, diffusion),
        (8,),
        key=key,
        n_samples=300,
        n_steps=100,
        sampler=dfx.SEA(),
    )
    x = np.asarray(x).reshape(-1)
    assert within_standard_errors(x, 0.0)
    # What is returned is the posterior mean at t0, which varies a little less.
    integral = jax.jit(diffusion.schedule.integrated_rate)
    expected = np.exp(-np.asarray(integral(0.0, diffusion.t0)))
    assert within_standard_errors(x**2, expected)


def test_counts_below_one_raise(key):
    for options in ({"n_steps": 0}, {"n_samples": 0}, {"n_steps": -1}):
        [name] = options
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got"):
            sample(eqmdm.VPSDE(), key=key, **options)


def test_diffusion_that_ends_below_the_denoisers_range_raises(key):
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-3.0, 9.0)
    )
    model = eqmdm.DenoiserModel(denoiser, diffusion)
    with pytest.raises(
        ValueError, match="must have a diffusion that ends within the log-SNR"
    ):
        eqmdm.sample(model, (2,), key=key, n_samples=1)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (
            TypeError,
            "`solver` must be one for SDEs.*`Tsit5`",
            lambda: eqmdm.DiffraxSampler(dfx.Tsit5()),
        ),
        (TypeError, "`solver` must be one for ODEs.*`SEA`", lambda: flow(dfx.SEA())),
        (
            ValueError,
            "`process` must be `eqmdm.reverse_sde` or",
            lambda: eqmdm.DiffraxSampler(dfx.SEA(), print),
        ),
        (
            TypeError,
            "`grid` must be left out if a `stepsize_controller`",
            lambda: adaptive(1e-3, grid=eqmdm.UniformGrid()),
        ),
        (
            ValueError,
            "`solver` must have a root finder with tolerances",
            lambda: flow(dfx.Kvaerno3()),
        ),
        (ValueError, "`max_steps` must be at", lambda: adaptive(1e-3, max_steps=0)),
    ],
    ids=["ode-solver", "sde-solver", "process", "grid", "tolerance", "max-steps"],
)
def test_samplers_that_cannot_be_built_raise(error, message, make):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`first` must be at least 0; got -1", {"first": -1}),
        (TypeError, "`solver` must be one for SDEs.*`Tsit5`", {"sampler": dfx.Tsit5()}),
        (TypeError, "`sampler` must be a sampler.*got 'sea'", {"sampler": "sea"}),
        (
            ValueError,
            "`n_steps` must be left out if a `stepsize_controller`.*got 7",
            {"sampler": adaptive(1e-3), "n_steps": 7},
        ),
        (
            ValueError,
            "`full_output` must be True",
            {"save_at": eqmdm.SaveAt(times=[0.5])},
        ),
    ],
    ids=["first", "ode-solver", "sampler", "n-steps", "save-at"],
)
def test_arguments_that_do_not_fit_raise(error, message, options, key, unchecked):
    with pytest.raises(error, match=message):
        sample(eqmdm.VPSDE(), (2,), key=key, n_samples=1, **options)


@pytest.mark.parametrize(
    ("error", "shape", "message"),
    [
        (TypeError, 12, r"such as \(28, 28, 1\); got 12. For vectors it is \(12,\)"),
        (ValueError, (3, 0), r"integers of at least 1; got \(3, 0\)"),
        (ValueError, (2.0,), r"integers of at least 1; got \(2.0,\)"),
    ],
    ids=["number", "empty", "float"],
)
def test_shape_that_is_none_raises(error, shape, message, key, unchecked):
    with pytest.raises(error, match="`shape` must be the sizes of.*" + message):
        sample(eqmdm.VPSDE(), shape, key=key, n_samples=1)


def test_a_clock_that_is_not_monotone_in_time_raises(key):
    sampler = eqmdm.DiffraxSampler(dfx.SEA(), clock=eqmdm.LogSNRClock())
    with pytest.raises(ValueError, match="not strictly monotone"):
        sample(eqmdm.ALDA(), (2,), key=key, n_samples=1, n_steps=2, sampler=sampler)


# Of the others, each is a part of one of these.
QUICK = "SEA-clock", "Tsit5-adaptive-clock", "DPMSolver-3", "EDMHeun", "ancestral"
QUICK += "SSCS", "Langevin"


@pytest.mark.parametrize("name", slow_but(QUICK, SAMPLERS))
def test_programs_call_nothing_on_the_host(name, key):
    # JAX's persistent cache keeps no program that does.
    diffusion = eqmdm.CLD(interval=eqmdm.LogSNRInterval(-6.0, 11.0))
    model = eqmdm.DenoiserModel(mixture_denoiser, diffusion)

    def draw(key):
        return eqmdm.sample(
            model, (2,), key=key, n_samples=3, n_steps=n_steps, sampler=SAMPLERS[name]
        )

    n_steps = None if "adaptive" in name else 4
    assert "callback" not in jax.jit(draw).lower(key).as_text()
