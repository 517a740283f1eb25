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
import socket
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
    parser.addoption(
        "--process-table",
        type=Path,
        metavar="FILE",
        help="where test_processes.py writes what it finds",
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


@pytest.fixture
def no_network(monkeypatch):
    """A test fails if it looks up or connects to another machine."""

    def refuse(*args, **kwargs):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """A cache of `datasets` for one test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# Runs of programs, as `script_runs` makes them. The programs are imported late, since
# most tests do not need them.


@pytest.fixture(scope="module")
def in_float32():
    from script_runs import single_precision

    with single_precision():
        yield


@pytest.fixture(scope="module")
def points(in_float32, tmp_path_factory):
    """A run on points with the score of a denoiser."""
    from script_runs import POINTS, copy_run

    return copy_run(tmp_path_factory.mktemp("points") / "run", *POINTS)


@pytest.fixture(scope="module")
def free(in_float32, tmp_path_factory):
    """A run on points with a free score."""
    from script_runs import POINTS, copy_run

    return copy_run(tmp_path_factory.mktemp("free") / "run", *POINTS, "--score=free")


@pytest.fixture(scope="module")
def digits(in_float32, tmp_path_factory):
    """A run on images."""
    from script_runs import DIGITS, copy_run

    return copy_run(tmp_path_factory.mktemp("digits") / "run", *DIGITS)


@pytest.fixture(scope="module")
def logit_digits(in_float32, tmp_path_factory):
    """A run on images whose data are dequantised and transformed."""
    from script_runs import DIGITS, copy_run

    logit = "--transform=logit", "--dequantisation=truncated_normal"
    return copy_run(tmp_path_factory.mktemp("digits") / "run", *DIGITS, *logit)


@pytest.fixture
def solver(monkeypatch):
    """The solver of `evaluations`, in place of `eqmdm.log_likelihood`."""
    import evaluations

    return evaluations.use_fast_solver(monkeypatch)


@pytest.fixture
def no_pictures(monkeypatch):
    import evaluations

    evaluations.without_pictures(monkeypatch)


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
