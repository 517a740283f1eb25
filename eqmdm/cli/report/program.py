"""The program `eqmdm report`: the page of a run, from its files."""

from pathlib import Path

from ..._core.files import write_atomically
from ..errors import clean_errors, clean_file_errors
from . import contents
from .options import ReportOptions
from .page import page


NAME = "report.html"


def run(options: ReportOptions) -> None:
    with clean_file_errors():
        with clean_errors(options):
            found = contents.read(options.run)
        print(f"written: {write(options.run, found)}")


def write(run_dir: Path, found: contents.Contents | None = None) -> Path:
    """Write the page of a run, and return its path.

    **Raises:** `ValueError` if the directory holds no run; `OSError` for a full disk.
    """
    found = contents.read(run_dir) if found is None else found
    path = run_dir / NAME
    # JSON may hold halves of surrogate pairs, which have no encoding.
    write_atomically(path, page(found).encode(errors="replace"))
    return path
