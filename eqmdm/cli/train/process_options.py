"""The options of `eqmdm train` for the noise and the start of a process."""

import dataclasses
import math
from typing import Any, Literal

from ..fields import chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """The noise of the process, and where its auxiliary variables start."""

    noise: Literal["student-t"] | None = chosen("normal")
    """student-t: heavy-tailed noise, normal with a random precision for each example.
    The denoiser score is told the precision with the signal-to-noise ratio."""
    nu: float | None = chosen("4")
    """With --noise student-t: the degrees of freedom; fewer give heavier tails."""
    hidden_precision: bool = False
    """With --noise student-t: do not tell the network the precision. Required for the
    free score."""
    start: Literal["conditioned"] | None = chosen("independent of the data")
    """conditioned: let the auxiliary variables start about a function of the data, a
    small network that is trained with the score. For the free score."""


def check_process(options: Any) -> None:
    """**Raises:** `ValueError` for options of the process that contradict others."""
    if options.noise is None:
        for name in ("nu", "hidden_precision"):
            if given := getattr(options, name):
                raise ValueError(
                    f"`{name}` must be left out without --noise student-t; got {given}."
                )
    else:
        nu, hidden = options.nu, options.hidden_precision
        if nu is not None and not 0 < nu < math.inf:
            raise ValueError(f"`nu` must be positive and finite; got {nu}.")
        if hidden and nu is not None and nu <= 2:
            raise ValueError(
                "`nu` must be above 2 with --hidden-precision, because the network is "
                f"told the variance of the noise; got {nu}."
            )
        if options.score == "free" and not hidden:
            raise ValueError(
                "`hidden_precision` must be given for the free score, which is not "
                "told the precision; or use --score denoiser."
            )
    if options.start is None:
        return
    if options.score != "free":
        raise ValueError(
            "`start` must be left out for the denoiser score, which does not estimate "
            f"the auxiliary variables; got {options.start}. Use --score free."
        )
    if options.noise is not None:
        raise ValueError(
            f"`start` must be left out with --noise {options.noise}; got "
            f"{options.start}."
        )
