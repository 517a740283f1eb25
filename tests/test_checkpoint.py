"""Tests of checkpoints and runs."""

import json
import shutil
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from saved_states import OPTIONS, build_model, make_model, make_state, save_states

import eqmdm
from eqmdm import Run, TrainState
from helpers import slow, tree_allclose


def test_checkpoint_comes_back_to_the_bit(tmp_path):
    run = save_states(tmp_path / "run", 3)
    restored = run.restore()
    assert (restored.step, restored.skipped) == (3, {})
    state = restored.state(make_state())
    assert tree_allclose(state, make_state(3), rtol=0, atol=0)


def test_checkpoint_names_each_array_by_its_place_in_the_model(tmp_path):
    arrays = save_states(tmp_path, 1).restore().arrays
    weight = "network.linear_out.weight"
    assert {f"model.{weight}", f"ema.{weight}", "step", "key"} <= set(arrays)
    assert "model.diffusion.skew_half" in arrays


# Only the last one distinguishes the parameters of a diffusion from a network's.
@pytest.mark.parametrize(
    "optimiser, learned",
    [
        slow(optax.sgd(1e-4, momentum=0.9), False),
        slow(optax.lion(1e-3), False),
        (optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(), False),
        (eqmdm.make_optimiser(1e-3, diffusion_learning_rate=1e-2, warmup=3), True),
    ],
    ids=["sgd", "lion", "accumulated-adamw", "two-rates"],
)
def test_any_optimiser_trains_and_resumes_to_the_bit(tmp_path, optimiser, learned):
    data = jr.normal(jr.key(1), (20, 2), jnp.float32)
    model = make_model(learned=learned)
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
    restored = save_states(tmp_path, 1).restore()
    arrays = restored.arrays
    state = make_state()
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
        run.save(make_state(step), loss=loss)
    run.close()
    assert run.steps == [2, 4, 5]


@pytest.mark.parametrize("kind", ["noise", "denoiser"])
def test_loaded_run_is_the_averaged_model(tmp_path, kind):
    model = make_model(kind, learned=False)
    options = OPTIONS | {"kind": kind, "learned": False}
    save_states(tmp_path, 2, model=model, options=options)
    state = make_state(2, model)
    # The options come back as JSON does, from which the model is built.
    for like in (build_model, model):
        loaded = eqmdm.load_run(tmp_path, like=like)
        assert jax.tree.structure(loaded) == jax.tree.structure(state.model)
        assert tree_allclose(loaded, state.ema_model, rtol=0, atol=0)
    last = eqmdm.load_run(tmp_path, like=build_model, ema=False)
    assert tree_allclose(last, state.model, rtol=0, atol=0)


def test_run_directory_can_be_moved(tmp_path):
    save_states(tmp_path / "old", 1)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert isinstance(
        eqmdm.load_run(tmp_path / "new", like=build_model), eqmdm.NoiseModel
    )


def test_run_says_where_it_is_and_what_it_holds(tmp_path):
    run = save_states(tmp_path / "run", 1, 3)
    assert repr(run) == f"Run({str(tmp_path / 'run')!r}, steps=[1, 3])"
    record = run.read_options()
    assert record["seed"] == 0 and record["options"]["data_std"] == 0.1


def test_run_without_a_builder_asks_for_a_model(tmp_path):
    save_states(tmp_path, 1)
    with pytest.raises(ValueError, match="`like` must be given for the run"):
        eqmdm.load_run(tmp_path)


@pytest.mark.parametrize("builder", ["os:getcwd", "eqmdm.cli.build:other", 3, ["a"]])
def test_builder_that_a_file_names_is_not_imported(tmp_path, builder):
    run = save_states(tmp_path, 1)
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
    save_states(tmp_path, 1, model=model(jnp.ones(())))
    loaded = eqmdm.load_run(tmp_path, like=model(jnp.zeros(())))
    assert float(loaded.network.scale) == pytest.approx(1.01)
    with pytest.raises(ValueError, match="The checkpoint must have the arrays of the"):
        eqmdm.load_run(tmp_path, like=model(jnp.zeros(2)))


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`run_dir` must be the directory of a run"):
        eqmdm.load_run(tmp_path / "nowhere")


def test_run_without_a_checkpoint_is_refused(tmp_path):
    save_states(tmp_path)
    with pytest.raises(ValueError, match="must hold a checkpoint that can be read"):
        eqmdm.load_run(tmp_path)


def test_same_options_are_accepted_through_json(tmp_path):
    save_states(tmp_path).check_options(OPTIONS)


@pytest.mark.parametrize(
    "change",
    [{"width": 16}, {"log_snr_range": (-9.0, 14.0)}, {"additional": 1}],
    ids=str,
)
def test_other_options_are_refused_by_field_and_values(tmp_path, change):
    run = save_states(tmp_path)
    [(field, value)] = change.items()
    new = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ValueError) as info:
        run.check_options(OPTIONS | change)
    remedy = "Resume with" if field in OPTIONS else "Turn `additional` off"
    for part in (f"`{field}` must be", f"got {new!r}", remedy):
        assert part in str(info.value)
    run.check_options(OPTIONS | change, may_differ=(field,))
