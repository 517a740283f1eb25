"""The training step: one batch, one gradient, one update."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from .._bound.times import low_discrepancy
from .._core.checks import check_count
from .._core.conditions import missing_like
from .._core.sharding import divide_batch, gathering, mesh_of, placement
from ..data._augment import random_flip
from ..data._shuffle import shuffled_indices
from .examples import Batches, TrainingSet, order_key
from .objective import Examples, HostExamples, Objective, batch_loss, model_dtype
from .state import TrainState, check_state, update


# The key tags of the draws in a step. Each purpose has its own stream of keys.
_EXAMPLE, _TIME = 1, 2


def train_step(
    state: TrainState,
    data: Examples | HostExamples | TrainingSet | Batches,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    batch_size: int,
    n_inner: int = 1,
    ema_decay: float = 0.999,
    n_reconstruction: int | None = None,
) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
    r"""The state after `n_inner` steps, and the metrics of each.

    A step minimises minus the bound, averaged over a batch of examples. The network is
    evaluated once per example: for the reconstruction term in the first
    `n_reconstruction` examples, and for the diffusion term in the others, or in a share
    of them for a vector of log-SNRs, if the objective has these. The batch is
    in random order, so the gradient is unbiased. The parameters are averaged with the
    decay $\min(d, (1 + \mathrm{step}) / (10 + \mathrm{step}))$.

    **The buffers of `state` are donated**: only use the returned state.

    **Arguments:**

    - `state`: the training state. If [`eqmdm.distribute`][] has put it on several
        devices, each takes an equal share of the batch.
    - `data`: the training examples on the device: an [`eqmdm.TrainingSet`][], with the
        conditions of a conditional model, or a plain array, which is validated in each
        call. If they are too large for the device, the next item of an
        [`eqmdm.BatchStream`][].
    - `objective`, `optimiser`: must be the same throughout a run.
    - `batch_size`: the number of examples in a step. Their order depends only on the
        key, and each epoch contains every example once.
    - `n_inner`: the number of steps in this call. On a GPU ten steps per call hide the
        cost of dispatch; on a CPU one is fastest.
    - `ema_decay`: $d$.
    - `n_reconstruction`: the number of examples for the reconstruction term; by default
        a sixteenth of the batch. If it is the whole batch, each example is evaluated
        for both terms.

    **Returns:**

    The new state, and metrics with one entry for each step: `loss` in bits per
    dimension (nats for points); `reconstruction`, `prior`, `diffusion`, `auxiliary` and
    `correction` in nats, which add up to the log-likelihood bound; `vectors`, the
    loss at vectors of log-SNRs in nats, if the objective has them; and `grad_norm`
    before clipping.

    **Raises:**

    `TypeError` unless `state` is a training state; `ValueError` for a state that was
    used before, inconsistent counts, grey levels in `data` that are out of range, or
    points that are not finite. If `data` is traced, grey levels are checked at run time
    instead and raise `equinox.EquinoxRuntimeError`.
    """
    inputs = _inputs(
        state, data, objective, optimiser, batch_size, n_inner, n_reconstruction
    )
    # An array, because a Python float would be a constant of the program.
    return _train_steps((inputs, np.asarray(ema_decay, np.float32)), state)


def lower_step(
    state: TrainState, data: Any, objective: Objective, optimiser: Any, batch_size: int
) -> Any:
    """The lowered program of one `train_step`, for compiling and inspecting it.

    Inside another transformation the sharding of the state would be unknown.
    """
    inputs = _inputs(state, data, objective, optimiser, batch_size, 1, None)
    lowered: Any = _train_steps
    return lowered.lower((inputs, np.asarray(0.999, np.float32)), state)


def _inputs(
    state: TrainState,
    data: Any,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    batch_size: int,
    n_inner: int,
    n_reconstruction: int | None,
) -> "_Inputs":
    check_state(state)
    if n_reconstruction is None:
        n_reconstruction = max(1, batch_size // 16)
    mesh = mesh_of(state)
    _check_counts(batch_size, n_inner, n_reconstruction, mesh)
    is_traced = isinstance(data, Tracer)
    given = None if is_traced else _validated(data, objective, n_inner, batch_size)
    return _Inputs(
        examples=data if given is None else given.examples,
        condition=None if given is None else given.condition,
        are_batches=isinstance(given, Batches),
        objective=objective,
        optimiser=optimiser,
        batch_size=batch_size,
        n_inner=n_inner,
        n_reconstruction=n_reconstruction,
        check=is_traced,
        mesh=mesh,
        placement=None if mesh is None else placement(state),
    )


def _validated(
    data: Any, objective: Objective, n_inner: int, batch_size: int
) -> TrainingSet | Batches:
    if not isinstance(data, TrainingSet | Batches):
        return TrainingSet(data, objective)
    data.check_objective(objective)
    if isinstance(data, Batches) and data.examples.shape[:2] != (n_inner, batch_size):
        raise ValueError(
            "`data` must hold batches for `n_inner` steps of `batch_size`, "
            f"{n_inner} x {batch_size}; its shape is {list(data.examples.shape)}. Make "
            "the `BatchStream` with the same two values."
        )
    return data


def _check_counts(
    batch_size: int, n_inner: int, n_reconstruction: int, mesh: Mesh | None
) -> None:
    check_count("n_inner", n_inner)
    if not 1 <= n_reconstruction <= batch_size:
        raise ValueError(
            f"`n_reconstruction` must be between 1 and batch_size={batch_size}; got "
            f"{n_reconstruction}."
        )
    if mesh is not None and batch_size % mesh.size:
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices that the state "
            f"is distributed over, {mesh.size}; got {batch_size}. Change it, or use "
            "fewer devices."
        )


class _Inputs(NamedTuple):
    """The inputs of a call other than the state and the decay of the averages."""

    examples: Any
    condition: PyTree
    are_batches: bool
    objective: Objective
    optimiser: optax.GradientTransformation
    batch_size: int
    n_inner: int
    n_reconstruction: int
    check: bool
    mesh: Mesh | None
    placement: PyTree


# The first argument holds all inputs but the state. Its buffers are not donated.
@eqx.filter_jit(donate="all-except-first")
def _train_steps(kept: tuple[_Inputs, Any], state: TrainState):
    inputs, ema_decay = kept
    one_step = functools.partial(_one_step, inputs, ema_decay)
    batches = (inputs.examples, inputs.condition) if inputs.are_batches else None
    if inputs.n_inner == 1:
        state, metrics = one_step(state, _take(batches, 0))
        return state, jax.tree.map(lambda value: value[None], metrics)
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic, batch):
        state, metrics = one_step(eqx.combine(dynamic, static), batch)
        return eqx.filter(state, eqx.is_array), metrics

    dynamic, metrics = jax.lax.scan(body, dynamic, batches, length=inputs.n_inner)
    return eqx.combine(dynamic, static), metrics


def _one_step(
    inputs: _Inputs, ema_decay: Array, state: TrainState, given: PyTree
) -> tuple[TrainState, dict[str, Array]]:
    batch_size, n_reconstruction = inputs.batch_size, inputs.n_reconstruction
    if given is None:
        data = inputs.examples, inputs.condition
        given = _take(data, _shuffled(state, len(inputs.examples), batch_size))
    n_times = batch_size - n_reconstruction or batch_size
    examples, conditions = given
    vectors = inputs.objective.snr_vectors
    n_vectors = 0 if vectors is None else vectors.n_vectors(n_times)
    n_times -= n_vectors
    batch = _draw_batch(state, examples, inputs.objective, n_times, conditions)
    examples, keys, conditions = divide_batch(
        (batch.examples, batch.keys, batch.condition), inputs.mesh
    )
    trainable, static = eqx.partition(state.model, eqx.is_inexact_array)

    def loss_fn(trainable):
        return batch_loss(
            eqx.combine(trainable, static),
            inputs.objective,
            examples,
            keys,
            batch.u,
            n_reconstruction=n_reconstruction,
            n_vectors=n_vectors,
            conditions=conditions,
            check=inputs.check,
        )

    if inputs.placement is not None:
        # The averages have the sharding of the parameters.
        loss_fn = gathering(loss_fn, inputs.placement.ema)
    gradient, metrics = jax.grad(loss_fn, has_aux=True)(trainable)
    if inputs.placement is not None:
        gradient = eqx.filter_shard(gradient, inputs.placement.ema)
    state = update(state, gradient, inputs.optimiser, ema_decay)
    if inputs.placement is not None:
        state = eqx.filter_shard(state, inputs.placement)
    return state, metrics | {"grad_norm": optax.tree.norm(gradient)}


class _Batch(NamedTuple):
    examples: Array
    condition: PyTree
    keys: Array
    u: Array


def _take(tree: PyTree, indices: int | Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[indices], tree)


def _shuffled(state: TrainState, n: int, batch_size: int) -> Array:
    start = state.step * batch_size
    return shuffled_indices(order_key(state.key), start, batch_size, n)


def _draw_batch(
    state: TrainState,
    examples: Array,
    objective: Objective,
    n_times: int,
    condition: PyTree = None,
) -> _Batch:
    base = jr.wrap_key_data(state.key)
    # Keyed by the example's number in the stream, not by its position in the batch.
    numbers = state.step * len(examples) + jnp.arange(len(examples), dtype=jnp.int32)
    keys = jax.vmap(jr.fold_in, (None, 0))(jr.fold_in(base, _EXAMPLE), numbers)
    if condition is not None and objective.drop_condition > 0:
        condition = _dropped(condition, keys, objective.drop_condition)
    if objective.flip:
        flip = lambda x, key: random_flip(x, key=jr.fold_in(key, 0))
        examples = jax.vmap(flip)(examples, keys)
        keys = jax.vmap(jr.fold_in, (0, None))(keys, 1)
    key_time = jr.fold_in(jr.fold_in(base, _TIME), state.step)
    u = low_discrepancy(n_times, key=key_time).astype(model_dtype(state.model))
    return _Batch(examples, condition, keys, u)


def _dropped(condition: PyTree, keys: Array, probability: float) -> PyTree:
    """The conditions of a batch, some of which are replaced by the missing one."""

    def one(condition: PyTree, key: Array) -> PyTree:
        # Reflection uses the tags 0 and 1.
        drop = jr.bernoulli(jr.fold_in(key, 2), probability)
        choose = lambda given, missing: jnp.where(drop, missing, given)
        return jax.tree.map(choose, condition, missing_like(condition))

    return jax.vmap(one)(condition, keys)
