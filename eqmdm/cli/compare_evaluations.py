"""Compare evaluations of the same examples, example by example."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from .errors import clean_errors
from .fields import chosen, positional
from .files import write_text
from .outputs import TABLE_FORMATS, TableFormats, check_formats
from .parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare evaluations of the same examples, example by example.

    The mean of paired differences is more precise than either mean if the evaluations
    of an example are correlated. It covers the examples that converged in every
    evaluation.
    """

    evaluations: tuple[Path, ...] = positional("DIRECTORY")
    """Two or more directories that `eqmdm evaluate` wrote; the others are compared with
    the first."""
    output: Path | None = chosen("only printed")
    """Where to write the comparison: a file that ends in .csv, .tex or .md, or a
    directory for text (comparison.txt) and the formats of --format."""
    format: TableFormats = dataclasses.field(
        default=(), metadata={"default": "all, into a directory"}
    )
    """Formats of the tables in the directory of --output: csv, latex, markdown."""

    def check(self) -> None:
        """**Raises:** `ValueError` for options that no evaluations could satisfy."""
        if len(self.evaluations) < 2:
            raise ValueError(
                "`evaluations` must be two or more; got "
                f"{' '.join(map(str, self.evaluations)) or 'none'}."
            )
        check_formats(self.format)
        if self.format and (self.output is None or self.output_format):
            raise ValueError(
                "`format` must come with a directory as `output`; got "
                f"{','.join(self.format)} with {self.output or 'none'}."
            )
        if self.output and self.output.suffix and not self.output_format:
            if not self.output.is_dir():
                raise ValueError(
                    f"`output` must end in {', '.join(TABLE_FORMATS.values())}, or be "
                    f"a directory; got {self.output}."
                )

    @property
    def output_format(self) -> str | None:
        """The format of the one file to write; `None` for a directory."""
        suffix = self.output.suffix if self.output else ""
        formats = (name for name, end in TABLE_FORMATS.items() if end == suffix)
        return next(formats, None)


def run(options: CompareOptions) -> None:
    # Imported after parsing, since importing JAX takes a while.
    from .evaluate.comparison import compare, read
    from .tables import write_tables

    with clean_errors(options):
        options.check()
        comparison = compare([read(directory) for directory in options.evaluations])
        print(comparison.as_text())
        if options.output is None:
            return
        table = comparison.as_table()
        if options.output_format:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.output, table.as_text(options.output_format))
        else:
            options.output.mkdir(parents=True, exist_ok=True)
            write_text(options.output / "comparison.txt", comparison.as_text() + "\n")
            formats = options.format or tuple(TABLE_FORMATS)
            write_tables(options.output / "comparison", table, formats)
    print(f"written to {options.output}")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    run(parse(CompareOptions, arguments, prog))
