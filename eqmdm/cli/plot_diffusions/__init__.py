"""`eqmdm plot-diffusions`: draw paths and log-SNRs of the named diffusions."""

from collections.abc import Sequence

from ..parsing import parse
from .options import PlotOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(PlotOptions, arguments, prog)
    # Imported after parsing, since importing JAX takes a while.
    from .program import run

    run(options)
