"""Saving runs and loading them: Orbax for the arrays, JSON for everything else."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._core.files import to_json, write_json
from .._core.sharding import on_host
from .evaluate import make_score
from .structure import describe, rebuild
from .train import TrainState, fill, named_arrays


_OPTIONS, _MODEL, _CHECKPOINTS = "options.json", "model.json", "checkpoints"
_LOCK = ".lock"


class Restored(NamedTuple):
    """One checkpoint, and what was wrong with newer ones that could not be read.

    `arrays` are those of the training state, by name; `structure` describes its model.
    """

    step: int
    arrays: dict[str, np.ndarray]
    structure: Any
    skipped: dict[int, str]


class Run:
    """A directory that holds a run: its options, its model's structure, checkpoints.

    A checkpoint is written beside the others and renamed once it is complete, so a
    full disk or a killed process leaves the previous ones as they were. Each carries a
    digest of its arrays, so a damaged one is noticed rather than loaded.

    Where several processes train together, each calls `save` and `restore`, in which
    they wait for one another, on a file system that all of them see. Each writes the
    shares of the arrays that it holds. One of them calls the other methods.
    """

    def __init__(self, run_dir: str | os.PathLike, *, n_latest: int = 2):
        """**Arguments:**

        - `run_dir`: the directory; made by the first save if it does not exist.
        - `n_latest`: how many of the newest checkpoints are kept, besides the best.
        """
        self.run_dir = Path(run_dir).absolute()
        self._n_latest = n_latest
        # An Orbax `CheckpointManager` and a `filelock.FileLock` once they are in use.
        self._open_manager: Any = None
        self._held: Any = None

    @property
    def exists(self) -> bool:
        """Whether the directory holds anything already, but for the lock."""
        return self.run_dir.is_dir() and any(
            path.name != _LOCK for path in self.run_dir.iterdir()
        )

    def lock(self) -> None:
        """Keep other processes from writing to the run until `close`.

        The operating system lets the lock go when the process ends, however that
        happens. The directory is made if it does not exist.

        **Raises:**

        `ValueError` if another process holds it; `OSError` if the directory cannot be
        written to.
        """
        import filelock

        lock = filelock.FileLock(self.run_dir / _LOCK, blocking=False)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            # The lock of an earlier process can be opened even then.
            if not os.access(self.run_dir, os.W_OK | os.X_OK):
                raise PermissionError("permission denied")
            lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(
                "`run_dir` must not be in use by another process; one is writing to "
                f"{self.run_dir}. Wait for it to end, or choose another directory."
            ) from error
        except OSError as error:
            raise OSError(
                f"`run_dir` must be a directory that can be written to; {self.run_dir} "
                f"is not ({error}). Choose another directory."
            ) from error
        self._held = lock

    @property
    def steps(self) -> list[int]:
        """The steps with a checkpoint, oldest first."""
        directory = self.run_dir / _CHECKPOINTS
        if not directory.is_dir():
            return []
        # What Orbax has not finished has a longer name.
        return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())

    def start(self, options: dict[str, Any], facts: dict[str, Any], model: Any) -> None:
        """Write down what the run uses, before its first step.

        **Arguments:**

        - `options`: what the user chose; compared when the run is resumed.
        - `facts`: what else was used (versions, device, data fingerprint, command).
        - `model`: the pair (network or denoiser, diffusion).
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / _OPTIONS, {"options": options, **facts})
        write_json(self.run_dir / _MODEL, _description(model))

    def read_options(self) -> dict[str, Any]:
        """What `start` wrote: the options under `"options"`, and the facts."""
        path = self.run_dir / _OPTIONS
        if not path.is_file():
            raise ValueError(
                f"`run_dir` must be the directory of a run; {self.run_dir} has no "
                f"{_OPTIONS}. Start the run without `--resume`, or check the path."
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        # Numbers and brackets without end raise the last.
        except (ValueError, RecursionError) as error:
            raise ValueError(_not_options(path, str(error))) from error
        if not isinstance(found, dict) or not isinstance(found.get("options"), dict):
            raise ValueError(_not_options(path, "it holds no options"))
        return found

    def check_options(
        self, options: Mapping[str, Any], *, may_differ: tuple[str, ...] = ()
    ) -> None:
        """Compare options with those that the run was started with.

        **Raises:**

        `ValueError`, naming the first field that differs and both its values.
        """
        stored = self.read_options()["options"]
        given = json.loads(to_json(options))
        for field in dict.fromkeys([*stored, *given]):
            old, new = stored.get(field), given.get(field)
            if old != new and field not in may_differ:
                raise ValueError(
                    f"`{field}` must be {old!r}, as when the run in {self.run_dir} was "
                    f"started; got {new!r}. Resume with {field}={old!r}, or start "
                    "another run in a new `run_dir`."
                )

    def save(self, state: TrainState, *, loss: float | None = None) -> None:
        """Write a checkpoint of `state`, and drop the old ones that are not kept.

        **Arguments:**

        - `state`: the training state.
        - `loss`: the validation loss; the checkpoint with the lowest is kept.

        **Raises:**

        `OSError` if the checkpoint cannot be written; those before it are intact.
        """
        import orbax.checkpoint as ocp

        step, arrays = int(state.step), named_arrays(state)
        meta = {
            "structure": _description(state.model),
            "digest": _digest(arrays),
        }
        # NumPy arrays are written without the layout of this machine's devices.
        arrays = {
            name: np.asarray(array) if array.is_fully_addressable else array
            for name, array in arrays.items()
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)
        )
        metrics = None if loss is None else {"loss": float(loss)}
        try:
            self._manager.save(step, args=args, metrics=metrics)
        # TensorStore reports a full disk as a ValueError.
        except (OSError, ValueError) as error:
            before = [s for s in self.steps if s != step]
            # What follows is how the array is laid out, over a thousand characters.
            reason, _, _ = str(error).partition(" [tensorstore_spec")
            raise OSError(
                f"The checkpoint of step {step} could not be written to {self.run_dir} "
                f"({reason}). "
                + (f"Those of steps {before} are intact. " if before else "")
                + "Free some space and resume the run."
            ) from error

    def restore(self) -> Restored:
        """The newest checkpoint that can be read.

        **Raises:**

        `ValueError` if the run has no checkpoint, or none that can be read.
        """
        skipped: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                arrays, meta = self._read(step)
            # Damage shows as any of these in Orbax, TensorStore and JSON.
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = str(error).splitlines() or [""]
                skipped[step] = f"{type(error).__name__}: {reason[0][:200]}"
                continue
            return Restored(step, arrays, meta["structure"], skipped)
        found = "; ".join(f"step {step}: {why}" for step, why in skipped.items())
        raise ValueError(
            f"`run_dir` must hold a checkpoint that can be read; {self.run_dir} has "
            f"{'only damaged ones (' + found + ')' if skipped else 'none'}. "
            "Start the run anew in an empty directory."
        )

    def discard(self, steps: Mapping[int, str]) -> None:
        """Move checkpoints that could not be read out of the way, so that a resumed
        run can write theirs again."""
        for step in steps:
            old = self.run_dir / _CHECKPOINTS / str(step)
            new = self.run_dir / f"damaged-{step}"
            for n in range(2, 1000):
                if not new.exists():
                    break
                new = self.run_dir / f"damaged-{step}-{n}"
            old.rename(new)

    def close(self) -> None:
        """Let go of what `save` and `lock` hold."""
        if self._open_manager is not None:
            self._open_manager.close()
            self._open_manager = None
        if self._held is not None:
            self._held.release()
            self._held = None

    @property
    def _manager(self) -> Any:
        # Orbax is imported where it is used: it takes a third as long as JAX, and most
        # programs that import this package save and load nothing.
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
            directory = self.run_dir / _CHECKPOINTS
            self._open_manager = ocp.CheckpointManager(directory, options=options)
        return self._open_manager

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        import orbax.checkpoint as ocp

        directory = self.run_dir / _CHECKPOINTS / str(step)
        # Not `StandardRestore`, which wants the devices that the arrays were saved on.
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
        )
        with ocp.Checkpointer(handler) as checkpointer:
            names = checkpointer.metadata(directory).item_metadata["state"].tree
            kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            args = ocp.args.Composite(
                state=ocp.args.PyTreeRestore(restore_args=kinds),
                meta=ocp.args.JsonRestore(),
            )
            restored = checkpointer.restore(directory, args=args)
        arrays, meta = dict(restored.state), dict(restored.meta)
        if _digest(arrays) != meta["digest"]:
            raise ValueError("the arrays differ from those that were saved")
        return arrays, meta


def load(run_dir: str | os.PathLike, *, ema: bool = True, like: Any = None) -> Any:
    """The score and the diffusion of a trained run, ready for inference.

    **Arguments:**

    - `run_dir`: the directory that a training run wrote.
    - `ema`: whether to take the averaged parameters or the last ones.
    - `like`: a pair (network or denoiser, diffusion) of the structure that was
        trained, needed only where the run holds classes from outside this package.

    **Returns:**

    The pair (score, diffusion).

    **Raises:**

    `ValueError` if there is no run, no readable checkpoint, or another structure. A
    damaged checkpoint is skipped with a warning that says which one is loaded instead.
    """
    run = Run(run_dir)
    run.read_options()
    restored = run.restore()
    for step, reason in restored.skipped.items():
        warnings.warn(
            f"The checkpoint of step {step} in {run.run_dir} cannot be read "
            f"({reason}); that of step {restored.step} is loaded instead.",
            stacklevel=2,
        )
    model = restored_model(restored, ema=ema, like=like)
    return make_score(*model), model[1]


def resumed_state(state: TrainState, restored: Restored) -> TrainState:
    """`state`, fresh from the run's options, with the values of a checkpoint."""
    return state.with_arrays(restored.arrays)


def restored_model(restored: Restored, *, ema: bool = False, like: Any = None) -> Any:
    """The pair (network or denoiser, diffusion) of a checkpoint."""
    arrays = _section(restored.arrays, "model")
    if ema:
        arrays |= _section(restored.arrays, "ema")
    if like is not None:
        return fill(like, arrays)
    if "foreign" in restored.structure:
        raise ValueError(
            f"`like` must be given for this run: {restored.structure['foreign']} Pass "
            "a pair (network or denoiser, diffusion) of the structure that was trained."
        )
    return rebuild(restored.structure, arrays)


def _not_options(path: Path, reason: str) -> str:
    return (
        f"`run_dir` must hold the options that a run was started with; {path} cannot "
        f"be read ({reason}). Copy the file again, or start the run anew."
    )


def _description(model: Any) -> Any:
    try:
        return describe(model)
    except TypeError as error:
        return {"foreign": str(error)}


def _section(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    if name == "ema":
        # A dictionary over the model's names: "ema['[0].weight']".
        keys = {key: key[5:-2] for key in arrays if key.startswith("ema[")}
    else:
        keys = {key: key[len(name) :] for key in arrays if key.startswith(name + "[")}
    return {short: arrays[key] for key, short in keys.items()}


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        # One at a time: together, those in shares may be more than a host can hold.
        array = on_host(array)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
