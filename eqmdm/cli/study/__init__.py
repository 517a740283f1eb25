"""`eqmdm study`: train and evaluate every cell of a study."""

from collections.abc import Sequence

from ..parsing import parse
from .options import StudyOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(StudyOptions, arguments, prog)
    # Imported after parsing, since importing JAX takes a while.
    from .program import run

    run(options)
