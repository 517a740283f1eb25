"""`eqmdm train-classifier`: train a classifier whose features measure samples."""

from collections.abc import Sequence

from ..parsing import parse
from .options import ClassifierOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(ClassifierOptions, arguments, prog)
    # Imported after parsing, since importing JAX takes a while.
    from ..compilation import keep_compiled
    from .program import run

    keep_compiled()
    run(options)
