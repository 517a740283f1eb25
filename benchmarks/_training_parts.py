"""Training steps, bare and whole, and their parts, as functions to be timed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import eqmdm
from eqmdm._bound.estimate import compute_shared_elbo
from eqmdm._training.step import _draw_batch, _shuffled
from eqmdm.cli import build
from eqmdm.cli.train.options import ResolvedTrainOptions


_DECAY = 0.999


def make_bare_step(
    network: Any, shape: tuple[int, ...], options: ResolvedTrainOptions, n_inner: int
):
    """A function that takes `n_inner` optimiser steps of the network alone."""
    optimiser = eqmdm.make_optimiser(options.learning_rate)
    # Wrapped in a model, so that the optimiser treats it as in a training state.
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(0))
    key_t, key_y, key_noise = jr.split(jr.key(1), 3)
    batch = (options.batch_size, *shape)
    t = jr.uniform(key_t, (options.batch_size,))
    y, noise = jr.normal(key_y, batch), jr.normal(key_noise, batch)

    def one(state):
        values, static = eqx.partition(state.model, eqx.is_inexact_array)

        def loss_fn(values):
            network = eqx.combine(values, static).network
            return jnp.mean((jax.vmap(network)(t, y) - noise) ** 2)

        loss, gradient = jax.value_and_grad(loss_fn)(values)
        values, ema, opt_state = move(
            optimiser, gradient, values, state.ema, state.opt_state
        )
        model = eqx.combine(values, static)
        return eqmdm.TrainState(model, ema, opt_state, state.step + 1, state.key), loss

    return stepping(one, state, n_inner)


def stepping(one: Callable[[Any], tuple[Any, Any]], state: Any, n_inner: int):
    """A function that continues by `n_inner` steps per call, as `train_step` does."""

    @eqx.filter_jit(donate="all")
    def steps(state):
        if n_inner == 1:
            return one(state)
        dynamic, static = eqx.partition(state, eqx.is_array)

        def body(dynamic, _):
            state, found = one(eqx.combine(dynamic, static))
            return eqx.filter(state, eqx.is_array), found

        dynamic, found = jax.lax.scan(body, dynamic, None, length=n_inner)
        return eqx.combine(dynamic, static), found

    def call():
        nonlocal state
        state, found = steps(state)
        return found

    return call


def move(optimiser, gradient, values, ema, opt_state):
    """The parameters, averages and optimiser state after one update."""
    updates, opt_state = optimiser.update(gradient, opt_state, values)
    values = optax.apply_updates(values, updates)
    ema = jax.tree.map(lambda old, new: old + (1 - _DECAY) * (new - old), ema, values)
    return values, ema, opt_state


def make_full_step(model, dataset, options: ResolvedTrainOptions, n_inner: int):
    """A function that takes `n_inner` steps of `eqmdm.train_step`."""
    optimiser = eqmdm.make_optimiser(options.learning_rate)
    objective = build.build_objective(options, dataset)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(2))
    data = eqmdm.TrainingSet(dataset.train, objective)

    def call():
        nonlocal state
        state, metrics = eqmdm.train_step(
            state,
            data,
            objective,
            optimiser,
            batch_size=options.batch_size,
            n_inner=n_inner,
            ema_decay=_DECAY,
        )
        return metrics

    return call


class Scale(eqx.Module):
    """A network with one parameter and almost no cost."""

    scale: jax.Array

    def __call__(self, t, y):
        del t
        return self.scale * y


def repeated(part: Callable[..., Any], n_inner: int, *arguments: Any):
    """A function that runs a part for `n_inner` steps, numbered from 0.

    A part gets the number of its step, so that XLA cannot share work among steps.
    """

    @eqx.filter_jit
    def of_all(first, *arguments):
        if n_inner == 1:
            return part(first, *arguments)
        return jax.lax.map(lambda i: part(first + i, *arguments), jnp.arange(n_inner))

    return lambda: of_all(jnp.zeros((), jnp.int32), *arguments)


def make_parts(
    model: Any, dataset: Any, options: ResolvedTrainOptions, n_inner: int
) -> dict[str, Callable[[], Any]]:
    """All parts but the optimiser, for a model whose network costs nothing."""
    diffusion = model.diffusion
    objective = build.build_objective(options, dataset)
    optimiser = eqmdm.make_optimiser(options.learning_rate)
    state = eqmdm.TrainState.create(model, optimiser, key=jr.key(2))
    n_cut = max(1, options.batch_size // 16)
    n_path = options.batch_size - n_cut or options.batch_size

    def data(step, state, examples):
        state = eqx.tree_at(lambda state: state.step, state, step)
        examples = examples[_shuffled(state, len(examples), options.batch_size)]
        batch = _draw_batch(state, examples, objective, n_path)
        key_encode, keys = jnp.moveaxis(jax.vmap(jr.split)(batch.keys), 1, 0)

        def encode(example, key):
            return objective._encode(example, key, batch.u.dtype, check=False)

        return *jax.vmap(encode)(batch.examples, key_encode), keys, batch.u

    def kernels(step, diffusion, times):
        values, static = eqx.partition(diffusion, eqx.is_inexact_array)

        @jax.value_and_grad
        def laws(values):
            compute = eqx.combine(values, static).compute_kernel
            found = jax.vmap(compute)(times / (1 + 1e-3 * step))
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found))

        return laws(values)

    def score(step, model, kernel, x, noise, y):
        values, static = eqx.partition(model, eqx.is_inexact_array)

        @jax.value_and_grad
        def errors(values):
            whitened_error = eqx.combine(values, static).whitened_error
            arguments = kernel, x, (1 + 1e-3 * step) * noise, y
            return jnp.mean(jax.vmap(whitened_error)(*arguments) ** 2)

        return errors(values)

    def bound(step, model, x, keys, u):
        keys = jax.vmap(jr.fold_in, (0, None))(keys, step)
        values, static = eqx.partition(model, eqx.is_inexact_array)

        @jax.value_and_grad
        def total(values):
            model = eqx.combine(values, static)
            parts = objective._parts(model)
            found = compute_shared_elbo(model, x, u, n_cut, *parts, keys=keys)
            return found.total

        return total(values)

    draw_data = repeated(data, n_inner, state, jnp.asarray(dataset.train))
    drawn = draw_data()
    x, _, keys, u = drawn if n_inner == 1 else jax.tree.map(lambda v: v[0], drawn)
    times = jnp.linspace(diffusion.t0, diffusion.t1, len(x), dtype=x.dtype)
    kernel = jax.jit(jax.vmap(diffusion.compute_kernel))(times)
    noise = jr.normal(jr.key(3), (len(x), diffusion.n_vars, *x.shape[1:]), x.dtype)
    y = jax.jit(jax.vmap(type(kernel).perturb))(kernel, x, noise)
    return {
        "data": draw_data,
        "bound": repeated(bound, n_inner, model, x, keys, u),
        "kernels": repeated(kernels, n_inner, diffusion, times),
        "score": repeated(score, n_inner, model, kernel, x, noise, y),
    }


def make_optimiser_step(network: Any, options: ResolvedTrainOptions, n_inner: int):
    """A function that updates parameters and averages `n_inner` times."""
    optimiser = eqmdm.make_optimiser(options.learning_rate)
    values = eqx.filter(network, eqx.is_inexact_array)
    gradient = jax.tree.map(jnp.ones_like, values)
    state = jax.tree.map(jnp.copy, (values, values, optimiser.init(values), gradient))

    def one(state):
        *moved, gradient = state
        moved = move(optimiser, gradient, *moved)
        return (*moved, gradient), optax.tree.norm(moved[0])

    return stepping(one, state, n_inner)


class WholeStep:
    """Takes the next training step of a model, on normal data, when it is called."""

    def __init__(
        self,
        model: eqmdm.AbstractModel,
        data_shape: tuple[int, ...],
        batch_size: int,
        *,
        form: eqmdm.AbstractForm | None = None,
        key: jax.Array,
    ):
        key_data, key_step = jr.split(key)
        self.objective = eqmdm.Objective(form=form)
        x = jr.normal(key_data, (1024, *data_shape))
        self.data = eqmdm.TrainingSet(x, self.objective)
        self.optimiser = eqmdm.make_optimiser()
        self.state = eqmdm.TrainState.create(model, self.optimiser, key=key_step)
        self.batch_size = batch_size

    def __call__(self) -> None:
        self.state, metrics = eqmdm.train_step(
            self.state,
            self.data,
            self.objective,
            self.optimiser,
            batch_size=self.batch_size,
        )
        jax.block_until_ready(metrics)


def step_ratios(
    title: str, steps: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, dict[str, float]]:
    """The processor time of each step relative to that of the first, interleaved:
    the median and the quartiles of the ratios of neighbours.

    Other programs on the machine disturb processor seconds less than seconds.
    """
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for repeat in range(repeats + 1):
        for label, step in steps.items():
            start = time.process_time()
            step()
            # The first step compiles.
            if repeat > 0:
                seconds[label].append(time.process_time() - start)
    reference = np.array(seconds[next(iter(steps))])
    table = {}
    for label, values in seconds.items():
        low, middle, high = np.percentile(np.array(values) / reference, [25, 50, 75])
        table[label] = {"ratio": middle, "lower": low, "upper": high}
        print(
            f"{title:8} {label:26} {middle:.3f} ({low:.3f} to {high:.3f})", flush=True
        )
    return table
