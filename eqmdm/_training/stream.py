"""Batches of examples that are read from the host while training runs."""

import collections
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, final, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._core.checks import check_count
from .._core.conditions import as_conditions
from .._core.sharding import mesh_of, over_batch
from ..data._shuffle import shuffled_indices
from .examples import Batches, n_levels_of, order_key
from .objective import Objective
from .state import TrainState, check_state


@runtime_checkable
class ExampleSource(Protocol):
    """Examples on the host, such as a NumPy array or a memory-mapped file.

    Several threads index it with arrays of integers.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of examples, followed by the shape of one."""
        ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@final
class BatchStream(Iterator[Batches]):
    """An iterator over the batches of successive calls of [`eqmdm.train_step`][].

    The batches and their order are the same as for examples on the device. They depend
    only on the state's key and step, so a resumed run does not need the state of the
    stream. Threads read and validate batches in advance.

    If the state is on several devices, each receives its share of a batch, and a
    process only reads the shares of its own devices.

    !!! Example

        ```python
        with eqmdm.BatchStream(state, x, objective, batch_size=128) as batches:
            for batch in batches:
                state, metrics = eqmdm.train_step(
                    state, batch, objective, optimiser, batch_size=128
                )
        ```
    """

    def __init__(
        self,
        state: TrainState,
        examples: ExampleSource,
        objective: Objective,
        *,
        batch_size: int,
        condition: PyTree = None,
        n_inner: int = 1,
        n_ahead: int = 4,
        n_threads: int = 2,
    ):
        """**Arguments:**

        - `state`: the training state. The stream starts at its next step.
        - `examples`: the training examples: a NumPy array, a memory-mapped array, or
            any object with a `shape` that several threads can index with arrays of
            integers.
        - `objective`: the objective that the batches are validated for.
        - `batch_size`, `n_inner`: as for [`eqmdm.train_step`][].
        - `condition`: the conditions of a conditional model, one for each example, in
            memory.
        - `n_ahead`: the number of calls whose batches are read in advance.
        - `n_threads`: the number of reading threads.

        **Raises:**

        `ValueError` for counts below 1 or another number of conditions than of
        examples; on iteration, for a batch with grey levels out
        of range or points that are not finite.
        """
        check_state(state)
        counts = {"examples": examples.shape[0], "batch_size": batch_size}
        counts |= {"n_inner": n_inner, "n_ahead": n_ahead, "n_threads": n_threads}
        for name, count in counts.items():
            check_count(name, count)
        self._examples, self._objective = examples, objective
        # On the host, where the threads index it.
        condition = as_conditions(condition, examples.shape[0])
        self._condition = jax.tree.map(np.asarray, condition)
        self._key = order_key(jax.device_get(state.key))
        self._mesh = mesh_of(state)
        self._counts = n_inner, batch_size
        self._next_step = int(state.step)
        self._n_ahead = n_ahead
        self._threads = ThreadPoolExecutor(n_threads, "eqmdm-stream")
        self._pending: collections.deque[Future[Batches]] = collections.deque()

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads after their current reads."""
        self._threads.shutdown(cancel_futures=True)

    def __next__(self) -> Batches:
        while len(self._pending) < self._n_ahead:
            self._pending.append(self._threads.submit(self._read, self._next_step))
            self._next_step += self._counts[0]
        return self._pending.popleft().result()

    def _read(self, step: int) -> Batches:
        n_inner, batch_size = self._counts
        n, *shape = self._examples.shape
        start = jnp.asarray(step * batch_size, jnp.int32)
        indices = _shuffled(self._key, start, n_inner * batch_size, n)
        indices = np.asarray(indices).reshape(n_inner, batch_size)

        def read(where: Any) -> np.ndarray:
            chosen = indices[where[:2]]
            examples = np.asarray(self._examples[chosen.ravel()])
            self._objective.check(examples)
            return examples.reshape(*chosen.shape, *shape)

        examples = self._placed(read, (n_inner, batch_size, *shape))
        condition = jax.tree.map(
            lambda leaf: self._placed(
                lambda where: leaf[indices[where[:2]]],
                (*indices.shape, *leaf.shape[1:]),
            ),
            self._condition,
        )
        return Batches(examples, n_levels_of(self._objective), condition)

    def _placed(
        self, read: Callable[[Any], np.ndarray], shape: tuple[int, ...]
    ) -> jax.Array:
        """An array on the devices, of which each process only reads its own part."""
        if self._mesh is None:
            return jax.device_put(read((slice(None), slice(None))))
        sharding = over_batch(self._mesh, axis=1)
        return jax.make_array_from_callback(shape, sharding, read)


_shuffled = functools.partial(jax.jit, static_argnums=(2, 3))(shuffled_indices)
