"""`eqmdm evaluate`: evaluate the likelihood of a trained model, example by example."""

from collections.abc import Sequence

from ..parsing import parse
from .options import EvaluateOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(EvaluateOptions, arguments, prog)
    # Imported after parsing, since importing JAX takes a while.
    from ..compilation import keep_compiled
    from .program import run

    keep_compiled()
    run(options)
