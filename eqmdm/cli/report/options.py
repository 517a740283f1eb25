"""The options of `eqmdm report`."""

import dataclasses
from pathlib import Path

from ..fields import positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write the page of a training run, RUN/report.html, from the files in RUN.

    The page has the options, curves, samples, test bound, versions and device. It is
    one file without scripts that needs no network. `eqmdm train` writes it at its end.
    """

    run: Path = positional("RUN")
    """The directory of a run of `eqmdm train`."""
