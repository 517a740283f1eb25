"""Runs of the training program in processes of their own."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from eqmdm import Run


ROOT = Path(__file__).parents[1]


# A digits run that is over in seconds, most of them compilation.
TINY = (
    "--dataset=digits --diffusion=vpsde --steps=12 --batch-size=8 --width=8 "
    "--multipliers 1 2 --n-blocks=1 --log-every=2 --validate-every=6 "
    "--checkpoint-every=4 --validation-examples=8 --test-examples=8 --test-draws=2 "
    "--n-samples=4 --sample-steps=4"
).split()


# The runs here compile the same programs: the first of them compiles for all.
_CACHE = tempfile.TemporaryDirectory()


ENVIRONMENT = {
    "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
    "HF_HUB_OFFLINE": "1",
    "JAX_COMPILATION_CACHE_DIR": _CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def start_training(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_training(*arguments, cwd):
    process = start_training(*arguments, cwd=cwd)
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr


def records_of(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("steps_per_second", None)
        record.pop("processor_seconds", None)
    return records


def arrays_equal(one, other):
    one, other = Run(one).restore().arrays, Run(other).restore().arrays
    same = lambda name: np.array_equal(one[name], other[name], equal_nan=True)
    return one.keys() == other.keys() and all(map(same, one))


@functools.cache
def finished_run():
    """The directory and the output of a run that was never stopped."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    status, stdout, stderr = run_training(*TINY, "--run-dir=run", cwd=directory)
    assert status == 0, stderr
    return directory / "run", stdout
