"""Batches for training out of examples that are not in the devices' memory."""

import collections
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, final, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from .._core.checks import check_count, check_finite
from .._core.sharding import mesh_of, over_batch
from ..data._shuffle import shuffled_indices
from .train import Batches, TrainState, order_key


@runtime_checkable
class ExampleSource(Protocol):
    """Examples on the host: a NumPy array, one mapped from a file, or the like.

    It is indexed from several threads, by an array of integers.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of examples, and the shape of one."""
        ...

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@final
class BatchStream(Iterator[Batches]):
    """The batches of each call of [`eqmdm.train_step`][], in turn, from the host.

    They are those that a step would take from the same examples on the device, in the
    same order, so a run that resumes goes on with the batch that it would have come to:
    nothing of a stream needs to be saved. Threads read ahead.

    Where the state lies on several devices, each is sent its share of a batch, and a
    process reads only the shares of its own devices.

    !!! Example

        ```python
        with eqmdm.BatchStream(state, examples, batch_size=128) as batches:
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
        *,
        batch_size: int,
        n_inner: int = 1,
        n_ahead: int = 4,
        n_threads: int = 2,
    ):
        """**Arguments:**

        - `state`: where training is; the stream begins with its next step.
        - `examples`: the training split.
        - `batch_size`, `n_inner`: as for [`eqmdm.train_step`][].
        - `n_ahead`: calls whose batches are read before they are asked for.
        - `n_threads`: that read.

        **Raises:**

        `ValueError` for counts below 1; when a batch is asked for that holds points
        that are not finite, too.
        """
        counts = {"examples": examples.shape[0], "batch_size": batch_size}
        counts |= {"n_inner": n_inner, "n_ahead": n_ahead, "n_threads": n_threads}
        for name, count in counts.items():
            check_count(name, count)
        self._examples = examples
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
        """End the threads, once they have read what they are at."""
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
            check_finite("examples", examples)
            return examples.reshape(*chosen.shape, *shape)

        if self._mesh is None:
            return Batches(jnp.asarray(read((slice(None), slice(None)))))
        sharding = over_batch(self._mesh, axis=1)
        whole = (n_inner, batch_size, *shape)
        return Batches(jax.make_array_from_callback(whole, sharding, read))


_shuffled = functools.partial(jax.jit, static_argnums=(2, 3))(shuffled_indices)
