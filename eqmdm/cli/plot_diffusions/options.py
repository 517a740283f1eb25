"""The options of `eqmdm plot-diffusions`."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Draw paths and log-SNRs of the named diffusions at their default settings."""

    path: Path = Path("diffusions.png")
    """The picture to write."""
    n_paths: int = 12
    """Paths from each of the two starts."""
    n_steps: int = 512
    """Steps of the solver, uniform in time."""
    seed: int = 0
    """The seed of the noise."""
