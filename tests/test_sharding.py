import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


PROGRAM = Path(__file__).parent / "on_four_devices.py"
# Sums over a batch in another order, in float64, after some steps of Adam.
_ROUNDING = 1e-9


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    process = subprocess.run(
        [sys.executable, PROGRAM, tmp_path_factory.mktemp("runs")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("how", ["four", "sharded"])
@pytest.mark.parametrize("what", ["losses", "loss", "samples"])
def test_results_are_those_of_one_device(found, how, what):
    np.testing.assert_allclose(
        found[how][what], found["one"][what], rtol=_ROUNDING, atol=_ROUNDING
    )


def test_steps_in_one_call_are_those_of_one_device(found):
    # Two steps a call: losses and norms of the gradients of each alternate.
    calls = np.reshape(found["several steps"], (-1, 2, 2))
    losses = calls[:, 0].ravel()
    one_by_one = [*found["three steps"][::2], *found["six steps"][::2]]
    np.testing.assert_allclose(losses, one_by_one, rtol=_ROUNDING, atol=_ROUNDING)


def test_batches_from_the_host_are_those_of_one_device(found):
    np.testing.assert_allclose(
        found["streamed"], found["three steps"], rtol=_ROUNDING, atol=_ROUNDING
    )


@pytest.mark.parametrize("how", ["four", "streamed"])
@pytest.mark.parametrize("what", ["losses", "loss", "samples"])
def test_conditions_are_divided_like_their_examples(found, how, what):
    conditional = found["conditional"]
    assert len(conditional["one"]["losses"]) == 3
    assert conditional[how]["sample_devices"] == 4
    np.testing.assert_allclose(
        conditional[how][what],
        conditional["one"][what],
        rtol=_ROUNDING,
        atol=_ROUNDING,
    )


@pytest.mark.parametrize("how, n", [("one", 1), ("four", 4), ("sharded", 4)])
def test_state_and_samples_stay_on_all_devices(found, how, n):
    assert found[how]["devices"] == [n]
    assert found[how]["sample_devices"] == n


@pytest.mark.parametrize("how, share", [("one", 1), ("four", 1), ("sharded", 1 / 4)])
def test_each_device_holds_its_share_of_a_large_array_after_training(found, how, share):
    assert found[how]["share"] == share


@pytest.mark.parametrize("how", ["4 to 1", "1 to 4"])
def test_checkpoint_resumes_on_another_number_of_devices(found, how):
    expected = found["six steps"]
    np.testing.assert_allclose(found[how], expected, rtol=_ROUNDING, atol=_ROUNDING)


def test_batch_that_cannot_be_divided_is_refused(found):
    assert "`batch_size` must be a multiple of the number of devices" in found["error"]
    assert "4; got 6" in found["error"]


@pytest.mark.parametrize("how", ["four", "sharded"])
def test_each_device_does_its_share_of_a_step(found, how):
    # Beyond the quarter of the network's work that is its own, a device does what all
    # do: drawing the batch and updating the parameters, small beside it.
    assert found[how]["operations"] < 0.35 * found["one"]["operations"]
