"""Tests of the errors for diffusions and times that are not valid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusions import MAKERS, RESETS, ends_early, every_diffusion, learned, make

import eqmdm


def refuses(match, *arguments, error=ValueError, **options):
    with pytest.raises(error, match=match):
        eqmdm.LinearDiffusion(*arguments, **options)


EYE2 = np.eye(2)
TURN = [[0.0, -1.0], [1.0, 0.0]]


@pytest.mark.usefixtures("unchecked")
def test_matrices_that_are_no_recipe_are_refused():
    refuses("`skew` must be skew-symmetric", [[0.0, 1.0], [1.0, 0.0]], EYE2)
    refuses("`skew` must be square", [[0.0, 1.0]], EYE2)
    refuses("`skew` must be a matrix", [0.0, 1.0], EYE2)
    refuses("`skew` must be finite", [[0.0, np.nan], [np.nan, 0.0]], EYE2)
    refuses("K = 0 leaves no data", np.zeros((0, 0)), np.zeros((0, 0)))
    indefinite = np.diag([1.0, -1.0])
    refuses("`dissipation` must be positive semidefinite", TURN, indefinite)
    refuses("`dissipation` must be positive semidefinite", TURN, 0 * EYE2)
    refuses("`dissipation` must be symmetric", TURN, [[1.0, 1.0], [0.0, 1.0]])
    refuses("`dissipation` must be 2 x 2", TURN, np.eye(3))
    refuses("Exactly one of `dissipation`", TURN)
    refuses("Exactly one of `dissipation`", TURN, EYE2, dissipation_root=EYE2)
    refuses("`dissipation_root` must have a row", TURN, dissipation_root=np.eye(3))
    singular = np.diag([1.0, 0.0])
    refuses(
        "`stationary_covariance` must be positive definite",
        TURN,
        EYE2,
        stationary_covariance=singular,
    )
    refuses(
        "`start_covariance` must have a zero first row",
        TURN,
        EYE2,
        start_covariance=EYE2,
    )
    refuses(
        "`start_covariance` must be positive definite",
        TURN,
        EYE2,
        start_covariance=0 * EYE2,
    )


@pytest.mark.parametrize(
    "skew, noise, unreached",
    [
        (0 * EYE2, [0.0, 1.0], r"not reach the data \(variable 0\),"),
        (0 * EYE2, [1.0, 0.0], "not reach auxiliary variable 1,"),
        (
            [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
            [0.0, 1.0, 0.0],
            "not reach auxiliary variable 2,",
        ),
        (np.zeros((3, 3)), [1.0, 0.0, 0.0], "auxiliary variable 1 and auxiliary"),
    ],
)
@pytest.mark.parametrize("as_array", [np.asarray, lambda m: jnp.asarray(m, "float32")])
def test_a_variable_that_noise_cannot_reach_is_named(skew, noise, unreached, as_array):
    refuses(unreached, as_array(skew), as_array(np.diag(noise)))


def test_parameters_of_named_diffusions_are_checked():
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`mass` must be positive"):
            eqmdm.CLD(mass=value)
        with pytest.raises(ValueError, match="`friction` must be positive"):
            eqmdm.MALDA(friction=value)
        with pytest.raises(ValueError, match="`start_variance` must be positive"):
            eqmdm.ALDA(start_variance=value)
        with pytest.raises(ValueError, match="`start_variance` must be positive"):
            learned(2, start_variance=value)
    with pytest.raises(ValueError, match="`velocity_friction` must be positive"):
        eqmdm.PSLD(velocity_friction=0.0)
    with pytest.raises(ValueError, match="`coupling` must be positive"):
        eqmdm.ALDA(coupling=0.0)
    with pytest.raises(ValueError, match="`data_friction` must be non-negative"):
        eqmdm.PSLD(data_friction=-1.0, velocity_friction=1.0)
    for sigmas in ((0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="`sigma0` and `sigma1` must be finite"):
            eqmdm.VESDE(*sigmas)


def test_learned_diffusion_refuses_what_it_cannot_learn():
    with pytest.raises(ValueError, match="`n_vars` must be at least 1"):
        learned(0)
    with pytest.raises(ValueError, match="`schedule` must be a `LinearSchedule`"):
        learned(2, learn_schedule=True, schedule=eqmdm.ConstantSchedule(1.0))


@pytest.mark.usefixtures("unchecked")
@every_diffusion
def test_ends_that_are_none_are_refused(name):
    for bad in ((0.0, 1.0), (0.5, 0.5), (0.5, 0.1), (1e-3, np.inf)):
        with pytest.raises(ValueError, match="`interval` must have finite times"):
            MAKERS[name](interval=eqmdm.TimeInterval(*bad))
    for bad in ((3.0, 3.0), (5.0, -5.0), (-np.inf, 5.0)):
        with pytest.raises(ValueError, match="`interval` must have finite log"):
            MAKERS[name](interval=eqmdm.LogSNRInterval(*bad), **RESETS.get(name, {}))
    with pytest.raises(TypeError, match="`interval` must be an `eqmdm.TimeInterval`"):
        MAKERS[name](interval=(1e-3, 1.0))


def test_a_horizon_beyond_the_schedule_is_refused():
    with pytest.raises(
        ValueError, match="`interval` must end before the schedule does"
    ):
        eqmdm.CLD(
            schedule=eqmdm.CosineSchedule(), interval=eqmdm.TimeInterval(1e-3, 2.0)
        )


def test_times_that_are_out_of_range_are_refused():
    diffusion = make("VESDE")
    zero, early, late = (jnp.asarray(t) for t in (0.0, 0.2, 0.6))
    beyond = diffusion.t1 * 1.001
    kernel, transition = diffusion.perturbation_kernel, diffusion.transition
    cases = [
        (kernel, (zero,), "point mass"),
        (kernel, (-early,), "`t` must be positive"),
        (kernel, (early * jnp.nan,), "`t` must be positive"),
        (kernel, (beyond,), "within the interval"),
        (diffusion.log_snr, (beyond,), "within the interval"),
        (transition, (late, early), "`s` must lie between 0 and `t`"),
        (transition, (-early, late), "`s` must lie between 0 and `t`"),
        (transition, (early, beyond), "within the interval"),
        (diffusion.time_at_log_snr, (-1000 * late,), "must be reached"),
        (diffusion.time_at_log_snr, (jnp.nan * late,), "must be reached"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            function(*arguments)
    for function, arguments, message in (
        cases[:1] + cases[3:4] + cases[5:6] + cases[8:9]
    ):
        with pytest.raises(eqx.EquinoxRuntimeError, match=message):
            jax.block_until_ready(eqx.filter_jit(function)(*arguments))


@pytest.mark.usefixtures("unchecked")
def test_times_must_be_floating_point_scalars():
    diffusion = make("CLD")
    wrong = "`t` must be a scalar floating-point array"
    for t in (jnp.asarray([0.1, 0.2]), jnp.asarray(1)):
        for function in (diffusion.perturbation_kernel, diffusion.log_snr):
            with pytest.raises(TypeError, match=wrong):
                function(t)
    with pytest.raises(TypeError, match="`log_snr` must be a scalar floating-point"):
        diffusion.time_at_log_snr(jnp.asarray(1))


@ends_early
def test_ends_in_log_snr_that_are_never_reached_are_refused():
    for name, reset in RESETS.items():
        with pytest.raises(ValueError, match="`log_snr` must be reached"):
            MAKERS[name](interval=eqmdm.LogSNRInterval(-40.0, 5.0), **reset)
    # The noise of a variance-exploding diffusion grows for ever; that of a rate that
    # stops does not, nor does a schedule's that ends.
    schedule = eqmdm.CosineSchedule(1.0)
    with pytest.raises(ValueError, match="`log_snr` must be reached"):
        eqmdm.VPSDE(schedule=schedule, interval=eqmdm.LogSNRInterval(-60.0, 5.0))
    with pytest.raises(ValueError, match="`log_snr` must be reached"):
        eqmdm.VESDE(interval=eqmdm.LogSNRInterval(-500.0, 5.0))


def test_ends_in_log_snr_may_be_traced(unchecked):
    schedule = lambda rate: eqmdm.VPSDE(
        schedule=eqmdm.ConstantSchedule(rate), interval=eqmdm.LogSNRInterval(-3.0, 9.0)
    )
    upper = lambda kind: lambda top: kind(interval=eqmdm.LogSNRInterval(-3.0, top))
    cases = [(schedule, 1.0, "t1"), (upper(eqmdm.VPSDE), 9.0, "t0")]
    for build, value, end in [*cases, (upper(eqmdm.VESDE), 6.0, "t0")]:
        read = lambda x, build=build, end=end: getattr(build(x), end)
        # One search, in two programs.
        np.testing.assert_allclose(jax.jit(read)(value), read(value), rtol=1e-12)


def test_noise_on_some_variables_may_be_traced():
    t = jnp.asarray(0.5)

    def log_snr(friction):
        noise = jnp.diag(jnp.stack([jnp.zeros(()), jnp.zeros(()), friction]))
        skew = [[0.0, -1.0, 0.0], [1.0, 0.0, -2.0], [0.0, 2.0, 0.0]]
        return eqmdm.LinearDiffusion(skew, noise).log_snr(t)

    friction, step = jnp.asarray(2.0), 1e-5
    traced = jax.jit(jax.value_and_grad(log_snr))
    value, slope = traced(friction)
    np.testing.assert_allclose(value, log_snr(friction), rtol=1e-10)
    high, low = (traced(friction + move)[0] for move in (step, -step))
    # step^2 of truncation and 1e-15 / step of rounding.
    np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-8)


@ends_early
def test_numpy_numbers_are_constants():
    one = np.float64(1.0)
    diffusions = [
        eqmdm.VPSDE(
            schedule=eqmdm.ConstantSchedule(one),
            interval=eqmdm.TimeInterval(1e-3 * one, one),
        ),
        eqmdm.VPSDE(schedule=eqmdm.LinearSchedule(one, 2 * one)),
        eqmdm.SubVPSDE(
            schedule=eqmdm.CosineSchedule(one),
            interval=eqmdm.TimeInterval(1e-3 * one, one),
        ),
        eqmdm.CLD(mass=one, interval=eqmdm.LogSNRInterval(-5 * one, 9 * one)),
    ]
    for diffusion in diffusions:
        assert not jax.tree.leaves(eqx.filter(diffusion, eqx.is_inexact_array))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: eqmdm.CLD(mass=x),
        lambda x: eqmdm.CLD(start_variance=x),
        lambda x: eqmdm.ALDA(coupling=x),
        lambda x: eqmdm.PSLD(data_friction=x),
        lambda x: eqmdm.VESDE(sigma1=x),
    ],
)
def test_named_diffusions_refuse_what_looks_like_a_parameter(make, unchecked):
    message = "must be a Python or NumPy number.*`eqmdm.LinearDiffusion`"
    with pytest.raises(TypeError, match=message):
        make(jnp.asarray(0.5))
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda x: make(x).log_snr(jnp.asarray(0.5)))(0.5)


@pytest.mark.parametrize("rates", [(0.0, 10.0), (5.0, 5.0)])
def test_a_schedule_on_the_edge_of_what_is_learned_is_refused(rates):
    with pytest.raises(ValueError, match="`schedule` must have 0 < rate0 < rate1"):
        learned(1, learn_schedule=True, schedule=eqmdm.LinearSchedule(*rates))


def test_a_horizon_beyond_the_kernels_is_refused():
    with pytest.raises(ValueError, match="`interval` must end where kernels are still"):
        eqmdm.VESDE(interval=eqmdm.TimeInterval(1e-3, 10.0))


def test_functions_of_another_shape_than_the_prior_are_refused():
    square, column = (lambda t: -jnp.eye(2)), (lambda t: jnp.ones((3, 1)))
    for drift, noise, name in (
        (square, column, "drift"),
        (lambda t: -jnp.eye(3), square, "diffusion"),
    ):
        with pytest.raises(ValueError, match=f"`{name}_matrix` must return a matrix"):
            eqmdm.TimeVaryingDiffusion(drift, noise, prior_covariance=np.eye(3))
