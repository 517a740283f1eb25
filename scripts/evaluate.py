"""Evaluate the likelihood of a trained model, example by example.

    python scripts/evaluate.py runs/digits-cld-denoiser-0 --examples 64

See `--help` for the options.
"""

import sys
import time

import _evaluation
import _likelihood_report
import _plots
import _subject
import tyro
from _compilation import keep_compiled
from _errors import clean_errors
from _evaluate_options import Options
from _results import Results, write_text
from tqdm import tqdm


def main(given: Options) -> None:
    # ----- Set-up: every wrong option, file or run fails here, before any work.
    with clean_errors():
        given.check()
        subject = _subject.load_subject(
            given.run, data_dir=given.data_dir, ema=given.ema
        )
        subject = given.placed(subject)
        options = given.resolved(subject)
        evaluate = _evaluation.Evaluator(subject, options)
        results = Results(
            options.output_dir,
            {"dataset": subject.dataset.name, "step": subject.step}
            | options.identity()
            | {"parameters": subject.parameters},
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
    _plots.histogram(
        directory / "histogram.png",
        columns["bits_per_dim"] if images else -columns["total"],
        "bits per dimension" if images else "minus the log-likelihood (nats)",
        f"{subject.name}, {options.examples} {options.split} examples, {options.route}",
    )
    report = _likelihood_report.make_report(subject, options, columns, results.timing)
    text = _likelihood_report.make_text(report)
    write_text(directory / "report.txt", text)
    results.finish(report)
    print(text)
    written = sorted(path.name for path in directory.iterdir())
    print(f"written to {directory}: {', '.join(written)}")


if __name__ == "__main__":
    keep_compiled()
    main(tyro.cli(Options))
