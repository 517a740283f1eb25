import os
from importlib.metadata import version


# Equinox reads this when it is imported, so it precedes every other import.
os.environ["EQX_ON_ERROR"] = "raise"
# JAX reads this when it is imported. Most compiled programs of the tests run once, and
# optimising them would double the time of the tests. `helpers.OPTIMISED` is for those
# whose rounding errors matter.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *[
            # Since JAX 0.11 there is no other emitter.
            "--xla_cpu_use_fusion_emitters=false",
            # Compiling parts in parallel takes a third more processor time, and every
            # processor has a worker already.
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
        * version("jax").startswith("0.10."),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import gc
import zlib
from pathlib import Path

import jax
import jax.monitoring
import jax.random as jr
import jaxtyping
import pytest
from hypothesis import settings


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, without a deadline, since the first one compiles.
settings.register_profile("eqmdm", deadline=None, derandomize=True)
settings.load_profile("eqmdm")


def pytest_addoption(parser):
    parser.addoption(
        "--solver-table",
        type=Path,
        metavar="FILE",
        help="where test_diffrax_solvers.py writes what it finds",
    )
    parser.addoption(
        "--data-table",
        type=Path,
        metavar="FILE",
        help="where test_data_kinds.py writes what it finds",
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


def pytest_collection_finish():
    """Hide permanent objects from the garbage collector: tracing makes millions of
    objects, and scanning all modules for every ten thousand takes a twentieth of the
    time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# A compiled program and its trace take 1.5 MB.
_MOST_PROGRAMS = 500
_n_programs = 0


def _count_program(event, duration, **details):
    global _n_programs
    del duration, details
    _n_programs += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count_program)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Free compiled programs after a file once they take most of a gigabyte. Until
    then, later files reuse the small programs of operations outside of `jit`."""
    global _n_programs
    yield
    if _n_programs > _MOST_PROGRAMS:
        jax.clear_caches()
        _n_programs = 0
