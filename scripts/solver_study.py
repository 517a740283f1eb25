"""Compare solvers by the quality of their samples at equal numbers of evaluations.

    python scripts/solver_study.py runs/digits-cld-denoiser-0 --diffusions vpsde,cld

See `--help` for the options.
"""

import itertools
import sys

import _build
import _features
import _study
import _study_plot
import _study_subjects
import _subject
import jax
import tyro
from _compilation import keep_compiled
from _errors import clean_errors
from _study_options import Options
from _study_table import PICTURE, REAL_DATA, Table
from tqdm import tqdm


# A program for each row is compiled; kept, they would fill the memory.
_FORGET_EVERY = 20


def main(options: Options) -> None:
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors():
        options.check()
        subject = _subject.load_subject(options.run, data_dir=options.data_dir)
        _study.check_n_samples(options.n_samples, subject.dataset)
        subjects = _study_subjects.make_subjects(options, subject)
        features = _features.find(options.features, subject.dataset)
        study = _study.Study(options, subjects, features)
        facts = _build.facts(subject.trained_with)
        described = {"features": "none"} if features is None else features.identity
        table = Table(
            options.directory,
            {"dataset": subject.dataset.name, "step": subject.step}
            | {"parameters": subject.parameters}
            | options.identity()
            | {"n_held_out": study.n_held_out, "real_data": study.real_split}
            | described
            | {"versions": facts["versions"], "device": facts["device"]["kind"]},
        )

    # ----- The rows that are not there yet, each kept as soon as it is known.
    wanted = list(
        dict.fromkeys(
            itertools.product(subjects, options.solvers, sorted(options.evaluations))
        )
    )
    todo = [key for key in wanted if key not in table.rows]
    total = len(wanted) * study.n_batches
    done = (len(wanted) - len(todo)) * study.n_batches
    bar = tqdm(total=total, initial=done, unit="batch")
    try:
        if REAL_DATA not in table.rows:
            bar.set_description("real data")
            with clean_errors():
                table.add(REAL_DATA, study.real_data())
        for number, (diffusion, solver, allowed) in enumerate(todo, start=1):
            bar.set_description(f"{diffusion}, {solver}, {allowed} evaluations")
            with clean_errors():
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

    # ----- The picture, of all rows that are there, and those asked for as text.
    images = subject.dataset.n_levels is not None
    title = (
        f"{subject.name}, step {subject.step}: {options.n_samples} samples, "
        f"{study.n_held_out} held-out examples"
    )
    if features is not None and "features_accuracy" in features.identity:
        accuracy = features.identity["features_accuracy"]["accuracy"]
        title += f", features of a classifier of accuracy {accuracy:.3f}"
    floor = f"real data ({study.real_split}), $\\pm$ 1 s.e."
    _study_plot.draw(
        table.directory / PICTURE, table.rows, title, floor=floor, images=images
    )
    print(_study_plot.as_text(table.rows, [REAL_DATA, *wanted]))
    written = sorted(path.name for path in table.directory.iterdir())
    print(f"written to {table.directory}: {', '.join(written)}")


if __name__ == "__main__":
    keep_compiled()
    main(tyro.cli(Options))
