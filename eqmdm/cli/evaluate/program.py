"""Evaluate the likelihood of a trained model, example by example.

    python scripts/evaluate.py runs/digits-cld-denoiser-0 --examples 64

See `--help` for the options.
"""

import sys
import time

from tqdm import tqdm

from .. import plots
from ..errors import clean_errors
from ..files import write_text
from ..trained import load_trained
from .evaluator import Evaluator
from .options import EvaluateOptions
from .report import make_report, make_text
from .results import EvaluationResults


def run(given: EvaluateOptions) -> None:
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors():
        given.check()
        trained = load_trained(given.run, data_dir=given.data_dir, ema=given.ema)
        trained = given.placed(trained)
        options = given.resolved(trained)
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
            with clean_errors():
                rows = evaluate(begin, end)
                seconds = time.perf_counter() - clock
                results.add(rows, seconds, compiled=not compiled)
            compiled = True
            unit = "bits_per_dim" if "bits_per_dim" in rows[0] else "total"
            bar.set_postfix_str(f"mean {unit} {results.mean(unit):.3f}")
            bar.update(len(results.rows) - bar.n)
    except KeyboardInterrupt:
        sys.exit(
            f"stopped after {len(results.rows)} examples; the same command continues"
        )
    finally:
        bar.close()

    # ----- The table, the histogram and the report, which marks it all as complete.
    columns = results.write_table()
    images = "bits_per_dim" in columns
    plots.histogram(
        directory / "histogram.png",
        columns["bits_per_dim"] if images else -columns["total"],
        "bits per dimension" if images else "minus the log-likelihood (nats)",
        f"{trained.name}, {options.examples} {options.split} examples, {options.route}",
    )
    report = make_report(trained, options, columns, results.timing)
    text = make_text(report)
    write_text(directory / "report.txt", text)
    results.finish(report)
    print(text)
    written = sorted(path.name for path in directory.iterdir())
    print(f"written to {directory}: {', '.join(written)}")
