"""The names that options of several programs share."""

from typing import Literal, get_args


Range = tuple[float, float]
DiffusionName = Literal[
    "vpsde",
    "subvpsde",
    "vesde",
    "cld",
    "alda",
    "malda",
    "psld",
    "critical3",
    "learned",
]
DIFFUSIONS: tuple[str, ...] = get_args(DiffusionName)
NETWORKS = ("unet", "mlp")
ClockName = Literal["time", "log_snr", "angle"]
GridName = Literal["default", "uniform", "quadratic", "log_snr", "rho"]
PictureFormat = Literal["png", "pdf", "svg"]
ObserveMethod = Literal["auto", "exact", "moment-matching"]
