"""`eqmdm train`: train a model, evaluate its likelihood bound and draw samples."""

from collections.abc import Sequence

from ..parsing import parse
from .options import TrainOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(TrainOptions, arguments, prog)
    # Imported after parsing, since importing JAX takes a while.
    from ..compilation import keep_compiled
    from .program import run

    keep_compiled()
    run(options)
