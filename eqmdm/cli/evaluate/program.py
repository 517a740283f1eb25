"""Evaluate the likelihood of a trained model, example by example."""

import sys
import time

from tqdm import tqdm

from .. import plots
from ..errors import clean_errors
from ..files import LOSS_UNITS, loss_name, write_text
from ..trained import load_trained
from .evaluator import Evaluator
from .options import EvaluateOptions
from .report import make_report, make_text
from .results import EvaluationResults
from .settings import check_solver, resolve, under_chosen_diffusion


def run(given: EvaluateOptions) -> None:
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors(given):
        given.check()
        check_solver(given.solver)
        trained = load_trained(given.run, data_dir=given.data_dir, ema=given.ema)
        trained = under_chosen_diffusion(given, trained)
        options = resolve(given, trained)
        evaluate = Evaluator(trained, options)
        results = EvaluationResults(
            options.output_dir,
            {"dataset": trained.dataset.name, "step": trained.step}
            | options.identity()
            | {"parameters": trained.parameters},
            anew=options.overwrite,
        )
    directory = results.directory
    if results.is_complete:
        print(f"complete already: {directory}\n")
        print((directory / "report.txt").read_text(), end="")
        return

    # ----- The batches that are not there yet. Where they begin does not depend on
    # where an earlier process was stopped, so neither does what they round to.
    stop = options.first + options.examples
    bar = tqdm(total=options.examples, initial=len(results.rows), unit="example")
    compiled = False
    try:
        for begin in range(options.first, stop, options.batch_size):
            end = min(begin + options.batch_size, stop)
            if results.rows.keys() >= set(range(begin, end)):
                continue
            bar.set_description("evaluating" if compiled else "compiling")
            clock = time.perf_counter()
            with clean_errors(given):
                rows = evaluate(begin, end)
                seconds = time.perf_counter() - clock
                results.add(rows, seconds, compiled=not compiled)
            compiled = True
            name = loss_name(rows[0])
            bar.set_postfix_str(f"mean {results.mean(name):.3f} {LOSS_UNITS[name]}")
            bar.update(len(results.rows) - bar.n)
    except KeyboardInterrupt:
        sys.exit(
            f"stopped after {len(results.rows)} examples; the same command continues"
        )
    finally:
        bar.close()

    # ----- The table, the histogram and the report, which marks it all as complete.
    columns = results.write_table()
    name = loss_name(columns)
    plots.histogram(
        directory / "histogram.png",
        columns[name],
        f"minus the log-likelihood ({LOSS_UNITS[name]})",
        f"{trained.name}, {options.examples} {options.split} examples, {options.route}",
    )
    report = make_report(trained, options, columns, results.timing)
    text = make_text(report)
    write_text(directory / "report.txt", text)
    results.finish(report)
    print(text)
    written = sorted(path.name for path in directory.iterdir())
    print(f"written to {directory}: {', '.join(written)}")
