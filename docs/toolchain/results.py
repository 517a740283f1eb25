"""The committed results as pages: the files of `benchmarks`, at their places there."""

import os
import posixpath
import re
import shutil
from pathlib import Path

from .cache import ROOT


# The pages; what they link to is copied beside them.
PAGES = (
    "RESULTS.md",
    "README.md",
    "SCALING.md",
    "GPU.md",
    "FAULTS.md",
    *(f"results/{path.name}" for path in sorted(ROOT.glob("benchmarks/results/*.md"))),
    "results/snr_vector/digits.md",
    "results/snr_vector/mnist.md",
)
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)]*)?\)")


def copy_results(docs: Path) -> None:
    """Writes the pages below `docs/benchmarks`, with all files that they link to.

    A link to a folder becomes one to a list of its files.
    """
    for page in PAGES:
        source = ROOT / "benchmarks" / page
        text = source.read_text(encoding="utf-8")
        folder = posixpath.dirname(f"benchmarks/{page}")

        def moved(match: re.Match[str], folder: str = folder) -> str:
            target = posixpath.normpath(posixpath.join(folder, match[2]))
            if "://" not in match[2] and (ROOT / target).is_dir():
                _write_list(docs, target)
                return f"{match[1]}{match[2].rstrip('/')}/index.md)"
            if "://" not in match[2] and not target.endswith(".md"):
                _copy(docs, target)
            return match[0]

        target = docs / "benchmarks" / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_LINK.sub(moved, text), encoding="utf-8")


def copy_linked(docs: Path, page: str, text: str) -> None:
    """Copies the committed results that a page of `docs` links to."""
    for match in _LINK.finditer(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[2]))
        if path.startswith("benchmarks/results/") and not path.endswith(".md"):
            _copy(docs, path)


def _copy(docs: Path, path: str) -> None:
    target = docs / path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, target)


def _write_list(docs: Path, folder: str) -> None:
    lines = [f"# Files of {folder}", ""]
    for path in sorted(p for p in (ROOT / folder).rglob("*") if p.is_file()):
        own = path.relative_to(ROOT / folder).as_posix()
        lines.append(f"- [{own}]({own})")
        if path.suffix != ".md":
            _copy(docs, f"{folder}/{own}")
    target = docs / folder / "index.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([*lines, ""]), encoding="utf-8")
    os.utime(target, (0, 0))
