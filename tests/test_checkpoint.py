import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from eqmdm import nn
from eqmdm._training.run import Run, resumed_state
from eqmdm._training.train import TrainState, make_optimiser
from helpers import tree_allclose


OPTIONS = {"dataset": "points", "width": 8, "log_snr_range": (-9.0, 13.3)}
_OPTIMISER = make_optimiser(1e-3)


def _model(score="free", *, learned=True):
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(3)) if learned else eqmdm.CLD()
    n_vars = 1 if score == "denoiser" else 2
    network = nn.MLP((2,), n_vars, width=8, depth=1, key=jr.key(4))
    if score == "denoiser":
        network = eqmdm.PreconditionedDenoiser(
            network, data_std=1.0, log_snr_range=(-40.0, 14.0)
        )
    return network, diffusion


def _state(step=0, model=None):
    model = _model() if model is None else model
    state = TrainState.create(model, _OPTIMISER, key=jr.key(0))
    # Each step has values of its own, and averages that differ from them.
    shift = lambda tree, by: jax.tree.map(
        lambda v: v + jnp.asarray(by, v.dtype) if eqx.is_inexact_array(v) else v, tree
    )
    return eqx.tree_at(
        lambda s: (s.model, s.ema, s.step),
        state,
        (
            shift(state.model, 1e-3 * step),
            shift(state.ema, 1e-2),
            jnp.asarray(step, jnp.int32),
        ),
    )


def _saved(directory, *steps, model=None, **settings):
    run = Run(directory, **settings)
    run.start(OPTIONS, {}, _state(0, model).model)
    for step in steps:
        run.save(_state(step, model))
    run.close()
    return run


def test_checkpoint_comes_back_to_the_bit(tmp_path):
    run = _saved(tmp_path / "run", 3)
    restored = run.restore()
    assert (restored.step, restored.skipped) == (3, {})
    state = resumed_state(_state(), restored)
    assert tree_allclose(state, _state(3), rtol=0, atol=0)


def test_newest_checkpoints_and_the_best_are_kept(tmp_path):
    run = Run(tmp_path, n_latest=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.7)):
        run.save(_state(step), loss=loss)
    run.close()
    assert run.steps == [2, 4, 5]


# --- Loading -------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["free", "denoiser"])
def test_loaded_run_is_the_averaged_score_and_its_diffusion(tmp_path, score):
    model = _model(score, learned=False)
    _saved(tmp_path, 2, model=model)
    state = _state(2, model)
    loaded_score, loaded_diffusion = eqmdm.load(tmp_path)
    kind = eqmdm.FreeScore if score == "free" else eqmdm.DenoiserScore
    assert isinstance(loaded_score, kind)
    assert tree_allclose(loaded_diffusion, state.model[1], rtol=0, atol=0)
    expected = kind(*state.ema_model)
    assert tree_allclose(loaded_score, expected, rtol=0, atol=0)
    last, _ = eqmdm.load(tmp_path, ema=False)
    assert tree_allclose(last, kind(*state.model), rtol=0, atol=0)


def test_run_directory_can_be_moved(tmp_path):
    _saved(tmp_path / "old", 1)
    shutil.move(tmp_path / "old", tmp_path / "new")
    score, _ = eqmdm.load(tmp_path / "new")
    assert isinstance(score, eqmdm.FreeScore)


@typing.final
class _Foreign(eqx.Module):
    scale: jax.Array

    def __call__(self, t, y):
        return self.scale * y


def test_foreign_network_is_loaded_with_like(tmp_path):
    model = (_Foreign(jnp.ones(())), eqmdm.CLD())
    _saved(tmp_path, 1, model=model)
    with pytest.raises(ValueError, match="`like` must be given for this run.*_Foreign"):
        eqmdm.load(tmp_path)
    score, _ = eqmdm.load(tmp_path, like=(_Foreign(jnp.zeros(())), eqmdm.CLD()))
    assert float(score.network.scale) == pytest.approx(1.01)
    with pytest.raises(ValueError, match="`arrays` must have the structure"):
        eqmdm.load(tmp_path, like=(_Foreign(jnp.zeros(2)), eqmdm.CLD()))


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`run_dir` must be the directory of a run"):
        eqmdm.load(tmp_path / "nowhere")


def test_run_without_a_checkpoint_is_refused(tmp_path):
    _saved(tmp_path)
    with pytest.raises(ValueError, match="must hold a checkpoint that can be read"):
        eqmdm.load(tmp_path)


# --- Options -------------------------------------------------------------------------


def test_same_options_are_accepted_through_json(tmp_path):
    _saved(tmp_path).check_options(OPTIONS)


@pytest.mark.parametrize(
    "change",
    [{"width": 16}, {"log_snr_range": (-9.0, 14.0)}, {"additional": 1}],
    ids=str,
)
def test_other_options_are_refused_by_field_and_values(tmp_path, change):
    run = _saved(tmp_path)
    [(field, value)] = change.items()
    new = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ValueError) as info:
        run.check_options(OPTIONS | change)
    for part in (f"`{field}` must be", f"got {new!r}", "Resume with"):
        assert part in str(info.value)
    run.check_options(OPTIONS | change, may_differ=(field,))


# --- Damage --------------------------------------------------------------------------

# Where one of its concurrent reads fails, Orbax abandons the others, and Python reports
# those when it collects them.
_abandons_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def _files(directory, step):
    root = directory / "checkpoints" / str(step)
    return sorted(path for path in root.rglob("*") if path.is_file())


@_abandons_reads
def test_any_damage_to_the_newest_leaves_the_previous_loadable(tmp_path):
    _saved(tmp_path / "run", 1, 2)
    n_files = len(_files(tmp_path / "run", 2))
    assert n_files > 3
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
            # Some files carry nothing that is needed; no damage may go unnoticed.
            expected = _state(restored.step).arrays()
            assert tree_allclose(restored.arrays, expected, rtol=0, atol=0)
            noticed += restored.step == 1
            assert set(restored.skipped) == ({2} if restored.step == 1 else set())
    assert noticed > 3


@_abandons_reads
def test_damaged_checkpoint_is_skipped_with_a_warning(tmp_path):
    run = _saved(tmp_path, 1, 2)
    for path in _files(tmp_path, 2):
        path.unlink()
    with pytest.warns(
        UserWarning, match="step 2 in .* cannot be read.*step 1 is loaded"
    ):
        eqmdm.load(tmp_path)
    run.discard(run.restore().skipped)
    assert run.steps == [1]
    # The resumed run can write step 2 again.
    run.save(_state(2))
    assert run.restore().step == 2
    run.close()


@_abandons_reads
def test_only_damaged_checkpoints_are_named(tmp_path):
    _saved(tmp_path, 4)
    for path in _files(tmp_path, 4):
        path.unlink()
    with pytest.raises(ValueError, match="only damaged ones .step 4"):
        eqmdm.load(tmp_path)


_SAVER = """
    import sys, resource, signal
    sys.path.insert(0, {tests!r})
    import jax
    jax.config.update("jax_enable_x64", True)
    import test_checkpoint as t
    run = t.Run({run!r})
    run.save(t._state(1))
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
    # A limit on the size of files stands in for a full disk.
    then = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512));"
        "run.save(t._state(2))"
    )
    process = _subprocess(tmp_path, then)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "step 2 could not be written" in stderr
    assert "Those of steps [1] are intact" in stderr
    run = Run(tmp_path)
    restored = run.restore()
    assert (restored.step, restored.skipped) == (1, {})
    run.save(_state(2))
    run.close()
    assert run.restore().step == 2


@pytest.mark.slow
def test_process_killed_while_saving_leaves_a_checkpoint_loadable(tmp_path):
    process = _subprocess(
        tmp_path,
        "print('saving', flush=True)\n[run.save(t._state(s)) for s in range(2, 999)]",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saving\n"
    # Saves follow one another without a pause, so the kill falls within one.
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run = Run(tmp_path)
    restored = run.restore()
    assert restored.step >= 1
    expected = _state(restored.step).arrays()
    assert tree_allclose(restored.arrays, expected, rtol=0, atol=0)
    run.discard(restored.skipped)
    # What the killed save left behind is no obstacle.
    run.save(_state(restored.step + 1))
    run.close()
    assert run.restore().step == restored.step + 1


def test_structure_is_written_as_data_that_can_be_read(tmp_path):
    _saved(tmp_path, 1)
    structure = json.loads((tmp_path / "model.json").read_text())
    assert structure["kind"] == "tuple"
    network, diffusion = structure["items"]
    assert network["class"] == "eqmdm.MLP"
    assert diffusion["class"] == "eqmdm.LearnedDiffusion"
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["options"]["width"] == 8


def test_no_run_is_read_from_a_pickle(tmp_path):
    _saved(tmp_path, 1)
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
