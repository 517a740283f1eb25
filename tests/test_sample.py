import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import eqmdm
from helpers import tree_allclose, within_standard_errors


MEANS = jnp.asarray([-1.0, 1.5])
STD = 0.3


def mixture_denoiser(log_snr, z):
    """The posterior mean of a mixture of two normals in every coordinate."""
    noise = jnp.exp(-log_snr)
    total = STD**2 + noise
    gap = z[..., None] - MEANS.astype(z.dtype).reshape(*([1] * z.ndim), 2)
    logits = -0.5 * gap**2 / total
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    posterior = z[..., None] - gap * (noise / total)
    return jnp.sum(weights * posterior, axis=-1)


def sample(diffusion, shape=(), **options):
    score = eqmdm.DenoiserScore(mixture_denoiser, diffusion)
    return eqmdm.sample(score, diffusion, shape, **options)


FLOW = {"process": eqmdm.probability_flow}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (eqmdm.VPSDE, {"n_steps": 150}),
        (eqmdm.CLD, {"n_steps": 150}),
        (eqmdm.CLD, {"n_steps": 40, "solver": eqmdm.Collapsed()}),
        (eqmdm.VPSDE, {"n_steps": 60, "solver": dfx.Heun(), **FLOW}),
    ],
    ids=["VPSDE", "CLD", "Collapsed", "flow"],
)
def test_samples_with_the_exact_denoiser_have_the_moments_of_the_data(
    cls, options, key
):
    # To where nothing of the data is left.
    diffusion = cls(interval=eqmdm.TimeInterval(1e-3, 1.3))
    x = sample(diffusion, (4,), key=key, n_samples=400, **options).reshape(-1)
    offsets = MEANS - jnp.mean(MEANS)
    first, second, fourth = (jnp.mean(offsets**power) for power in (1, 2, 4))
    expected = (
        first,
        second + STD**2,
        fourth + 6 * second * STD**2 + 3 * STD**4,
    )
    gap = x - jnp.mean(MEANS)
    for power, moment in zip((1, 2, 4), expected, strict=True):
        assert within_standard_errors(gap**power, moment)
    # The mixture's gap is almost empty: 1e-4 of its mass is within 0.1 of the middle.
    assert jnp.mean(jnp.abs(gap) < 0.1) < 5e-3


def test_a_sample_depends_on_its_number_alone(key):
    diffusion = eqmdm.VPSDE()
    many, few, later = (
        sample(diffusion, (2,), key=key, n_samples=n, n_steps=8, first=first)
        for n, first in ((5, 0), (2, 0), (2, 3))
    )
    assert few.shape == (2, 2) and many.shape == (5, 2)
    assert len(jnp.unique(many)) == 10
    # Another batch size may be fused otherwise, so to rounding.
    close = dict(rtol=1e-12, atol=1e-12)
    assert tree_allclose(few, many[:2], **close)
    assert tree_allclose(later, many[3:], **close)


def test_steps_are_those_of_the_grid_on_the_clock(key):
    diffusion, clock = eqmdm.VPSDE(), eqmdm.LogSNRClock()
    score = eqmdm.DenoiserScore(mixture_denoiser, diffusion)
    times = jnp.asarray([1.0, 0.7, 0.5, 0.1, float(diffusion.t0)])
    options = {"solver": dfx.Euler(), "grid": eqmdm.CustomGrid(times), "clock": clock}
    x = sample(diffusion, (2,), key=key, n_samples=1, n_steps=4, **options, **FLOW)

    @jax.jit
    def by_hand(key):
        key_start, _ = jr.split(jr.fold_in(key, 0))
        y = diffusion.prior.sample((2,), key=key_start)
        log_snrs = jax.vmap(diffusion.log_snr)(times)
        for i in range(4):
            rate = 1 / jax.grad(diffusion.log_snr)(times[i])
            F, G = (
                matrix(times[i])
                for matrix in (diffusion.drift_matrix, diffusion.diffusion_matrix)
            )
            slope = F @ y - 0.5 * G @ G.T @ score(times[i], y)
            y = y + (log_snrs[i + 1] - log_snrs[i]) * rate * slope
        kernel = diffusion.compute_kernel(times[-1])
        return score.data_estimate(times[-1], kernel, y)

    # Log-SNR is inverted to some 1e-10 of a time.
    assert tree_allclose(x[0], by_hand(key), rtol=1e-8, atol=1e-8)


def test_the_flow_leads_every_solver_from_a_start_to_the_same_sample(key):
    diffusion = eqmdm.VPSDE()
    draw = lambda **options: sample(diffusion, (2,), key=key, n_samples=8, **options)
    tight = dfx.PIDController(rtol=1e-8, atol=1e-8)
    adaptive = draw(solver=dfx.Tsit5(), stepsize_controller=tight, n_steps=1000, **FLOW)
    # Second order at 400 steps, where the fifth order is exact.
    for options in ({"solver": eqmdm.Collapsed()}, {"solver": dfx.Heun(), **FLOW}):
        x = draw(n_steps=400, **options)
        assert tree_allclose(x, adaptive, rtol=0.0, atol=1e-2)
        assert not tree_allclose(x, adaptive, rtol=0.0, atol=1e-9)


def test_a_solve_that_needs_more_steps_is_not_a_number_and_the_others_are_kept(key):
    options = {"solver": dfx.Tsit5(), **FLOW}
    options["stepsize_controller"] = dfx.PIDController(rtol=1e-5, atol=1e-5)
    draw = lambda n_steps: sample(
        eqmdm.VPSDE(), (1,), key=key, n_samples=64, n_steps=n_steps, **options
    )
    enough, few, fewer = draw(1000)[:, 0], draw(15)[:, 0], draw(2)[:, 0]
    assert jnp.all(jnp.isfinite(enough)) and jnp.all(jnp.isnan(fewer))
    done = jnp.isfinite(few)
    assert 0 < jnp.sum(done) < 64
    assert tree_allclose(few[done], enough[done], rtol=1e-10, atol=1e-10)


def test_adaptive_steps_serve_an_sde(key):
    controller = dfx.PIDController(rtol=1e-2, atol=1e-2, dtmin=1e-5)
    options = {"solver": dfx.ShARK(), "stepsize_controller": controller}
    x = sample(eqmdm.VPSDE(), (2,), key=key, n_samples=8, n_steps=4000, **options)
    assert jnp.all(
        jnp.min(jnp.abs(x[..., None] - MEANS[None, None]), axis=-1) < 6 * STD
    )


@pytest.mark.parametrize("solver", [dfx.Euler(), dfx.ShARK()], ids=["Euler", "ShARK"])
def test_sample_takes_other_solvers(solver, key):
    x = sample(eqmdm.VPSDE(), (2,), key=key, n_samples=3, n_steps=20, solver=solver)
    # The data lie within some standard deviations of the two means.
    assert x.shape == (3, 2) and jnp.all(jnp.abs(x) < 4)


def test_samples_have_the_dtype_that_is_asked_for_and_follow_the_key(key):
    draws = [
        sample(eqmdm.VPSDE(), (2,), key=k, n_samples=2, n_steps=4, dtype=jnp.float32)
        for k in jr.split(key)
    ]
    for x in draws:
        assert x.dtype == jnp.float32 and jnp.all(jnp.isfinite(x))
    assert jnp.all(draws[0] != draws[1])


def test_any_callable_serves_as_a_score(key):
    # Standard normal data under a diffusion that keeps them: the score is -y.
    diffusion = eqmdm.VPSDE()
    x = eqmdm.sample(
        lambda t, y: -y, diffusion, (8,), key=key, n_samples=300, n_steps=100
    )
    assert within_standard_errors(x.reshape(-1), 0.0)
    # What is returned is the posterior mean at the cut, which varies a little less.
    expected = jnp.exp(-diffusion.schedule.integrated_rate(jnp.zeros(()), diffusion.t0))
    assert within_standard_errors(x.reshape(-1) ** 2, expected)


def test_counts_below_one_are_refused(key):
    for options in ({"n_steps": 0}, {"n_samples": 0}, {"n_steps": -1}):
        [name] = options
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got"):
            sample(eqmdm.VPSDE(), key=key, **options)


def test_a_horizon_below_the_denoisers_range_is_refused(key):
    diffusion = eqmdm.VPSDE()
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-3.0, 9.0)
    )
    score = eqmdm.DenoiserScore(denoiser, diffusion)
    with pytest.raises(ValueError, match="`diffusion` must end within the denoiser"):
        eqmdm.sample(score, diffusion, (2,), key=key, n_samples=1)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`first` must be at least 0; got -1", {"first": -1}),
        (TypeError, "`solver` must be one for SDEs.*`Tsit5`", {"solver": dfx.Tsit5()}),
        (
            TypeError,
            "`solver` must be one for ODEs.*`SEA`",
            {"solver": dfx.SEA(), **FLOW},
        ),
        (ValueError, "`process` must be `eqmdm.reverse_sde` or", {"process": print}),
        (
            TypeError,
            "`clock` must be left out for `Collapsed`",
            {"solver": eqmdm.Collapsed(), "clock": eqmdm.LogSNRClock()},
        ),
        (
            TypeError,
            "`process` must be left out for `SSCS`",
            {"solver": eqmdm.SSCS(), **FLOW},
        ),
        (
            TypeError,
            "`grid` must be left out where a `stepsize_controller`",
            {
                "grid": eqmdm.UniformGrid(),
                "stepsize_controller": dfx.PIDController(rtol=1e-3, atol=1e-3),
            },
        ),
    ],
    ids=["first", "ode-solver", "sde-solver", "process", "clock", "flow", "grid"],
)
def test_options_that_do_not_fit_are_refused(error, message, options, key):
    with pytest.raises(error, match=message):
        sample(eqmdm.VPSDE(), (2,), key=key, n_samples=1, n_steps=2, **options)


def test_a_clock_that_cannot_tell_the_time_is_refused(key):
    with pytest.raises(ValueError, match="stands still near a time"):
        clock = eqmdm.LogSNRClock()
        sample(eqmdm.ALDA(), (2,), key=key, n_samples=1, n_steps=2, clock=clock)
