"""Sharding of batches and parameters over devices.

There is one code path for any number of devices. Functions that take a batch use the
mesh of the model, and XLA inserts the communication.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


_BATCH = "batch"
# In elements. Smaller arrays, such as biases and scales, are not worth a message each.
_LEAST_SHARED = 2**12


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh of devices, by default all, for dividing batches.

    With several processes (`jax.distributed`), the default is the devices of all
    processes.
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), (_BATCH,))


def distribute(tree: PyTree, mesh: Mesh, *, shard_parameters: bool = False) -> PyTree:
    """`tree`, a model or a training state, with its arrays on the devices of `mesh`.

    [`eqmdm.train_step`][], [`eqmdm.evaluate`][] and [`eqmdm.sample`][] then divide
    their batches over these devices. The results are those of one device up to the
    rounding of sums. If the mesh covers several processes, all of them make this and
    the following calls with the same values.

    **Arguments:**

    - `mesh`: the mesh, from [`eqmdm.device_mesh`][].
    - `shard_parameters`: whether each device stores only a share of each large array,
        which is gathered for use (fully sharded data parallelism). It saves memory and
        costs communication. An array is divided along its longest axis that is a
        multiple of the number of devices.
    """

    def place(leaf):
        if not eqx.is_array(leaf):
            return leaf
        spec = _spec(leaf.shape, mesh.size) if shard_parameters else PartitionSpec()
        return _placed(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh on which `distribute` has put a tree, or `None`."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            mesh = getattr(leaf.sharding, "mesh", None)
            if isinstance(mesh, Mesh) and mesh.axis_names == (_BATCH,):
                return mesh
    return None


def placement(tree: PyTree) -> PyTree:
    """The sharding of each array of a tree on a mesh, and `None` for other leaves."""
    return jax.tree.map(lambda leaf: leaf.sharding, eqx.filter(tree, eqx.is_array))


def divide_batch(batch: PyTree, mesh: Mesh | None) -> PyTree:
    """`batch` with an equal share of its first axis on each device of `mesh`.

    Results that `jax.vmap` computes from it, such as [`eqmdm.log_likelihood`][] of each
    example, are divided in the same way. The batch may be traced. Arrays are unchanged
    if there is no mesh or if they cannot be divided evenly.
    """

    def divide(leaf):
        if mesh is None or len(leaf) % mesh.size:
            return leaf
        sharding = over_batch(mesh)
        if isinstance(leaf, Tracer):
            return jax.lax.with_sharding_constraint(leaf, sharding)
        return _placed(leaf, sharding)

    return jax.tree.map(divide, batch)


def on_host(tree: PyTree) -> PyTree:
    """`tree` with its arrays as whole NumPy arrays, in every process.

    If they are on devices of several processes, all processes must call this.
    """

    def fetch(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(fetch, tree)


def over_batch(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """An equal share of `axis` on each device."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, _BATCH))


def gathering(fn: Callable[[PyTree], Any], placement: PyTree) -> Callable[..., Any]:
    """`fn`, under a trace, applied to whole arrays where `placement` divides them.

    The arrays are gathered on every device before `fn` and again for its gradient,
    which is summed over the batch, rather than stored in between. Given shares, XLA
    would divide the products in `fn` along channels and move activations.
    """
    places, structure = jax.tree.flatten(placement)
    if all(place.is_fully_replicated for place in places):
        return fn
    whole = [NamedSharding(place.mesh, PartitionSpec()) for place in places]
    everywhere = jax.tree.unflatten(structure, whole)
    keep = lambda primitive, *_, **__: primitive.name != "sharding_constraint"
    return jax.checkpoint(
        lambda tree: fn(eqx.filter_shard(tree, everywhere)), policy=keep
    )


def _placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        # Copy an array that stays on its device, because training donates its buffers.
        return jax.device_put(leaf, sharding, may_alias=False)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _placed(jr.key_data(leaf), sharding)
        return jr.wrap_key_data(data, impl=jr.key_impl(leaf))
    values = on_host(leaf)
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index]
    )


def _spec(shape: tuple[int, ...], n_devices: int) -> PartitionSpec:
    axes = [axis for axis, size in enumerate(shape) if size % n_devices == 0]
    if not axes or np.prod(shape) < _LEAST_SHARED:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, _BATCH)
