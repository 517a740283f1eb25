"""Tests of the metadata of the package."""

import importlib
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import eqmdm
import eqmdm.data
import eqmdm.nn
from helpers import imported_names


ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _tracked_files():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listing = subprocess.run(
        [git, "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
    )
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


PUBLIC = [
    pytest.param(name, value, id=f"{namespace.__name__}.{name}")
    for namespace in (eqmdm, eqmdm.data, eqmdm.nn)
    for name in dir(namespace)
    for value in [getattr(namespace, name)]
    if not name.startswith("_")
    and (getattr(value, "__module__", None) or "").startswith(eqmdm.__name__)
]
assert PUBLIC


def test_version_is_the_one_in_the_citation():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: *(\S+)$", citation, re.MULTILINE)
    assert version == importlib.metadata.version("eqmdm") == eqmdm.__version__


def _normalised(requirement):
    """The name of the distribution that a requirement is for."""
    name = re.split(r"[^\w.-]", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


CORE = {_normalised(name) for name in PROJECT["project"]["dependencies"]}
EXTRAS = PROJECT["project"]["optional-dependencies"]
OF_PROGRAMS = {_normalised(name) for name in EXTRAS["programs"]}
# Each has an extra of its own name.
OF_TRACKERS = {"mlflow", "tensorboard", "trackio", "wandb"}
# Imported only for a single data set.
LATE = {"data/_load.py": {"scikit-learn"}}


def test_every_import_is_declared():
    distributions = importlib.metadata.packages_distributions()
    for file in [*(ROOT / "eqmdm").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        place = file.relative_to(ROOT)
        declared = CORE | LATE.get("/".join(place.parts[1:]), set())
        if place.parts[:2] == ("eqmdm", "cli"):
            declared |= OF_PROGRAMS
        for name in imported_names(file, package=place.parts[:-1]):
            package = name.split(".")[0]
            if place.parts[1] == "_tracking" and package in OF_TRACKERS:
                assert _normalised(EXTRAS[package][0]) == package
            elif package not in {"eqmdm"} | sys.stdlib_module_names:
                found = {_normalised(name) for name in distributions[package]}
                assert found & declared, f"{place}: {package}"


def test_every_dependency_is_imported():
    distributions = importlib.metadata.packages_distributions()
    found = set()
    for file in (ROOT / "eqmdm").rglob("*.py"):
        package = file.relative_to(ROOT).parts[:-1]
        for name in imported_names(file, package=package):
            names = distributions.get(name.split(".")[0], ())
            found |= {_normalised(name) for name in names}
    assert CORE | OF_PROGRAMS <= found


def test_console_program_is_the_one_of_the_scripts():
    module, _, name = PROJECT["project"]["scripts"]["eqmdm"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_constraints_cover_every_dependency():
    requirements = PROJECT["project"]["dependencies"] + EXTRAS["programs"]
    requirements += [
        requirement
        for group in PROJECT["dependency-groups"].values()
        for requirement in group
        if isinstance(requirement, str)
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constrained = {_normalised(line) for line in lines if "==" in line}
    assert {_normalised(requirement) for requirement in requirements} <= constrained


@pytest.mark.parametrize(("name", "value"), PUBLIC)
def test_public_name_has_a_docstring(name, value):
    doc = value.__doc__ or ""
    # The generated docstring of a dataclass is its signature.
    written = not doc.startswith(f"{name}(")
    assert doc.strip() and written


def test_no_file_names_a_machine():
    pattern = re.compile(
        r"(?<![\w./-])/(?:home|root|Users|work|tmp|mnt|opt)/"
        r"|\blocal[h]ost\b"
        r"|\b(?:10|127|172|192)\.\d+\.\d+\.\d+\b"
        r"|[\w-]+\.(?:corp|internal|lan)\b"
        r"|--(?:extra-)?index-url|--find-link[s]"
    )
    for file in _tracked_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found = pattern.search(text)
        assert not found, f"{file.relative_to(ROOT)}: {found}"


def test_tests_that_the_documents_name_are_there():
    documents = [path for path in _tracked_files() if path.suffix == ".md"]
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = {
        (path.name, name)
        for path in documents
        for name in re.findall(r"`(test_\w+)`", path.read_text())
    }
    assert named
    assert not [(path, name) for path, name in named if f"def {name}(" not in tests]
