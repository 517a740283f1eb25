"""Tests of the rules of the code, each checked on every file or class."""

import abc
import ast
import importlib
import inspect
import pathlib
import pkgutil
from typing import final

import equinox as eqx
import pytest

import eqmdm
from helpers import imported_names


PACKAGE = pathlib.Path(eqmdm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A file imports only from those above it. Those in one folder are one entry.
ORDER = (
    "_core",
    "nn",
    "data",
    "_metrics",
    "_basis",
    "_levels",
    "_diffusion",
    "_model",
    "_sampling",
    "_observations",
    "_bound",
    "_likelihood",
    "_training",
    "_tracking",
    "_sharing",
    "_public",
    "__init__",
    "cli",
)

# Only the programs parse, print, log or plot.
PROGRAMS_ONLY = {"argparse", "logging", "matplotlib", "tqdm", "tyro"}


# Imported so that every class of the library is among the subclasses below.
for _, name, _ in pkgutil.walk_packages(eqmdm.__path__, f"{eqmdm.__name__}."):
    importlib.import_module(name)


def _subclasses(cls):
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _package(cls):
    return cls.__module__.split(".")[0]


MODULES = sorted(
    (c for c in set(_subclasses(eqx.Module)) if _package(c) == eqmdm.__name__),
    key=lambda c: (c.__module__, c.__qualname__),
)
assert MODULES


def _is_abstract_or_final(cls):
    unimplemented = cls.__abstractmethods__ | cls.__abstractvars__
    is_final = vars(cls).get("__final__", False)
    if cls.__name__.lstrip("_").startswith("Abstract"):
        return bool(unimplemented) and not is_final
    return not unimplemented and is_final and not cls.__subclasses__()


def _overridden(cls):
    """The names of the concrete members of its bases that a class redefines."""
    names = set()
    for base in cls.__mro__[1:]:
        if _package(base) != _package(cls):
            continue
        concrete = {
            name
            for name, member in vars(base).items()
            if inspect.isroutine(member)
            or isinstance(member, property | classmethod | staticmethod)
        }
        concrete -= base.__abstractmethods__ | base.__abstractvars__
        names |= {n for n in concrete & set(vars(cls)) if not n.startswith("__")}
        # Dataclasses and Equinox write the other special methods.
        names |= {"__call__"} & concrete & set(vars(cls))
    return names


@pytest.mark.parametrize("cls", MODULES, ids=lambda c: c.__name__)
def test_module_is_either_abstract_or_final(cls):
    assert _is_abstract_or_final(cls)


@pytest.mark.parametrize("cls", MODULES, ids=lambda c: c.__name__)
def test_module_overrides_only_what_is_abstract(cls):
    assert not _overridden(cls)


class AbstractParent(eqx.Module):
    @abc.abstractmethod
    def abstract(self):
        """To be overridden."""

    def method(self):
        return 0

    @property
    def computed(self):
        return 0

    def __call__(self):
        return 0


@final
class Child(AbstractParent):
    def abstract(self):
        return 1


def test_guards_accept_what_follows_the_rules():
    assert _is_abstract_or_final(AbstractParent)
    assert _is_abstract_or_final(Child)
    assert not _overridden(Child)


def test_guards_reject_what_breaks_the_rules():
    class NotMarkedFinal(AbstractParent):
        def abstract(self):
            return 1

    class AbstractWithNothingAbstract(eqx.Module):
        pass

    @final
    class SubclassedThoughFinal(eqx.Module):
        pass

    class Grandchild(SubclassedThoughFinal):
        pass

    class AbstractOverriding(AbstractParent):
        def method(self):
            return 1

        @property
        def computed(self):
            return 1

        def __call__(self):
            return 1

    assert not _is_abstract_or_final(NotMarkedFinal)
    assert not _is_abstract_or_final(AbstractWithNothingAbstract)
    assert not _is_abstract_or_final(SubclassedThoughFinal)
    assert not _is_abstract_or_final(Grandchild)
    assert _overridden(AbstractOverriding) == {"method", "computed", "__call__"}


def _dotted_name(file):
    """The parts of a file's dotted name within the package."""
    return file.relative_to(PACKAGE).with_suffix("").parts


def _imports(file):
    """The full dotted name of everything that a file imports."""
    return imported_names(file, package=(eqmdm.__name__, *_dotted_name(file)[:-1]))


def _entry(name):
    """The entry of `ORDER` that a full dotted name within the package belongs to."""
    first = (*name.split("."), "__init__")[1]
    # A name that is no file comes from the package itself.
    is_file = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").exists()
    return first if is_file else "__init__"


@pytest.fixture(params=FILES, ids=lambda f: "/".join(_dotted_name(f)))
def file(request):
    return request.param


def test_every_file_has_a_place_in_the_order(file):
    assert _dotted_name(file)[0] in ORDER


def test_file_imports_only_from_those_above_it(file):
    own = _dotted_name(file)[0]
    for name in _imports(file):
        if name.split(".")[0] == eqmdm.__name__ and _entry(name) != own:
            assert ORDER.index(_entry(name)) < ORDER.index(own), name


def test_only_networks_import_networks(file):
    if _dotted_name(file)[0] in {"nn", "_public", "cli"}:
        pytest.skip("the networks themselves, their public name and the programs")
    for name in _imports(file):
        assert name.split(".")[:2] != [eqmdm.__name__, "nn"]


def test_file_imports_nothing_private_from_a_dependency(file):
    for name in _imports(file):
        first, *rest = name.split(".")
        if first not in {eqmdm.__name__, "__future__"}:
            assert not any(part.startswith("_") for part in (first, *rest)), name


def test_file_keeps_annotations_as_they_are(file):
    # Postponed, they empty `AbstractVar` without a warning.
    assert "__future__.annotations" not in set(_imports(file))


def test_only_programs_parse_print_and_plot(file):
    if _dotted_name(file)[0] == "cli":
        pytest.skip("a program")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in called
    assert not PROGRAMS_ONLY & {name.split(".")[0] for name in _imports(file)}
