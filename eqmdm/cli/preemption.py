"""Graceful shutdown on SIGTERM and SIGINT."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import jax

from .processes import any_process


# The exit status of a program that was asked to stop, has saved its state and can be
# resumed. It lets a scheduler distinguish this from a failure.
PREEMPTED = os.EX_TEMPFAIL


class _Asked(BaseException):
    """Raised inside the signal handler, to interrupt the stage that runs."""


class Preemption:
    """Records SIGTERM and SIGINT, from construction until `close`.

    Schedulers may send SIGTERM several times; repeats have no effect. A second SIGINT,
    from the keyboard, ends the program at once.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._consequence = "saving after this step"
        self._raises = False
        signals = signal.SIGTERM, signal.SIGINT
        self._before = {number: signal.signal(number, self._note) for number in signals}

    def agreed(self, on_time: bool) -> str:
        """The signal that any of the processes has received; empty if there was none.

        Several processes communicate for this, so they do it only `on_time`, at points
        where they synchronise anyway.
        """
        if jax.process_count() == 1:
            return self.requested
        if on_time and any_process(bool(self.requested)):
            return self.requested or "signal to another process"
        return ""

    def finish(self, stages: dict[str, Callable[[], None]]) -> None:
        """Run the named stages in order, once all that cannot be redone is saved.

        After a signal the program exits with a line that names the remaining stages. A
        single process stops as soon as compiled code returns control; several processes
        stop together, before the next stage.
        """
        left, asked = list(stages), ""
        self._consequence = "leaving before what comes next"
        self._raises = jax.process_count() == 1
        try:
            for name, do in stages.items():
                if asked := self.agreed(on_time=True):
                    break
                do()
                left.remove(name)
            self._raises = False
        except _Asked:
            asked = self.requested
        self._consequence = "all is written"
        if asked and left:
            print(
                f"{asked}: stopped after the last step, which is saved. Left to do: "
                f"{', '.join(left)}. Resume the run for it."
            )
            sys.exit(PREEMPTED)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        if self._raises:
            # Raised only once, so that the cleanup is not interrupted in turn.
            self._raises = False
            raise _Asked
        # Not `print`, which is not reentrant: the signal may have interrupted one.
        os.write(2, f"\n{self.requested}: {self._consequence}\n".encode())
