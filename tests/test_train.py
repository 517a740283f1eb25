import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import eqmdm
from eqmdm import nn
from eqmdm._training.evaluate import Objective, batch_loss, evaluate, make_score
from eqmdm._training.train import (
    TrainState,
    make_optimiser,
    parameters,
    steps_per_call,
    train_step,
    with_parameters,
)
from helpers import estimate_within_standard_errors, tree_allclose


GREY = eqmdm.GreyLevels(17)
# One optimiser and one diffusion for most tests, so that the step compiles once.
_OPTIMISER = make_optimiser(1e-3)


def _points(n=50):
    return jr.normal(jr.key(7), (n, 2), jnp.float32)


def _model(score="free", diffusion=None):
    diffusion = (
        eqmdm.LearnedDiffusion(2, key=jr.key(3)) if diffusion is None else diffusion
    )
    n_vars = 1 if score == "denoiser" else diffusion.n_vars
    network = nn.MLP((2,), n_vars, width=8, depth=1, key=jr.key(4))
    # Away from the zero that it starts at, so that every gradient is there.
    last = lambda net: net.linear_out.weight
    network = eqx.tree_at(
        last, network, 0.1 * jr.normal(jr.key(5), last(network).shape, jnp.float32)
    )
    if score == "denoiser":
        network = eqmdm.PreconditionedDenoiser(
            network, data_std=1.0, log_snr_range=(-40.0, 14.0)
        )
    return network, diffusion


def _float64(model):
    values = parameters(model)
    return with_parameters(model, jax.tree.map(lambda v: v.astype(jnp.float64), values))


def _state(model=None, optimiser=_OPTIMISER):
    model = _model(diffusion=eqmdm.VPSDE()) if model is None else model
    return TrainState.create(model, optimiser, key=jr.key(0)), optimiser


def _run(state, optimiser, n_steps, *, objective=None, data=None, **settings):
    objective = Objective() if objective is None else objective
    data = _points() if data is None else data
    losses = []
    for _ in range(n_steps):
        state, metrics = train_step(
            state, data, objective, optimiser, **({"batch_size": 8} | settings)
        )
        losses.extend(np.asarray(metrics["loss"]).tolist())
    return state, losses


# --- The state -----------------------------------------------------------------------


@pytest.mark.parametrize("score", ["free", "denoiser"])
def test_state_holds_each_parameter_once(score):
    model = _model(score)
    state, _ = _state(model)
    n_network = len(jax.tree.leaves(eqx.filter(model[0], eqx.is_inexact_array)))
    n_diffusion = len(jax.tree.leaves(eqx.filter(model[1], eqx.is_inexact_array)))
    assert n_diffusion == 2  # q and B, of the default learned diffusion
    n = n_network + n_diffusion

    count = lambda tree: len(jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))
    assert count(state.model) == n
    assert count(state.ema) == n
    # Adam's two moments, of each parameter one.
    assert count(state.opt_state) == 2 * n
    assert count(state) == 4 * n
    # Beside them: the step, the key, and the update counts of the two optimisers.
    assert len(jax.tree.leaves(eqx.filter(state, eqx.is_array))) == 4 * n + 4


def test_state_copies_the_arrays_it_is_made_from():
    model = _model(diffusion=eqmdm.VPSDE())
    state, optimiser = _state(model)
    _run(state, optimiser, 1)
    assert not any(leaf.is_deleted() for leaf in parameters(model).values())


def test_step_donates_the_buffers_of_the_state():
    # Warnings are errors, so none of the donated buffers was unusable.
    state, optimiser = _state()
    _run(state, optimiser, 1)
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    assert all(leaf.is_deleted() for leaf in leaves)


def test_state_arrays_go_back_into_a_fresh_state():
    state, optimiser = _state()
    state, _ = _run(state, optimiser, 2)
    fresh, _ = _state()
    assert tree_allclose(fresh.with_arrays(state.arrays()), state, rtol=0, atol=0)


def test_state_refuses_arrays_of_another_structure():
    state, _ = _state()
    arrays = state.arrays()
    with pytest.raises(ValueError, match="step is missing in them"):
        state.with_arrays({k: v for k, v in arrays.items() if k != "step"})
    with pytest.raises(ValueError, match="additional is float64.* missing in the tree"):
        state.with_arrays(arrays | {"additional": np.zeros(2)})
    with pytest.raises(ValueError, match=r"key is int32\[3\]"):
        state.with_arrays(arrays | {"key": np.zeros(3, np.int32)})


# --- The step ------------------------------------------------------------------------


@pytest.mark.slow
def test_training_lowers_the_bound_on_held_out_draws(key):
    model = _model()
    state, optimiser = _state(model, make_optimiser(3e-3))
    q = np.asarray(model[1].skew_half)
    examples, keys = _points(200), jr.split(key, 200)
    u = eqmdm.low_discrepancy(200, key=key).astype(jnp.float32)

    @eqx.filter_jit
    def losses(model):
        one = lambda x, key, u: Objective().bound(model, x, key, u)[0].total
        return -jax.vmap(one)(examples, keys, u)

    before = np.asarray(losses(model))
    state, _ = _run(state, optimiser, 150, batch_size=32)
    gain = before - np.asarray(losses(state.model))
    assert gain.mean() > 5 * gain.std(ddof=1) / np.sqrt(len(gain))
    # The diffusion has moved with the network.
    assert np.abs(np.asarray(state.model[1].skew_half) - q).max() > 1e-3


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
    objective = Objective(time_sampler=eqmdm.LogSNRTime())

    def bound(model):
        settings = dict(key=jr.key(1), n_draws=16, batch_size=2000)
        return evaluate(model, test, objective, **settings).terms["total"]

    # Untrained it is that solution; the same draws for both.
    before = bound((network, diffusion))
    state, optimiser = _state((network, diffusion))
    settings = dict(objective=objective, data=data, batch_size=256)
    state, _ = _run(state, optimiser, 1000, **settings)
    gain = bound(state.model) - before
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    truth = np.asarray(jax.vmap(rings.log_density)(test))
    normal = -np.log(2 * np.pi * variance) - np.sum(test**2, axis=1) / (2 * variance)
    # A tenth of what there is to learn, so that it has begun to see the rings.
    assert gain.mean() - 5 * error > 0.1 * (truth - normal).mean()


def test_several_steps_a_call_equal_as_many_calls():
    one, optimiser = _state()
    several, _ = _state()
    one, losses_one = _run(one, optimiser, 4)
    several, losses_several = _run(several, optimiser, 2, n_inner=2)
    # The same arithmetic, compiled within a loop: float32 roundings, amplified by
    # Adam's division by small second moments.
    np.testing.assert_allclose(losses_several, losses_one, rtol=1e-4)
    close = dict(rtol=1e-2, atol=1e-4)
    assert tree_allclose(parameters(several.model), parameters(one.model), **close)


def test_step_is_the_same_to_the_bit_on_every_run():
    first, optimiser = _state()
    second, _ = _state()
    first, losses_first = _run(first, optimiser, 3)
    second, losses_second = _run(second, optimiser, 3)
    assert losses_first == losses_second
    assert tree_allclose(first, second, rtol=0, atol=0)


def test_state_through_the_host_continues_to_the_bit():
    straight, optimiser = _state()
    straight, losses = _run(straight, optimiser, 4)
    stopped, _ = _state()
    stopped, _ = _run(stopped, optimiser, 2)
    resumed = _state()[0].with_arrays(stopped.arrays())
    resumed, rest = _run(resumed, optimiser, 2)
    assert rest == losses[2:]
    assert tree_allclose(resumed, straight, rtol=0, atol=0)


def test_metrics_are_the_terms_of_the_loss():
    levels = jnp.zeros((6, 2), jnp.uint8)
    state, optimiser = _state()
    objective = Objective(grey_levels=GREY)
    _, metrics = train_step(state, levels, objective, optimiser, batch_size=6)
    terms = ("reconstruction", "prior", "diffusion", "auxiliary", "correction")
    total = sum(metrics[name][0] for name in terms)
    bits = eqmdm.bits_per_dim(total, n_dims=2)
    # The same float32 sum, perhaps in another order.
    np.testing.assert_allclose(metrics["loss"][0], bits, rtol=1e-5)
    # 2 dimensions of 17 levels on [-1, 1].
    np.testing.assert_allclose(metrics["correction"][0], 2 * np.log(2 / 17), rtol=1e-6)


def test_ema_follows_its_recursion_with_a_warm_up():
    state, optimiser = _state()
    expected = {k: np.asarray(v, np.float64) for k, v in state.ema.items()}
    for step in range(3):
        state, _ = _run(state, optimiser, 1, ema_decay=0.15)
        decay = min(0.15, (1 + step) / (10 + step))
        new = {k: np.asarray(v, np.float64) for k, v in parameters(state.model).items()}
        expected = {k: decay * expected[k] + (1 - decay) * new[k] for k in expected}
    actual = {k: np.asarray(v, np.float64) for k, v in state.ema.items()}
    # float32 roundings.
    assert tree_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert tree_allclose(parameters(state.ema_model), state.ema, rtol=0, atol=0)


def test_flip_reflects_about_half_of_the_images(key):
    from eqmdm._training.train import _draw_batch

    image = jnp.arange(2 * 4, dtype=jnp.uint8).reshape(1, 2, 4, 1)
    images = jnp.broadcast_to(image, (400, 2, 4, 1))
    state, _ = _state()
    plain = _draw_batch(state, images, Objective(), 400).examples
    assert bool(jnp.all(plain == image))
    batch = _draw_batch(state, images, Objective(flip=True), 400).examples
    flipped = np.asarray(jnp.all(batch == image[:, :, ::-1], axis=(1, 2, 3)))
    kept = np.asarray(jnp.all(batch == image, axis=(1, 2, 3)))
    assert np.all(flipped ^ kept)
    assert estimate_within_standard_errors(flipped.mean(), 0.5, 0.5 / 20)


def test_batches_go_through_all_examples_once_an_epoch():
    from eqmdm._training.train import _shuffled

    state, _ = _state()
    data = jnp.arange(24, dtype=jnp.uint8).reshape(24, 1)
    seen = []
    for step in range(3):
        state = eqx.tree_at(lambda s: s.step, state, jnp.asarray(step, jnp.int32))
        seen.extend(_shuffled(state, data, 8).ravel().tolist())
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
    state, optimiser = _state()
    with pytest.raises(ValueError, match=message):
        _run(state, optimiser, 1, **settings)


def test_steps_per_call_is_one_on_a_cpu_only():
    assert steps_per_call("cpu") == 1
    assert steps_per_call("gpu") > 1


# --- The optimiser -------------------------------------------------------------------

# Optax mixes counts and floats, which strict promotion refuses; the step allows for it.
_OPTAX = jax.numpy_dtype_promotion("standard")


@_OPTAX
def test_diffusion_has_a_learning_rate_of_its_own():
    values = parameters(_model())
    optimiser = make_optimiser(1e-3, diffusion_learning_rate=1e-2, clip=1e6)
    gradient = jax.tree.map(jnp.ones_like, values)
    updates, _ = optimiser.update(gradient, optimiser.init(values), values)
    for name, update in updates.items():
        # Adam's first update is the learning rate, up to its epsilon.
        rate = 1e-3 if name.startswith("[0]") else 1e-2
        np.testing.assert_allclose(update, -rate, rtol=1e-5)


@_OPTAX
def test_gradients_are_clipped_by_the_norm_of_all():
    values = {"[0].a": jnp.zeros(1), "[1].b": jnp.zeros(1)}
    gradient = {"[0].a": jnp.array([3.0]), "[1].b": jnp.array([4.0])}
    optimiser = make_optimiser(1e-3, clip=0.5)
    _, opt_state = optimiser.update(gradient, optimiser.init(values), values)
    moments = sorted(
        float(leaf[0]) for leaf in jax.tree.leaves(opt_state) if leaf.ndim == 1
    )
    # Norm 5 is scaled down to 0.5; moments are 0.1 g and 0.001 g^2 after one update.
    expected = sorted([0.1 * 0.3, 0.1 * 0.4, 1e-3 * 0.09, 1e-3 * 0.16])
    np.testing.assert_allclose(moments, expected, rtol=1e-6)


@_OPTAX
def test_accumulated_gradients_make_one_update_of_their_mean():
    values = {"[0].a": jnp.zeros(2), "[1].b": jnp.zeros(2)}
    gradients = [jax.tree.map(lambda v, s=s: v + s, values) for s in (1.0, 3.0)]
    optimiser = make_optimiser(1e-3, accumulate=2)
    opt_state, current = optimiser.init(values), values
    for gradient in gradients:
        updates, opt_state = optimiser.update(gradient, opt_state, current)
        current = optax.apply_updates(current, updates)
    once = make_optimiser(1e-3)
    mean = jax.tree.map(lambda v: v + 2.0, values)
    expected, _ = once.update(mean, once.init(values), values)
    assert tree_allclose(current, expected, rtol=1e-12, atol=0)


@_OPTAX
def test_warmup_raises_the_learning_rate_to_its_full_value():
    values = {"[0].a": jnp.zeros(1), "[1].b": jnp.zeros(1)}
    optimiser = make_optimiser(1e-3, warmup=4)
    opt_state = optimiser.init(values)
    sizes = []
    for _ in range(6):
        gradient = jax.tree.map(jnp.ones_like, values)
        updates, opt_state = optimiser.update(gradient, opt_state, values)
        sizes.append(-float(updates["[0].a"][0]))
    expected = [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3]
    # Adam's epsilon beside a clipped gradient of 0.7.
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"diffusion_learning_rate": -1.0}, "`diffusion_learning_rate` must be"),
        ({"clip": float("nan")}, "`clip` must be positive"),
        ({"accumulate": 0}, "`accumulate` must be at least 1"),
        ({"warmup": -1}, "`warmup` must be at least 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_optimiser_refuses_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimiser(**settings)


# --- The gradient --------------------------------------------------------------------


def _diffusion_gradient(model, objective, examples, keys, u):
    values = parameters(model)
    names = [name for name in values if name.startswith("[1]")]

    def loss(part):
        moved = with_parameters(model, values | part)
        n = len(examples)
        return batch_loss(moved, objective, examples, keys, u, n_reconstruction=n)[0]

    loss_and_gradient = jax.jit(jax.value_and_grad(loss))
    return loss_and_gradient, {name: values[name] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("score", ["free", "denoiser"])
def test_gradient_in_the_diffusion_is_that_of_finite_differences(score, key):
    model = _float64(_model(score))
    examples = _points(4).astype(jnp.float64)
    u = jnp.array([0.1, 0.35, 0.6, 0.9])
    # Uniform times do not follow the parameters, so at fixed draws the loss is a
    # smooth function of them whose differences are those of its gradient.
    objective = Objective(time_sampler=eqmdm.UniformTime())
    keys = jr.split(key, 4)
    loss_and_gradient, part = _diffusion_gradient(model, objective, examples, keys, u)
    loss = lambda part: loss_and_gradient(part)[0]
    _, gradient = loss_and_gradient(part)
    for name, value in part.items():
        for index in np.ndindex(value.shape):
            step = 1e-5
            shift = jnp.zeros_like(value).at[index].set(step)
            up, down = (
                loss(part | {name: value + shift}),
                loss(part | {name: value - shift}),
            )
            difference = (up - down) / (2 * step)
            # Central differences: step^2 = 1e-10 of truncation, 1e-16 / step of
            # rounding, both beside a loss of order 10.
            np.testing.assert_allclose(
                gradient[name][index], difference, rtol=1e-5, atol=1e-7
            )


@pytest.mark.slow
def test_gradient_in_the_diffusion_does_not_depend_on_the_time_sampler(key):
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(3))
    model = _float64(_model(diffusion=diffusion))
    x = _points(1).astype(jnp.float64)[0]
    gradients = []
    for i, sampler in enumerate((eqmdm.UniformTime(), eqmdm.ImportanceTime())):
        objective = Objective(time_sampler=sampler)
        values = parameters(model)
        part = {n: v for n, v in values.items() if n.startswith("[1]")}

        def loss(part, key, u, objective=objective, values=values):
            bound, _ = objective.bound(with_parameters(model, values | part), x, key, u)
            return -bound.total

        n = 4000
        keys = jr.split(jr.fold_in(key, i), n)
        u = jr.uniform(jr.fold_in(key, 2 + i), (n,), jnp.float64)
        each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(part, keys, u)
        gradients.append(
            np.concatenate(
                [np.asarray(g).reshape(n, -1) for g in each.values()], axis=1
            )
        )
    means = [g.mean(axis=0) for g in gradients]
    errors = [g.std(axis=0, ddof=1) / np.sqrt(len(g)) for g in gradients]
    # q enters through q - q^T alone, so its diagonal has no gradient and no error.
    error = np.hypot(*errors) + 1e-12
    assert estimate_within_standard_errors(means[0], means[1], error)


# --- Evaluation ----------------------------------------------------------------------


def test_evaluation_depends_on_neither_batch_size_nor_order(key):
    model, examples = _model(diffusion=eqmdm.VPSDE()), np.asarray(_points(7))
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
    result = evaluate((exact, diffusion), x, Objective(), key=key, batch_size=4000)
    log_density = np.asarray(-0.5 * x[:, 0] ** 2 - 0.5 * np.log(2 * np.pi))
    gap = result.terms["total"] - log_density
    mean, error = result.summary()["loss"]
    assert mean == -result.terms["total"].mean()
    # The Theorem 3 oracle has the same truncation, 3e-6 nats.
    assert abs(gap.mean()) < 5 * gap.std(ddof=1) / np.sqrt(len(gap)) + 1e-5


def test_evaluation_reports_bits_per_dimension_of_levels(key):
    levels = np.zeros((3, 2), np.uint8)
    result = evaluate(_model(), levels, Objective(grey_levels=GREY), key=key)
    terms = result.terms
    parts = ("reconstruction", "prior", "diffusion", "auxiliary")
    parts += ("dequantisation", "data_transform")
    np.testing.assert_allclose(
        terms["total"], sum(terms[name] for name in parts), rtol=1e-5
    )
    np.testing.assert_allclose(
        terms["loss"], -terms["total"] / (2 * np.log(2)), rtol=1e-5
    )


def test_evaluation_has_standard_errors_from_two_draws_on(key):
    examples = np.asarray(_points(3))
    one = evaluate(_model(), examples, Objective(), key=key)
    assert np.isnan(one.standard_error).all()
    two = evaluate(_model(), examples, Objective(), key=key, n_draws=2)
    assert (two.standard_error > 0).all()
    # The first draw of two is the only draw of one; half the gap of two is their error.
    gap = np.abs(two.terms["total"] - one.terms["total"])
    np.testing.assert_allclose(two.standard_error, gap, rtol=1e-3)


def test_integers_without_grey_levels_are_refused(key):
    levels = np.zeros((8, 2), np.uint8)
    message = "`examples` must be floating-point data.*got uint8.*GreyLevels"
    with pytest.raises(TypeError, match=message):
        evaluate(_model(), levels, Objective(), key=key)
    state, optimiser = _state()
    with pytest.raises(TypeError, match=message):
        train_step(state, jnp.asarray(levels), Objective(), optimiser, batch_size=4)


def test_a_state_that_cannot_be_evaluated_is_refused():
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-2.0, 9.0)
    )
    with pytest.raises(ValueError, match="`diffusion` must end within the denoiser"):
        _state((denoiser, eqmdm.VPSDE()))
    with pytest.raises(ValueError, match="`key` must be of JAX's default generator"):
        TrainState.create(_model(), _OPTIMISER, key=jr.key(0, impl="rbg"))


CENTRES = eqmdm.GreyLevels(17, dequantiser=eqmdm.CentreDequantiser())


def test_objective_has_the_decoder_that_its_data_ask_for():
    assert Objective(grey_levels=CENTRES).decoder == eqmdm.DiscreteDecoder(CENTRES)
    assert Objective(grey_levels=GREY).decoder == eqmdm.DataDecoder()
    form = eqmdm.DenoisingScoreMatching()
    assert Objective(form).decoder == eqmdm.StartDecoder()


@pytest.mark.parametrize(
    "decoder, grey_levels, message",
    [
        (eqmdm.DataDecoder(), CENTRES, "got DataDecoder for data that are level"),
        (eqmdm.DiscreteDecoder(GREY), GREY, "got DiscreteDecoder for .* dequantised"),
        (eqmdm.DiscreteDecoder(GREY), None, "got DiscreteDecoder for .* points"),
        (
            eqmdm.DiscreteDecoder(eqmdm.GreyLevels(16)),
            CENTRES,
            "must have the levels and the transform of `grey_levels`; got 16 by",
        ),
    ],
)
def test_decoder_that_does_not_go_with_the_levels_is_refused(
    decoder, grey_levels, message
):
    with pytest.raises(ValueError, match=message):
        Objective(decoder=decoder, grey_levels=grey_levels)


def test_evaluation_refuses_no_examples(key):
    with pytest.raises(ValueError, match="`examples` must be at least 1; got 0"):
        evaluate(_model(), np.zeros((0, 2), np.float32), Objective(), key=key)


def test_score_is_a_view_of_the_kind_of_the_network():
    network, diffusion = _model("free")
    assert isinstance(make_score(network, diffusion), eqmdm.FreeScore)
    denoiser, diffusion = _model("denoiser")
    assert isinstance(make_score(denoiser, diffusion), eqmdm.DenoiserScore)


_BAD_LEVELS = np.array([[0, 3], [17, 1], [2, 2]], np.uint8)


def _on_levels(data, batch_size=2):
    state, optimiser = _state()
    objective = Objective(grey_levels=GREY)
    return train_step(state, data, objective, optimiser, batch_size=batch_size)


def test_step_refuses_levels_out_of_range_before_it_compiles():
    # Whether or not they are in the first batch.
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        _on_levels(jnp.asarray(_BAD_LEVELS))


def test_step_refuses_levels_out_of_range_that_are_traced_or_streamed():
    message = "`levels` must be from 0 to 16"
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        eqx.filter_jit(lambda data: _on_levels(data, 3)[1])(jnp.asarray(_BAD_LEVELS))
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        _on_levels(eqmdm.Batches(jnp.asarray(_BAD_LEVELS)[None]), 3)


@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_evaluation_refuses_levels_out_of_range(module, key):
    objective = Objective(grey_levels=GREY)
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        evaluate(_model(), module.asarray(_BAD_LEVELS), objective, key=key)


def test_bound_of_one_example_refuses_levels_out_of_range(key):
    objective = Objective(grey_levels=GREY)
    bound = lambda x: objective.bound(_model(), x, key, jnp.float32(0.5))[0].total
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16"):
        bound(jnp.asarray(_BAD_LEVELS[1]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`levels` must be from 0 to 16"):
        eqx.filter_jit(bound)(jnp.asarray(_BAD_LEVELS[1]))


@pytest.mark.parametrize("n_levels", [256, 17])
@pytest.mark.parametrize("score", ["denoiser", "free"])
@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_step_on_images_does_not_call_back_to_python(score, kind, n_levels):
    # XLA keeps no compiled program that does, and a GPU waits for it.
    channels = 1 if score == "denoiser" else 2
    network = nn.MLP((3,), channels, width=4, depth=1, key=jr.key(0))
    if score == "denoiser":
        network = eqmdm.PreconditionedDenoiser(
            network, data_std=1.0, log_snr_range=(-40.0, 14.0)
        )
    optimiser = make_optimiser(1e-3)
    learned = kind == "learned"
    diffusion = eqmdm.LearnedDiffusion(2, key=jr.key(2)) if learned else eqmdm.CLD()
    state = TrainState.create((network, diffusion), optimiser, key=jr.key(1))
    objective = eqmdm.Objective(grey_levels=eqmdm.GreyLevels(n_levels))
    data = jnp.zeros((8, 3), jnp.uint8)

    step = lambda state: train_step(state, data, objective, optimiser, batch_size=4)
    # Lowered, for checks within a primitive do not show before.
    program = eqx.filter_jit(step).lower(state).as_text()
    assert "dot_general" in program
    assert "callback" not in program
