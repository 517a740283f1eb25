"""The trace of one log interval of training."""

from pathlib import Path

import jax


class Profile:
    """Traces one log interval, the second, which compiles nothing any more.

    What it writes opens in XProf (`xprof --logdir DIRECTORY`), and its file
    `perfetto_trace.json.gz` in Perfetto. With no directory nothing is traced.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._runs = False

    def start(self) -> None:
        """Called before each log interval but the first; only the first call counts."""
        if self._directory is not None:
            how = jax.profiler.ProfileOptions()
            # Noting every call of Python would slow what hands work to the device.
            how.python_tracer_level = 0
            jax.profiler.start_trace(
                self._directory, create_perfetto_trace=True, profiler_options=how
            )
            self._directory, self._runs = None, True

    def stop(self) -> None:
        """Called after each log interval, when the device has nothing left to do."""
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False
