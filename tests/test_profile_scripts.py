import gzip
import json
import subprocess
import sys

import pytest
from script_runs import SCRIPTS, single_precision

from eqmdm.cli import read_profile


def _event(name, start, length, thread=1):
    event = {"ph": "X", "name": name, "ts": start, "dur": length, "pid": 1}
    return event | {"tid": thread, "args": {"hlo_op": name}}


# A loop of length 10 that contains a convolution of 4 and a product of 2, and a
# reduction on another thread meanwhile; 5 of 20 are idle.
TRACE = [
    _event("while.1", 0.0, 10.0),
    _event("convolution.3", 1.0, 4.0),
    _event("dot.12", 6.0, 2.0),
    _event("add_reduce_fusion.2", 8.0, 3.0, thread=2),
    _event("copy", 16.0, 4.0),
    {"ph": "X", "name": "python", "ts": 0.0, "dur": 99.0, "pid": 1, "tid": 3},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {}},
]


@pytest.fixture(scope="module", autouse=True)
def scripts():
    with single_precision():
        yield


def test_time_of_an_operation_is_its_own():
    own = {e["name"]: e["own"] for e in read_profile.operations(TRACE)}
    assert own == {
        "while.1": 4.0,
        "convolution.3": 4.0,
        "dot.12": 2.0,
        "add_reduce_fusion.2": 3.0,
        "copy": 4.0,
    }


def test_idle_share_is_what_no_thread_works_in():
    assert read_profile.idle_share(read_profile.operations(TRACE)) == 5 / 20


@pytest.mark.parametrize(
    "name, kind",
    [
        ("convolution-base-dilated", "convolution"),
        ("convert_element_type", "other"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"),
        ("cutlass_80_gemm", "matrix product"),
        ("ynn_fusion", "convolution or product"),
        ("ncclDevKernel_AllReduce", "communication"),
        ("multiply_add_fusion", "element by element"),
        ("transpose_copy_fusion", "copy, transpose or pad"),
    ],
)
def test_kinds_are_those_of_the_names(name, kind):
    assert read_profile.kind_of(name) == kind


def test_summary_is_written_beside_what_it_is_of(tmp_path):
    place = tmp_path / "profile" / "plugins" / "then"
    place.mkdir(parents=True)
    with gzip.open(place / "perfetto_trace.json.gz", "wt") as file:
        json.dump({"traceEvents": TRACE}, file)
    options = {"run_dir": str(tmp_path), "width": 8}
    facts = {"options": options, "versions": {"jax": "1"}, "device": {}, "seed": 3}
    (tmp_path / "options.json").write_text(json.dumps(facts))
    program = [sys.executable, SCRIPTS / "read_profile.py", tmp_path]
    output = tmp_path / "summary.json"
    done = subprocess.run(
        [*program, "--output", output], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "idle for 25.0% of the interval" in done.stdout
    found = json.loads(output.read_text())
    shares = {row["kind"]: row["share"] for row in found["operations"]}
    assert shares["convolution"] == 4 / 17 and shares["reduction"] == 3 / 17
    assert (found["idle_share"], found["seed"]) == (0.25, 3)
    assert found["options"] == {"width": 8}


def test_run_without_a_profile_is_refused(tmp_path):
    program = [sys.executable, SCRIPTS / "read_profile.py", tmp_path]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: RUN must be the directory of a run")
