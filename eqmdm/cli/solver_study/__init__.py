"""`eqmdm solver-study`: compare solvers at equal numbers of network evaluations."""

from collections.abc import Sequence

from ..parsing import parse
from .options import SolverStudyOptions


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    options = parse(SolverStudyOptions, arguments, prog)
    # Imported after parsing, since importing JAX takes a while.
    from ..compilation import keep_compiled
    from .program import run

    keep_compiled()
    run(options)
