"""Tests that public names are loaded on first use, in every way of importing them."""

import subprocess
import sys
import textwrap

import pytest

from helpers import slow


def _run(program):
    # A new process, since pytest's import hook has loaded them in this one.
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_import_loads_nothing_heavy():
    _run("""
        import sys
        import eqmdm

        heavy = {"jax", "numpy", "equinox", "diffrax", "optax", "orbax", "datasets"}
        assert not heavy & set(sys.modules)
        assert eqmdm.__version__
    """)


def test_every_way_to_a_name_leads_to_the_same_object():
    _run("""
        import inspect
        import eqmdm
        from eqmdm import CLD, data
        import eqmdm.nn

        assert eqmdm.CLD is CLD and eqmdm.data is data
        every = {}
        exec("from eqmdm import *", every)
        names = [name for name in dir(eqmdm) if not name.startswith("_")]
        assert {"CLD", "data", "elbo", "nn"} <= set(names) <= set(every)
        assert dict(inspect.getmembers(eqmdm)).items() >= {"CLD": CLD}.items()
        # Nothing that the package itself imports.
        assert not {"importlib", "TYPE_CHECKING", "cli"} & set(names)
    """)


def test_submodule_can_be_imported_first():
    _run("""
        import eqmdm.data
        import eqmdm

        assert eqmdm.data.load and eqmdm.VPSDE
    """)


def test_wrong_name_raises_as_in_any_module():
    _run("""
        import eqmdm

        for name in ("CDL", "_no_such_module"):
            try:
                getattr(eqmdm, name)
            except AttributeError as error:
                assert str(error) == f"module 'eqmdm' has no attribute {name!r}"
            else:
                raise AssertionError(name)
            assert not hasattr(eqmdm, name)
    """)


@pytest.mark.parametrize(
    "hook",
    [
        slow("jaxtyping.install_import_hook('eqmdm', 'beartype.beartype')"),
        "jaxtyping.install_import_hook(['eqmdm'], None)",
    ],
    ids=["checked", "unchecked"],
)
def test_import_hook_sees_every_module(hook):
    # The hook acts only on what is imported within it.
    _run(f"""
        import jaxtyping

        with {hook}:
            import eqmdm
        from eqmdm._core import checks

        assert "jaxtyping" in type(checks.__spec__.loader).__module__
    """)
