"""The trace of one log interval of training."""

from pathlib import Path

import jax


class Profile:
    """Traces one log interval, the second but for its first call, which compiles
    nothing any more.

    What it writes opens in XProf (`xprof --logdir DIRECTORY`), and its file
    `perfetto_trace.json.gz` in Perfetto. With no directory nothing is traced.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._logged, self._runs = False, False

    def at_step(self) -> None:
        """Called between steps: starts at the first one after a log interval."""
        if self._directory is None or not self._logged:
            return
        options = jax.profiler.ProfileOptions()
        # Noting every call of Python would slow what hands work to the device.
        options.python_tracer_level = 0
        jax.profiler.start_trace(
            self._directory, create_perfetto_trace=True, profiler_options=options
        )
        self._directory, self._runs = None, True

    def at_log(self) -> None:
        """Called after each log interval, when the device has nothing left to do."""
        self._logged = True
        self.stop()

    def stop(self) -> None:
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False
