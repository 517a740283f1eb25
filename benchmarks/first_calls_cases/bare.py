"""Reference cases: the bare network in each of its roles in the library.

Each function returns the call to be measured.
"""

import functools

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from eqmdm import nn


SHAPE = (8, 8, 1)
BATCH = 32
N_SAMPLES = 8
N_STEPS = 20
KEY = jr.key(0)


def make_unet(n_vars):
    return nn.UNet(SHAPE, n_vars, width=24, multipliers=(1, 2), key=KEY)


def example():
    generator = np.random.Generator(np.random.PCG64(0))
    return jax.device_put(generator.uniform(-1, 1, SHAPE).astype(np.float32))


def examples():
    generator = np.random.Generator(np.random.PCG64(1))
    return jax.device_put(generator.integers(0, 17, (1437, *SHAPE), np.uint8))


def _states(n, n_vars):
    generator = np.random.Generator(np.random.PCG64(2))
    y = generator.standard_normal((n, n_vars, *SHAPE)).astype(np.float32)
    t = generator.uniform(size=n).astype(np.float32)
    return jax.device_put(t), jax.device_put(y)


def network_call():
    """The network on the two states of a bound: one at a random time, one at t0."""
    network = make_unet(2)
    t, y = _states(2, 2)
    call = eqx.filter_jit(lambda network, t, y: jax.vmap(network)(t, y))
    return lambda: call(network, t, y)


def gradient_step():
    """A gradient step with the clipping, Adam and averaging of a training step."""
    network = make_unet(2)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-4))
    values, static = eqx.partition(network, eqx.is_array)
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros_like(x)), values)
    state = (values, values, jax.jit(optimiser.init)(zeros))
    t, y = _states(BATCH, 2)

    @jax.jit
    def step(state, t, y):
        values, ema, opt_state = state

        def loss(values):
            return jnp.mean(jax.vmap(eqx.combine(values, static))(t, y) ** 2)

        value, gradient = jax.value_and_grad(loss)(values)
        updates, opt_state = optimiser.update(gradient, opt_state, values)
        values = optax.apply_updates(values, updates)
        ema = optax.incremental_update(values, ema, 1e-3)
        return (values, ema, opt_state), value

    return lambda: step(state, t, y)


def _sampling_loop(n_vars):
    """As many Euler-Maruyama steps as a sampler takes, with the same noise."""
    network = make_unet(n_vars)
    _, start = _states(N_SAMPLES, n_vars)

    @eqx.filter_jit
    def loop(network, start, key):
        def body(y, step):
            t, key = step
            noise = jr.normal(key, y.shape)
            velocity = jax.vmap(functools.partial(network, t))(y)
            return y + velocity / N_STEPS + 0.1 * noise, None

        steps = jnp.linspace(1.0, 0.0, N_STEPS), jr.split(key, N_STEPS)
        return lax.scan(body, start, steps)[0]

    return lambda: loop(network, start, KEY)


def _flow_loop(n_vars, n_evaluations):
    """As many evaluations of the network and of a directional derivative as a solve
    with one Hutchinson probe."""
    network = make_unet(n_vars)
    _, y = _states(1, n_vars)

    @eqx.filter_jit
    def loop(network, y, key):
        probe = jr.rademacher(key, y.shape, y.dtype)

        def body(state, t):
            y, log_density = state
            velocity, moved = jax.jvp(lambda y: network(t, y), (y,), (probe,))
            trace = jnp.sum(moved * probe)
            state = (
                y + velocity / n_evaluations,
                log_density + trace / n_evaluations,
            )
            return state, None

        times = jnp.linspace(0.0, 1.0, n_evaluations)
        return lax.scan(body, (y, jnp.zeros(())), times)[0]

    return lambda: loop(network, y[0], KEY)


def sampling_loop():
    return _sampling_loop(2)


def sampling_loop_denoiser():
    return _sampling_loop(1)


def flow_loop(n_evaluations):
    return _flow_loop(2, n_evaluations)


def flow_loop_denoiser(n_evaluations):
    return _flow_loop(1, n_evaluations)
