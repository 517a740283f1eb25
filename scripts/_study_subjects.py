"""The run of a study under each of the diffusions that it is studied with."""

import _solvers
from _clocks import check_clock
from _study_options import Options
from _subject import Subject


def make_subjects(options: Options, subject: Subject) -> dict[str, Subject]:
    """The run under each diffusion that is asked for, by its name.

    **Raises:**

    `ValueError` for a diffusion or a solver that the score of the run cannot serve, or
    a clock that cannot tell the time of a diffusion.
    """
    own = subject.trained_with.diffusion
    needing = [n for n in options.solvers if _solvers.find(n).needs_denoiser]
    if needing and not subject.is_denoiser:
        raise ValueError(
            f"`solvers` must not have {', '.join(needing)} for this run, for they "
            "follow the data's estimate of a denoiser, and its score is free. Take "
            "data-prediction, which serves any score."
        )
    subjects = {}
    for name in options.diffusions or (own,):
        subjects[name] = (
            subject if name == own else subject.under(name, option="diffusions")
        )
        if options.clock != "time":
            check_clock(options.clock, subjects[name], whose=name)
    return subjects
