"""The options of `eqmdm plot-diffusions`."""

import dataclasses
from pathlib import Path

from ..outputs import PictureOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotOptions(PictureOptions):
    """Draw paths and log-SNRs of the named diffusions at their default settings."""

    path: Path = Path("diffusions")
    """The picture to write; the extension, which may be left out, is --picture-format.
    """
    n_paths: int = 12
    """Paths from each of the two starting points."""
    n_steps: int = 512
    """Steps of the solver, uniform in time."""
    seed: int = 0
    """The seed of the noise."""

    @property
    def file(self) -> Path:
        """The path with its extension.

        **Raises:** `ValueError` for the extension of another format.
        """
        ending = f".{self.picture_format}"
        if self.path.suffix not in ("", ending):
            raise ValueError(
                f"`path` must end in {ending}, the `picture_format`, or have no "
                f"extension; got {self.path}."
            )
        return self.path.with_suffix(ending)
