"""The final evaluation of a run, with EMA parameters: curves, samples, bound, page."""

from collections.abc import Callable
from pathlib import Path

import diffrax

import eqmdm

from .. import build, conditions, plots
from ..bases import basis_of
from ..build import Purpose
from ..processes import first_does, is_first
from ..report import program as report_program
from .records import Records, report
from .setup import Setup


def stages(
    setup: Setup, state: eqmdm.TrainState, records: Records
) -> dict[str, Callable[[], None]]:
    """The stages after the last training step, by name and in order."""
    found: dict[str, Callable[[], None]] = {
        "the curves": lambda: _draw_curves(setup, records)
    }
    if setup.options.n_samples:
        found["the samples"] = lambda: _draw_samples(setup, state)
    if setup.options.test_examples:
        found["the test bound"] = lambda: _evaluate_bound(setup, state)
    found["the report"] = lambda: first_does(lambda: _write_report(setup))
    return found


def _draw_curves(setup: Setup, records: Records) -> None:
    if not is_first():
        return
    lines, options = records.read(), setup.options
    n_examples = min(options.validation_examples, len(setup.dataset.validation))
    plots.training_curve(
        _picture(setup, "training_curve"),
        lines,
        setup.loss_name,
        setup.loss_unit,
        f"{_run(setup)}; training: means over the steps between two points, "
        f"validation: {n_examples} examples, {options.validation_draws} draws each",
    )
    if options.diffusion == "learned":
        plots.diffusion_path(_picture(setup, "diffusion_path"), lines, _run(setup))


def _picture(setup: Setup, name: str) -> Path:
    return setup.run.run_dir / f"{name}.{setup.options.picture_format}"


def _run(setup: Setup) -> str:
    """A description of the run for captions."""
    options = setup.options
    return (
        f"{setup.run.run_dir.resolve().name}: {options.dataset}, {options.diffusion} "
        f"diffusion, {options.score} score, seed {options.seed}"
    )


def _draw_samples(setup: Setup, state: eqmdm.TrainState) -> None:
    options, model = setup.options, state.ema_model
    print(f"drawing {options.n_samples} samples ...", flush=True)
    kind = conditions.kind_of(conditions.describe(setup.dataset))
    x = eqmdm.sample(
        model,
        setup.dataset.shape,
        key=setup.key(Purpose.SAMPLES),
        conditions=conditions.in_turn(kind, setup.dataset, 0, options.n_samples),
        n_samples=options.n_samples,
        n_steps=options.sample_steps,
        # DPM-Solver, the default, does not follow a conditioned start.
        sampler=None if options.start is None else diffrax.SEA(),
    )
    basis = basis_of(model)
    x = build.decode(options, setup.dataset, eqmdm.on_host(x), basis)
    if is_first():
        caption = f"{_run(setup)}, step {int(state.step)}: {options.n_samples} "
        caption += f"samples in {options.sample_steps} steps, EMA parameters"
        path = _picture(setup, "samples")
        columns = conditions.n_columns(kind)
        caption += "; a class in each column" if columns else ""
        n_levels = setup.dataset.n_levels
        picture = plots.samples(path, x, n_levels, caption, n_columns=columns)
        for tracking in setup.trackings:
            tracking.pictures(int(state.step), {"samples": picture})


def _evaluate_bound(setup: Setup, state: eqmdm.TrainState) -> None:
    options = setup.options
    first, given = slice(options.test_examples), setup.dataset.conditions
    test = setup.dataset.test[first]
    print(f"evaluating {len(test)} test examples ...", flush=True)
    evaluation = eqmdm.evaluate(
        state.ema_model,
        test,
        setup.objective,
        key=setup.key(Purpose.BOUND),
        condition=None if given is None else given.test[first],
        n_draws=options.test_draws,
        batch_size=options.batch_size,
    )
    settings = {"step": int(state.step), "examples": len(test)}
    settings["draws"] = options.test_draws
    if is_first():
        summary: dict[str, tuple[float, float]] = dict(evaluation.summary())
        summary[setup.loss_name] = eqmdm.Estimate.from_mean(evaluation.loss)
        path = setup.run.run_dir / "test_bound.json"
        report(path, summary, settings)
        for tracking in setup.trackings:
            tracking.estimates(int(state.step), "test", summary)


def _write_report(setup: Setup) -> None:
    report_program.write(setup.run.run_dir)
