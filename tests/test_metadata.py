"""What the package says of itself."""

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


def test_every_import_is_declared():
    scripts = list((ROOT / "scripts").glob("*.py"))
    local = {"eqmdm", *(file.stem for file in scripts)}
    declared = {_normalised(name) for name in PROJECT["project"]["dependencies"]}
    distributions = importlib.metadata.packages_distributions()
    for file in [*(ROOT / "eqmdm").rglob("*.py"), *scripts]:
        for name in imported_names(file, package=file.relative_to(ROOT).parts[:-1]):
            package = name.split(".")[0]
            if package not in local | sys.stdlib_module_names:
                found = {_normalised(name) for name in distributions[package]}
                assert found & declared, f"{file.relative_to(ROOT)}: {package}"


def test_constraints_cover_every_dependency():
    requirements = PROJECT["project"]["dependencies"] + [
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
    # What a dataclass writes for itself is its signature.
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
