"""Leaving in good order when a cluster, or the user, asks a program to stop."""

import os
import signal
from types import FrameType

import jax
from _processes import any_process


# Of a program that was asked to stop, has saved its state and can be resumed; a
# scheduler tells it by this from one that failed.
PREEMPTED = os.EX_TEMPFAIL


class Preemption:
    """Notes SIGTERM and SIGINT, from when it is made until it is closed.

    Schedulers may send SIGTERM several times, so later ones change nothing. A second
    SIGINT, from the keyboard, ends the program at once.
    """

    def __init__(self) -> None:
        self.requested = ""
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

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = signal.Signals(number).name
        # Not `print`, which a signal may interrupt in the middle.
        os.write(2, f"\n{self.requested}: saving after this step\n".encode())
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
