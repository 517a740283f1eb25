"""The console program `eqmdm`, with one sub-command per program."""

import sys
from collections.abc import Callable, Sequence

from .._core.hints import did_you_mean
from .errors import quiet_when_unread


PROGRAMS = {
    "train": "train a diffusion model, evaluate its bound and draw samples",
    "evaluate": "evaluate the likelihood of a trained model, example by example",
    "report": "write the page of a training run",
    "sample": "draw samples from a trained model",
    "compare-evaluations": "compare evaluations of the same examples",
    "solver-study": "compare solvers at equal numbers of network evaluations",
    "study": "train and evaluate every cell of a study",
    "train-classifier": "train a classifier whose features measure samples",
    "plot-diffusions": "draw paths and log-SNRs of the named diffusions",
    "read-profile": "sum the trace of a training by kind of operation",
}
# The distributions in the extra `programs`, by module name.
_EXTRA = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}
_EXTRA |= {"tyro": "tyro"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `eqmdm NAME OPTIONS`; without a name, list the programs."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        with quiet_when_unread():
            print(_usage())
        return
    name, *rest = given
    if name not in PROGRAMS:
        sys.exit(
            f"error: {name!r} is not a program.{did_you_mean(name, PROGRAMS)}\n"
            f"{_usage()}"
        )
    run(name, rest, prog=f"eqmdm {name}")


def run(
    name: str, arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> None:
    """Run a program, by default with the command line of this process."""
    try:
        with quiet_when_unread():
            _load(name)(arguments, prog)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.exit(
            f"error: the program {name} needs {_EXTRA[missing]}, which comes with the "
            "extra `programs`: pip install 'eqmdm[programs]'"
        )


def _usage() -> str:
    lines = [f"  {name:20} {summary}" for name, summary in PROGRAMS.items()]
    lines = ["usage: eqmdm PROGRAM [OPTIONS]", "", *lines, ""]
    return "\n".join([*lines, "eqmdm PROGRAM --help shows the options of a program."])


def _load(name: str) -> Callable[[Sequence[str] | None, str | None], None]:
    """The `main` of a program; the others are not imported."""
    match name:
        case "train":
            from .train import main
        case "evaluate":
            from .evaluate import main
        case "report":
            from .report import main
        case "sample":
            from .sample import main
        case "compare-evaluations":
            from .compare_evaluations import main
        case "solver-study":
            from .solver_study import main
        case "study":
            from .study import main
        case "train-classifier":
            from .train_classifier import main
        case "plot-diffusions":
            from .plot_diffusions import main
        case "read-profile":
            from .read_profile import main
        case _:
            raise ValueError(f"`name` must be among {', '.join(PROGRAMS)}; got {name}.")
    return main
