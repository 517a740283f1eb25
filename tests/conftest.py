import os
from importlib.metadata import version


# Read by Equinox when it is imported, so this stands before every other import.
os.environ["EQX_ON_ERROR"] = "raise"
# By JAX likewise. Most programs of the tests run once, and optimising them takes as
# long as all else together. `helpers.OPTIMISED` is for those whose roundings matter.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # From JAX 0.11 on there is no other way to emit code.
        *["--xla_cpu_use_fusion_emitters=false"] * version("jax").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import zlib
from pathlib import Path

import jax
import jax.random as jr
import jaxtyping
import pytest
from hypothesis import settings


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, and time for the first of them to compile.
settings.register_profile("eqmdm", deadline=None, derandomize=True)
settings.load_profile("eqmdm")


def pytest_addoption(parser):
    parser.addoption(
        "--solver-table",
        type=Path,
        metavar="FILE",
        help="where test_diffrax_solvers.py writes what it finds",
    )


@pytest.fixture
def key(request):
    """A key that is fixed for each test but differs between tests."""
    return jr.key(zlib.crc32(request.node.nodeid.encode()) % 2**31)


@pytest.fixture
def unchecked():
    """Without the type checker that tests run under: the errors that users see."""
    checking = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", checking)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Frees what a file has compiled: all of it together takes gigabytes."""
    yield
    jax.clear_caches()
