"""Tests of checkpoints that are damaged, or locked by another process."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
from saved_states import build_model, make_state, save_states

import eqmdm
from eqmdm import Run
from eqmdm._training.checkpoint import named_arrays
from helpers import tree_allclose


def _arrays(state):
    return jax.tree.map(np.asarray, named_arrays(state))


# If one of its concurrent reads fails, Orbax abandons the others, and Python warns when
# it collects them.
_abandons_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def _files(directory, step):
    root = directory / "checkpoints" / str(step)
    return sorted(path for path in root.rglob("*") if path.is_file())


@_abandons_reads
def test_any_damage_to_the_newest_leaves_the_previous_loadable(tmp_path):
    save_states(tmp_path / "run", 1, 2)
    n_files = len(_files(tmp_path / "run", 2))
    assert n_files > 3
    expected = {step: _arrays(make_state(step)) for step in (1, 2)}
    noticed = 0
    for i in range(n_files):
        for damage in ("remove", "truncate", "flip"):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(tmp_path / "run", copy)
            path = _files(copy, 2)[i]
            content = path.read_bytes()
            if damage == "remove":
                path.unlink()
            elif damage == "truncate":
                path.write_bytes(content[: len(content) // 2])
            elif content:
                middle = len(content) // 2
                flipped = bytes([content[middle] ^ 0x10])
                path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
            restored = Run(copy).restore()
            # Some files are not needed for loading, but all damage must be detected.
            arrays = expected[restored.step]
            assert tree_allclose(restored.arrays, arrays, rtol=0, atol=0)
            noticed += restored.step == 1
            assert set(restored.skipped) == ({2} if restored.step == 1 else set())
    assert noticed > 3


@_abandons_reads
def test_damaged_checkpoint_is_skipped_with_a_warning(tmp_path):
    run = save_states(tmp_path, 1, 2)
    for path in _files(tmp_path, 2):
        path.unlink()
    with pytest.warns(
        UserWarning, match="step 2 in .* cannot be read.*step 1 is loaded"
    ):
        eqmdm.load_run(tmp_path, like=build_model)
    run.discard(run.restore().skipped)
    assert run.steps == [1]
    # The resumed run can write step 2 again.
    run.save(make_state(2))
    assert run.restore().step == 2
    run.close()


@_abandons_reads
def test_only_damaged_checkpoints_are_named(tmp_path):
    save_states(tmp_path, 4)
    for path in _files(tmp_path, 4):
        path.unlink()
    with pytest.raises(ValueError, match="only damaged ones .step 4"):
        eqmdm.load_run(tmp_path)


_SAVER = """
    import sys, resource, signal
    sys.path.insert(0, {tests!r})
    import jax
    jax.config.update("jax_enable_x64", True)
    import saved_states as t
    run = t.Run({run!r})
    run.save(t.make_state(1))
    {then}
"""


def _subprocess(tmp_path, then):
    tests = os.path.dirname(os.path.abspath(__file__))
    script = textwrap.dedent(_SAVER).format(tests=tests, run=str(tmp_path), then=then)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_full_disk_leaves_the_previous_checkpoint_loadable(tmp_path):
    # A limit on file sizes simulates a full disk.
    then = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512));"
        "run.save(t.make_state(2))"
    )
    process = _subprocess(tmp_path, then)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "step 2 could not be written" in stderr
    assert "Those of steps [1] are intact" in stderr
    run = Run(tmp_path)
    restored = run.restore()
    assert (restored.step, restored.skipped) == (1, {})
    run.save(make_state(2))
    run.close()
    assert run.restore().step == 2


@pytest.mark.slow
def test_process_killed_while_saving_leaves_a_checkpoint_loadable(tmp_path):
    process = _subprocess(
        tmp_path,
        "print('saving', flush=True)\n"
        "[run.save(t.make_state(s)) for s in range(2, 999)]",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    # Saves follow each other without a pause, so the kill interrupts one.
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run = Run(tmp_path)
    restored = run.restore()
    assert restored.step >= 1
    expected = _arrays(make_state(restored.step))
    assert tree_allclose(restored.arrays, expected, rtol=0, atol=0)
    run.discard(restored.skipped)
    # The remains of the killed save do not hinder the next one.
    run.save(make_state(restored.step + 1))
    run.close()
    assert run.restore().step == restored.step + 1


def test_no_run_is_read_from_a_pickle(tmp_path):
    save_states(tmp_path, 1)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pkl", ".pickle")]
    assert not np.any([b"\x80\x04" == p.read_bytes()[:2] for p in _files(tmp_path, 1)])


def test_locked_run_refuses_another_process_until_the_first_is_killed(tmp_path):
    program = f"""
        import time, eqmdm
        run = eqmdm.Run({str(tmp_path / "run")!r})
        run.lock()
        print("locked", flush=True)
        time.sleep(600)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    run = Run(tmp_path / "run")
    assert not run.exists
    with pytest.raises(ValueError, match="`run_dir` must not be in use by another"):
        run.lock()
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    run.lock()
    with pytest.raises(ValueError, match="in use"):
        Run(tmp_path / "run").lock()
    run.close()
    again = Run(tmp_path / "run")
    again.lock()
    again.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/sys is Linux's")
def test_directory_that_cannot_be_written_to_is_named():
    # Not even the superuser may make a directory there.
    with pytest.raises(OSError, match="`run_dir` must be .* written to; /sys/run"):
        Run("/sys/run").lock()
