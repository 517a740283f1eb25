"""The trace of one log interval of training."""

from pathlib import Path

import jax


class Profile:
    """Traces one log interval: the second, without its first call, so that nothing is
    compiled in the trace.

    The trace opens in XProf (`xprof --logdir DIRECTORY`), and its file
    `perfetto_trace.json.gz` in Perfetto. Without a directory nothing is traced.
    """

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._logged, self._runs = False, False

    def at_step(self) -> None:
        """Start the trace at the first call between steps after a log interval."""
        if self._directory is None or not self._logged:
            return
        options = jax.profiler.ProfileOptions()
        # Tracing Python calls would slow the dispatch of work to the device.
        options.python_tracer_level = 0
        jax.profiler.start_trace(
            self._directory, create_perfetto_trace=True, profiler_options=options
        )
        self._directory, self._runs = None, True

    def at_log(self) -> None:
        """End the trace; called after a log interval, when the device has finished."""
        self._logged = True
        self.stop()

    def stop(self) -> None:
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False
