"""Training a network and its diffusion together: the state, the step, evaluation."""

import math
from collections.abc import Mapping
from typing import NamedTuple, cast, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree, Shaped, UInt32

from .._bound.times import low_discrepancy
from .._core.checks import check_count
from .._core.sharding import (
    divide_batch,
    gathering,
    kept,
    mesh_among,
    on_host,
    shardings,
)
from .._core.types import IntScalar, PRNGKey
from .._model.score import check_trained_range
from ..data._augment import random_flip
from ..data._shuffle import shuffled_indices
from .evaluate import Examples, Objective, batch_loss, make_score, model_dtype


# What a random draw is for; each purpose has its own stream of keys.
_ORDER, _EXAMPLE, _TIME = 0, 1, 2

Parameters = dict[str, Array]


def parameters(model: PyTree) -> Parameters:
    """The trainable leaves of a model, its inexact arrays, by their place in it."""
    leaves = jtu.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array))
    return {_name(path): leaf for path, leaf in leaves}


def with_parameters(model: PyTree, values: Mapping[str, Array]) -> PyTree:
    """`model` with the trainable leaves of `parameters` replaced."""
    return jtu.tree_map_with_path(
        lambda path, leaf: values[_name(path)] if eqx.is_inexact_array(leaf) else leaf,
        model,
    )


@final
class Batches(eqx.Module):
    """The examples that each step of one call of `train_step` takes."""

    examples: Shaped[Array, "steps batch *data"]


def order_key(key_data: UInt32[Array | np.ndarray, " words"]) -> PRNGKey:
    """Of the order of the examples, from the `key` of a state."""
    return jr.fold_in(jr.wrap_key_data(jnp.asarray(key_data)), _ORDER)


@final
class TrainState(eqx.Module):
    """All that training carries from step to step, each parameter held once.

    `model` is the pair (network or denoiser, diffusion). `ema` holds the averages of
    its trainable leaves by name, and `opt_state` is over those names too, so neither
    repeats what is not trained. `key` is the data of the base key, from which every
    draw is keyed by purpose, step and example.
    """

    model: PyTree
    ema: Parameters
    opt_state: PyTree
    step: IntScalar
    key: UInt32[Array, " words"]

    @classmethod
    def create(
        cls, model: PyTree, optimiser: optax.GradientTransformation, *, key: PRNGKey
    ) -> "TrainState":
        """The state before the first step.

        Arrays are copied: steps donate their buffers, which must not be the caller's.

        **Raises:** `ValueError` for a `key` that is not of JAX's default generator, or
        a diffusion that ends below the range of its denoiser.
        """
        _check_pair(model)
        if jr.key_data(key).shape != jr.key_data(jr.key(0)).shape:
            raise ValueError(
                "`key` must be of JAX's default generator, from which steps draw; got "
                f"one of {jr.key_impl(key)}. Set `jax_default_prng_impl` to have "
                "another."
            )
        model = jax.tree.map(lambda x: jnp.copy(x) if eqx.is_array(x) else x, model)
        values = parameters(model)
        return cls(
            model=model,
            ema=jax.tree.map(jnp.copy, values),
            opt_state=jax.tree.map(jnp.copy, optimiser.init(values)),
            step=jnp.zeros((), jnp.int32),
            key=jnp.copy(jr.key_data(key)),
        )

    @property
    def ema_model(self) -> PyTree:
        """`model` with its parameters averaged."""
        return with_parameters(self.model, self.ema)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the state by its place in it, on the host."""
        return on_host(named_arrays(self))

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> "TrainState":
        """A state of the same structure with the values that `arrays` returned.

        **Raises:**

        `ValueError` if the names, shapes or dtypes are not those of this state.
        """
        return fill(self, arrays)


def _check_pair(model: PyTree) -> None:
    if isinstance(model, tuple) and len(model) == 2:
        network, diffusion = model
        check_trained_range(make_score(network, diffusion), diffusion, jnp.zeros(()))


def named_arrays(tree: PyTree) -> dict[str, Array]:
    """Every array of a tree by its place in it."""
    leaves = jtu.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {_name(path): leaf for path, leaf in leaves}


def fill(tree: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """`tree` with the values of its arrays replaced, by their places in it.

    **Raises:**

    `ValueError` if the names, shapes or dtypes are not those of the tree.
    """
    own = {name: (leaf.shape, leaf.dtype) for name, leaf in named_arrays(tree).items()}
    given = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name in [*own, *given]:
        if own.get(name) != given.get(name):
            show = lambda entry: f"{entry[1]}{list(entry[0])}" if entry else "missing"
            raise ValueError(
                f"`arrays` must have the structure of the tree that they fill; {name} "
                f"is {show(given.get(name))} in them and {show(own.get(name))} in the "
                "tree. Build it with the options that the arrays were saved under."
            )
    return jtu.tree_map_with_path(
        lambda path, leaf: (
            # A copy: JAX may share memory with NumPy, and training donates buffers.
            jnp.array(arrays[_name(path)]) if eqx.is_array(leaf) else leaf
        ),
        tree,
    )


def _name(path: tuple) -> str:
    return jtu.keystr(path).removeprefix(".")


def make_optimiser(
    learning_rate: float = 2e-4,
    *,
    diffusion_learning_rate: float | None = None,
    clip: float = 1.0,
    warmup: int = 0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Adam over the parameters of a pair, with a learning rate for each of the two.

    **Arguments:**

    - `learning_rate`: of the network, reached after `warmup` updates.
    - `diffusion_learning_rate`: of the diffusion; by default as the network's.
    - `clip`: the gradients of both together are scaled down to at most this norm.
    - `accumulate`: steps whose gradients are averaged into one update.
    """
    if diffusion_learning_rate is None:
        diffusion_learning_rate = learning_rate
    rates = {"learning_rate": learning_rate}
    rates |= {"diffusion_learning_rate": diffusion_learning_rate, "clip": clip}
    for name, value in rates.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be positive and finite; got {value}.")
    check_count("accumulate", accumulate)
    check_count("warmup", warmup, least=0)

    def adam(rate):
        if warmup:
            # The update of step 0 moves too.
            rate = optax.linear_schedule(rate / warmup, rate, warmup - 1 or 1)
        return optax.adam(rate)

    def labels(values: Parameters) -> dict[str, str]:
        of = lambda name: "network" if name.startswith("[0]") else "diffusion"
        return {name: of(name) for name in values}

    rule = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.partition(
            {
                "network": adam(learning_rate),
                "diffusion": adam(diffusion_learning_rate),
            },
            labels,
        ),
    )
    if accumulate == 1:
        return rule
    return optax.MultiSteps(rule, accumulate).gradient_transformation()


def steps_per_call(backend: str | None = None) -> int:
    """How many steps one call of `train_step` should take, at most.

    On a CPU one: XLA runs the reverse-mode derivatives of convolutions about twenty
    times slower inside a compiled loop. Elsewhere a loop hides the cost of dispatch.
    """
    return 1 if (backend or jax.default_backend()) == "cpu" else 10


def train_step(
    state: TrainState,
    data: Examples | Batches,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    batch_size: int,
    n_inner: int = 1,
    ema_decay: float = 0.999,
    n_reconstruction: int | None = None,
) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
    r"""The state after `n_inner` steps, and what was measured in each.

    A step minimises minus the bound, averaged over a batch of examples. The network is
    evaluated once for each: for the reconstruction term in the first `n_reconstruction`
    of them and for the diffusion term in the others. The batch is in random order, so
    the gradient stays unbiased. The average of the parameters moves by
    $\min(d, (1 + \mathrm{step}) / (10 + \mathrm{step}))$.

    **The buffers of `state` are donated**: only the returned state can be used after.

    **Arguments:**

    - `state`: where [`eqmdm.distribute`][] has put it on several devices, each takes
        an equal share of the batch.
    - `data`: the training split, on the device; on all of them if there are several.
        Where it is too large for that, what [`eqmdm.BatchStream`][] gives for this
        call.
    - `objective`, `optimiser`: fixed over the run.
    - `batch_size`: examples in a step; steps take them in an order that depends only on
        the key and goes through all of `data` once an epoch.
    - `n_inner`: steps in this call; see `steps_per_call`.
    - `ema_decay`: $d$.
    - `n_reconstruction`: by default a sixteenth of the batch. With all of it, each
        example is evaluated for both terms.

    **Returns:**

    Beside the state, arrays over the steps: `loss` in bits per dimension (nats for
    points); `reconstruction`, `prior`, `diffusion`, `auxiliary` and `correction` in
    nats, which add up to the log-likelihood bound; `grad_norm` before clipping.

    **Raises:**

    `ValueError` for counts that do not fit, or grey levels in `data` that are out of
    range, or points that are not finite: an array is looked at when it is first given.
    Grey levels in batches of a stream are checked in the step, unless their dtype holds
    no others, and raise `equinox.EquinoxRuntimeError`.
    """
    if n_reconstruction is None:
        n_reconstruction = max(1, batch_size // 16)
    if not 1 <= n_reconstruction <= batch_size:
        raise ValueError(
            f"`n_reconstruction` must be between 1 and batch_size={batch_size}; got "
            f"{n_reconstruction}."
        )
    check_count("n_inner", n_inner)
    if isinstance(data, Batches) and data.examples.shape[:2] != (n_inner, batch_size):
        raise ValueError(
            "`data` must hold batches for `n_inner` steps of `batch_size`, "
            f"{n_inner} x {batch_size}; its shape is {list(data.examples.shape)}. Make "
            "the `BatchStream` with the same two."
        )
    where = shardings(state)
    mesh = mesh_among(where)
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices that the state "
            f"is distributed over, {mesh.size}; got {batch_size}. Change it, or use "
            "fewer devices."
        )
    # What is new in every call, or not known yet, is left to the step.
    check = isinstance(data, Batches | Tracer)
    if not check:
        objective.check(data)
    settings = (batch_size, n_inner, n_reconstruction, check, mesh, where)
    decay = jnp.asarray(ema_decay, jnp.float32)
    return _train_steps((data, objective, optimiser, decay, settings), state)


@eqx.filter_jit(donate="all-except-first")
def _train_steps(constants, state):
    data, objective, optimiser, ema_decay, settings = constants
    batch_size, n_inner, n_reconstruction, check, mesh, where = settings
    where_parameters = _of_parameters(where, state)

    def one(state, examples):
        n_times = batch_size - n_reconstruction or batch_size
        if examples is None:
            examples = _shuffled(state, data, batch_size)
        batch = _draw_batch(state, examples, objective, n_times)
        examples, keys = divide_batch((batch.examples, batch.keys), mesh)
        batch = _Batch(examples, keys, batch.u)
        state, metrics = _update(
            state,
            objective,
            optimiser,
            batch,
            where_parameters,
            n_reconstruction,
            check,
            ema_decay,
        )
        return kept(state, where), metrics

    given = data.examples if isinstance(data, Batches) else None
    if n_inner == 1:
        state, metrics = one(state, None if given is None else given[0])
        return state, jax.tree.map(lambda value: value[None], metrics)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic, examples):
        state, metrics = one(eqx.combine(dynamic, static), examples)
        return eqx.filter(state, eqx.is_array), metrics

    dynamic, metrics = jax.lax.scan(body, dynamic, given, length=n_inner)
    return eqx.combine(dynamic, static), metrics


def _of_parameters(where, state) -> tuple:
    """Of the places of all leaves of `state`, those of its parameters."""
    numbers = jax.tree.unflatten(jax.tree.structure(state), range(len(where)))
    trained = jax.tree.map(
        lambda leaf, number: number if eqx.is_inexact_array(leaf) else None,
        state.model,
        numbers.model,
    )
    named = {_name(path): n for path, n in jtu.tree_leaves_with_path(trained)}
    return tuple(where[number] for number in jax.tree.leaves(named))


class _Batch(NamedTuple):
    examples: Array
    keys: Array
    u: Array


def _shuffled(state, data, batch_size) -> Array:
    start = state.step * batch_size
    return data[shuffled_indices(order_key(state.key), start, batch_size, len(data))]


def _draw_batch(state, examples, objective, n_times) -> _Batch:
    base = jr.wrap_key_data(state.key)
    # Keyed by the example's number in the stream, not by its place in the batch.
    numbers = state.step * len(examples) + jnp.arange(len(examples), dtype=jnp.int32)
    keys = jax.vmap(jr.fold_in, (None, 0))(jr.fold_in(base, _EXAMPLE), numbers)
    if objective.flip:
        flip = lambda x, key: random_flip(x, key=jr.fold_in(key, 0))
        examples = jax.vmap(flip)(examples, keys)
        keys = jax.vmap(jr.fold_in, (0, None))(keys, 1)
    key_time = jr.fold_in(jr.fold_in(base, _TIME), state.step)
    u = low_discrepancy(n_times, key=key_time).astype(model_dtype(state.model))
    return _Batch(examples, keys, u)


def _update(
    state, objective, optimiser, batch, where, n_reconstruction, check, ema_decay
):
    values = parameters(state.model)

    def loss_fn(values):
        model = with_parameters(state.model, values)
        return batch_loss(
            model, objective, *batch, n_reconstruction=n_reconstruction, check=check
        )

    gradient_fn = jax.value_and_grad(gathering(loss_fn, where), has_aux=True)
    (_, metrics), gradient = gradient_fn(values)
    gradient = kept(gradient, where)
    # Optax mixes counts and floats, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimiser.update(gradient, state.opt_state, values)
        values = cast(Parameters, optax.apply_updates(values, updates))
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
    ema = jax.tree.map(
        lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
        state.ema,
        values,
    )
    model = with_parameters(state.model, values)
    state = TrainState(model, ema, opt_state, state.step + 1, state.key)
    return state, metrics | {"grad_norm": optax.tree.norm(gradient)}
