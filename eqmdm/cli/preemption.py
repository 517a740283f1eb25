"""Graceful shutdown on SIGTERM and SIGINT."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import jax

from .processes import any_process


# Of a program that was asked to stop, has saved its state and can be resumed; a
# scheduler tells it by this from one that failed.
PREEMPTED = os.EX_TEMPFAIL


class _Asked(BaseException):
    """Raised by a signal itself, wherever the program is."""


class Preemption:
    """Notes SIGTERM and SIGINT, from when it is made until it is closed.

    Schedulers may send SIGTERM several times, so later ones change nothing. A second
    SIGINT, from the keyboard, ends the program at once.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._consequence = "saving after this step"
        self._raises = False
        signals = signal.SIGTERM, signal.SIGINT
        self._before = {number: signal.signal(number, self._note) for number in signals}

    def agreed(self, on_time: bool) -> str:
        """The signal that there was, in any of the processes; empty if there was none.

        Several processes ask one another, which they do only where they wait anyway.
        """
        if jax.process_count() == 1:
            return self.requested
        if on_time and any_process(bool(self.requested)):
            return self.requested or "signal to another process"
        return ""

    def finish(self, stages: dict[str, Callable[[], None]]) -> None:
        """Do what is left, by name and in order, once what cannot be redone is saved.

        After a signal the program ends with a line that names what is still left. One
        process ends where it is, as soon as compiled code gives the control back;
        several end together, before the next stage.
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
            # Once, so that what it sets off is not interrupted in its turn.
            self._raises = False
            raise _Asked
        # Not `print`, which a signal may interrupt in the middle.
        os.write(2, f"\n{self.requested}: {self._consequence}\n".encode())
