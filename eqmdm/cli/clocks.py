"""The noise clocks by name."""

import eqmdm

from .names import ClockName
from .trained import TrainedRun


CLOCKS: dict[ClockName, eqmdm.AbstractNoiseClock | None] = {
    "time": None,
    "log_snr": eqmdm.LogSNRClock(),
    "angle": eqmdm.AngleClock(),
}


def check_clock(
    name: ClockName, trained: TrainedRun, *, whose: str = "the diffusion of this run"
) -> None:
    """**Raises:** `ValueError` if the clock is not strictly monotone in time."""
    shape, dtype = trained.dataset.shape, trained.dtype
    settings = {"clock": CLOCKS[name], "dtype": dtype}
    try:
        eqmdm.probability_flow(trained.model, shape, **settings)
    except ValueError as error:
        raise ValueError(
            f"`clock` must be time for {whose}, whose log signal-to-noise ratio is not "
            f"strictly monotone in time; got {name}. Use --clock time."
        ) from error
