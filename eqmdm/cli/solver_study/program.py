"""The program `eqmdm solver-study`: compute the missing rows, and draw them all."""

import itertools
import sys
from typing import Any

import jax
from tqdm import tqdm

from .. import build
from ..errors import clean_errors
from ..train_classifier import classifier
from ..trained import load_trained
from . import picture
from .comparison import SolverComparison, check_n_samples
from .features import find_features
from .options import SolverStudyOptions
from .runs import check_solvers, runs_by_diffusion
from .table import PICTURE, REAL_DATA, Key, Row, SolverTable, read_study


# Each row compiles a program of its own, which would accumulate in memory.
_FORGET_EVERY = 20


def run(options: SolverStudyOptions) -> None:
    if options.redraw:
        with clean_errors(options):
            rows, settings = read_study(options.directory)
            # Points have no features.
            images = settings["features"] != "none"
            images = images or settings["dataset"] in classifier.NAMES
            _draw(options, rows, settings, images=images)
        return
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors(options):
        options.check()
        check_solvers(options)
        trained = load_trained(
            options.run, data_dir=options.data_dir, trust_code=options.trust_code
        )
        check_n_samples(options.n_samples, trained.dataset)
        runs = runs_by_diffusion(options, trained)
        features = find_features(options.features, trained.dataset)
        study = SolverComparison(options, runs, features)
        facts = build.facts(trained.options.seed)
        described = {"features": "none"} if features is None else features.identity
        settings = (
            {"dataset": trained.dataset.name, "step": trained.step}
            | {"parameters": trained.parameters}
            | options.identity()
            | {"n_held_out": study.n_held_out, "real_data": study.real_split}
            | described
            | {"versions": facts["versions"], "device": facts["device"]["kind"]}
        )
        table = SolverTable(options.directory, settings)

    # ----- The missing rows, each saved as soon as it is known.
    wanted = list(
        dict.fromkeys(
            itertools.product(runs, options.solvers, sorted(options.evaluations))
        )
    )
    todo = [key for key in wanted if key not in table.rows]
    total = len(wanted) * study.n_batches
    done = (len(wanted) - len(todo)) * study.n_batches
    bar = tqdm(total=total, initial=done, unit="batch")
    try:
        if REAL_DATA not in table.rows:
            bar.set_description("real data")
            with clean_errors(options):
                table.add(REAL_DATA, study.real_data())
        for number, (diffusion, solver, allowed) in enumerate(todo, start=1):
            bar.set_description(f"{diffusion}, {solver}, {allowed} evaluations")
            with clean_errors(options):
                row = study.row(diffusion, solver, allowed, bar.update)
            table.add((diffusion, solver, allowed), row)
            if "failure" in row:
                bar.write(f"{diffusion}, {solver}, {allowed}: {row['failure']}")
            done += study.n_batches
            bar.update(done - bar.n)
            if number % _FORGET_EVERY == 0:
                jax.clear_caches()
    except KeyboardInterrupt:
        bar.close()
        sys.exit(f"stopped with {len(table.rows)} rows; the same command continues")
    bar.close()

    # ----- The picture of all rows, and the text of the requested ones.
    images = trained.dataset.n_levels is not None
    _draw(options, table.rows, settings, images=images)
    print(picture.as_text(table.rows, [REAL_DATA, *wanted]))
    written = sorted(path.name for path in table.directory.iterdir())
    print(f"written to {table.directory}: {', '.join(written)}")


def _draw(
    options: SolverStudyOptions,
    rows: dict[Key, Row],
    settings: dict[str, Any],
    *,
    images: bool,
) -> None:
    """Draw the picture of a study from its table and settings."""
    caption = (
        f"{options.run.resolve().name}, step {settings['step']}: "
        f"{settings['n_samples']} samples of {settings['dataset']}, "
        f"{settings['n_held_out']} held-out examples, seed {settings['seed']}. Bars: "
        "jackknife standard errors over both sets"
    )
    if "features_accuracy" in settings:
        accuracy = settings["features_accuracy"]["accuracy"]
        caption += f". Features: a classifier of accuracy {accuracy:.3f}"
    elif settings["features"].startswith("inception "):
        caption += ". Features: an Inception network"
    path = options.directory / f"{PICTURE}.{options.picture_format}"
    picture.draw(
        path,
        rows,
        caption,
        floor=f"real data ({settings['real_data']}), $\\pm$ 1 standard error",
        images=images,
    )
    print(f"drawn: {path}")
