"""Runs of the training program that are stopped, and resumed."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from train_runs import (
    TINY,
    arrays_equal,
    finished_run,
    records_of,
    run_training,
    start_training,
)

from eqmdm import Run
from eqmdm.cli.preemption import Preemption
from image_files import random_images, write_images


@pytest.fixture(scope="module")
def finished():
    return finished_run()


@pytest.mark.slow
def test_killed_run_resumes_with_the_losses_of_one_never_stopped(finished, tmp_path):
    run_dir, _ = finished
    process = start_training(*TINY, "--run-dir=run", cwd=tmp_path)
    # Killed between a checkpoint and the end.
    deadline = time.monotonic() + 500
    while not (tmp_path / "run" / "checkpoints" / "4").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    # A line that the kill cut off, wherever it fell.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')

    status, stdout, stderr = run_training(
        *TINY, "--run-dir=run", "--resume", cwd=tmp_path
    )
    assert status == 0, stderr
    assert "resuming from step" in stdout
    assert records_of(tmp_path / "run") == records_of(run_dir)
    assert arrays_equal(tmp_path / "run", run_dir)
    bound = (tmp_path / "run" / "test_bound.json").read_text()
    assert bound == (run_dir / "test_bound.json").read_text()


@pytest.mark.slow
def test_terminated_run_saves_its_last_step_and_resumes_to_the_bit(finished, tmp_path):
    run_dir, _ = finished
    process = start_training(*TINY, "--run-dir=run", cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 500
    # Once it has written a line, it is among its steps.
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == os.EX_TEMPFAIL, stderr
    assert "SIGTERM: stopped with a checkpoint of step" in stdout
    step = int(stdout.split()[-1])
    assert Run(tmp_path / "run").steps[-1] == step

    status, stdout, stderr = run_training(
        *TINY, "--run-dir=run", "--resume", cwd=tmp_path
    )
    assert status == 0, stderr
    assert f"resuming from step {step}" in stdout
    assert arrays_equal(tmp_path / "run", run_dir)
    bound = (tmp_path / "run" / "test_bound.json").read_text()
    assert bound == (run_dir / "test_bound.json").read_text()
    # Every step is in the mean of one line.
    for directory in (tmp_path / "run", run_dir):
        counts = [record.get("steps_averaged", 0) for record in records_of(directory)]
        assert sum(counts) == 12


@pytest.mark.slow
def test_run_terminated_after_its_last_step_says_what_is_left_and_resumes_to_it(
    finished, tmp_path
):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    results = ["samples.png", "test_bound.json"]
    for name in results:
        (run_dir / name).unlink()
    arguments = [*TINY, "--run-dir=run", "--resume"]
    for stage, left in (
        ("drawing", "the samples, the test bound, the report"),
        ("evaluating", "the test bound, the report"),
    ):
        process = start_training(*arguments, cwd=tmp_path)
        assert any(line.startswith(stage) for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == os.EX_TEMPFAIL, stderr
        # In one line, and without a traceback.
        assert stdout.splitlines()[-1] == (
            "SIGTERM: stopped after the last step, which is saved. Left to do: "
            f"{left}. Resume the run for it."
        )
        assert "Traceback" not in stderr
        assert not (run_dir / "test_bound.json").exists()

    status, _, stderr = run_training(*arguments, cwd=tmp_path)
    assert status == 0, stderr
    for name in results:
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes()
    assert arrays_equal(run_dir, finished[0])


@pytest.fixture
def preemption():
    preemption = Preemption()
    yield preemption
    preemption.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "when, done, left",
    [
        ("before", [], "the one, the other"),
        ("one", ["one begun"], "the one, the other"),
        ("other", ["one begun", "one", "other begun"], "the other"),
    ],
)
def test_signal_ends_what_is_left_where_it_is(
    preemption, capsys, number, when, done, left
):
    found = []

    def do(name):
        found.append(f"{name} begun")
        if when == name:
            signal.raise_signal(number)
        found.append(name)

    if when == "before":
        signal.raise_signal(number)
    with pytest.raises(SystemExit) as stopped:
        preemption.finish(
            {"the one": lambda: do("one"), "the other": lambda: do("other")}
        )
    assert stopped.value.code == os.EX_TEMPFAIL
    assert found == done
    assert f"Left to do: {left}. Resume" in capsys.readouterr().out


def test_signal_that_a_callback_swallows_ends_what_is_left_before_the_next_stage(
    preemption, capsys
):
    def swallowed():
        # As Python does if a destructor raises.
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        preemption.finish({"the one": swallowed, "the other": lambda: None})
    assert "Left to do: the other. Resume" in capsys.readouterr().out
    # With no stage left, the run is complete.
    preemption.requested = ""
    preemption.finish({"the other": swallowed})


@pytest.mark.slow
def test_killed_run_that_streams_its_images_ends_as_one_never_stopped(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name, n in (("train-0", 30), ("test-0", 5)):
        images = random_images(n, n, (28, 28, 1))
        write_images(tmp_path / "data" / f"{name}.parquet", images, "image")
    small = [*TINY, "--dataset=mnist", "--data-dir=data"]
    small += ["--validation-examples=2", "--n-samples=0", "--test-examples=0"]
    for name, how in (("held", []), ("streamed", ["--stream"])):
        status, _, stderr = run_training(
            *small, *how, f"--run-dir={name}", cwd=tmp_path
        )
        assert status == 0, stderr

    process = start_training(*small, "--stream", "--run-dir=killed", cwd=tmp_path)
    killed = Run(tmp_path / "killed")
    while not killed.steps:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    (step,) = killed.steps
    again = [*small, "--stream", "--run-dir=killed", "--resume"]
    status, stdout, stderr = run_training(*again, cwd=tmp_path)
    assert status == 0, stderr
    assert f"resuming from step {step}" in stdout
    assert arrays_equal(killed.run_dir, tmp_path / "streamed")
    assert records_of(killed.run_dir) == records_of(tmp_path / "streamed")

    # The same examples in the same order. Where a step gathers them itself it is
    # another program: float32, after some steps of Adam.
    losses = [
        [
            record["bits_per_dim"]
            for record in records_of(tmp_path / name)
            if "bits_per_dim" in record
        ]
        for name in ("held", "streamed")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.slow
def test_run_killed_twenty_times_ends_as_one_never_stopped(finished, tmp_path):
    run_dir, _ = finished
    generator = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        resume = ["--resume"] * (tmp_path / "run" / "options.json").exists()
        process = start_training(*TINY, "--run-dir=run", *resume, cwd=tmp_path)
        # Half of them anywhere, set-up and end included; half among the steps.
        before = _progress(tmp_path / "run")
        if kills % 2:
            while process.poll() is None and _progress(tmp_path / "run") == before:
                time.sleep(0.001)
        wait = generator.uniform(0, 0.5 if kills % 2 else 15)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        _, stderr = process.communicate(timeout=60)
        if process.returncode == 0:
            assert arrays_equal(tmp_path / "run", run_dir)
            shutil.rmtree(tmp_path / "run")
            continue
        assert process.returncode == -signal.SIGKILL, stderr
        # Whatever there is can be read.
        run = Run(tmp_path / "run")
        if run.steps:
            assert run.restore().skipped == {}
    resume = ["--resume"] * (tmp_path / "run" / "options.json").exists()
    status, _, stderr = run_training(*TINY, "--run-dir=run", *resume, cwd=tmp_path)
    assert status == 0, stderr
    assert arrays_equal(tmp_path / "run", run_dir)
    assert records_of(tmp_path / "run") == records_of(run_dir)


def _progress(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0
