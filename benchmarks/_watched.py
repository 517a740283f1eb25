"""Child processes whose memory is watched."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path


_SAMPLED_EVERY = 0.01
# In /proc/PID/status. The first is a peak itself, of which a sample misses at most what
# comes after the last.
_NAMES = {"VmHWM": "resident_bytes", "RssAnon": "anonymous_bytes"}


def memory(process: int | str = "self") -> dict[str, int]:
    """The peak of resident memory of a process, mapped files included, and what it has
    now that is not of files. Linux only."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        title: int(fields[name].split()[0]) * 1024
        for name, title in _NAMES.items()
        # One that has ended has neither.
        if name in fields
    }


class Process:
    """A child process, and the peaks of its memory."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._output = tempfile.TemporaryFile("w+")
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdout=self._output,
            stderr=self._errors,
            env=os.environ | environment,
        )
        self._peaks = dict.fromkeys(_NAMES.values(), 0)
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def _sample(self) -> None:
        while self._process.poll() is None:
            try:
                now = memory(self._process.pid)
            except (FileNotFoundError, ProcessLookupError):
                return
            for name, size in now.items():
                self._peaks[name] = max(self._peaks[name], size)
            time.sleep(_SAMPLED_EVERY)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def finish(self, status: int = 0) -> tuple[str, dict[str, int]]:
        """What it printed, and its peaks.

        **Raises:** `RuntimeError`, with its errors, for another exit status.
        """
        self._process.wait()
        self._sampler.join()
        texts = []
        for file in (self._output, self._errors):
            with file:
                file.seek(0)
                texts.append(file.read())
        if self._process.returncode != status:
            raise RuntimeError(
                f"{self._process.args} exited with {self._process.returncode}, not "
                f"{status}:\n{texts[1]}"
            )
        return texts[0], self._peaks
