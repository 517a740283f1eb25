"""The training program: what a run writes, and what is refused."""

import csv
import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
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

import eqmdm
from eqmdm import Run
from eqmdm.cli import build
from eqmdm.cli.train.options import DEFAULTS, DataOptions


@pytest.fixture(scope="module")
def finished():
    return finished_run()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run with one level of the U-Net in place of two, which compiles faster."""
    cwd = tmp_path_factory.mktemp("small")
    arguments = [*TINY, "--multipliers", "1", "--run-dir=run"]
    status, stdout, stderr = run_training(*arguments, cwd=cwd)
    assert status == 0, stderr
    return cwd / "run", stdout


STUDY = (
    "--solvers=dpm,tsit5 --evaluations=6,15 --n-samples=40 --reference-samples=4 "
    "--reference-steps=16"
).split()


def test_run_writes_all_that_was_used_and_found(small):
    run_dir, stdout = small
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


def test_format_of_pictures_is_no_part_of_a_run(small):
    run_dir, _ = small
    record = json.loads((run_dir / "options.json").read_text())["options"]
    options, data, _ = build.from_json(record)
    assert options.picture_format == "png"
    changed = dataclasses.replace(options, picture_format="pdf")
    dataset = eqmdm.data.load("digits")
    for chosen in (options, changed):
        again = build.as_json(chosen, dataset, data)
        # Through JSON, which has no tuples.
        assert json.loads(json.dumps(again)) == record


def test_run_reports_a_bound_whose_terms_add_up(small):
    run_dir, _ = small
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


def test_finished_run_loads(small):
    run_dir, _ = small
    model = eqmdm.load_run(run_dir)
    assert isinstance(model, eqmdm.DenoiserModel)
    assert isinstance(model.diffusion, eqmdm.VPSDE)


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
    status, stdout, stderr = run_training(*arguments, cwd=tmp_path)
    assert status == 0, stderr
    assert "on 4 x cpu" in stdout
    for one, other in zip(
        records_of(finished[0]), records_of(tmp_path / "run"), strict=True
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
        environment = os.environ | ENVIRONMENT | flags
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
    process = start_training(*TINY, "--steps=2000", "--run-dir=run", cwd=tmp_path)
    while not (tmp_path / "run" / "options.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    arguments = [*TINY, "--steps=2000", "--run-dir=run", "--resume"]
    status, _, stderr = run_training(*arguments, cwd=tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert status == 1
    assert "error: --run-dir must not be in use by another process" in stderr


@pytest.mark.slow
def test_options_of_a_resumed_run_must_be_those_it_was_started_with(finished):
    run_dir, _ = finished
    cwd = run_dir.parent
    changed = [a if not a.startswith("--batch") else "--batch-size=16" for a in TINY]
    status, _, stderr = run_training(*changed, "--run-dir=run", "--resume", cwd=cwd)
    assert status == 1
    assert "error: --batch-size must be 8" in stderr and "got 16" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("--remat", ""), ("", "--remat")])
def test_run_with_rematerialisation_resumes_without_it_and_the_reverse(
    finished, tmp_path, first, then
):
    start = [*TINY, "--run-dir=run", *first.split()]
    assert run_training(*start, cwd=tmp_path)[0] == 0
    run = Run(tmp_path / "run")
    assert run.read_options()["options"]["remat"] is bool(first)
    for one, other in zip(
        records_of(finished[0]), records_of(run.run_dir), strict=True
    ):
        assert one["step"] == other["step"]
        if "bits_per_dim" in one:
            # float32, after some steps of Adam.
            np.testing.assert_allclose(
                other["bits_per_dim"], one["bits_per_dim"], rtol=1e-3
            )

    more = [*TINY, "--run-dir=run", "--resume", "--steps=16", *then.split()]
    status, stdout, stderr = run_training(*more, cwd=tmp_path)
    assert status == 0, stderr
    assert "resuming from step 12" in stdout
    assert run.steps[-1] == 16
    eqmdm.load_run(run.run_dir)


@pytest.mark.slow
def test_profiled_run_is_the_same_and_its_trace_can_be_read(finished, tmp_path):
    status, _, stderr = run_training(*TINY, "--profile", "--run-dir=run", cwd=tmp_path)
    assert status == 0, stderr
    assert arrays_equal(tmp_path / "run", finished[0])
    program = [sys.executable, str(ROOT / "scripts" / "read_profile.py"), "run"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Of XLA's own operations, not of Python's calls.
    assert re.search(r"^convolution +\d", done.stdout, re.MULTILINE)
    assert re.search(r"the device is idle for \d", done.stdout)


@pytest.mark.slow
def test_directory_that_is_not_empty_is_refused(finished):
    run_dir, _ = finished
    status, _, stderr = run_training(*TINY, "--run-dir=run", cwd=run_dir.parent)
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
    status, _, stderr = run_training(*arguments, cwd=tmp_path)
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
    status, stdout, stderr = run_training(*arguments, cwd=tmp_path)
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
