import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import eqmdm
from eqmdm import Objective, TrainState, evaluate, nn, train_step
from eqmdm._training.objective import batch_loss
from eqmdm._training.step import _draw_batch, _shuffled
from helpers import counted, estimate_within_standard_errors, tree_allclose


GREY = eqmdm.GreyLevels(17)
# One optimiser and one diffusion for most tests, so that the step compiles once.
_OPTIMISER = eqmdm.make_optimiser(1e-3)


def _points(n=50):
    return jr.normal(jr.key(7), (n, 2), jnp.float32)


def _model(kind="noise", diffusion=None):
    diffusion = (
        eqmdm.LearnedDiffusion(2, key=jr.key(3)) if diffusion is None else diffusion
    )
    n_vars = 1 if kind == "denoiser" else diffusion.n_vars
    network = nn.MLP((2,), n_vars, width=8, depth=1, key=jr.key(4))
    # Perturbed from its zero initialisation, so that every gradient is nonzero.
    last = lambda net: net.linear_out.weight
    network = eqx.tree_at(
        last, network, 0.1 * jr.normal(jr.key(5), last(network).shape, jnp.float32)
    )
    if kind == "noise":
        return eqmdm.NoiseModel(network, diffusion)
    network = eqmdm.PreconditionedDenoiser(
        network, data_std=1.0, log_snr_range=(-40.0, 14.0)
    )
    return eqmdm.DenoiserModel(network, diffusion)


def _trainable(tree):
    return eqx.filter(tree, eqx.is_inexact_array)


def _float64(model):
    cast = lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x
    return jax.tree.map(cast, model)


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


@pytest.mark.parametrize("kind", ["noise", "denoiser"])
def test_state_holds_each_parameter_once(kind):
    model = _model(kind)
    state, _ = _state(model)
    n_network = len(jax.tree.leaves(_trainable(model.network)))
    n_diffusion = len(jax.tree.leaves(_trainable(model.diffusion)))
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
    model = _model(diffusion=eqmdm.VPSDE())
    state, optimiser = _state(model)
    _run(state, optimiser, 1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(_trainable(model)))


def test_step_donates_the_buffers_of_the_state():
    # Warnings are errors, so none of the donated buffers was unusable.
    state, optimiser = _state()
    _run(state, optimiser, 1)
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    assert all(leaf.is_deleted() for leaf in leaves)


def test_state_that_was_used_is_rejected_by_name():
    state, optimiser = _state()
    _run(state, optimiser, 1)
    message = "`state` must be the newest training state; this one was passed"
    with pytest.raises(ValueError, match=message):
        _run(state, optimiser, 1)
    with pytest.raises(ValueError, match=message):
        eqmdm.BatchStream(state, np.asarray(_points()), Objective(), batch_size=8)


def test_model_of_a_state_that_was_used_is_rejected_by_name(key):
    state, optimiser = _state()
    _run(state, optimiser, 1)
    x, options = jnp.zeros(2), {"key": key}
    for model in (state.model, state.ema_model):
        calls = [
            lambda model=model: eqmdm.sample(model, (2,), **options),
            lambda model=model: eqmdm.elbo(model, x, **options),
            lambda model=model: eqmdm.log_likelihood(model, x, **options),
            lambda model=model: eqmdm.reverse_sde(model, (2,), **options),
            lambda model=model: evaluate(model, _points(), Objective(), **options),
            lambda model=model: TrainState.create(model, optimiser, **options),
            lambda model=model: model.score(jnp.asarray(0.5), jnp.zeros((2, 2))),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="`model` must not have been donated"):
                call()


def test_anything_but_a_model_is_rejected_with_the_constructors(key, unchecked):
    model = _model(diffusion=eqmdm.VPSDE())
    data, settings = _points(), {"key": key}
    constructors = ".*".join(("DenoiserModel", "NoiseModel", "FunctionModel"))
    for wrong in (model.network, (model.network, model.diffusion), model.diffusion):
        message = f"`model` must be an eqmdm model; got {type(wrong).__name__}.*"
        calls = [
            lambda wrong=wrong: TrainState.create(wrong, _OPTIMISER, **settings),
            lambda wrong=wrong: _run(wrong, _OPTIMISER, 1),
            lambda wrong=wrong: evaluate(wrong, data, Objective(), **settings),
            lambda wrong=wrong: eqmdm.fit(wrong, data, **settings),
        ]
        for call in calls:
            with pytest.raises(TypeError, match=message + constructors):
                call()
    with pytest.raises(TypeError, match="`state` must be a `TrainState`; got NoiseMod"):
        _run(model, _OPTIMISER, 1)


def test_state_before_the_first_step_takes_one_program():
    model = _model()
    optimiser = eqmdm.make_optimiser(1e-3, diffusion_learning_rate=1e-2, warmup=3)
    key = jr.key(1)
    with counted() as programs:
        TrainState.create(model, optimiser, key=key)
    assert programs["compiled"] <= 1


# --- The step ------------------------------------------------------------------------


@pytest.mark.slow
def test_training_lowers_the_bound_on_held_out_draws(key):
    model = _model()
    state, optimiser = _state(model, eqmdm.make_optimiser(3e-3))
    q = np.asarray(model.diffusion.skew_half)
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
    state, optimiser = _state(model)
    settings = dict(objective=objective, data=data, batch_size=256)
    state, _ = _run(state, optimiser, 1000, **settings)
    gain = bound(state.model) - before
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    truth = np.asarray(jax.vmap(rings.log_density)(test))
    normal = -np.log(2 * np.pi * variance) - np.sum(test**2, axis=1) / (2 * variance)
    # A tenth of the possible gain, so that it has begun to learn the rings.
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
    assert tree_allclose(several.model, one.model, **close)


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
    resumed = jax.tree.map(
        lambda x: jnp.array(np.asarray(x)) if eqx.is_array(x) else x, stopped
    )
    resumed, rest = _run(resumed, optimiser, 2)
    assert rest == losses[2:]
    assert tree_allclose(resumed, straight, rtol=0, atol=0)


def test_metrics_are_the_terms_of_the_loss():
    levels = jnp.zeros((6, 2), jnp.uint8)
    state, optimiser = _state()
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
    state, optimiser = _state()
    widened = lambda tree: jax.tree.map(lambda v: np.asarray(v, np.float64), tree)
    expected = widened(state.ema)
    for step in range(3):
        state, _ = _run(state, optimiser, 1, ema_decay=0.15)
        decay = min(0.15, (1 + step) / (10 + step))
        new = widened(_trainable(state.model))
        expected = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, expected, new
        )
    # float32 roundings.
    assert tree_allclose(widened(state.ema), expected, rtol=1e-5, atol=1e-6)
    assert tree_allclose(_trainable(state.ema_model), state.ema, rtol=0, atol=0)


def test_flip_reflects_about_half_of_the_images(key):
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
    state, _ = _state()
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
    state, optimiser = _state()
    with pytest.raises(ValueError, match=message):
        _run(state, optimiser, 1, **settings)


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
    model = _float64(_model(kind))
    examples = _points(4).astype(jnp.float64)
    u = jnp.array([0.1, 0.35, 0.6, 0.9])
    # Uniform times do not follow the parameters, so at fixed draws the loss is a
    # smooth function of them whose differences are those of its gradient.
    objective = Objective(time_sampler=eqmdm.UniformTimeSampler())
    keys = jr.split(key, 4)

    @jax.jit
    def loss(part):
        moved = _with_diffusion(model, part)
        return batch_loss(moved, objective, examples, keys, u, n_reconstruction=4)[0]

    part = _trainable(model.diffusion)
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
    model = _float64(_model(diffusion=eqmdm.LearnedDiffusion(2, key=jr.key(3))))
    x = _points(1).astype(jnp.float64)[0]
    part = _trainable(model.diffusion)
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
    result = evaluate(_model(), levels, Objective(levels=GREY), key=key)
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
    message = "`examples` must be floating-point data.*got uint8.*`levels`"
    with pytest.raises(TypeError, match=message):
        evaluate(_model(), levels, Objective(), key=key)
    state, optimiser = _state()
    with pytest.raises(TypeError, match=message):
        train_step(state, jnp.asarray(levels), Objective(), optimiser, batch_size=4)


def test_a_state_that_cannot_be_evaluated_is_refused():
    denoiser = eqmdm.PreconditionedDenoiser(
        lambda c, z: z, data_std=1.0, log_snr_range=(-2.0, 9.0)
    )
    with pytest.raises(ValueError, match="`model` must have a diffusion that ends"):
        _state(eqmdm.DenoiserModel(denoiser, eqmdm.VPSDE()))
    with pytest.raises(ValueError, match="`key` must be a key of JAX's default gen"):
        TrainState.create(_model(), _OPTIMISER, key=jr.key(0, impl="rbg"))


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
        evaluate(_model(), np.zeros((0, 2), np.float32), Objective(), key=key)


# --- Validation of examples ----------------------------------------------------------

_BAD_LEVELS = np.array([[0, 3], [17, 1], [2, 2]], np.uint8)


def _on_levels(data, batch_size=2):
    state, optimiser = _state()
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
    with eqmdm.BatchStream(_state()[0], _BAD_LEVELS, objective, batch_size=3) as stream:
        with pytest.raises(ValueError, match=message):
            next(stream)


def test_training_set_is_validated_where_it_is_made():
    objective = Objective(levels=GREY)
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        eqmdm.TrainingSet(_BAD_LEVELS, objective)
    with pytest.raises(ValueError, match="`examples` must be finite"):
        eqmdm.TrainingSet(np.full((3, 2), np.nan), Objective())
    with pytest.raises(TypeError, match="`examples` must be known, .* traced array"):
        jax.jit(lambda x: eqmdm.TrainingSet(x, Objective()).examples)(_points())
    points = eqmdm.TrainingSet(_points(), Objective())
    with pytest.raises(ValueError, match="takes 17 grey levels; these are points"):
        _on_levels(points)


def test_training_set_is_trained_on_as_its_array():
    first, optimiser = _state()
    second, _ = _state()
    _, losses = _run(first, optimiser, 2)
    data = eqmdm.TrainingSet(np.asarray(_points()), Objective())
    assert _run(second, optimiser, 2, data=data)[1] == losses


def test_points_that_are_not_finite_are_rejected_in_every_call():
    # The same array, changed between two calls.
    points = np.array(_points())
    state, optimiser = _state()
    state, _ = _run(state, optimiser, 1, data=points)
    points[17, 0] = np.inf
    with pytest.raises(ValueError, match="`examples` must be finite"):
        _run(state, optimiser, 1, data=points)


@pytest.mark.parametrize("module", [np, jnp], ids=["numpy", "jax"])
def test_evaluation_refuses_levels_out_of_range(module, key):
    objective = Objective(levels=GREY)
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16; got 0 to 17"):
        evaluate(_model(), module.asarray(_BAD_LEVELS), objective, key=key)


def test_bound_of_one_example_refuses_levels_out_of_range(key):
    objective = Objective(levels=GREY)
    bound = lambda x: objective.bound(_model(), x, key, jnp.float32(0.5))[0].total
    with pytest.raises(ValueError, match="`levels` must be from 0 to 16"):
        bound(jnp.asarray(_BAD_LEVELS[1]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="`levels` must be from 0 to 16"):
        eqx.filter_jit(bound)(jnp.asarray(_BAD_LEVELS[1]))


# The first four have every pair of values.
@pytest.mark.parametrize(
    "kind, diffusion, n_levels",
    [
        ("denoiser", "fixed", 256),
        ("denoiser", "learned", 17),
        ("noise", "fixed", 17),
        ("noise", "learned", 256),
        pytest.param("denoiser", "fixed", 17, marks=pytest.mark.slow),
        pytest.param("denoiser", "learned", 256, marks=pytest.mark.slow),
        pytest.param("noise", "fixed", 256, marks=pytest.mark.slow),
        pytest.param("noise", "learned", 17, marks=pytest.mark.slow),
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
