import contextlib
import json
import os
import re
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


def _finish(processes, status=0):
    """The output of the processes, which are killed if they outlive the test."""
    try:
        printed = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, printed, strict=True):
        assert process.returncode == status, stderr
    return [stdout for stdout, _ in printed]


# --- The library ---------------------------------------------------------------------


def _found(stdout):
    # Gloo prints too.
    (line,) = [line for line in stdout.splitlines() if line.startswith("found ")]
    return json.loads(line.removeprefix("found "))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of a single process, and of each of two."""
    program, address = TESTS / "on_two_processes.py", _free_address()
    directory = tmp_path_factory.mktemp("together")
    two = [_start(program, directory, address, index) for index in range(2)]
    together = [_found(stdout) for stdout in _finish(two)]
    (alone,) = _finish([_start(program, tmp_path_factory.mktemp("alone"))])
    return _found(alone), *together


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "how, what",
    [
        ("whole", "losses"),
        ("sharded", "losses"),
        ("sharded", "evaluation"),
        ("sharded", "samples"),
    ],
)
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


def _start_training(cwd, cache, *arguments, env=None):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    program = TESTS.parent / "scripts" / "train.py"
    environment = ENVIRONMENT | cache | (env or {})
    return _start(program, *TINY, *arguments, cwd=cwd, env=environment)


def _train_together(cwd, cache, *arguments):
    address = _free_address()
    where = ["--distributed", f"--coordinator={address}", "--n-processes=2"]
    return [
        _start_training(cwd, cache, *arguments, *where, f"--process-index={index}")
        for index in range(2)
    ]


def _losses(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("bits_per_dim") for line in lines]


def _assert_same_to_the_bit(run_dir, expected_dir):
    found, expected = Run(run_dir).restore(), Run(expected_dir).restore()
    assert found.step == expected.step == 12
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert _losses(run_dir) == _losses(expected_dir)


def _wait_for(path, process):
    """Until there is something in a file or a directory of a process that runs."""
    deadline = time.monotonic() + 500
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs that all runs here share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    """The run of two processes that nothing stops."""
    directory = tmp_path_factory.mktemp("undisturbed")
    printed = _finish(_train_together(directory, cache))
    # One process alone speaks for both.
    assert "minus bound" in printed[0] and "minus bound" not in printed[1]
    return directory / "run"


@pytest.mark.slow
def test_two_processes_train_as_one_does(undisturbed, tmp_path, cache):
    _finish([_start_training(tmp_path, cache)])
    together, alone = _losses(undisturbed), _losses(tmp_path / "run")
    validations = [index for index, loss in enumerate(together) if loss is None]
    together, alone = (np.delete(each, validations) for each in (together, alone))
    # float32 sums over the batch, in another order, after some steps of Adam.
    np.testing.assert_allclose(together.astype(float), alone.astype(float), rtol=1e-4)


@pytest.mark.slow
def test_killed_process_loses_nothing(undisturbed, tmp_path, cache):
    first, second = _train_together(tmp_path, cache)
    _wait_for(tmp_path / "run" / "checkpoints" / "4", first)
    second.send_signal(signal.SIGKILL)
    # The other cannot go on. Whatever it does then, it is restarted too.
    time.sleep(1)
    first.kill()
    for process in (first, second):
        process.communicate(timeout=60)
    printed = _finish(_train_together(tmp_path, cache, "--resume"))
    assert "resuming from step" in printed[0]
    _assert_same_to_the_bit(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_signal_to_one_process_stops_both_with_a_checkpoint(
    undisturbed, tmp_path, cache, index
):
    processes = _train_together(tmp_path, cache)
    # Once there is a line of it, they are among their steps.
    _wait_for(tmp_path / "run" / "metrics.jsonl", processes[0])
    processes[index].send_signal(signal.SIGTERM)
    printed = _finish(processes, status=os.EX_TEMPFAIL)
    (step,) = re.findall(r"stopped with a checkpoint of step (\d+)", printed[0])
    assert Run(tmp_path / "run").steps[-1] == int(step)

    printed = _finish(_train_together(tmp_path, cache, "--resume"))
    assert f"resuming from step {step}" in printed[0]
    _assert_same_to_the_bit(tmp_path / "run", undisturbed)


def test_signal_to_one_process_stops_both_before_what_comes_next():
    program, address = TESTS / "leaving_together.py", _free_address()
    two = [_start(program, address, index) for index in range(2)]
    for printed, who in zip(
        _finish(two, status=os.EX_TEMPFAIL),
        ("signal to another process", "SIGTERM"),
        strict=True,
    ):
        # Gloo prints too.
        assert "first done" in printed and "second done" not in printed
        assert f"{who}: stopped after the last step" in printed
        assert "Left to do: second." in printed


@pytest.mark.slow
def test_processes_find_one_another_in_the_environment_of_a_cluster(
    undisturbed, tmp_path, cache
):
    # JAX takes the port of the first process from the number of the job.
    lowest, n_ports = 2**16 - 2**12, 2**12
    for job in range(n_ports):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("", lowest + job))
            break
    # What Slurm sets for each of two tasks on one machine.
    host, _, _ = _free_address().rpartition(":")
    slurm = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": host}
    slurm |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    tasks = [
        slurm | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        for index in range(2)
    ]
    printed = _finish(
        [_start_training(tmp_path, cache, "--distributed", env=task) for task in tasks]
    )
    assert "minus bound" in printed[0] and "minus bound" not in printed[1]
    _assert_same_to_the_bit(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_processes_that_are_refused_all_end(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("")
    processes = _train_together(tmp_path, tmp_path / "cache")
    printed = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: --run-dir must be new or empty" in printed[0][1]
    assert "error: the first process failed" in printed[1][1]
