import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm
from eqmdm import make_optimiser, nn
from helpers import tree_allclose


# Optax mixes counts and floats, which strict promotion rejects; the step permits it.
_OPTAX = jax.numpy_dtype_promotion("standard")


@_OPTAX
def test_diffusion_has_a_learning_rate_of_its_own():
    network = nn.MLP((2,), 2, width=8, depth=1, key=jr.key(4))
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(3))
    model = eqmdm.NoiseModel(network, diffusion)
    values = eqx.filter(model, eqx.is_inexact_array)
    optimiser = make_optimiser(1e-3, diffusion_learning_rate=1e-2, clip=1e6)
    gradient = jax.tree.map(jnp.ones_like, values)
    init, update = (eqx.filter_jit(step) for step in optimiser)
    updates, _ = update(gradient, init(values), values)
    # Adam's first update is the learning rate, up to its epsilon.
    for part, rate in ((updates.network, 1e-3), (updates.diffusion, 1e-2)):
        assert jax.tree.leaves(part)
        for update in jax.tree.leaves(part):
            np.testing.assert_allclose(update, -rate, rtol=1e-5)


@_OPTAX
def test_gradients_are_clipped_by_the_norm_of_all():
    values = {"network": jnp.zeros(1), "other": jnp.zeros(1)}
    gradient = {"network": jnp.array([3.0]), "other": jnp.array([4.0])}
    optimiser = make_optimiser(1e-3, clip=0.5)
    _, opt_state = optimiser.update(gradient, optimiser.init(values), values)
    moments = sorted(
        float(leaf[0]) for leaf in jax.tree.leaves(opt_state) if leaf.ndim == 1
    )
    # Norm 5 is scaled down to 0.5; moments are 0.1 g and 0.001 g^2 after one update.
    expected = sorted([0.1 * 0.3, 0.1 * 0.4, 1e-3 * 0.09, 1e-3 * 0.16])
    np.testing.assert_allclose(moments, expected, rtol=1e-6)


@_OPTAX
def test_learning_rate_decays_along_a_cosine_after_the_warmup():
    values = jnp.zeros(1)
    optimiser = make_optimiser(1e-3, warmup=4, decay_steps=24)
    state, rates = optimiser.init(values), []
    for _ in range(30):
        update, state = optimiser.update(jnp.ones(1), state, values)
        rates.append(-float(update[0]))
    # A constant gradient makes Adam's updates the learning rate.
    assert np.allclose(rates[:4], [0.25e-3, 0.5e-3, 0.75e-3, 1e-3], rtol=1e-4)
    share = np.arange(30 - 3) / (24 - 3)
    decayed = 0.5 * (1 + np.cos(np.pi * np.minimum(share, 1)))
    assert np.allclose(rates[3:], 1e-3 * (0.01 + 0.99 * decayed), rtol=1e-4)


@_OPTAX
def test_accumulated_gradients_make_one_update_of_their_mean():
    values = {"network": jnp.zeros(2), "other": jnp.zeros(2)}
    gradients = [jax.tree.map(lambda v, s=s: v + s, values) for s in (1.0, 3.0)]
    optimiser = make_optimiser(1e-3, accumulate=2)
    opt_state, current = optimiser.init(values), values
    for gradient in gradients:
        updates, opt_state = optimiser.update(gradient, opt_state, current)
        current = optax.apply_updates(current, updates)
    once = make_optimiser(1e-3)
    mean = jax.tree.map(lambda v: v + 2.0, values)
    expected, _ = once.update(mean, once.init(values), values)
    assert tree_allclose(current, expected, rtol=1e-12, atol=0)


@_OPTAX
def test_warmup_raises_the_learning_rate_to_its_full_value():
    values = {"network": jnp.zeros(1), "other": jnp.zeros(1)}
    optimiser = make_optimiser(1e-3, warmup=4)
    opt_state = optimiser.init(values)
    sizes = []
    for _ in range(6):
        gradient = jax.tree.map(jnp.ones_like, values)
        updates, opt_state = optimiser.update(gradient, opt_state, values)
        sizes.append(-float(updates["network"][0]))
    expected = [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3]
    # Adam's epsilon beside a clipped gradient of 0.7.
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"diffusion_learning_rate": -1.0}, "`diffusion_learning_rate` must be"),
        ({"clip": float("nan")}, "`clip` must be positive"),
        ({"accumulate": 0}, "`accumulate` must be at least 1"),
        ({"warmup": -1}, "`warmup` must be at least 0"),
        ({"warmup": 4, "decay_steps": 4}, "`decay_steps` must be at least 5; got 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_optimiser_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimiser(**settings)
