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
import optax
import pytest

import eqmdm
from eqmdm import Run, TrainState, nn
from eqmdm._training.checkpoint import named_arrays
from helpers import tree_allclose


OPTIONS = {"dataset": "points", "width": 8, "log_snr_range": (-9.0, 13.3)}
OPTIONS |= {"kind": "noise", "learned": True, "data_std": 0.1}
_OPTIMISER = eqmdm.make_optimiser(1e-3)


def _build(options):
    """The model of a run, from its options: what a program passes as its builder."""
    kind, width = options["kind"], options["width"]
    diffusion = eqmdm.CLD()
    if options["learned"]:
        diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(3))
    n_vars = 1 if kind == "denoiser" else 2
    network = nn.MLP((2,), n_vars, width=width, depth=1, key=jr.key(4))
    if kind == "noise":
        return eqmdm.NoiseModel(network, diffusion)
    network = eqmdm.PreconditionedDenoiser(
        network, data_std=options["data_std"], log_snr_range=(-40.0, 14.0)
    )
    return eqmdm.DenoiserModel(network, diffusion)


def _model(kind="noise", *, learned=True):
    return _build(OPTIONS | {"kind": kind, "learned": learned})


def _arrays(state):
    return jax.tree.map(np.asarray, named_arrays(state))


def _state(step=0, model=None):
    model = _model() if model is None else model
    state = TrainState.create(model, _OPTIMISER, key=jr.key(0))
    # Each step has different values, and averages that differ from them.
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


def _saved(directory, *steps, model=None, options=OPTIONS, **settings):
    run = Run(directory, **settings)
    run.start(options, {"seed": 0})
    for step in steps:
        run.save(_state(step, model))
    run.close()
    return run


def test_checkpoint_comes_back_to_the_bit(tmp_path):
    run = _saved(tmp_path / "run", 3)
    restored = run.restore()
    assert (restored.step, restored.skipped) == (3, {})
    state = restored.state(_state())
    assert tree_allclose(state, _state(3), rtol=0, atol=0)


def test_checkpoint_names_each_array_by_its_place_in_the_model(tmp_path):
    arrays = _saved(tmp_path, 1).restore().arrays
    weight = "network.linear_out.weight"
    assert {f"model.{weight}", f"ema.{weight}", "step", "key"} <= set(arrays)
    assert "model.diffusion.skew_half" in arrays


# Only the last one distinguishes the parameters of a diffusion from a network's.
@pytest.mark.parametrize(
    "optimiser, learned",
    [
        (optax.sgd(1e-4, momentum=0.9), False),
        (optax.lion(1e-3), False),
        (optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(), False),
        (eqmdm.make_optimiser(1e-3, diffusion_learning_rate=1e-2, warmup=3), True),
    ],
    ids=["sgd", "lion", "accumulated-adamw", "two-rates"],
)
def test_any_optimiser_trains_and_resumes_to_the_bit(tmp_path, optimiser, learned):
    data = jr.normal(jr.key(1), (20, 2), jnp.float32)
    model = _model(learned=learned)
    create = lambda: TrainState.create(model, optimiser, key=jr.key(0))

    def train(state, n_steps):
        for _ in range(n_steps):
            state, _ = eqmdm.train_step(
                state, data, eqmdm.Objective(), optimiser, batch_size=4
            )
        return state

    with Run(tmp_path) as run:
        run.save(train(create(), 2))
        resumed = run.restore().state(create())
    straight = train(create(), 4)
    assert tree_allclose(train(resumed, 2), straight, rtol=0, atol=0)
    # All parameters have moved.
    before = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    after = jax.tree.leaves(eqx.filter(straight.model, eqx.is_inexact_array))
    assert all((x != y).any() for x, y in zip(before, after, strict=True))


def test_checkpoint_of_another_structure_is_rejected(tmp_path):
    restored = _saved(tmp_path, 1).restore()
    arrays = restored.arrays
    state = _state()
    for change, message in (
        ({k: v for k, v in arrays.items() if k != "step"}, "step is missing in the ch"),
        (arrays | {"new": np.zeros(2)}, r"new is float64\[2\] in .* missing in the mo"),
        (
            arrays | {"key": np.zeros(3, np.int32)},
            r"key is int32\[3\] in the checkpoint",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            restored._replace(arrays=change).state(state)


def test_newest_checkpoints_and_the_best_are_kept(tmp_path):
    run = Run(tmp_path, n_latest=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.7)):
        run.save(_state(step), loss=loss)
    run.close()
    assert run.steps == [2, 4, 5]


# --- Loading -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "denoiser"])
def test_loaded_run_is_the_averaged_model(tmp_path, kind):
    model = _model(kind, learned=False)
    options = OPTIONS | {"kind": kind, "learned": False}
    _saved(tmp_path, 2, model=model, options=options)
    state = _state(2, model)
    # The options come back as JSON does, from which the model is built.
    for like in (_build, model):
        loaded = eqmdm.load_run(tmp_path, like=like)
        assert jax.tree.structure(loaded) == jax.tree.structure(state.model)
        assert tree_allclose(loaded, state.ema_model, rtol=0, atol=0)
    last = eqmdm.load_run(tmp_path, like=_build, ema=False)
    assert tree_allclose(last, state.model, rtol=0, atol=0)


def test_run_directory_can_be_moved(tmp_path):
    _saved(tmp_path / "old", 1)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert isinstance(eqmdm.load_run(tmp_path / "new", like=_build), eqmdm.NoiseModel)


def test_run_says_where_it_is_and_what_it_holds(tmp_path):
    run = _saved(tmp_path / "run", 1, 3)
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, steps=[1, 3])"
    record = run.read_options()
    assert record["seed"] == 0 and record["options"]["data_std"] == 0.1


def test_run_without_a_builder_asks_for_a_model(tmp_path):
    _saved(tmp_path, 1)
    with pytest.raises(ValueError, match="`like` must be given for the run"):
        eqmdm.load_run(tmp_path)


@pytest.mark.parametrize("builder", ["os:getcwd", "eqmdm.cli.build:other", 3, ["a"]])
def test_builder_that_a_file_names_is_not_imported(tmp_path, builder):
    run = _saved(tmp_path, 1)
    if isinstance(builder, str):
        with pytest.raises(ValueError, match="`builder` must be one of this package"):
            run.start(OPTIONS, builder=builder)
    path = tmp_path / "options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"builder": builder}))
    with pytest.raises(ValueError, match="`builder` must be one of this package"):
        eqmdm.load_run(tmp_path)


@typing.final
class _Foreign(eqx.Module):
    scale: jax.Array

    def __call__(self, t, y):
        return self.scale * y


def test_network_of_ones_own_is_loaded_with_like(tmp_path):
    model = lambda scale: eqmdm.NoiseModel(_Foreign(scale), eqmdm.CLD())
    _saved(tmp_path, 1, model=model(jnp.ones(())))
    loaded = eqmdm.load_run(tmp_path, like=model(jnp.zeros(())))
    assert float(loaded.network.scale) == pytest.approx(1.01)
    with pytest.raises(ValueError, match="The checkpoint must have the arrays of the"):
        eqmdm.load_run(tmp_path, like=model(jnp.zeros(2)))


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`run_dir` must be the directory of a run"):
        eqmdm.load_run(tmp_path / "nowhere")


def test_run_without_a_checkpoint_is_refused(tmp_path):
    _saved(tmp_path)
    with pytest.raises(ValueError, match="must hold a checkpoint that can be read"):
        eqmdm.load_run(tmp_path)


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

# If one of its concurrent reads fails, Orbax abandons the others, and Python warns when
# it collects them.
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
            # Some files are not needed for loading, but all damage must be detected.
            expected = _arrays(_state(restored.step))
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
        eqmdm.load_run(tmp_path, like=_build)
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
        eqmdm.load_run(tmp_path)


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
    # A limit on file sizes simulates a full disk.
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
    # Saves follow each other without a pause, so the kill interrupts one.
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run = Run(tmp_path)
    restored = run.restore()
    assert restored.step >= 1
    expected = _arrays(_state(restored.step))
    assert tree_allclose(restored.arrays, expected, rtol=0, atol=0)
    run.discard(restored.skipped)
    # The remains of the killed save do not hinder the next one.
    run.save(_state(restored.step + 1))
    run.close()
    assert run.restore().step == restored.step + 1


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
