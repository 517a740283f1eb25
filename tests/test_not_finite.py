"""Tests that numbers that are not finite are refused where they enter."""

import functools
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from helpers import NOT_FINITE


# The diffusion here ends early.
pytestmark = pytest.mark.filterwarnings("ignore:The law of this diffusion")


@functools.cache
def early_cld():
    return eqmdm.CLD(interval=eqmdm.TimeInterval(1e-3, 0.5))


def _points(bad, n=60):
    points = np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)
    points[0, 0] = bad
    return points


def _ones(t):
    return jnp.eye(2, dtype=t.dtype)


def _varying(drift=1.0, noise=1.0, **options):
    options = {"prior_covariance": np.eye(2)} | options
    return eqmdm.TimeVaryingDiffusion(
        lambda t: -drift * _ones(t), lambda t: noise * _ones(t), **options
    )


def _two_schedules(**options):
    schedule = eqmdm.ConstantSchedule()
    return eqmdm.TwoScheduleDiffusion(
        [[0.0]],
        [[0.5]],
        skew_schedule=schedule,
        dissipation_schedule=schedule,
        **options,
    )


def _minus(t, y):
    return -y


def _model():
    return eqmdm.FunctionModel(_minus, early_cld())


KEY = jr.key(0)
POINT = jnp.asarray([0.5, 1.0])
# All other arguments that must be finite numbers, besides those drawn above.
ENTRANCES = {
    "sigma0": lambda bad: eqmdm.VESDE(bad, 1.0),
    "sigma1": lambda bad: eqmdm.VESDE(0.1, bad),
    "mass": lambda bad: eqmdm.CLD(mass=bad),
    "friction": lambda bad: eqmdm.CLD(friction=bad),
    "start_variance": lambda bad: eqmdm.CLD(start_variance=bad),
    "coupling": lambda bad: eqmdm.ALDA(coupling=bad),
    "data_friction": lambda bad: eqmdm.PSLD(data_friction=bad),
    "velocity_friction": lambda bad: eqmdm.PSLD(velocity_friction=bad),
    "start_variance learned": lambda bad: eqmdm.LearnedDiffusion(
        2, key=KEY, start_variance=bad
    ),
    "prior_covariance": lambda bad: _varying(prior_covariance=np.diag([1.0, bad])),
    "t_limit": lambda bad: _varying(t_limit=bad),
    "t_limit two": lambda bad: _two_schedules(t_limit=bad),
    "drift_matrix": lambda bad: _varying(drift=bad),
    "diffusion_matrix": lambda bad: _varying(noise=bad),
    "s": lambda bad: eqmdm.composed_transition(
        _ones, _ones, jnp.asarray(bad), jnp.asarray(1.0)
    ),
    "alpha": eqmdm.LogitTransform,
    "std": eqmdm.TruncatedNormalDequantiser,
    "rho": eqmdm.RhoGrid,
    "times": lambda bad: eqmdm.CustomGrid([1.0, bad, 1e-3]),
    "times first": lambda bad: eqmdm.CustomGrid([bad, 0.5, 1e-3]),
    "times last": lambda bad: eqmdm.CustomGrid([1.0, 0.5, bad]),
    "snr": lambda bad: eqmdm.LangevinCorrector(eqmdm.DPMSolver(), snr=bad),
    "data_std": lambda bad: eqmdm.PreconditionedDenoiser(_minus, bad, (-5.0, 5.0)),
    "log_snr_range": lambda bad: eqmdm.PreconditionedDenoiser(_minus, 1.0, (bad, 5.0)),
    "log_snr_range high": lambda bad: eqmdm.PreconditionedDenoiser(
        _minus, 1.0, (-5.0, bad)
    ),
    "learning_rate": eqmdm.make_optimiser,
    "diffusion_learning_rate": lambda bad: eqmdm.make_optimiser(
        diffusion_learning_rate=bad
    ),
    "clip": lambda bad: eqmdm.make_optimiser(clip=bad),
    "bandwidths": lambda bad: eqmdm.maximum_mean_discrepancy(
        _points(0), _points(1), bandwidths=[bad]
    ),
    "x discrepancy": lambda bad: eqmdm.maximum_mean_discrepancy(
        _points(bad), _points(0)
    ),
    "x Frechet": lambda bad: eqmdm.frechet_distance(_points(bad), _points(0)),
    "y sliced": lambda bad: eqmdm.sliced_wasserstein(_points(0), _points(bad), key=KEY),
    "train": lambda bad: eqmdm.data.Dataset("p", _points(bad), _points(0), _points(0)),
    "test": lambda bad: eqmdm.data.Dataset("p", _points(0), _points(0), _points(bad)),
    "x forward": lambda bad: eqmdm.forward_sde(early_cld(), bad * POINT, key=KEY),
    "x bound": lambda bad: eqmdm.elbo(_model(), bad * POINT, key=KEY),
    "u": lambda bad: eqmdm.elbo(_model(), POINT, key=KEY, u=jnp.asarray(bad)),
    "x likelihood": lambda bad: eqmdm.log_likelihood(_model(), bad * POINT, key=KEY),
    "x discrete": lambda bad: eqmdm.discrete_elbo(
        _model(), bad * POINT, times=jnp.asarray([0.5, 1e-3]), key=KEY
    ),
    "times discrete": lambda bad: eqmdm.discrete_elbo(
        _model(), POINT, times=jnp.asarray([0.5, bad, 1e-3]), key=KEY
    ),
    "t": lambda bad: eqmdm.NoiseModel(_minus, early_cld()).score(
        jnp.asarray(bad), jnp.zeros((2, 3))
    ),
    "examples": lambda bad: eqmdm.evaluate(
        _model(), _points(bad), eqmdm.Objective(), key=KEY
    ),
    "examples trained": lambda bad: _trained_on(jnp.asarray(_points(bad))),
    "examples streamed": lambda bad: _streamed(_points(bad)),
}


def _trained_on(examples):
    optimiser = eqmdm.make_optimiser()
    network = eqmdm.nn.MLP((3,), 2, width=4, depth=1, key=KEY)
    model = eqmdm.NoiseModel(network, early_cld())
    state = eqmdm.TrainState.create(model, optimiser, key=KEY)
    eqmdm.train_step(state, examples, eqmdm.Objective(), optimiser, batch_size=8)


def _streamed(examples):
    optimiser = eqmdm.make_optimiser()
    state = eqmdm.TrainState.create(_model(), optimiser, key=KEY)
    n, objective = len(examples), eqmdm.Objective()
    with eqmdm.BatchStream(state, examples, objective, batch_size=n) as batches:
        next(batches)


@pytest.mark.parametrize("bad", NOT_FINITE, ids=str)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_number_that_is_not_finite_is_refused_where_it_enters(entrance, bad):
    name = re.escape(entrance.split()[0])
    with pytest.raises(ValueError, match=f"`{name}`.* must|`s` and `t` must"):
        ENTRANCES[entrance](bad)


@pytest.mark.parametrize("bad", [0.0, *NOT_FINITE], ids=str)
def test_points_that_a_traced_function_closes_over_are_looked_at(bad):
    x = POINT + bad
    bound = jax.jit(lambda: eqmdm.elbo(_model(), x, key=KEY).total)
    if bad:
        with pytest.raises(ValueError, match="`x` must be finite"):
            bound()
    else:
        assert jnp.isfinite(bound())
