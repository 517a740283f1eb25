import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from eqmdm import nn


KEY = jr.key(0)
CLD = eqmdm.CLD()


def _denoiser(log_snr, z):
    return z / (1 + jnp.exp(-log_snr))


SCORE = eqmdm.DenoiserScore(_denoiser, CLD)
SHORT = jnp.ones(2, jnp.bfloat16)
ENTRANCES_OF_PRECISION = {
    "elbo": lambda: eqmdm.elbo(SCORE, CLD, SHORT, key=KEY),
    "discrete_elbo": lambda: eqmdm.discrete_elbo(
        SCORE, CLD, SHORT, jnp.array([1.0, 0.5]), key=KEY
    ),
    "log_likelihood": lambda: eqmdm.log_likelihood(SCORE, CLD, SHORT, key=KEY),
    "perturbation_kernel": lambda: CLD.perturbation_kernel(jnp.asarray(0.5, "float16")),
    "transition": lambda: CLD.transition(jnp.asarray(0.0), jnp.asarray(0.5, "float16")),
    "time_at_log_snr": lambda: CLD.time_at_log_snr(jnp.asarray(1.0, "bfloat16")),
    "forward_sde": lambda: eqmdm.forward_sde(CLD, SHORT, key=KEY),
    "reverse_sde": lambda: eqmdm.reverse_sde(
        SCORE, CLD, (2,), key=KEY, dtype=jnp.bfloat16
    ),
    "probability_flow": lambda: eqmdm.probability_flow(
        SCORE, CLD, (2,), dtype="float16"
    ),
    "sample": lambda: eqmdm.sample(SCORE, CLD, (2,), key=KEY, dtype=jnp.int32),
    "grid": lambda: eqmdm.UniformGrid()(CLD, 3, jnp.bfloat16),
    "evaluate": lambda: eqmdm.evaluate(
        (nn.MLP((2,), 2, width=8, dtype=jnp.bfloat16, key=KEY), CLD),
        np.ones((3, 2), np.float32),
        eqmdm.Objective(),
        key=KEY,
    ),
}


@pytest.mark.parametrize("entrance", ENTRANCES_OF_PRECISION)
def test_what_is_too_short_for_kernels_is_refused_by_name(entrance, unchecked):
    with pytest.raises(TypeError, match=r"`\w+` must be float32 or float64.*got \w+"):
        ENTRANCES_OF_PRECISION[entrance]()


COUNTS = {
    "n_steps": lambda n: eqmdm.sample(SCORE, CLD, (2,), key=KEY, n_steps=n),
    "n_samples": lambda n: eqmdm.sample(SCORE, CLD, (2,), key=KEY, n_samples=n),
    "max_steps": lambda n: eqmdm.log_likelihood(
        SCORE, CLD, jnp.ones(2), key=KEY, max_steps=n
    ),
    "n_vars": lambda n: eqmdm.LearnedDiffusion(n, key=KEY),
    "n_doublings": lambda n: eqmdm.LinearDiffusion([[0.0]], [[1.0]], n_doublings=n),
    "n_levels": eqmdm.GreyLevels,
    "n_probes": eqmdm.HutchinsonDivergence,
    "n_draws": eqmdm.AugmentedRoute,
    "accumulate": lambda n: eqmdm.make_optimiser(accumulate=n),
    "warmup": lambda n: eqmdm.make_optimiser(warmup=n),
    "n": lambda n: eqmdm.low_discrepancy(n, key=KEY),
    "depth": lambda n: nn.MLP((2,), 1, depth=n, key=KEY),
}


@pytest.mark.parametrize("name", COUNTS)
def test_count_that_is_none_is_refused_by_name(name, unchecked):
    with pytest.raises(TypeError, match=f"`{name}` must be an integer; got 2.5"):
        COUNTS[name](2.5)
    with pytest.raises(ValueError, match=f"`{name}` must be at least .; got -1"):
        COUNTS[name](-1)


@pytest.mark.parametrize("shape", [(-2,), (2, 0), (2.5,)])
def test_shape_of_no_example_is_refused(shape, unchecked):
    for call in (eqmdm.sample, eqmdm.reverse_sde):
        with pytest.raises(ValueError, match="`shape` must be the sizes of one"):
            call(SCORE, CLD, shape, key=KEY)
