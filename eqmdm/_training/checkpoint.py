"""Checkpoints, written and read by Orbax as arrays named by their key paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._core.array_file import arrays_digest
from .._model.base import AbstractModel
from .state import TrainState


def named_arrays(tree: PyTree) -> dict[str, Array]:
    """The arrays of a tree, named by their key paths, such as `model.network.bias`."""
    leaves = jtu.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {_name(path): leaf for path, leaf in leaves}


def fill(tree: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """`tree` with the values of its arrays replaced by those of the same key path.

    **Raises:**

    `ValueError` unless names, shapes and dtypes match those of the tree.
    """
    own = {name: (leaf.shape, leaf.dtype) for name, leaf in named_arrays(tree).items()}
    given = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name in [*own, *given]:
        if own.get(name) != given.get(name):
            show = lambda entry: f"{entry[1]}{list(entry[0])}" if entry else "missing"
            raise ValueError(
                f"The checkpoint must have the arrays of the model; {name} is "
                f"{show(given.get(name))} in the checkpoint and {show(own.get(name))} "
                "in the model. Build the model with the options that the run was "
                "started with."
            )
    return jtu.tree_map_with_path(
        lambda path, leaf: (
            # Copy: JAX may share memory with NumPy, and training donates buffers.
            jnp.array(arrays[_name(path)]) if eqx.is_array(leaf) else leaf
        ),
        tree,
    )


class Restored(NamedTuple):
    """One checkpoint, and the reasons why newer ones could not be read.

    - `step`: the step at which it was saved.
    - `arrays`: the arrays of the training state, named by their key paths.
    - `skipped`: the reasons, by the step of each newer checkpoint.
    """

    step: int
    arrays: dict[str, np.ndarray]
    skipped: dict[int, str]

    def state(self, like: TrainState) -> TrainState:
        """The training state, with the structure of `like`.

        **Raises:** `ValueError` if it was saved with another structure.
        """
        return fill(like, self.arrays)

    def model(self, like: AbstractModel, *, ema: bool = True) -> AbstractModel:
        """The model, with the structure of `like`.

        **Arguments:**

        - `ema`: whether to use the averaged parameters or the latest ones.

        **Raises:** `ValueError` if it was saved with another structure.
        """
        arrays = self._below("model.")
        return fill(like, arrays | self._below("ema.") if ema else arrays)

    def _below(self, start: str) -> dict[str, np.ndarray]:
        return {
            name.removeprefix(start): array
            for name, array in self.arrays.items()
            if name.startswith(start)
        }


class Checkpoints:
    """The checkpoints in one directory, each with a digest of its arrays."""

    def __init__(self, directory: Path, *, n_latest: int):
        self.directory = directory
        self._n_latest = n_latest
        # An Orbax `CheckpointManager`, created on first use.
        self._open_manager: Any = None

    @property
    def steps(self) -> list[int]:
        """The steps with a checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        # Orbax gives an unfinished checkpoint a longer name.
        names = [path.name for path in self.directory.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def write(self, step: int, tree: PyTree, *, loss: float | None) -> None:
        """Writes the arrays of a tree, then deletes old checkpoints.

        **Raises:**

        `OSError` or `ValueError`, from Orbax and TensorStore.
        """
        import orbax.checkpoint as ocp

        arrays = named_arrays(tree)
        meta = {"digest": arrays_digest(arrays)}
        # NumPy arrays are stored without the device layout of this machine.
        arrays = {
            name: np.asarray(array) if array.is_fully_addressable else array
            for name, array in arrays.items()
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
        )
        metrics = None if loss is None else {"loss": float(loss)}
        self._manager.save(step, args=args, metrics=metrics)

    def read(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of one checkpoint, named by their key paths.

        **Raises:**

        `ValueError` if they differ from the saved ones; many kinds of exceptions if
        files are missing or damaged.
        """
        import orbax.checkpoint as ocp

        # Not `StandardRestore`, which needs the devices that the arrays were saved on.
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
        )
        directory = self.directory / str(step)
        with ocp.Checkpointer(handler) as checkpointer:
            names = checkpointer.metadata(directory).item_metadata["state"].tree
            kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            args = ocp.args.Composite(
                state=ocp.args.PyTreeRestore(restore_args=kinds),
                meta=ocp.args.JsonRestore(),
            )
            restored = checkpointer.restore(directory, args=args)
        arrays = dict(restored.state)
        if arrays_digest(arrays) != restored.meta["digest"]:
            raise ValueError("the arrays differ from those that were saved")
        return arrays

    def close(self) -> None:
        """Closes Orbax's manager, if it was used."""
        if self._open_manager is not None:
            self._open_manager.close()
            self._open_manager = None

    @property
    def _manager(self) -> Any:
        # Orbax is imported on use: its import takes a third as long as JAX's, and most
        # programs that import this package do not save or load anything.
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        if self._open_manager is None:
            policy = checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(self._n_latest),
                    checkpoint_managers.BestN(
                        get_metric_fn=lambda metrics: metrics["loss"],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            )
            self._open_manager = ocp.CheckpointManager(self.directory, options=options)
        return self._open_manager


def _name(path: tuple) -> str:
    return jtu.keystr(path).removeprefix(".")
