"""The options of `eqmdm study`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Train and evaluate every cell of a study, and collect what they have found.

    Each cell is an ordinary run of train.py, evaluated by evaluate.py. What is done
    already is not done again, and what was stopped is continued.
    """

    config: Annotated[Path, tyro.conf.arg(metavar="CONFIG"), tyro.conf.Positional]
    """The study: a TOML file as in benchmarks/studies."""
    output_dir: Path | None = None
    """Where the runs are; by default runs/studies/<name>, or <name>-short."""
    results_dir: Path | None = None
    """Where the tables and pictures go; by default beside the runs."""
    data_dir: str | None = None
    """A directory with the image files (parquet), instead of the Hugging Face Hub."""
    short: bool = False
    """Do the study's short form, which shows that it works rather than what is true."""
    collect_only: bool = False
    """Only collect what has been found by now."""
    dry_run: bool = False
    """Only print the commands that are left to be run."""
    part: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="I N")] = None
    """Do the I-th of N parts of the cells, so that N processes or machines share a
    study. The last to finish, or --collect-only, collects them all."""
