"""Diffusions of every kind, and their kernels at many times."""

import functools
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from helpers import optimised_jit


# For diffusions that deliberately end before their law is the prior.
ends_early = pytest.mark.filterwarnings("ignore:The law of this diffusion")


def made_up(**ends):
    return eqmdm.LinearDiffusion(
        [
            [0.0, 1.0, 0.0, -2.0],
            [-1.0, 0.0, 3.0, 0.0],
            [0.0, -3.0, 0.0, 1.0],
            [2.0, 0.0, -1.0, 0.0],
        ],
        np.diag([0.0, 0.5, 0.0, 2.0]),
        stationary_covariance=np.diag([1.0, 0.5, 2.0, 1.0]) + 0.1,
        **ends,
    )


def learned(n_vars, **options):
    return eqmdm.LearnedDiffusion(n_vars, key=jr.key(n_vars), **options)


def two_schedule(**ends):
    return eqmdm.TwoScheduleDiffusion(
        [[0.0, -1.0], [1.0, 0.0]],
        [[0.0, 0.0], [0.0, 2.0]],
        skew_schedule=eqmdm.LinearSchedule(0.5, 4.0),
        dissipation_schedule=eqmdm.LinearSchedule(),
        **({"interval": eqmdm.TimeInterval(1e-3, 1.5)} | ends),
    )


def time_varying_drift(t):
    turn, damp = jnp.cos(3 * t), 1 + t
    zero = jnp.zeros_like(t)
    return -4 * jnp.stack([jnp.stack([zero, turn]), jnp.stack([-turn, damp])])


def time_varying_noise(t):
    return 2 * jnp.sqrt(1 + t) * jnp.asarray([[0.2], [1.0]], t.dtype)


def time_varying(**ends):
    # Noise that turns with time leaves it no stationary law, so none is its prior.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return eqmdm.TimeVaryingDiffusion(
            time_varying_drift,
            time_varying_noise,
            prior_covariance=np.eye(2),
            **({"interval": eqmdm.TimeInterval(1e-3, 1.5)} | ends),
        )


# Each takes the interval, and uses its own default if none is given.
MAKERS = {
    "VPSDE": eqmdm.VPSDE,
    "CLD": eqmdm.CLD,
    "ALDA": eqmdm.ALDA,
    "MALDA": eqmdm.MALDA,
    "PSLD": eqmdm.PSLD,
    "CriticalThirdOrder": eqmdm.CriticalThirdOrder,
    "LinearDiffusion": made_up,
    "LearnedDiffusion": lambda **ends: learned(2, **ends),
    "LearnedDiffusion-all": lambda **ends: learned(
        3, learn_stationary=True, learn_start=True, learn_schedule=True, **ends
    ),
    "VESDE": eqmdm.VESDE,
    "SubVPSDE": eqmdm.SubVPSDE,
    "TwoScheduleDiffusion": two_schedule,
    "TimeVaryingDiffusion": time_varying,
}
STATIONARY = [
    n for n in MAKERS if n not in ("VESDE", "SubVPSDE", "TimeVaryingDiffusion")
]
every_diffusion = pytest.mark.parametrize("name", MAKERS)


@functools.cache
def make(name):
    return MAKERS[name]()


# One for each way to compute a kernel or find a time, for tests that compile slowly.
KINDS = [
    "VPSDE",
    "CLD",
    "LinearDiffusion",
    "VESDE",
    "SubVPSDE",
    "TwoScheduleDiffusion",
    "TimeVaryingDiffusion",
]
every_kind = pytest.mark.parametrize("name", KINDS)


# One shape, so that each method of a diffusion is compiled once per dtype.
N_TIMES = 60


def evaluate(name, times):
    """The kernel and related quantities at `N_TIMES` times."""
    assert times.shape == (N_TIMES,)
    return _evaluate(name, str(times.dtype))(times)


@functools.cache
def _evaluate(name, dtype):
    diffusion = make(name)

    @(optimised_jit if dtype == "float32" else jax.jit)
    @jax.vmap
    def everything(t):
        def laws(t):
            kernel = diffusion.compute_kernel(t)
            return kernel, kernel.log_snr

        one = jnp.ones_like(t)
        (kernel, log_snr), (_, slope) = jax.jvp(laws, (t,), (one,))
        rate = diffusion.log_snr_rate(t, kernel)
        return {"kernel": kernel, "log_snr": log_snr, "slope": slope, "rate": rate}

    return everything


def grid(diffusion, dtype="float64"):
    t0, t1 = float(diffusion.t0), float(diffusion.t1)
    return jnp.asarray(np.geomspace(t0, t1, N_TIMES), dtype)


def drift_and_noise(diffusion, t):
    G = diffusion.diffusion_matrix(t)
    return diffusion.drift_matrix(t), G @ G.T


# These constructors choose a time limit themselves.
RESETS = {
    name: {"t_limit": 4.0, "n_steps": 128}
    for name in ("TwoScheduleDiffusion", "TimeVaryingDiffusion")
}


def linear(**options):
    matrices = {
        "skew": [[0.0, -1.0], [1.0, 0.0]],
        "dissipation": np.diag([0.5, 2.0]),
        "stationary_covariance": jnp.diag(jnp.asarray([1.0, 0.5], jnp.float32)),
        "start_covariance": jnp.diag(jnp.asarray([0.0, 0.2])),
    }
    return eqmdm.LinearDiffusion(**matrices, **options)
