"""Results of executed pages, kept until the page or the package changes."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
_TOOLS = ("cells.py", "execution.py", "pictures.py")
_VERSIONS = ("diffrax", "equinox", "jax", "lineax", "matplotlib", "numpy", "optax")


class ExecutionError(Exception):
    """A page whose code failed; the text ends with the traceback."""


def executed(source: Path) -> Path:
    """A directory with the executed page of `source` and its figures.

    It is one of an earlier build if nothing has changed that the page depends on: its
    text, the package, the versions of the dependencies and, if its text names them, the
    committed results.

    **Raises:** `ExecutionError` if its code fails.
    """
    directory = BUILD / "cache" / _key(source)
    if directory.exists():
        return directory
    unfinished = directory.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
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
    unfinished.rename(directory)
    return directory


def remove_unused(sources: Iterable[Path]) -> None:
    """Removes the results that no page uses any more."""
    used = {_key(source) for source in sources}
    for directory in (BUILD / "cache").glob("*"):
        if directory.name not in used:
            shutil.rmtree(directory)


def _key(source: Path) -> str:
    text = source.read_bytes()
    digest = hashlib.sha256(_package_digest())
    if b"benchmarks/results" in text:
        digest.update(_digest((ROOT / "benchmarks" / "results").rglob("*.*")))
    digest.update(text)
    return f"{source.stem}-{digest.hexdigest()[:16]}"


@functools.cache
def _package_digest() -> bytes:
    files = [*(ROOT / "eqmdm").rglob("*.py")]
    files += [ROOT / "docs" / "toolchain" / name for name in _TOOLS]
    versions = [sys.version, *(f"{name}=={version(name)}" for name in _VERSIONS)]
    return _digest(files) + "\n".join(versions).encode()


def _digest(files: Iterable[Path]) -> bytes:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode())
        digest.update(file.read_bytes())
    return digest.digest()
