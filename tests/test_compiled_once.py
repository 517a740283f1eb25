"""Tests that no function is traced or compiled twice for the same shapes."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import eqmdm
from eqmdm import nn
from helpers import counted, slow, slow_but


_OPTIMISER = eqmdm.make_optimiser(1e-3)
_OBJECTIVE = eqmdm.Objective()
_SHAPE = (2,)


def _model(kind, seed):
    """A model whose parameters, the diffusion's included, are those of a seed."""
    key_network, key_diffusion = jr.split(jr.key(seed))
    schedule = eqmdm.LinearSchedule(0.1 + 0.01 * seed, 10.0 - 0.1 * seed)
    diffusion = eqmdm.LearnedDiffusion(
        2, schedule=schedule, learn_schedule=True, key=key_diffusion
    )
    n_vars = 1 if kind == "denoiser" else 2
    network = nn.MLP(_SHAPE, n_vars, width=8, depth=1, key=key_network)
    if kind == "noise":
        return eqmdm.NoiseModel(network, diffusion)
    network = eqmdm.PreconditionedDenoiser(
        network, data_std=1.0, log_snr_range=(-40.0, 40.0)
    )
    return eqmdm.DenoiserModel(network, diffusion)


def _points(seed, n=16):
    return jr.normal(jr.key(100 + seed), (n, *_SHAPE), jnp.float32)


def _train(kind, seed):
    state = eqmdm.TrainState.create(_model(kind, seed), _OPTIMISER, key=jr.key(seed))
    for _ in range(2):
        state, metrics = eqmdm.train_step(
            state, _points(seed), _OBJECTIVE, _OPTIMISER, batch_size=4
        )
    return metrics["loss"]


def _bound(kind, seed):
    # The last batch is not full.
    found = eqmdm.evaluate(
        _model(kind, seed),
        _points(seed)[:6],
        _OBJECTIVE,
        key=jr.key(seed),
        n_draws=2 + seed,
        batch_size=4,
        first=seed,
    )
    return found.loss


def _likelihood(kind, seed):
    model = _model(kind, seed)
    keys = jr.split(jr.key(seed), 3)
    return jax.vmap(lambda x, key: eqmdm.log_likelihood(model, x, key=key))(
        _points(seed, 3), keys
    ).log_likelihood


def _sample(sampler):
    def sample(kind, seed):
        model = _model(kind, seed)
        return eqmdm.sample(
            model,
            _SHAPE,
            key=jr.key(seed),
            n_samples=3,
            n_steps=4,
            first=seed,
            sampler=sampler(),
            dtype=jnp.float32,
        )

    return sample


def _sample_adaptively(kind, seed):
    model = _model(kind, seed)
    return eqmdm.sample(
        model,
        _SHAPE,
        key=jr.key(seed),
        n_samples=3,
        sampler=eqmdm.DiffraxSampler(
            dfx.Tsit5(),
            eqmdm.probability_flow,
            stepsize_controller=dfx.PIDController(rtol=1e-2, atol=1e-2),
        ),
        dtype=jnp.float32,
    )


_CALLS = {
    "train": _train,
    "bound": _bound,
    "likelihood": _likelihood,
    "sample-sea": _sample(dfx.SEA),
    "sample-ancestral": _sample(eqmdm.AncestralSampler),
    "sample-dpm": _sample(eqmdm.DPMSolver),
    "sample-tsit5": _sample_adaptively,
}
_QUICK = "train", "bound", "likelihood", "sample-ancestral", "sample-tsit5"


@pytest.mark.parametrize("kind", ["denoiser", slow("noise")])
@pytest.mark.parametrize("name", slow_but(_QUICK, _CALLS))
def test_other_values_of_the_same_shapes_compile_nothing(name, kind):
    with counted() as first:
        before = jax.block_until_ready(_CALLS[name](kind, 0))
    with counted() as later:
        others = [jax.block_until_ready(_CALLS[name](kind, seed)) for seed in (1, 2)]
    # Check that the counters count, and that the values reach the results.
    assert all(first.values())
    assert not any((before == other).all() for other in others)
    assert later == {"traced": 0, "lowered": 0, "compiled": 0}


def _read(seed):
    """The facts about a diffusion that a training program reads between steps."""
    diffusion = eqmdm.LearnedDiffusion(
        2, interval=eqmdm.LogSNRInterval(-9.0, 13.3), key=jr.key(seed)
    )
    times = diffusion.t0, diffusion.t1, diffusion.time_at_log_snr(jnp.asarray(0.0))
    assert abs(diffusion.log_snr(diffusion.t1) + 9) < 1e-3
    return [float(t) for t in times]


def test_ends_of_other_parameters_compile_nothing_outside_of_jit():
    with counted() as first:
        before = _read(0)
    with counted() as later:
        others = [_read(seed) for seed in (1, 2)]
    assert all(first.values())
    assert not any(
        t == other for each in others for t, other in zip(before, each, strict=True)
    )
    assert later == {"traced": 0, "lowered": 0, "compiled": 0}


def _steps_by_hand(seed):
    """The sampler and the bound of finitely many steps, called outside of `jit`."""
    model = _model("denoiser", seed)
    times = jnp.geomspace(1.0, 0.01, 5, dtype=jnp.float32)
    y = jnp.ones((2, *_SHAPE), jnp.float32)
    x = eqmdm.DPMSolver()(model, y, times, key=jr.key(seed))
    bound = eqmdm.discrete_elbo(model, y[0], times=times, key=jr.key(seed))
    return jnp.append(x, bound.total)


def test_loops_compile_once_outside_of_jit():
    with counted() as first:
        before = _steps_by_hand(0)
    with counted() as later:
        other = _steps_by_hand(1)
    assert all(first.values())
    assert not (before == other).any()
    assert later["compiled"] == 0


def test_number_that_is_static_is_counted():
    function = eqx.filter_jit(lambda x, factor: factor * x)
    x = jnp.ones(3)
    function(x, 2.0)
    with counted() as found:
        function(x, 2.0)
    assert not any(found.values())
    with counted() as found:
        function(x, 3.0)
    assert all(found.values())
