"""Runs of the training program on disks that fail them."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time

import pytest
from train_runs import (
    ENVIRONMENT,
    ROOT,
    TINY,
    arrays_equal,
    finished_run,
    records_of,
    run_training,
    start_training,
)

from eqmdm import Run


@pytest.fixture(scope="module")
def finished():
    return finished_run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit, named",
    [(1_000, r"metrics\.jsonl cannot be written"), (20_000, "The checkpoint of step")],
    ids=["metrics", "checkpoint"],
)
def test_full_disk_ends_the_run_with_one_line_and_what_was_saved(
    tmp_path, limit, named
):
    # Once it has a checkpoint, a limit on the size of its files stands in for a disk
    # that is full.
    process = start_training(*TINY, "--steps=4000", "--run-dir=run", cwd=tmp_path)
    run = Run(tmp_path / "run")
    while not run.steps:
        assert process.poll() is None
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    # TensorStore's threads print tracebacks of their own when a write fails.
    assert 'train.py", line' not in stderr
    # Below the bar, not behind it.
    assert re.search(f"(?m)^error: .*{named}", stderr) and "with --resume" in stderr
    last = run.restore()
    assert last.skipped == {}
    status, stdout, stderr = run_training(
        *TINY, f"--steps={last.step + 4}", "--run-dir=run", "--resume", cwd=tmp_path
    )
    assert status == 0, stderr
    assert f"resuming from step {last.step}" in stdout


# Run as its own superuser: the disk is gone with the process.
_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=64m none disk || exit
"$@" &
train=$!
until [ -d disk/run/checkpoints/4 ]; do kill -0 $train || break; sleep 0.05; done
cat /dev/zero > disk/filler 2> /dev/null
wait $train
status=$?
rm disk/filler
cp -r disk/run saved
exit $status
"""


@pytest.mark.slow
def test_disk_that_another_program_fills_ends_the_run_with_one_line(tmp_path):
    (tmp_path / "disk").mkdir()
    alone = ["unshare", "--mount", "sh", "-c"]
    mount = [*alone, "mount -t tmpfs none disk"]
    if not shutil.which("unshare") or subprocess.run(mount, cwd=tmp_path).returncode:
        pytest.skip("needs the right to mount a file system")
    train = [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY]
    process = subprocess.run(
        [*alone, _ON_A_SMALL_DISK, "sh", *train, "--steps=4000", "--run-dir=disk/run"],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 1, process.stderr
    lines = re.findall("(?m)^error: .*", process.stderr)
    assert len(lines) == 1, process.stderr
    assert re.search("disk/run.*No space left on device", lines[0])
    # TensorStore's threads print tracebacks of their own when a write fails.
    assert 'train.py", line' not in process.stderr
    last = Run(tmp_path / "saved").restore()
    assert last.skipped == {}
    more = [f"--steps={last.step + 4}", "--run-dir=saved", "--resume"]
    status, stdout, stderr = run_training(*TINY, *more, cwd=tmp_path)
    assert status == 0, stderr
    assert f"resuming from step {last.step}" in stdout


def _train_under(limits, *arguments, cwd):
    """Train in a process that first runs `limits`, code that limits its resources."""
    script = f"import os, sys\n{limits}\nos.execv(sys.executable, sys.orig_argv[3:])"
    train = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    process = subprocess.run(
        [sys.executable, "-c", script, *train],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.slow
def test_full_disk_among_the_pictures_leaves_none_by_halves(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    pictures = ["training_curve.png", "samples.png"]
    for name in pictures:
        (run_dir / name).unlink()
    limit = 8_000
    assert (run_dir / "metrics.jsonl").stat().st_size < limit
    # A limit on the size of files stands in for a disk that is full.
    limits = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)"
    )
    arguments = [*TINY, "--run-dir=run", "--resume"]
    status, _, stderr = _train_under(limits, *arguments, cwd=tmp_path)
    assert status == 1
    assert "Traceback" not in stderr
    assert re.search(r"error: .*training_curve\.png cannot be written", stderr)
    assert "with --resume" in stderr
    assert not [*run_dir.glob("*.png"), *run_dir.glob("*.partial")]
    status, _, stderr = run_training(*arguments, cwd=tmp_path)
    assert status == 0, stderr
    for name in pictures:
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
    assert arrays_equal(run_dir, finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_run_with_a_damaged_checkpoint_resumes_from_the_one_before(
    finished, tmp_path, damage
):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    before, newest = Run(run_dir).steps[-2:]
    files = (run_dir / "checkpoints" / str(newest)).rglob("*")
    # The arrays themselves.
    path = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 0x10])
    path.write_bytes(
        content[:middle]
        + (b"" if damage == "truncated" else flipped + content[middle + 1 :])
    )
    status, stdout, stderr = run_training(
        *TINY, "--run-dir=run", "--resume", cwd=tmp_path
    )
    assert status == 0, stderr
    assert f"the checkpoint of step {newest} cannot be read" in stdout
    assert f"resuming from step {before}" in stdout
    # Set aside rather than deleted, and written again.
    assert (run_dir / f"damaged-{newest}").is_dir()
    assert arrays_equal(run_dir, finished[0])
    assert records_of(run_dir) == records_of(finished[0])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_run_in_a_directory_that_is_read_only_is_refused(finished, tmp_path):
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    folders = [run_dir, *(path for path in run_dir.rglob("*") if path.is_dir())]
    contents = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    # The superuser may write anywhere unless it gives up CAP_DAC_OVERRIDE, number 1.
    limits = "import ctypes\nctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"
    for folder in folders:
        folder.chmod(0o555)
    try:
        status, _, stderr = _train_under(
            limits, *TINY, "--run-dir=run", "--resume", cwd=tmp_path
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert status == 1
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "--run-dir must be" in line and "run" in line
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == contents
