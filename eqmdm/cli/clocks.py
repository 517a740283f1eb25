"""The clocks that programs know by name."""

from typing import Literal

import eqmdm

from .trained import TrainedRun


ClockName = Literal["time", "log_snr", "angle"]

CLOCKS: dict[ClockName, eqmdm.AbstractNoiseClock | None] = {
    "time": None,
    "log_snr": eqmdm.LogSNRClock(),
    "angle": eqmdm.AngleClock(),
}


def check_clock(
    name: ClockName, trained: TrainedRun, *, whose: str = "the diffusion of this run"
) -> None:
    """**Raises:** `ValueError` if the clock cannot tell the time of the diffusion."""
    shape, dtype = trained.dataset.shape, trained.dtype
    how = {"clock": CLOCKS[name], "dtype": dtype}
    try:
        eqmdm.probability_flow(trained.score, trained.model[1], shape, **how)
    except ValueError as error:
        raise ValueError(
            f"`clock` must be time for {whose}, whose log signal-to-noise ratio stands "
            f"still at a time between its ends; got {name}. Take --clock time."
        ) from error
