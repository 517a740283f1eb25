import contextlib
import csv
import dataclasses
import inspect
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import eqmdm
from eqmdm import Run
from eqmdm.cli import build
from eqmdm.cli.preemption import Preemption
from eqmdm.cli.train.options import DEFAULTS, DataOptions
from image_files import random_images, write_images


ROOT = Path(__file__).parents[1]
# A digits run that is over in seconds, most of them compilation.
TINY = (
    "--dataset=digits --diffusion=vpsde --steps=12 --batch-size=8 --width=8 "
    "--multipliers 1 2 --n-blocks=1 --log-every=2 --validate-every=6 "
    "--checkpoint-every=4 --validation-examples=8 --test-examples=8 --test-draws=2 "
    "--n-samples=4 --sample-steps=4"
).split()

STUDY = (
    "--solvers=dpm,tsit5 --evaluations=6,15 --n-samples=40 --reference-samples=4 "
    "--reference-steps=16"
).split()

# The runs here compile the same programs: the first of them compiles for all.
_CACHE = tempfile.TemporaryDirectory()
_ENVIRONMENT = {
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    "HF_HUB_OFFLINE": "1",
    "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def _start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=cwd,
        env=os.environ | _ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _train(*arguments, cwd):
    process = _start(*arguments, cwd=cwd)
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr


def _records(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("steps_per_second", None)
        record.pop("processor_seconds", None)
    return records


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never stopped."""
    directory = tmp_path_factory.mktemp("finished")
    status, stdout, stderr = _train(*TINY, "--run-dir=run", cwd=directory)
    assert status == 0, stderr
    return directory / "run", stdout


def test_run_writes_all_that_was_used_and_found(finished):
    run_dir, stdout = finished
    files = "options.json metrics.jsonl test_bound.json samples.png"
    for name in [*files.split(), "training_curve.png", "report.html"]:
        assert (run_dir / name).stat().st_size > 0
    for name in ("samples.png", "training_curve.png"):
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
    facts = json.loads((run_dir / "options.json").read_text())
    assert facts["seed"] == 0
    assert facts["options"]["width"] == 8
    dataset = eqmdm.data.load("digits")
    assert facts["options"]["data_fingerprint"] == dataset.fingerprint
    assert facts["versions"]["eqmdm"] == eqmdm.__version__
    assert facts["device"]["platform"] == "cpu"
    assert "bits_per_dim" in stdout and "bits/dim" in stdout


def test_format_of_pictures_is_no_part_of_a_run(finished):
    run_dir, _ = finished
    record = json.loads((run_dir / "options.json").read_text())["options"]
    options, data, _ = build.from_json(record)
    assert options.picture_format == "png"
    changed = dataclasses.replace(options, picture_format="pdf")
    dataset = eqmdm.data.load("digits")
    for chosen in (options, changed):
        again = build.as_json(chosen, dataset, data)
        # Through JSON, which has no tuples.
        assert json.loads(json.dumps(again)) == record


def test_run_reports_a_bound_whose_terms_add_up(finished):
    run_dir, _ = finished
    bound = json.loads((run_dir / "test_bound.json").read_text())
    assert (bound["examples"], bound["draws"], bound["step"]) == (8, 2, 12)
    mean = {name: term["mean"] for name, term in bound["terms"].items()}
    parts = ("reconstruction", "prior", "diffusion", "auxiliary")
    parts += ("dequantisation", "data_transform")
    total = sum(mean[name] for name in parts)
    # float32 sums.
    np.testing.assert_allclose(mean["total"], total, rtol=1e-4)
    np.testing.assert_allclose(
        mean["bits_per_dim"], -total / (64 * np.log(2)), rtol=1e-4
    )
    assert all(term["standard_error"] >= 0 for term in bound["terms"].values())


def test_finished_run_loads(finished):
    run_dir, _ = finished
    model = eqmdm.load_run(run_dir)
    assert isinstance(model, eqmdm.DenoiserModel)
    assert isinstance(model.diffusion, eqmdm.VPSDE)


@pytest.mark.slow
def test_killed_run_resumes_with_the_losses_of_one_never_stopped(finished, tmp_path):
    run_dir, _ = finished
    process = _start(*TINY, "--run-dir=run", cwd=tmp_path)
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

    status, stdout, stderr = _train(*TINY, "--run-dir=run", "--resume", cwd=tmp_path)
    assert status == 0, stderr
    assert "resuming from step" in stdout
    assert _records(tmp_path / "run") == _records(run_dir)
    assert _arrays_equal(tmp_path / "run", run_dir)
    bound = (tmp_path / "run" / "test_bound.json").read_text()
    assert bound == (run_dir / "test_bound.json").read_text()


@pytest.mark.slow
def test_terminated_run_saves_its_last_step_and_resumes_to_the_bit(finished, tmp_path):
    run_dir, _ = finished
    process = _start(*TINY, "--run-dir=run", cwd=tmp_path)
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

    status, stdout, stderr = _train(*TINY, "--run-dir=run", "--resume", cwd=tmp_path)
    assert status == 0, stderr
    assert f"resuming from step {step}" in stdout
    assert _arrays_equal(tmp_path / "run", run_dir)
    bound = (tmp_path / "run" / "test_bound.json").read_text()
    assert bound == (run_dir / "test_bound.json").read_text()
    # Every step is in the mean of one line.
    for directory in (tmp_path / "run", run_dir):
        counts = [record.get("steps_averaged", 0) for record in _records(directory)]
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
        process = _start(*arguments, cwd=tmp_path)
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

    status, _, stderr = _train(*arguments, cwd=tmp_path)
    assert status == 0, stderr
    for name in results:
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes()
    assert _arrays_equal(run_dir, finished[0])


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
        status, _, stderr = _train(*small, *how, f"--run-dir={name}", cwd=tmp_path)
        assert status == 0, stderr

    process = _start(*small, "--stream", "--run-dir=killed", cwd=tmp_path)
    killed = Run(tmp_path / "killed")
    while not killed.steps:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    (step,) = killed.steps
    again = [*small, "--stream", "--run-dir=killed", "--resume"]
    status, stdout, stderr = _train(*again, cwd=tmp_path)
    assert status == 0, stderr
    assert f"resuming from step {step}" in stdout
    assert _arrays_equal(killed.run_dir, tmp_path / "streamed")
    assert _records(killed.run_dir) == _records(tmp_path / "streamed")

    # The same examples in the same order. Where a step gathers them itself it is
    # another program: float32, after some steps of Adam.
    losses = [
        [
            record["bits_per_dim"]
            for record in _records(tmp_path / name)
            if "bits_per_dim" in record
        ]
        for name in ("held", "streamed")
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shares", [[], ["--shard-parameters"]], ids=["whole", "shared"]
)
def test_run_on_four_devices_has_the_losses_of_one(
    finished, tmp_path, monkeypatch, shares
):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("XLA_FLAGS", flags)
    arguments = [*TINY, *shares, "--run-dir=run"]
    status, stdout, stderr = _train(*arguments, cwd=tmp_path)
    assert status == 0, stderr
    assert "on 4 x cpu" in stdout
    for one, other in zip(
        _records(finished[0]), _records(tmp_path / "run"), strict=True
    ):
        assert one["step"] == other["step"]
        if "bits_per_dim" in one:
            # float32, after some steps of Adam.
            np.testing.assert_allclose(
                other["bits_per_dim"], one["bits_per_dim"], rtol=1e-3
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, arguments",
    [
        ("evaluate.py", ["--examples=8", "--route=elbo"]),
        ("evaluate.py", ["--examples=6", "--route=collapsed"]),
        ("sample.py", ["--n-samples=8", "--steps=4"]),
        ("solver_study.py", STUDY),
    ],
    ids=["elbo", "collapsed", "sample", "study"],
)
def test_program_on_four_devices_finds_what_it_does_on_one(
    finished, tmp_path, program, arguments
):
    found = []
    for n_devices in (1, 4):
        flags = f" --xla_force_host_platform_device_count={n_devices}"
        directory = tmp_path / str(n_devices)
        command = [sys.executable, str(ROOT / "scripts" / program), str(finished[0])]
        command += [*arguments, "--batch-size=4", f"--output-dir={directory}"]
        flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + flags}
        environment = os.environ | _ENVIRONMENT | flags
        subprocess.run(command, env=environment, check=True, capture_output=True)
        if program == "sample.py":
            with np.load(directory / "samples.npz") as file:
                found.append(file["samples"].astype(float))
        elif program == "solver_study.py":
            with (directory / "study.csv").open() as file:
                rows = [row["reference_rms"] for row in csv.DictReader(file)]
            found.append(np.array([float(value) for value in rows if value]))
        else:
            (path,) = directory.glob("*.parquet")
            found.append(pq.read_table(path)["total"].to_numpy())
    one, four = found
    # A level of a sample may fall to the other side of an edge. A likelihood is solved
    # to 1e-5 of each of its 64 coordinates; float32 rounds sums of hundreds of nats.
    # The distance of two samples of order 1 keeps what float32 rounds in either.
    atol = {"sample.py": 1.0, "solver_study.py": 1e-4}.get(program, 1e-2)
    assert len(one)
    np.testing.assert_allclose(four, one, rtol=0, atol=atol)


@pytest.mark.slow
def test_second_process_in_a_directory_is_refused(tmp_path):
    process = _start(*TINY, "--steps=2000", "--run-dir=run", cwd=tmp_path)
    while not (tmp_path / "run" / "options.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    arguments = [*TINY, "--steps=2000", "--run-dir=run", "--resume"]
    status, _, stderr = _train(*arguments, cwd=tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert status == 1
    assert "error: --run-dir must not be in use by another process" in stderr


@pytest.mark.slow
def test_run_killed_twenty_times_ends_as_one_never_stopped(finished, tmp_path):
    run_dir, _ = finished
    generator = np.random.default_rng(0)
    kills = 0
    while kills < 20:
        resume = ["--resume"] * (tmp_path / "run" / "options.json").exists()
        process = _start(*TINY, "--run-dir=run", *resume, cwd=tmp_path)
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
            assert _arrays_equal(tmp_path / "run", run_dir)
            shutil.rmtree(tmp_path / "run")
            continue
        assert process.returncode == -signal.SIGKILL, stderr
        # Whatever there is can be read.
        run = Run(tmp_path / "run")
        if run.steps:
            assert run.restore().skipped == {}
    resume = ["--resume"] * (tmp_path / "run" / "options.json").exists()
    status, _, stderr = _train(*TINY, "--run-dir=run", *resume, cwd=tmp_path)
    assert status == 0, stderr
    assert _arrays_equal(tmp_path / "run", run_dir)
    assert _records(tmp_path / "run") == _records(run_dir)


def _progress(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def _arrays_equal(one, other):
    one, other = Run(one).restore().arrays, Run(other).restore().arrays
    same = lambda name: np.array_equal(one[name], other[name], equal_nan=True)
    return one.keys() == other.keys() and all(map(same, one))


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
    process = _start(*TINY, "--steps=4000", "--run-dir=run", cwd=tmp_path)
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
    status, stdout, stderr = _train(
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
        env=os.environ | _ENVIRONMENT,
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
    status, stdout, stderr = _train(*TINY, *more, cwd=tmp_path)
    assert status == 0, stderr
    assert f"resuming from step {last.step}" in stdout


def _train_under(limits, *arguments, cwd):
    """Train in a process that first runs `limits`, code that limits its resources."""
    script = f"import os, sys\n{limits}\nos.execv(sys.executable, sys.orig_argv[3:])"
    train = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    process = subprocess.run(
        [sys.executable, "-c", script, *train],
        cwd=cwd,
        env=os.environ | _ENVIRONMENT,
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
    status, _, stderr = _train(*arguments, cwd=tmp_path)
    assert status == 0, stderr
    for name in pictures:
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
    assert _arrays_equal(run_dir, finished[0])


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
    status, stdout, stderr = _train(*TINY, "--run-dir=run", "--resume", cwd=tmp_path)
    assert status == 0, stderr
    assert f"the checkpoint of step {newest} cannot be read" in stdout
    assert f"resuming from step {before}" in stdout
    # Set aside rather than deleted, and written again.
    assert (run_dir / f"damaged-{newest}").is_dir()
    assert _arrays_equal(run_dir, finished[0])
    assert _records(run_dir) == _records(finished[0])


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


@pytest.mark.slow
def test_options_of_a_resumed_run_must_be_those_it_was_started_with(finished):
    run_dir, _ = finished
    cwd = run_dir.parent
    changed = [a if not a.startswith("--batch") else "--batch-size=16" for a in TINY]
    status, _, stderr = _train(*changed, "--run-dir=run", "--resume", cwd=cwd)
    assert status == 1
    assert "error: --batch-size must be 8" in stderr and "got 16" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("--remat", ""), ("", "--remat")])
def test_run_with_rematerialisation_resumes_without_it_and_the_reverse(
    finished, tmp_path, first, then
):
    start = [*TINY, "--run-dir=run", *first.split()]
    assert _train(*start, cwd=tmp_path)[0] == 0
    run = Run(tmp_path / "run")
    assert run.read_options()["options"]["remat"] is bool(first)
    for one, other in zip(_records(finished[0]), _records(run.run_dir), strict=True):
        assert one["step"] == other["step"]
        if "bits_per_dim" in one:
            # float32, after some steps of Adam.
            np.testing.assert_allclose(
                other["bits_per_dim"], one["bits_per_dim"], rtol=1e-3
            )

    more = [*TINY, "--run-dir=run", "--resume", "--steps=16", *then.split()]
    status, stdout, stderr = _train(*more, cwd=tmp_path)
    assert status == 0, stderr
    assert "resuming from step 12" in stdout
    assert run.steps[-1] == 16
    eqmdm.load_run(run.run_dir)


@pytest.mark.slow
def test_profiled_run_is_the_same_and_its_trace_can_be_read(finished, tmp_path):
    status, _, stderr = _train(*TINY, "--profile", "--run-dir=run", cwd=tmp_path)
    assert status == 0, stderr
    assert _arrays_equal(tmp_path / "run", finished[0])
    program = [sys.executable, str(ROOT / "scripts" / "read_profile.py"), "run"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Of XLA's own operations, not of Python's calls.
    assert re.search(r"^convolution +\d", done.stdout, re.MULTILINE)
    assert re.search(r"the device is idle for \d", done.stdout)


@pytest.mark.slow
def test_directory_that_is_not_empty_is_refused(finished):
    run_dir, _ = finished
    status, _, stderr = _train(*TINY, "--run-dir=run", cwd=run_dir.parent)
    assert status == 1
    assert "error: --run-dir must be new or empty" in stderr and "--resume" in stderr


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(
    finished, tmp_path
):
    # A run whose learning rate turns out to be absurd once it is resumed.
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "options.json"
    path.write_text(
        path.read_text().replace('"learning_rate": 0.001', '"learning_rate": 1e+37')
    )
    arguments = [
        *TINY,
        "--run-dir=run",
        "--resume",
        "--learning-rate=1e37",
        "--steps=24",
    ]
    status, _, stderr = _train(*arguments, cwd=tmp_path)
    assert status == 1
    assert "error: At step 1" in stderr
    assert "The checkpoint of step 12 is kept" in stderr
    assert (
        sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())[-1] != "16"
    )
    eqmdm.load_run(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, messages",
    [
        (["--dataset=digit"], ["digits", "checkerboard"]),
        (["--dataset=digits", "--diffusion=cdl"], ["vpsde", "learned"]),
        (["--dataset=digits", "--n-vars=3"], ["--n-vars must be left out"]),
        (
            ["--dataset=digits", "--diffusion=learned", "--n-vars=0"],
            ["--n-vars must be"],
        ),
        (["--data=own.csv"], ["--data must be a file or a folder", "own.csv"]),
        (["--dataset=digits", "--validate-every=30"], ["--validate-every must be a"]),
        (["--dataset=digits", "--profile", "--steps=30"], ["--profile must come with"]),
        (["--dataset=digits", "--decoder=discrete"], ["discrete together"]),
        (["--dataset=digits", "--learning-rate=0"], ["--learning-rate must be"]),
        (["--dataset=mnist", "--data-dir=nowhere"], ["nowhere"]),
        (["--dataset=digits", "--resume"], ["has no options.json"]),
    ],
    ids=lambda value: value[-1].strip("-") if value[0].startswith("--") else "",
)
def test_wrong_option_is_one_clear_message(arguments, messages, tmp_path):
    status, stdout, stderr = _train(*arguments, cwd=tmp_path)
    assert status != 0
    for message in messages:
        assert message in stdout + stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "runs").exists()


def test_dataset_names_are_those_of_the_library():
    assert tuple(DEFAULTS) == eqmdm.data.NAMES
    # The help shows the same names.
    field = inspect.getsource(DataOptions).split("data_dir")[0]
    assert all(name in field for name in eqmdm.data.NAMES)
