"""The directory of a run: its options and its checkpoints."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._core.files import to_json, write_json
from .checkpoint import Checkpoints, Restored
from .snapshots import write_snapshot
from .state import TrainState


_OPTIONS, _CHECKPOINTS, _LOCK = "options.json", "checkpoints", ".lock"

# The functions that can rebuild a model from the options of a run. A run names one.
BUILDERS = ("eqmdm.cli.build:model_from_options",)


class Run:
    """A directory with the options of a run and its checkpoints.

    A checkpoint is written under a temporary name and renamed once it is complete, so a
    full disk or a killed process leaves the previous ones intact. Each has a digest of
    its arrays, so that damage is detected.

    If several processes train together, on a shared file system, all of them call
    `save` and `restore`, which synchronise them. Each writes its own shares of the
    arrays. Only one of them calls the other methods.
    """

    def __init__(self, run_dir: str | os.PathLike, *, n_latest: int = 2):
        """**Arguments:**

        - `run_dir`: the directory, created by the first save if it does not exist.
        - `n_latest`: the number of newest checkpoints to keep, besides the best one.
        """
        self.run_dir = Path(run_dir).absolute()
        self._checkpoints = Checkpoints(self.run_dir / _CHECKPOINTS, n_latest=n_latest)
        # A `filelock.FileLock`, created on first use.
        self._held: Any = None

    def __repr__(self) -> str:
        return f"Run({str(self.run_dir)!r}, steps={self.steps})"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    def exists(self) -> bool:
        """Whether the directory holds anything besides the lock."""
        return self.run_dir.is_dir() and any(
            path.name != _LOCK for path in self.run_dir.iterdir()
        )

    @property
    def steps(self) -> list[int]:
        """The steps with a checkpoint, oldest first."""
        return self._checkpoints.steps

    def lock(self) -> None:
        """Keeps other processes from writing to the run until `close`.

        The operating system releases the lock when the process ends, even if it is
        killed. The directory is created if it does not exist.

        **Raises:**

        `ValueError` if another process holds it; `OSError` if the directory cannot be
        written to.
        """
        import filelock

        lock = filelock.FileLock(self.run_dir / _LOCK, blocking=False)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            # The lock file of an earlier process can be opened even in a directory
            # that cannot be written to.
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

    def start(
        self,
        options: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        *,
        builder: str | None = None,
    ) -> None:
        """Records the options of the run, before its first step.

        **Arguments:**

        - `options`: the user's choices, as JSON data. They are compared on resuming,
            and with a `builder` they determine the structure of the model.
        - `facts`: further facts to record, such as versions, device and command.
        - `builder`: the name of the function of this package with which `load_run`
            rebuilds the model. A run without one is loaded with `like=`.

        **Raises:** `ValueError` unless the builder is one of this package.
        """
        if builder is not None:
            check_builder(builder)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        record = {"options": dict(options), "builder": builder, **(facts or {})}
        write_json(self.run_dir / _OPTIONS, record)

    def read_options(self) -> dict[str, Any]:
        """The record of `start`: the options under `"options"`, and the facts."""
        path = self.run_dir / _OPTIONS
        if not path.is_file():
            raise ValueError(
                f"`run_dir` must be the directory of a run; {self.run_dir} has no "
                f"{_OPTIONS}. Start the run without `--resume`, or check the path."
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        # Deeply nested brackets raise `RecursionError`.
        except (ValueError, RecursionError) as error:
            raise ValueError(_not_options(path, str(error))) from error
        if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
            raise ValueError(_not_options(path, "it holds no options"))
        return record

    def check_options(
        self, options: Mapping[str, Any], *, may_differ: tuple[str, ...] = ()
    ) -> None:
        """Compares options with those that the run was started with.

        **Raises:**

        `ValueError` with the first field that differs and both of its values.
        """
        stored = self.read_options()["options"]
        given = json.loads(to_json(options))
        for field in dict.fromkeys([*stored, *given]):
            old, new = stored.get(field), given.get(field)
            # Runs of earlier versions lack the options added since, which were off.
            was_off = field not in stored and not new
            if old != new and field not in may_differ and not was_off:
                before, remedy = repr(old), f"Resume with {field}={old!r}"
                if field not in stored:
                    before, remedy = "off", f"Turn `{field}` off"
                raise ValueError(
                    f"`{field}` must be {before}, as when the run in {self.run_dir} "
                    f"was started; got {new!r}. {remedy}, or start another run in a "
                    "new `run_dir`."
                )

    def save(self, state: TrainState, *, loss: float | None = None) -> None:
        """Writes a checkpoint of `state`, then deletes old ones. If the state has
        averages with power-function profiles, they are also kept in a snapshot.

        **Arguments:**

        - `state`: the training state.
        - `loss`: the validation loss. The checkpoint with the lowest loss is kept.

        **Raises:**

        `OSError` if the checkpoint cannot be written. Earlier ones stay intact.
        """
        step = int(state.step)
        try:
            # Before the first step the averages have no weight.
            if state.profiles is not None and step:
                # First, so that every checkpoint has the snapshots before it.
                write_snapshot(self.run_dir, step, state.profiles)
            self._checkpoints.write(step, state, loss=loss)
        # TensorStore reports a full disk as a ValueError.
        except (OSError, ValueError) as error:
            before = [s for s in self.steps if s != step]
            # Cut off the layout of the array, which is over a thousand characters long.
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
                return Restored(step, self._checkpoints.read(step), skipped)
            # Orbax, TensorStore and JSON raise any of these for damaged files.
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = str(error).splitlines() or [""]
                skipped[step] = f"{type(error).__name__}: {reason[0][:200]}"
        reasons = "; ".join(f"step {step}: {why}" for step, why in skipped.items())
        raise ValueError(
            f"`run_dir` must hold a checkpoint that can be read; {self.run_dir} has "
            f"{'only damaged ones (' + reasons + ')' if skipped else 'none'}. "
            "Start a new run in an empty directory."
        )

    def discard(self, steps: Mapping[int, str]) -> None:
        """Moves unreadable checkpoints aside, so that a resumed run can write
        checkpoints of the same steps."""
        for step in steps:
            old = self._checkpoints.directory / str(step)
            new = self.run_dir / f"damaged-{step}"
            for n in range(2, 1000):
                if not new.exists():
                    break
                new = self.run_dir / f"damaged-{step}-{n}"
            old.rename(new)

    def close(self) -> None:
        """Releases the lock, and the resources that `save` holds open."""
        self._checkpoints.close()
        if self._held is not None:
            self._held.release()
            self._held = None


def check_builder(name: Any) -> None:
    """**Raises:** `ValueError` unless `name` is a builder of this package."""
    if name not in BUILDERS:
        raise ValueError(
            f"`builder` must be one of this package, {' or '.join(BUILDERS)}; got "
            f"{name!r}. Leave it out, and load the run with `like=`."
        )


def _not_options(path: Path, reason: str) -> str:
    return (
        f"`run_dir` must hold the options that a run was started with; {path} cannot "
        f"be read ({reason}). Copy the file again, or restart the run."
    )
