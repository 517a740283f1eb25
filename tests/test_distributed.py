import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eqmdm import Run


TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}
# Sums over a batch in another order, in float64, after some steps of Adam.
ROUNDING = 1e-9
TINY = (
    "--dataset=digits --diffusion=vpsde --steps=12 --batch-size=8 --width=8 "
    "--multipliers 1 2 --n-blocks=1 --log-every=2 --validate-every=6 "
    "--checkpoint-every=4 --validation-examples=8 --test-examples=8 --test-draws=2 "
    "--n-samples=4 --sample-steps=4 --run-dir=run"
).split()


def _free_address():
    with socket.socket() as sock:
        sock.bind(("", 0))
        # Address 0 is this machine.
        return f"0:{sock.getsockname()[1]}"


def _start(*command, cwd=None, env=ENVIRONMENT):
    pipe = subprocess.PIPE
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True
    )


def _finish(processes):
    """What they print; one that waits for another must not outlive the test."""
    try:
        printed = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, printed, strict=True):
        assert process.returncode == 0, stderr
    return [stdout for stdout, _ in printed]


# --- The library ---------------------------------------------------------------------


def _found(stdout):
    # Gloo prints too.
    (line,) = [line for line in stdout.splitlines() if line.startswith("found ")]
    return json.loads(line.removeprefix("found "))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process finds by itself, and what each of two finds."""
    program, address = TESTS / "on_two_processes.py", _free_address()
    directory = tmp_path_factory.mktemp("together")
    two = [_start(program, directory, address, index) for index in range(2)]
    together = [_found(stdout) for stdout in _finish(two)]
    (alone,) = _finish([_start(program, tmp_path_factory.mktemp("alone"))])
    return _found(alone), *together


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("how", ["whole", "sharded"])
@pytest.mark.parametrize("what", ["losses", "evaluation", "samples"])
def test_two_processes_find_what_one_does(found, index, how, what):
    alone, *together = found
    assert [each["devices"] for each in found] == [1, 2, 2]
    np.testing.assert_allclose(
        together[index][how][what], alone[how][what], rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_each_process_reads_its_own_part_of_the_data(found, how):
    alone, *together = found
    parts = [np.reshape(each[how]["read"], (5, 4)) for each in together]
    batches = np.reshape(alone[how]["read"], (5, 8))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches)


@pytest.mark.parametrize("how, share", [("whole", 1), ("sharded", 1 / 2)])
def test_checkpoint_of_two_processes_comes_back_to_the_bit(found, how, share):
    for each in found[1:]:
        assert each[how]["restored"]
        assert each[how]["share"] == share


# --- The program ---------------------------------------------------------------------


def _train_together(cwd, cache, *arguments):
    address = _free_address()
    cache = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return [
        _start(
            TESTS.parent / "scripts" / "train.py",
            *TINY,
            *arguments,
            "--distributed",
            f"--coordinator={address}",
            "--n-processes=2",
            f"--process-index={index}",
            cwd=cwd,
            env=ENVIRONMENT | cache,
        )
        for index in range(2)
    ]


def _losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("loss") for line in lines]


@pytest.mark.slow
def test_killed_process_loses_nothing(tmp_path):
    for name in ("alone", "undisturbed", "killed", "cache"):
        (tmp_path / name).mkdir()
    cache = tmp_path / "cache"
    _finish([_start(TESTS.parent / "scripts/train.py", *TINY, cwd=tmp_path / "alone")])
    printed = _finish(_train_together(tmp_path / "undisturbed", cache))
    # One process alone speaks for both.
    assert "minus bound" in printed[0] and "minus bound" not in printed[1]

    first, second = _train_together(tmp_path / "killed", cache)
    deadline = time.monotonic() + 500
    while not (tmp_path / "killed" / "run" / "checkpoints" / "4").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    # The other cannot go on. Whatever it does then, it is restarted too.
    time.sleep(1)
    first.kill()
    for process in (first, second):
        process.communicate(timeout=60)
    printed = _finish(_train_together(tmp_path / "killed", cache, "--resume"))
    assert "resuming from step" in printed[0]

    run_dirs = [tmp_path / name / "run" for name in ("undisturbed", "killed", "alone")]
    undisturbed, killed, alone = [Run(run_dir).restore() for run_dir in run_dirs]
    assert undisturbed.step == killed.step == 12
    for name, array in undisturbed.arrays.items():
        np.testing.assert_array_equal(killed.arrays[name], array)
    losses = [_losses(run_dir) for run_dir in run_dirs]
    assert losses[0] == losses[1]
    # float32 sums over the batch, in another order, after some steps of Adam.
    validations = [index for index, loss in enumerate(losses[0]) if loss is None]
    together, by_itself = (np.delete(each, validations) for each in losses[1:])
    np.testing.assert_allclose(
        together.astype(float), by_itself.astype(float), rtol=1e-4
    )


@pytest.mark.slow
def test_processes_that_are_refused_all_end(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("")
    processes = _train_together(tmp_path, tmp_path / "cache")
    printed = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: `run_dir` must be new or empty" in printed[0][1]
    assert "error: the first process could not go on" in printed[1][1]
