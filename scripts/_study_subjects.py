"""The run of a study under each of the diffusions that it is studied with."""

import dataclasses
from typing import Any

import _build
import _options
import _solvers
import jax.random as jr
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
        subjects[name] = subject if name == own else _under(name, subject)
        if options.clock != "time":
            check_clock(options.clock, subjects[name], whose=name)
    return subjects


def _under(name: Any, subject: Subject) -> Subject:
    """A denoiser's run under another diffusion, between the same log-SNR ends."""
    own = subject.trained_with.diffusion
    if not subject.is_denoiser:
        raise ValueError(
            f"`diffusions` must be {own} alone for this run, for its score is free "
            f"and knows no other than the one it was trained on; got {name}. Train "
            "with --score denoiser to study several."
        )
    if name == "learned":
        raise ValueError(
            "`diffusions` must not have learned for this run, for it learned none; "
            f"it was trained on {own}. Leave it out, or train with --diffusion learned."
        )
    denoiser, diffusion = subject.model
    low, high = (float(diffusion.log_snr(t)) for t in (diffusion.t1, diffusion.t0))
    options = _options.Options(
        dataset=subject.trained_with.dataset, diffusion=name, log_snr_range=(low, high)
    )
    other = _build.build_diffusion(options.resolved(), jr.key(0))
    return dataclasses.replace(subject, model=(denoiser, other))
