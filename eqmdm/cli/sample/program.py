"""The program `eqmdm sample`: draw samples from a trained model."""

import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

import eqmdm

from .. import build, plots
from ..bases import basis_of
from ..build import Purpose
from ..conditions import in_turn, n_columns
from ..errors import clean_errors
from ..outputs import PICTURE_FORMATS
from ..solvers import find_method
from ..trained import TrainedRun, load_trained
from .files import write
from .observed import run_observed
from .options import SampleOptions
from .settings import (
    check_names,
    check_run,
    given_condition,
    guided,
    sampling_arguments,
)


# The most images in a picture.
_MOST_SHOWN = 256
# The most samples that an error names; the file has the numbers of all that are kept.
_MOST_NAMED = 20


def run(options: SampleOptions) -> None:
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors(options):
        options.check()
        check_names(options)
        trained = load_trained(
            options.run,
            data_dir=options.data_dir,
            ema=options.ema,
            trust_code=options.trust_code,
        )
        check_run(options, trained)
        directory = options.directory
        directory.mkdir(parents=True, exist_ok=True)
    if options.observe is not None:
        return run_observed(options, trained, directory)

    # ----- The samples, in batches of equal size, so that only one program is compiled.
    size = min(options.batch_size, options.n_samples)
    trained = trained.over_devices(size)
    starts = list(range(0, options.n_samples, size))
    parts, times = [], []
    bar = tqdm(total=len(starts), unit="batch", desc="compiling")
    try:
        # A single batch is drawn twice, to time it without compilation.
        for first in starts if len(starts) > 1 else starts * 2:
            clock = time.perf_counter()
            with clean_errors(options):
                parts.append(draw(trained, options, first, size))
            times.append(time.perf_counter() - clock)
            bar.set_description("sampling")
            bar.update(min(len(parts), len(starts)) - bar.n)
    except KeyboardInterrupt:
        sys.exit("stopped: nothing is written")
    finally:
        bar.close()
    x = np.concatenate(parts)[: options.n_samples]
    seconds = float(np.mean(times[1:])) / size

    # ----- The finite samples, decoded, and the settings that drew them.
    kept = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not kept.all():
        print(failures(options, np.flatnonzero(~kept)))
    if not kept.any():
        sys.exit("error: there are no samples to write")
    values = decode(trained, x[kept])
    evaluations = find_method(options.solver).n_evaluations(options.steps)
    if evaluations is not None and options.guidance != 1:
        # Given the condition and without it, where guidance acts.
        evaluations *= 2
    settings = {
        "run": trained.name,
        "dataset": trained.dataset.name,
        "step": trained.step,
        **options.identity(),
        "parameters": trained.parameters,
        "evaluations_per_sample": evaluations,
        "seconds_per_sample": seconds,
        "versions": build.facts(trained.options.seed)["versions"],
    }
    n_levels = trained.dataset.n_levels
    shown = values if n_levels is None else values[:_MOST_SHOWN]
    for name in PICTURE_FORMATS:
        # Pictures of replaced samples, in any format.
        (directory / f"samples.{name}").unlink(missing_ok=True)
    picture = directory / f"samples.{options.picture_format}"
    columns = n_columns(trained.condition) if options.condition is None else None
    caption = _caption(trained, options, len(shown))
    caption += "; a class in each column" if columns else ""
    plots.samples(picture, shown, n_levels, caption, n_columns=columns)
    write(directory / "samples.npz", values, np.flatnonzero(kept), settings)
    counted = "a varying number of" if evaluations is None else evaluations
    if options.guidance_interval is not None:
        counted = f"at most {counted}"
    print(
        f"{len(values)} samples of {trained.dataset.name} by {options.solver}, "
        f"{options.steps} steps\nper sample: {counted} evaluations of the network, "
        f"{seconds:.3g} s without compilation\n"
        f"written to {directory}: samples.npz, {picture.name}"
    )


def _caption(trained: TrainedRun, options: SampleOptions, n_shown: int) -> str:
    which = "EMA" if options.ema else "last"
    what = "" if options.condition is None else f" given {options.condition}"
    if options.guidance != 1:
        what += f", guidance {options.guidance:g}"
    return (
        f"{trained.name}, step {trained.step}: {n_shown} samples of "
        f"{trained.dataset.name}{what} by {options.solver}, {options.steps} steps, "
        f"{which} parameters, seed {options.seed}"
    )


def draw(trained: Any, options: SampleOptions, first: int, n: int) -> np.ndarray:
    given = given_condition(options, trained)
    if given is None:
        which = {"conditions": in_turn(trained.condition, trained.dataset, first, n)}
    else:
        which = {"condition": given}
    x = eqmdm.sample(
        guided(options, trained.model),
        trained.dataset.shape,
        # The key of `eqmdm train`, whose samples start from the same noise.
        key=build.purpose_key(options.seed, Purpose.SAMPLES),
        n_samples=n,
        first=first,
        dtype=trained.dtype,
        **which,
        **sampling_arguments(options),
    )
    return np.asarray(x)


def failures(options: SampleOptions, numbers: np.ndarray) -> str:
    named = ", ".join(map(str, numbers[:_MOST_NAMED]))
    if len(numbers) > _MOST_NAMED:
        named += f" and {len(numbers) - _MOST_NAMED} more"
    return (
        f"{len(numbers)} of {options.n_samples} samples are not finite and left out: "
        f"{named}. Raise --steps, which was {options.steps}, or try another --solver, "
        "--grid or --clock."
    )


def decode(trained: Any, x: np.ndarray) -> np.ndarray:
    """Samples decoded to the form in which examples are stored."""
    basis = basis_of(trained.model)
    return build.decode(trained.options, trained.dataset, x, basis)
