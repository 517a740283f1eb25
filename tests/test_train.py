"""Training states, steps and their gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from small_training import (
    GREY,
    OPTIMISER,
    in_float64,
    run_steps,
    small_model,
    small_points,
    small_state,
    trainable,
)

import eqmdm
from eqmdm import Objective, TrainState, evaluate, nn, train_step
from eqmdm._training.objective import batch_loss
from eqmdm._training.step import _draw_batch, _shuffled
from helpers import counted, estimate_within_standard_errors, tree_allclose


# --- The state -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["noise", "denoiser"])
def test_state_holds_each_parameter_once(kind):
    model = small_model(kind)
    state, _ = small_state(model)
    n_network = len(jax.tree.leaves(trainable(model.network)))
    n_diffusion = len(jax.tree.leaves(trainable(model.diffusion)))
    assert n_diffusion == 2  # q and B, of the default learned diffusion
    n = n_network + n_diffusion

    count = lambda tree: len(jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))
    assert count(state.model) == n
    assert count(state.ema) == n
    # Adam's two moments, of each parameter one.
    assert count(state.opt_state) == 2 * n
    assert count(state) == 4 * n
    # Beside them: the step, the key, and the optimiser's count of updates.
    assert len(jax.tree.leaves(eqx.filter(state, eqx.is_array))) == 4 * n + 3


def test_state_copies_the_arrays_it_is_made_from():
    model = small_model(diffusion=eqmdm.VPSDE())
    state, optimiser = small_state(model)
    run_steps(state, optimiser, 1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(trainable(model)))


def test_step_donates_the_buffers_of_the_state():
    # Warnings are errors, so none of the donated buffers was unusable.
    state, optimiser = small_state()
    run_steps(state, optimiser, 1)
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    assert all(leaf.is_deleted() for leaf in leaves)


def test_state_that_was_used_is_rejected_by_name():
    state, optimiser = small_state()
    run_steps(state, optimiser, 1)
    message = "`state` must be the newest training state; this one was passed"
    with pytest.raises(ValueError, match=message):
        run_steps(state, optimiser, 1)
    with pytest.raises(ValueError, match=message):
        eqmdm.BatchStream(state, np.asarray(small_points()), Objective(), batch_size=8)


def test_model_of_a_state_that_was_used_is_rejected_by_name(key):
    state, optimiser = small_state()
    run_steps(state, optimiser, 1)
    x, options = jnp.zeros(2), {"key": key}
    for model in (state.model, state.ema_model):
        calls = [
            lambda model=model: eqmdm.sample(model, (2,), **options),
            lambda model=model: eqmdm.elbo(model, x, **options),
            lambda model=model: eqmdm.log_likelihood(model, x, **options),
            lambda model=model: eqmdm.reverse_sde(model, (2,), **options),
            lambda model=model: evaluate(model, small_points(), Objective(), **options),
            lambda model=model: TrainState.create(model, optimiser, **options),
            lambda model=model: model.score(jnp.asarray(0.5), jnp.zeros((2, 2))),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="`model` must not have been donated"):
                call()


def test_anything_but_a_model_is_rejected_with_the_constructors(key, unchecked):
    model = small_model(diffusion=eqmdm.VPSDE())
    data, settings = small_points(), {"key": key}
    constructors = ".*".join(("DenoiserModel", "NoiseModel", "FunctionModel"))
    for wrong in (model.network, (model.network, model.diffusion), model.diffusion):
        message = f"`model` must be an eqmdm model; got {type(wrong).__name__}.*"
        calls = [
            lambda wrong=wrong: TrainState.create(wrong, OPTIMISER, **settings),
            lambda wrong=wrong: run_steps(wrong, OPTIMISER, 1),
            lambda wrong=wrong: evaluate(wrong, data, Objective(), **settings),
            lambda wrong=wrong: eqmdm.fit(wrong, data, **settings),
        ]
        for call in calls:
            with pytest.raises(TypeError, match=message + constructors):
                call()
    with pytest.raises(TypeError, match="`state` must be a `TrainState`; got NoiseMod"):
        run_steps(model, OPTIMISER, 1)


def test_state_before_the_first_step_takes_one_program():
    model = small_model()
    optimiser = eqmdm.make_optimiser(1e-3, diffusion_learning_rate=1e-2, warmup=3)
    key = jr.key(1)
    with counted() as programs:
        TrainState.create(model, optimiser, key=key)
    assert programs["compiled"] <= 1


# --- The step ------------------------------------------------------------------------


@pytest.mark.slow
def test_training_lowers_the_bound_on_held_out_draws(key):
    model = small_model()
    state, optimiser = small_state(model, eqmdm.make_optimiser(3e-3))
    q = np.asarray(model.diffusion.skew_half)
    examples, keys = small_points(200), jr.split(key, 200)
    u = eqmdm.low_discrepancy(200, key=key).astype(jnp.float32)

    @eqx.filter_jit
    def losses(model):
        one = lambda x, key, u: Objective().bound(model, x, key, u)[0].total
        return -jax.vmap(one)(examples, keys, u)

    before = np.asarray(losses(model))
    state, _ = run_steps(state, optimiser, 150, batch_size=32)
    gain = before - np.asarray(losses(state.model))
    assert gain.mean() > 5 * gain.std(ddof=1) / np.sqrt(len(gain))
    # The diffusion has moved with the network.
    assert np.abs(np.asarray(state.model.diffusion.skew_half) - q).max() > 1e-3


@pytest.mark.slow
def test_denoiser_leaves_the_solution_for_normal_data():
    # EDM's preconditioning starts there: the best linear denoiser, which sees no rings.
    rings = eqmdm.data.load("rings")
    data, test = jnp.asarray(rings.train), rings.test[:2000]
    variance = float(jnp.mean(data**2))
    diffusion = eqmdm.VPSDE(interval=eqmdm.LogSNRInterval(-9.0, 13.3))
    network = eqmdm.PreconditionedDenoiser(
        nn.MLP((2,), 1, width=64, depth=3, key=jr.key(0)),
        data_std=variance**0.5,
        log_snr_range=(-9.5, 14.0),
    )
    objective = Objective(time_sampler=eqmdm.LogSNRTimeSampler())

    def bound(model):
        settings = dict(key=jr.key(1), n_draws=16, batch_size=2000)
        return evaluate(model, test, objective, **settings).terms["total"]

    # Untrained it is that solution; the same draws for both.
    model = eqmdm.DenoiserModel(network, diffusion)
    before = bound(model)
    state, optimiser = small_state(model)
    settings = dict(objective=objective, data=data, batch_size=256)
    state, _ = run_steps(state, optimiser, 1000, **settings)
    gain = bound(state.model) - before
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    truth = np.asarray(jax.vmap(rings.log_density)(test))
    normal = -np.log(2 * np.pi * variance) - np.sum(test**2, axis=1) / (2 * variance)
    # A tenth of the possible gain, so that it has begun to learn the rings.
    assert gain.mean() - 5 * error > 0.1 * (truth - normal).mean()


def test_several_steps_a_call_equal_as_many_calls():
    one, optimiser = small_state()
    several, _ = small_state()
    one, losses_one = run_steps(one, optimiser, 4)
    several, losses_several = run_steps(several, optimiser, 2, n_inner=2)
    # The same arithmetic, compiled within a loop: float32 roundings, amplified by
    # Adam's division by small second moments.
    np.testing.assert_allclose(losses_several, losses_one, rtol=1e-4)
    close = dict(rtol=1e-2, atol=1e-4)
    assert tree_allclose(several.model, one.model, **close)


def test_step_is_the_same_to_the_bit_on_every_run():
    first, optimiser = small_state()
    second, _ = small_state()
    first, losses_first = run_steps(first, optimiser, 3)
    second, losses_second = run_steps(second, optimiser, 3)
    assert losses_first == losses_second
    assert tree_allclose(first, second, rtol=0, atol=0)


def test_state_through_the_host_continues_to_the_bit():
    straight, optimiser = small_state()
    straight, losses = run_steps(straight, optimiser, 4)
    stopped, _ = small_state()
    stopped, _ = run_steps(stopped, optimiser, 2)
    resumed = jax.tree.map(
        lambda x: jnp.array(np.asarray(x)) if eqx.is_array(x) else x, stopped
    )
    resumed, rest = run_steps(resumed, optimiser, 2)
    assert rest == losses[2:]
    assert tree_allclose(resumed, straight, rtol=0, atol=0)


def test_metrics_are_the_terms_of_the_loss():
    levels = jnp.zeros((6, 2), jnp.uint8)
    state, optimiser = small_state()
    objective = Objective(levels=GREY)
    _, metrics = train_step(state, levels, objective, optimiser, batch_size=6)
    terms = ("reconstruction", "prior", "diffusion", "auxiliary")
    terms += ("dequantisation", "data_transform")
    total = sum(metrics[name][0] for name in terms)
    bits = eqmdm.bits_per_dim(total, n_dims=2)
    # The same float32 sum, perhaps in another order.
    np.testing.assert_allclose(metrics["loss"][0], bits, rtol=1e-5)
    # 2 dimensions of 17 levels on [-1, 1].
    correction = metrics["dequantisation"][0] + metrics["data_transform"][0]
    np.testing.assert_allclose(correction, 2 * np.log(2 / 17), rtol=1e-6)


def test_ema_follows_its_recursion_with_a_warm_up():
    state, optimiser = small_state()
    widened = lambda tree: jax.tree.map(lambda v: np.asarray(v, np.float64), tree)
    expected = widened(state.ema)
    for step in range(3):
        state, _ = run_steps(state, optimiser, 1, ema_decay=0.15)
        decay = min(0.15, (1 + step) / (10 + step))
        new = widened(trainable(state.model))
        expected = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, expected, new
        )
    # float32 roundings.
    assert tree_allclose(widened(state.ema), expected, rtol=1e-5, atol=1e-6)
    assert tree_allclose(trainable(state.ema_model), state.ema, rtol=0, atol=0)


def test_flip_reflects_about_half_of_the_images(key):
    image = jnp.arange(2 * 4, dtype=jnp.uint8).reshape(1, 2, 4, 1)
    images = jnp.broadcast_to(image, (400, 2, 4, 1))
    state, _ = small_state()
    plain = _draw_batch(state, images, Objective(), 400).examples
    assert bool(jnp.all(plain == image))
    batch = _draw_batch(state, images, Objective(flip=True), 400).examples
    flipped = np.asarray(jnp.all(batch == image[:, :, ::-1], axis=(1, 2, 3)))
    kept = np.asarray(jnp.all(batch == image, axis=(1, 2, 3)))
    assert np.all(flipped ^ kept)
    assert estimate_within_standard_errors(flipped.mean(), 0.5, 0.5 / 20)


def test_batches_go_through_all_examples_once_an_epoch():
    state, _ = small_state()
    data = jnp.arange(24, dtype=jnp.uint8).reshape(24, 1)
    seen = []
    for step in range(3):
        state = eqx.tree_at(lambda s: s.step, state, jnp.asarray(step, jnp.int32))
        seen.extend(data[_shuffled(state, 24, 8)].ravel().tolist())
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n_inner": 0}, "`n_inner` must be at least 1"),
        ({"n_reconstruction": 9}, "`n_reconstruction` must be between 1 and"),
    ],
    ids=["n_inner", "n_reconstruction"],
)
def test_step_refuses_impossible_settings(settings, message):
    state, optimiser = small_state()
    with pytest.raises(ValueError, match=message):
        run_steps(state, optimiser, 1, **settings)


def test_steps_per_call_is_one_on_a_cpu_only():
    assert eqmdm.steps_per_call("cpu") == 1
    assert eqmdm.steps_per_call("gpu") > 1


# --- The gradient --------------------------------------------------------------------


def _with_diffusion(model, part):
    """The model with other values of the parameters of its diffusion."""
    diffusion = eqx.combine(part, model.diffusion)
    return eqx.tree_at(lambda m: m.diffusion, model, diffusion)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "denoiser"])
def test_gradient_in_the_diffusion_is_that_of_finite_differences(kind, key):
    model = in_float64(small_model(kind))
    examples = small_points(4).astype(jnp.float64)
    u = jnp.array([0.1, 0.35, 0.6, 0.9])
    # Uniform times do not follow the parameters, so at fixed draws the loss is a
    # smooth function of them whose differences are those of its gradient.
    objective = Objective(time_sampler=eqmdm.UniformTimeSampler())
    keys = jr.split(key, 4)

    @jax.jit
    def loss(part):
        moved = _with_diffusion(model, part)
        return batch_loss(moved, objective, examples, keys, u, n_reconstruction=4)[0]

    part = trainable(model.diffusion)
    values, structure = jax.tree.flatten(part)
    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(part))
    for i, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        for index in np.ndindex(value.shape):
            step = 1e-5
            shift = jnp.zeros_like(value).at[index].set(step)
            up, down = (
                loss(
                    jax.tree.unflatten(
                        structure, [*values[:i], value + by, *values[i + 1 :]]
                    )
                )
                for by in (shift, -shift)
            )
            difference = (up - down) / (2 * step)
            # Central differences: step^2 = 1e-10 of truncation, 1e-16 / step of
            # rounding, both beside a loss of order 10.
            np.testing.assert_allclose(
                gradient[index], difference, rtol=1e-5, atol=1e-7
            )


@pytest.mark.slow
def test_gradient_in_the_diffusion_does_not_depend_on_the_time_sampler(key):
    model = in_float64(small_model(diffusion=eqmdm.LearnedDiffusion(2, key=jr.key(3))))
    x = small_points(1).astype(jnp.float64)[0]
    part = trainable(model.diffusion)
    gradients = []
    for i, sampler in enumerate(
        (eqmdm.UniformTimeSampler(), eqmdm.ImportanceTimeSampler())
    ):
        objective = Objective(time_sampler=sampler)

        def loss(part, key, u, objective=objective):
            bound, _ = objective.bound(_with_diffusion(model, part), x, key, u)
            return -bound.total

        n = 4000
        keys = jr.split(jr.fold_in(key, i), n)
        u = jr.uniform(jr.fold_in(key, 2 + i), (n,), jnp.float64)
        each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(part, keys, u)
        gradients.append(
            np.concatenate(
                [np.asarray(g).reshape(n, -1) for g in jax.tree.leaves(each)], axis=1
            )
        )
    means = [g.mean(axis=0) for g in gradients]
    errors = [g.std(axis=0, ddof=1) / np.sqrt(len(g)) for g in gradients]
    # q enters through q - q^T alone, so its diagonal has no gradient and no error.
    error = np.hypot(*errors) + 1e-12
    assert estimate_within_standard_errors(means[0], means[1], error)
