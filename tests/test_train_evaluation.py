"""Evaluation of training states, and the validation of examples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_training import (
    GREY,
    OPTIMISER,
    run_steps,
    small_model,
    small_points,
    small_state,
)

import eqmdm
from eqmdm import Objective, TrainState, evaluate, nn, train_step
from helpers import slow, tree_allclose


# --- Evaluation ----------------------------------------------------------------------


def test_evaluation_depends_on_neither_batch_size_nor_order(key):
    model, examples = small_model(diffusion=eqmdm.VPSDE()), np.asarray(small_points(7))
    whole = evaluate(model, examples, Objective(), key=key, n_draws=3, batch_size=64)
    parts = evaluate(model, examples, Objective(), key=key, n_draws=3, batch_size=4)
    # Batched float32 products may round differently.
    close = dict(rtol=1e-4, atol=1e-4)
    assert tree_allclose(parts.terms, whole.terms, **close)
    last = evaluate(
        model, examples[5:], Objective(), key=key, n_draws=3, batch_size=64, first=5
    )
    expected = {name: value[5:] for name, value in whole.terms.items()}
    assert tree_allclose(last.terms, expected, **close)


def test_evaluation_of_gaussian_data_is_their_log_density(key):
    # The exact score of N(0, 1) under VPSDE is -y at every time: a network that
    # predicts sigma y. Its bound is the log-density, up to the truncation.
    diffusion = eqmdm.VPSDE()
    exact = lambda t, y: diffusion.compute_kernel(t).root[0, 0].astype(y.dtype) * y
    x = jr.normal(key, (4000, 1), jnp.float64)
    model = eqmdm.NoiseModel(exact, diffusion)
    result = evaluate(model, x, Objective(), key=key, batch_size=4000)
    log_density = np.asarray(-0.5 * x[:, 0] ** 2 - 0.5 * np.log(2 * np.pi))
    gap = result.terms["total"] - log_density
    assert result.summary()["total"][0] == result.terms["total"].mean()
    # For points the loss is in nats.
    np.testing.assert_array_equal(result.loss, -result.terms["total"])
    # The Theorem 3 oracle has the same truncation, 3e-6 nats.
    assert abs(gap.mean()) < 5 * gap.std(ddof=1) / np.sqrt(len(gap)) + 1e-5


def test_evaluation_reports_bits_per_dimension_of_levels(key):
    levels = np.zeros((3, 2), np.uint8)
    result = evaluate(small_model(), levels, Objective(levels=GREY), key=key)
    terms = result.terms
    parts = ("reconstruction", "prior", "diffusion", "auxiliary")
    parts += ("dequantisation", "data_transform")
    np.testing.assert_allclose(
        terms["total"], sum(terms[name] for name in parts), rtol=1e-5
    )
    np.testing.assert_allclose(
        terms["bits_per_dim"], -terms["total"] / (2 * np.log(2)), rtol=1e-5
    )


def test_evaluation_has_standard_errors_from_two_draws_on(key):
    examples = np.asarray(small_points(3))
    model = small_model(diffusion=eqmdm.VPSDE())
    one = evaluate(model, examples, Objective(), key=key)
    assert np.isnan(one.standard_error).all()
    two = evaluate(model, examples, Objective(), key=key, n_draws=2)
    assert (two.standard_error > 0).all()
    # The first draw of two is the only draw of one; half the gap of two is their error.
    gap = np.abs(two.terms["total"] - one.terms["total"])
    np.testing.assert_allclose(two.standard_error, gap, rtol=1e-3)


def test_integers_without_grey_levels_are_refused(key):
    levels = np.zeros((8, 2), np.uint8)
    message = "`examples` must be floating-point data.*got uint8.*`levels`"
    with pytest.raises(TypeError, match=message):
        evaluate(small_model(), levels, Objective(), key=key)
    state, optimiser = small_state()
    with pytest.raises(TypeError, match=message):
        train_step(state, jnp.asarray(levels), Objective(), optimiser, batch_size=4)


def test_a_state_that_cannot_be_evaluated_is_refused():
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-2.0, 9.0)
    )
    with pytest.raises(ValueError, match="`model` must have a diffusion that ends"):
        small_state(eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE()))
    with pytest.raises(ValueError, match="`key` must be a key of JAX's default gen"):
        TrainState.create(small_model(), OPTIMISER, key=jr.key(0, impl="rbg"))


CENTRES = eqmdm.GreyLevels(17, dequantiser=eqmdm.CentreDequantiser())


def test_objective_has_the_decoder_that_its_data_ask_for():
    assert Objective(levels=CENTRES).decoder == eqmdm.DiscreteDecoder(CENTRES)
    assert Objective(levels=GREY).decoder == eqmdm.DataDecoder()
    form = eqmdm.DenoisingScoreMatching()
    assert Objective(form=form).decoder == eqmdm.StartDecoder()


@pytest.mark.parametrize(
    "decoder, grey_levels, message",
    [
        (eqmdm.DataDecoder(), CENTRES, "got DataDecoder for data that are level"),
        (eqmdm.DiscreteDecoder(GREY), GREY, "got DiscreteDecoder for .* dequantised"),
        (eqmdm.DiscreteDecoder(GREY), None, "got DiscreteDecoder for .* points"),
        (
            eqmdm.DiscreteDecoder(eqmdm.GreyLevels(16)),
            CENTRES,
            "must have the levels and the transform of `levels`; got 16 by",
        ),
    ],
)
def test_decoder_that_does_not_go_with_the_levels_is_refused(
    decoder, grey_levels, message
):
    with pytest.raises(ValueError, match=message):
        Objective(decoder=decoder, levels=grey_levels)


def test_evaluation_refuses_no_examples(key):
    with pytest.raises(ValueError, match="`examples` must hold one example or more"):
        evaluate(small_model(), np.zeros((0, 2), np.float32), Objective(), key=key)


# --- Validation of examples ----------------------------------------------------------

_BAD_LEVELS = np.array([[0, 3], [17, 1], [2, 2]], np.uint8)


def _on_levels(data, batch_size=2):
    state, optimiser = small_state()
    objective = Objective(levels=GREY)
    return train_step(state, data, objective, optimiser, batch_size=batch_size)


def test_step_refuses_levels_out_of_range_before_it_compiles():
    # Whether or not they are in the first batch.
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        _on_levels(jnp.asarray(_BAD_LEVELS))


def test_step_refuses_levels_out_of_range_that_are_traced_or_streamed():
    message = "`levels` must be from 0 to 16"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        eqx.filter_jit(lambda data: _on_levels(data, 3)[1])(jnp.asarray(_BAD_LEVELS))
    objective = Objective(levels=GREY)
    with eqmdm.BatchStream(
        small_state()[0], _BAD_LEVELS, objective, batch_size=3
    ) as stream:
        with pytest.raises(ValueError, match=message):
            next(stream)


def test_training_set_is_validated_where_it_is_made():
    objective = Objective(levels=GREY)
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        eqmdm.TrainingSet(_BAD_LEVELS, objective)
    with pytest.raises(ValueError, match="`examples` must be finite"):
        eqmdm.TrainingSet(np.full((3, 2), np.nan), Objective())
    with pytest.raises(TypeError, match="`examples` must be known, .* traced array"):
        jax.jit(lambda x: eqmdm.TrainingSet(x, Objective()).examples)(small_points())
    points = eqmdm.TrainingSet(small_points(), Objective())
    with pytest.raises(ValueError, match="takes 17 grey levels; these are points"):
        _on_levels(points)


def test_training_set_is_trained_on_as_its_array():
    first, optimiser = small_state()
    second, _ = small_state()
    _, losses = run_steps(first, optimiser, 2)
    data = eqmdm.TrainingSet(np.asarray(small_points()), Objective())
    assert run_steps(second, optimiser, 2, data=data)[1] == losses


def test_points_that_are_not_finite_are_rejected_in_every_call():
    # The same array, changed between two calls.
    points = np.array(small_points())
    state, optimiser = small_state()
    state, _ = run_steps(state, optimiser, 1, data=points)
    points[17, 0] = np.inf
    with pytest.raises(ValueError, match="`examples` must be finite"):
        run_steps(state, optimiser, 1, data=points)


@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_evaluation_refuses_levels_out_of_range(module, key):
    objective = Objective(levels=GREY)
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        evaluate(small_model(), module.asarray(_BAD_LEVELS), objective, key=key)


def test_bound_of_one_example_refuses_levels_out_of_range(key):
    objective = Objective(levels=GREY)
    model = small_model(diffusion=eqmdm.VPSDE())
    bound = lambda x: objective.bound(model, x, key, jnp.float32(0.5))[0].total
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16"):
        bound(jnp.asarray(_BAD_LEVELS[1]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`levels` must be from 0 to 16"):
        eqx.filter_jit(bound)(jnp.asarray(_BAD_LEVELS[1]))


# The first two have every value.
@pytest.mark.parametrize(
    "kind, diffusion, n_levels",
    [
        ("denoiser", "learned", 17),
        ("noise", "fixed", 256),
        slow("denoiser", "fixed", 17),
        slow("denoiser", "fixed", 256),
        slow("denoiser", "learned", 256),
        slow("noise", "fixed", 17),
        slow("noise", "learned", 17),
        slow("noise", "learned", 256),
    ],
)
def test_step_on_images_does_not_call_back_to_python(kind, diffusion, n_levels):
    # XLA keeps no compiled program that does, and a GPU waits for it.
    channels = 1 if kind == "denoiser" else 2
    network = nn.MLP((3,), channels, width=4, depth=1, key=jr.key(0))
    learned = diffusion == "learned"
    process = eqmdm.LearnedDiffusion(2, key=jr.key(2)) if learned else eqmdm.CLD()
    model = eqmdm.NoiseModel(network, process)
    if kind == "denoiser":
        network = eqmdm.PreconditionedDenoiser(
            network, data_std=1.0, log_snr_range=(-40.0, 14.0)
        )
        model = eqmdm.DenoiserModel(network, process)
    optimiser = eqmdm.make_optimiser(1e-3)
    state = TrainState.create(model, optimiser, key=jr.key(1))
    objective = eqmdm.Objective(levels=eqmdm.GreyLevels(n_levels))
    data = jnp.zeros((8, 3), jnp.uint8)

    step = lambda state: train_step(state, data, objective, optimiser, batch_size=4)
    # Lowered, for checks within a primitive do not show before.
    program = eqx.filter_jit(step).lower(state).as_text()
    assert "dot_general" in program
    assert "callback" not in program
