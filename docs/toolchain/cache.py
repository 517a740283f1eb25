"""Results of executed pages, kept until the page or the package changes."""

import ast
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from .execution import code_of


ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
_TOOLS = ("cells.py", "execution.py", "pictures.py")
_LOCK = threading.Lock()
_VERSIONS = ("diffrax", "equinox", "jax", "lineax", "matplotlib", "numpy", "optax")


class ExecutionError(Exception):
    """A page whose code failed; the text ends with the traceback."""


def executed(source: Path) -> Path:
    """A directory with the results of the code in a page, and its figures.

    It is one of an earlier build if nothing has changed that they depend on: the code,
    that of the library without its docstrings, the versions of the dependencies and, if
    the code names them, the programs and the committed results.

    **Raises:** `ExecutionError` if its code fails.
    """
    directory = BUILD / "cache" / _key(source)
    if directory.exists():
        return directory
    unfinished = directory.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if not any(json.loads(code_of(source))):
        # Pages without code need no process of their own.
        empty = [[] for _ in json.loads(code_of(source))]
        (unfinished / "results.json").write_text(json.dumps(empty), encoding="utf-8")
        return unfinished.rename(directory)
    command = [sys.executable, "-m", "toolchain.execution"]
    command += [str(source.relative_to(ROOT)), str(unfinished)]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(BUILD / "xla"),
        "PYTHONPATH": str(ROOT / "docs"),
        "MPLBACKEND": "Agg",
    }
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if finished.returncode:
        raise ExecutionError(f"{source.relative_to(ROOT)}:\n{finished.stderr}")
    return unfinished.rename(directory)


def remove_unused(sources: Iterable[Path]) -> None:
    """Removes the results that no page uses any more."""
    used = {_key(source) for source in sources}
    for directory in (BUILD / "cache").glob("*"):
        if directory.name not in used:
            shutil.rmtree(directory)


def _key(source: Path) -> str:
    code = code_of(source)
    # Pages are executed from several threads, in which Python 3.11 cannot use `ast` at
    # the same time (CPython's issue 106905); and each digest is made once.
    with _LOCK:
        digest = hashlib.sha256(_library_digest())
        if "eqmdm.cli" in code or "scripts/" in code:
            digest.update(_tree_digest("eqmdm/cli", "*.py"))
        if "benchmarks/results" in code:
            digest.update(_tree_digest("benchmarks/results", "*.*"))
    digest.update(code.encode())
    return f"{source.stem}-{digest.hexdigest()[:16]}"


@functools.cache
def _tree_digest(folder: str, pattern: str) -> bytes:
    return _digest((ROOT / folder).rglob(pattern))


@functools.cache
def _library_digest() -> bytes:
    files = {*(ROOT / "eqmdm").rglob("*.py")} - {*(ROOT / "eqmdm" / "cli").rglob("*")}
    files |= {ROOT / "docs" / "toolchain" / name for name in _TOOLS}
    versions = [sys.version, *(f"{name}=={version(name)}" for name in _VERSIONS)]
    return _digest(files) + "\n".join(versions).encode()


def _digest(files: Iterable[Path]) -> bytes:
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(str(file.relative_to(ROOT)).encode())
        digest.update(_code(content) if file.suffix == ".py" else content)
    return digest.digest()


def _code(source: bytes) -> bytes:
    """Python's code without comments and docstrings, which change no result."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return ast.dump(tree).encode()
