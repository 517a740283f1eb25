"""`eqmdm report`: the page of a run."""

from collections.abc import Sequence

from ..parsing import parse
from .options import ReportOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(ReportOptions, arguments, prog)
    # Imported after parsing, so that the help waits for nothing.
    from .program import run

    run(options)
