"""The options of `eqmdm study`."""

import dataclasses
from pathlib import Path

from ..fields import chosen, positional
from ..outputs import PictureOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions(PictureOptions):
    """Train and evaluate every cell of a study, and tabulate the results.

    Each cell is an ordinary run of `eqmdm train`, evaluated by `eqmdm evaluate`.
    Finished work is not repeated, and stopped runs and evaluations are continued.
    """

    config: Path = positional("CONFIG")
    """The study: a TOML file as in benchmarks/studies."""
    output_dir: Path | None = chosen("runs/studies/<name>, or <name>-short")
    """The directory of the runs."""
    results_dir: Path | None = chosen("that of the runs")
    """The directory of the tables and pictures."""
    data_dir: str | None = chosen("the Hugging Face Hub")
    """A directory with the image files (parquet)."""
    short: bool = False
    """Run the study's short form, which shows that it works but gives no results."""
    collect_only: bool = False
    """Only tabulate the results so far."""
    redraw: bool = False
    """Only redraw the pictures, from the tables in the results directory."""
    dry_run: bool = False
    """Only print the remaining commands."""
    part: tuple[int, int] | None = chosen("all of them", metavar="I N")
    """Run the I-th of N parts of the cells, so that N processes or machines share a
    study. The last to finish, or --collect-only, tabulates all results."""
