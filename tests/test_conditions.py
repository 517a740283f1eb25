"""Tests of conditions: the models against closed forms, and the networks' checks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import eqmdm
from eqmdm import nn
from helpers import counted, estimate_within_standard_errors


# Data of law N(c, STD^2) in every coordinate, where c is the condition.
STD = 0.5
INTERVAL = eqmdm.LogSNRInterval(-18.0, 13.0)
DIFFUSIONS = {
    "vpsde": eqmdm.VPSDE(interval=INTERVAL),
    "cld": eqmdm.CLD(interval=INTERVAL),
}


def _denoiser(log_snr, z, condition):
    noise = jnp.exp(-log_snr)
    return (STD**2 * z + noise * condition) / (STD**2 + noise)


def _score_function(diffusion):
    def score(t, y, condition):
        kernel = diffusion.compute_kernel(t)
        a = kernel.mean(jnp.ones(()))
        covariance = kernel.root @ kernel.root.T + STD**2 * jnp.outer(a, a)
        mean = kernel.mean(jnp.full(y.shape[1:], condition))
        return -jnp.linalg.solve(covariance, y - mean)

    return score


def _noise_network(diffusion):
    def noise(t, y, condition):
        root = diffusion.compute_kernel(t).root
        return -root.T @ _score_function(diffusion)(t, y, condition)

    return noise


KINDS = {
    "denoiser": lambda d: eqmdm.DenoiserModel(_denoiser, d),
    "noise": lambda d: eqmdm.NoiseModel(_noise_network(d), d),
    "score": lambda d: eqmdm.FunctionModel(_score_function(d), d),
}
MODELS = {
    "denoiser": KINDS["denoiser"](DIFFUSIONS["cld"]),
    "noise": KINDS["noise"](DIFFUSIONS["vpsde"]),
    "score": KINDS["score"](DIFFUSIONS["vpsde"]),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def _log_density(x, condition):
    return float(jnp.sum(jax.scipy.stats.norm.logpdf(x, condition, STD)))


@every_model
def test_bound_given_a_condition_is_the_conditional_log_density(model, key):
    x = jnp.asarray([0.3, -0.7, 1.1], jnp.float64)
    for condition in (-1.0, 2.0):
        bound = eqmdm.elbo(
            model, x, condition=jnp.float64(condition), key=key, n_draws=1000
        )
        # Truncation at the ends of the interval costs less than 1e-4 nats.
        allowed = 5 * float(bound.standard_error) + 1e-3
        assert abs(float(bound.total) - _log_density(x, condition)) < allowed


@every_model
def test_likelihood_given_a_condition_is_the_conditional_log_density(model, key):
    x = jnp.asarray([0.3, -0.2], jnp.float64)
    found = eqmdm.log_likelihood(model, x, condition=jnp.float64(1.0), key=key)
    # The prior has mean 0, not 1, which at log-SNR -18 is 1.2e-4 standard deviations:
    # at a point 3.8 standard deviations from the mean in all, 5e-4 nats. The tolerance
    # of the solver adds less than 1e-3.
    assert float(found.log_likelihood) == pytest.approx(_log_density(x, 1.0), abs=2e-3)


@every_model
def test_samples_given_a_condition_have_its_mean(model, key):
    x = eqmdm.sample(model, (2,), condition=1.5, key=key, n_samples=4000)
    n = x.size
    assert abs(float(x.mean()) - 1.5) < 5 * STD / np.sqrt(n) + 5e-3
    # DPMSolver's error of the standard deviation is about 1e-3 at 50 steps.
    assert abs(float(x.std()) - STD) < 5 * STD / np.sqrt(2 * n) + 5e-3


@every_model
def test_a_model_given_a_condition_is_a_model(model, key):
    given = model.with_condition(0.5)
    assert_array_equal(
        eqmdm.sample(given, (2,), key=key, n_samples=8),
        eqmdm.sample(model, (2,), condition=0.5, key=key, n_samples=8),
    )
    # A later condition replaces an earlier one.
    assert_array_equal(
        eqmdm.sample(given, (2,), condition=-2.0, key=key, n_samples=8),
        eqmdm.sample(model, (2,), condition=-2.0, key=key, n_samples=8),
    )


def test_terms_and_the_discrete_bound_take_a_condition(key):
    model = eqmdm.DenoiserModel(_denoiser, DIFFUSIONS["cld"])
    y = jnp.ones((2, 3))
    for terms_of in (eqmdm.probability_flow, eqmdm.reverse_sde):
        more = {} if terms_of is eqmdm.probability_flow else {"key": key}
        problem = terms_of(model, (3,), condition=2.0, **more)
        bound = terms_of(model.with_condition(2.0), (3,), **more)

        def drift(problem):
            terms = getattr(problem.terms, "terms", (problem.terms,))
            return terms[0].vf(problem.t0 + 0.1, y, None)

        assert_array_equal(drift(problem), drift(bound))
        assert not np.array_equal(
            drift(problem), drift(terms_of(model, (3,), condition=0.0, **more))
        )
    times = jnp.geomspace(model.diffusion.t1, model.diffusion.t0, 50)
    x = jnp.asarray([2.1, 1.7])
    near, far = (
        float(eqmdm.discrete_elbo(model, x, times=times, key=key, condition=c).total)
        for c in (2.0, -2.0)
    )
    assert near > far + 10


def test_conditions_are_batched_with_vmap(key):
    model = eqmdm.DenoiserModel(_denoiser, DIFFUSIONS["vpsde"])
    conditions, keys = jnp.asarray([-1.0, 2.0]), jr.split(key, 2)
    draw = lambda c, key: eqmdm.sample(model, (2,), condition=c, key=key, n_samples=16)
    batched = jax.vmap(draw)(conditions, keys)
    for i in range(2):
        # Batched products may be summed in another order.
        assert_allclose(batched[i], draw(conditions[i], keys[i]), atol=1e-5)


def test_evaluation_takes_a_condition_for_each_example(key):
    model = eqmdm.DenoiserModel(_denoiser, DIFFUSIONS["vpsde"])
    conditions = np.asarray([-1.0, 2.0, 0.5] * 40)
    x = conditions[:, None] + STD * np.asarray(jr.normal(key, (120, 2), jnp.float64))
    found = eqmdm.evaluate(
        model, x, eqmdm.Objective(), condition=conditions, key=key, n_draws=8
    )
    exact = np.asarray([_log_density(a, c) for a, c in zip(x, conditions, strict=True)])
    gap = found.terms["total"] - exact
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert estimate_within_standard_errors(gap.mean(), 0.0, error)


# ----- Guidance


def _missing_as_zero(function):
    """A conditional function whose missing condition, NaN, is zero."""
    return lambda t, y, condition: function(t, y, jnp.nan_to_num(condition))


# The guided denoiser of N(c, s^2) and N(0, s^2) is that of N(scale c, s^2).
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_between_normals_is_the_score_of_a_normal(kind, monkeypatch):
    for name in ("_denoiser", "_score_function", "_noise_network"):
        function = globals()[name]
        wrapped = _missing_as_zero(function)
        if name != "_denoiser":
            wrapped = lambda d, function=function: _missing_as_zero(function(d))
        monkeypatch.setitem(globals(), name, wrapped)
    model = KINDS[kind](DIFFUSIONS["cld"])
    y, t = jnp.ones((2, 3), jnp.float64), jnp.float64(0.4)
    guided = eqmdm.GuidedModel(model, 2.5).with_condition(1.2)
    exact = model.with_condition(2.5 * 1.2)
    assert_allclose(guided.score(t, y), exact.score(t, y), rtol=1e-9)
    kernel = model.diffusion.compute_kernel(t)
    x, noise = y[0], 0.3 * y
    drawn = kernel.perturb(x, noise)
    for of in (
        lambda m: m.whitened_error(kernel, x, noise, drawn),
        lambda m: m.data_estimate(kernel, y),
    ):
        assert_allclose(of(guided), of(exact), rtol=1e-8, atol=1e-10)


def test_guided_samples_between_normals_are_those_of_a_normal(key):
    model = eqmdm.DenoiserModel(_missing_as_zero(_denoiser), DIFFUSIONS["cld"])
    settings = {"key": key, "n_samples": 64, "dtype": jnp.float64}
    for scale in (0.0, 1.0, 2.5):
        guided = eqmdm.GuidedModel(model, scale)
        x = eqmdm.sample(guided, (2,), condition=1.2, **settings)
        exact = eqmdm.sample(model, (2,), condition=scale * 1.2, **settings)
        # Equal in exact arithmetic: every step is affine in the denoiser.
        assert_allclose(x, exact, atol=1e-8)


def test_guidance_at_a_scale_of_one_changes_no_bit(key):
    model = _conditional_mlp(key)
    samples = lambda m: eqmdm.sample(m, (2,), condition=2, key=key, n_samples=32)
    assert_array_equal(samples(eqmdm.GuidedModel(model, 1.0)), samples(model))
    assert not np.array_equal(samples(eqmdm.GuidedModel(model, 1.1)), samples(model))


def test_guidance_acts_in_its_interval_only(key):
    model = _conditional_mlp(key)
    guided = eqmdm.GuidedModel(model, 3.0, eqmdm.LogSNRInterval(-2.0, 1.0))
    inside = eqmdm.GuidedModel(model, 3.0)
    z = jnp.asarray([0.3, -0.4])
    denoise = lambda m, log_snr: m.with_condition(1).denoise(jnp.float64(log_snr), z)
    # Up to the rounding of float64, in which operations are fused differently.
    equal = lambda a, b: np.allclose(a, b, rtol=1e-12, atol=1e-12)
    for log_snr in (-2.1, 1.1):
        assert equal(denoise(guided, log_snr), denoise(model, log_snr))
        assert not equal(denoise(inside, log_snr), denoise(model, log_snr))
    for log_snr in (-2.0, 1.0):
        assert equal(denoise(guided, log_snr), denoise(inside, log_snr))


def test_a_guided_model_is_used_like_any_other(key):
    model = eqmdm.GuidedModel(_conditional_mlp(key), 2.0)
    x = jnp.asarray([0.3, -0.4])
    assert bool(eqmdm.log_likelihood(model, x, condition=1, key=key).converged)
    assert np.isfinite(eqmdm.elbo(model, x, condition=1, key=key).total)
    other = model.under(eqmdm.CLD(interval=eqmdm.LogSNRInterval(-4.0, 9.0)))
    x = eqmdm.sample(other, (2,), condition=1, key=key, n_samples=4)
    assert np.isfinite(x).all()


def test_another_scale_compiles_nothing(key):
    model = _conditional_mlp(key)
    samples = lambda scale: eqmdm.sample(
        eqmdm.GuidedModel(model, scale), (2,), condition=1, key=key, n_samples=4
    )
    samples(2.0)
    with counted() as compiled:
        samples(3.0)
    assert not any(compiled.values())


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda m: eqmdm.GuidedModel(m.network, 2.0), TypeError, "`model` must be"),
        (lambda m: eqmdm.GuidedModel(m, np.ones(2)), ValueError, "`scale` must be a n"),
        (lambda m: eqmdm.GuidedModel(m, np.nan), ValueError, "`scale` must be finite"),
        (lambda m: eqmdm.GuidedModel(m, 2.0, (0, 1)), TypeError, "`interval` must be"),
        (
            lambda m: eqmdm.sample(eqmdm.GuidedModel(m, 2.0), (2,), key=jr.key(0)),
            ValueError,
            "`condition` must be given to a `GuidedModel`",
        ),
        (
            lambda m: eqmdm.GuidedModel(m, 2.0).with_condition(3),
            ValueError,
            "from 0 to 2, or -1",
        ),
    ],
)
def test_guidance_refuses_by_name(make, error, match, key, unchecked):
    with pytest.raises(error, match=match):
        make(_conditional_mlp(key))


# ----- Networks


CONDITIONS = {
    "class": (nn.ClassCondition(3), 1, -1),
    "number": (nn.ArrayCondition(()), np.float32(0.4), np.float32(np.nan)),
    "vector": (
        nn.ArrayCondition((2,), mean=(1.0, 2.0), std=(0.5, 3.0)),
        np.asarray([1.5, -1.0], np.float32),
        np.full(2, np.nan, np.float32),
    ),
    "image": (
        nn.ArrayCondition((6, 6, 2), mean=3.0),
        np.linspace(2, 4, 72, dtype=np.float32).reshape(6, 6, 2),
        np.full((6, 6, 2), np.nan, np.float32),
    ),
}
every_condition = pytest.mark.parametrize("kind", CONDITIONS)


def _untrained(make, key):
    """A network with random parameters, also in the last layer, which starts at 0."""
    network = make(key)
    trainable, static = eqx.partition(network, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(trainable)
    keys = jr.split(key, len(leaves))
    drawn = [
        leaf + 0.1 * jr.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(treedef, drawn), static)


def _conditional_mlp(key):
    kind = nn.ClassCondition(3)
    network = _untrained(
        lambda key: nn.MLP((2,), 1, width=8, depth=1, condition=kind, key=key), key
    )
    denoiser = eqmdm.PreconditionedDenoiser(network, 1.0, (-18.01, 13.01))
    return eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])


def _networks(kind, key):
    unet = {"width": 4, "multipliers": (1, 2), "n_blocks": 1}
    makers = {
        "mlp": lambda key: nn.MLP(
            (6, 6, 1), 1, width=8, depth=1, condition=kind, key=key
        ),
        "unet": lambda key: nn.UNet((6, 6, 1), 1, **unet, condition=kind, key=key),
    }
    if isinstance(kind, nn.ArrayCondition) and len(kind.shape) < 2:
        # Embedded as by the MLP.
        del makers["unet"]
    return {name: _untrained(make, key) for name, make in makers.items()}


@every_condition
def test_networks_depend_on_their_condition(kind, key):
    condition, given, missing = CONDITIONS[kind]
    y, t = jr.normal(key, (1, 6, 6, 1)), jnp.float32(0.3)
    for name, network in _networks(condition, key).items():

        @eqx.filter_jit
        def call(network, condition):
            loss = lambda n: jnp.sum(n(t, y, condition=condition) ** 2)
            return network(t, y, condition=condition), eqx.filter_grad(loss)(network)

        outs = []
        for value in (given, missing, 2 if kind == "class" else given + 0.1):
            out, gradient = call(network, jnp.asarray(value))
            assert out.shape == y.shape
            for leaf in jax.tree.leaves((out, gradient)):
                assert np.isfinite(leaf).all(), name
            outs.append(out)
        for other in outs[1:]:
            assert float(jnp.abs(other - outs[0]).max()) > 1e-4, name


@every_condition
def test_an_mlp_takes_conditions_under_vmap(kind, key):
    condition, given, missing = CONDITIONS[kind]
    network = _networks(condition, key)["mlp"]
    y, t = jr.normal(key, (2, 1, 6, 6, 1)), jnp.asarray([0.3, 0.6])
    conditions = jnp.stack([jnp.asarray(given), jnp.asarray(missing)])
    batched = jax.vmap(lambda t, y, c: network(t, y, condition=c))(t, y, conditions)
    for i in range(2):
        alone = network(t[i], y[i], condition=conditions[i])
        assert_allclose(batched[i], alone, rtol=1e-4, atol=1e-5)


def test_an_entry_may_be_missing_alone(key):
    network = _networks(nn.ArrayCondition((2,)), key)["mlp"]
    y, t = jr.normal(key, (1, 6, 6, 1)), jnp.float32(0.3)
    call = lambda *c: np.asarray(network(t, y, condition=jnp.asarray(c)))
    outs = [call(0.0, 0.5), call(jnp.nan, 0.5), call(0.0, jnp.nan)]
    for i, out in enumerate(outs):
        assert np.isfinite(out).all()
        # A missing entry is not a zero.
        assert all(np.abs(out - other).max() > 1e-4 for other in outs[:i])


def test_a_traced_class_that_does_not_exist_is_not_another_class(key):
    network = _conditional_mlp(key).network.network
    call = jax.jit(lambda c: network(jnp.float32(0.1), jnp.ones((1, 2)), condition=c))
    assert np.isfinite(call(2)).all()
    assert np.isnan(call(3)).all()


def test_networks_without_a_condition_have_the_weights_that_they_had(key):
    plain = nn.MLP((2,), 1, width=8, depth=1, key=key)
    kind = nn.ClassCondition(3)
    conditional = nn.MLP((2,), 1, width=8, depth=1, condition=kind, key=key)
    assert_array_equal(plain.linear_in.weight, conditional.linear_in.weight)
    assert_array_equal(
        plain.layers[0].linear2.weight, conditional.layers[0].linear2.weight
    )


_MLP = lambda key: nn.MLP(
    (2,), 1, width=8, depth=1, condition=nn.ArrayCondition((2,)), key=key
)


@pytest.mark.parametrize(
    "condition, error, match",
    [
        (None, ValueError, "`condition` must be given to a network conditioned on"),
        (
            np.zeros(3, np.float32),
            ValueError,
            r"shape \(2,\) for one example; got \(3,",
        ),
        (np.zeros((1, 2), np.float32), ValueError, "Batch with `jax.vmap`"),
        (np.zeros(2, int), TypeError, "floating-point numbers of shape"),
        (np.full(2, np.inf), ValueError, "finite, or NaN where it is missing"),
        ("three", TypeError, "`condition` must be an array of real numbers"),
    ],
)
def test_a_condition_of_the_wrong_kind_is_refused(condition, error, match, key):
    denoiser = eqmdm.PreconditionedDenoiser(_MLP(key), 1.0, (-18.01, 13.01))
    model = eqmdm.DenoiserModel(denoiser, DIFFUSIONS["vpsde"])
    with pytest.raises(error, match=match):
        eqmdm.sample(model, (2,), condition=condition, key=key, n_samples=2)


@pytest.mark.parametrize(
    "condition, error, match",
    [
        (3, ValueError, "a class from 0 to 2, or -1 if it is missing; got 3"),
        (-2, ValueError, "got -2"),
        (1.0, TypeError, "must be a class, an integer from 0 to 2; got float"),
        ([0, 1], ValueError, "Batch with `jax.vmap`"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(condition, error, match, key):
    model = _conditional_mlp(key)
    x = jnp.zeros(2)
    for function in (eqmdm.elbo, eqmdm.log_likelihood):
        with pytest.raises(error, match=match):
            function(model, x, condition=condition, key=key)


def test_a_condition_for_a_network_without_one_is_refused(key):
    network = nn.MLP((2,), 1, width=8, depth=1, key=key)
    model = eqmdm.NoiseModel(network, eqmdm.VPSDE())
    with pytest.raises(ValueError, match="must be left out, because the network has n"):
        eqmdm.sample(model, (2,), condition=1, key=key)
    own = eqmdm.DenoiserModel(lambda log_snr, z: z, eqmdm.VPSDE())
    with pytest.raises(TypeError, match="and its `condition` as a keyword"):
        eqmdm.elbo(own, jnp.zeros(2), condition=1, key=key)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: nn.ClassCondition(0), "`n_classes` must be at least 1"),
        (lambda: nn.ArrayCondition((2,), std=0.0), "`std` must be positive"),
        (
            lambda: nn.ArrayCondition((2,), mean=(1.0, 2.0, 3.0)),
            "one for each of the 2",
        ),
        (lambda: nn.ArrayCondition((2,), mean=np.nan), "one finite number"),
        (lambda: nn.condition_for(np.asarray([0, -3])), "an integer from 0, or -1"),
        (lambda: nn.condition_for(np.zeros((3, 2), int)), "Convert numbers that are n"),
        (lambda: nn.condition_for(np.asarray([0.0, np.inf])), "finite, or NaN where"),
        (
            lambda: nn.condition_for(np.asarray([[0.0, np.nan], [1.0, np.nan]])),
            "missing in every example",
        ),
        (
            lambda: nn.UNet(
                (8, 8, 1), 1, condition=nn.ArrayCondition((4, 4, 1)), key=jr.key(0)
            ),
            "or have the sides of the data",
        ),
    ],
)
def test_a_kind_of_condition_is_checked(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_the_kind_of_condition_is_read_from_the_data():
    random = np.random.default_rng(0)
    assert nn.condition_for([2, 0, -1, 4]) == nn.ClassCondition(5)
    assert nn.condition_for([True, False]) == nn.ClassCondition(2)
    vectors = random.normal(size=(50, 2)) * (1.0, 5.0) + (3.0, 0.0)
    vectors[7, 1] = np.nan
    kind = nn.condition_for(vectors)
    assert kind.shape == (2,)
    assert_allclose(kind.mean, np.nanmean(vectors, 0))
    assert_allclose(kind.std, np.nanstd(vectors, 0))
    images = random.normal(size=(50, 4, 4, 1))
    kind = nn.condition_for(images)
    assert kind.shape == (4, 4, 1)
    assert_allclose([*kind.mean, *kind.std], [images.mean(), images.std()])
    # A constant entry cannot be scaled.
    assert nn.condition_for(np.ones((3, 1))).std == (1.0,)


def test_the_missing_condition_of_a_tree():
    missing = nn.missing_like({"class": 3, "vector": np.ones(2, np.float32)})
    assert int(missing["class"]) == -1
    assert np.isnan(missing["vector"]).all()


# ----- Training


def _conditional_points(n=64):
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, n)
    x = (classes[:, None] - 1) + 0.1 * random.normal(size=(n, 2))
    return x.astype(np.float32), classes


class _Recorder(eqx.Module):
    """A denoiser with one parameter for each class, and one for the missing one."""

    means: jax.Array

    def __call__(self, log_snr, z, *, condition):
        noise = jnp.exp(-log_snr)
        mean = self.means[condition]
        return (0.01 * z + noise * mean) / (0.01 + noise)


def test_training_conditions_each_example_on_its_own(key):
    x, classes = _conditional_points(512)
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    model = eqmdm.fit(
        model,
        x,
        condition=classes,
        key=key,
        steps=300,
        batch_size=64,
        optimiser=optax.adam(0.02),
        ema_decay=0.9,
        objective=eqmdm.Objective(drop_condition=0.25),
    )
    means = [float(x[classes == k].mean()) for k in range(3)]
    # The last entry, at -1, is that of the dropped condition: the mean of all.
    assert_allclose(model.network.means, [*means, x.mean()], atol=0.15)


def test_without_dropping_the_missing_condition_is_not_trained(key):
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.full(4, 0.5)), DIFFUSIONS["vpsde"])
    model = eqmdm.fit(
        model, x, condition=classes, key=key, steps=5, batch_size=16, ema_decay=0.5
    )
    means = np.asarray(model.network.means)
    assert means[3] == 0.5
    assert (means[:3] != 0.5).all()


def test_streamed_conditions_are_those_on_the_device(key):
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    optimiser = eqmdm.make_optimiser(1e-2)
    objective = eqmdm.Objective(drop_condition=0.5)
    settings = {"steps": 4, "batch_size": 16}

    def trained(data, **more):
        state = eqmdm.TrainState.create(model, optimiser, key=key)
        state = eqmdm.train(state, data, objective, optimiser, **settings, **more)
        return state.model.network.means

    on_device = trained(eqmdm.TrainingSet(x, objective, classes))
    assert_array_equal(trained(x, condition=classes), on_device)


def test_a_resumed_conditional_run_is_the_uninterrupted_one(key, tmp_path):
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    settings = {"key": key, "batch_size": 16, "checkpoint_every": 2}
    settings |= {"objective": eqmdm.Objective(drop_condition=0.5)}
    fit = lambda condition, steps, name: eqmdm.fit(
        model, x, condition=condition, steps=steps, run_dir=tmp_path / name, **settings
    )
    whole = fit(classes, 4, "whole")
    fit(classes, 2, "parts")
    resumed = fit(classes, 4, "parts")
    assert_array_equal(resumed.network.means, whole.network.means)
    with pytest.raises(ValueError, match="condition_fingerprint"):
        fit(classes[::-1].copy(), 6, "parts")


@pytest.mark.parametrize(
    "condition, error, match",
    [
        (np.zeros(63, int), ValueError, "a row for each of the 64 examples; got shape"),
        (np.asarray(0), ValueError, r"examples; got shape \(\)"),
        (np.full(64, 3), ValueError, "a class from 0 to 2"),
        (np.full(64, 1.0), TypeError, "must be a class"),
        (None, ValueError, "`condition` must be given to a network"),
    ],
)
def test_training_and_evaluation_refuse_conditions_by_name(
    condition, error, match, key
):
    x, _ = _conditional_points()
    model, settings = _conditional_mlp(key), {"condition": condition, "key": key}
    with pytest.raises(error, match=match):
        eqmdm.fit(model, x, steps=1, batch_size=8, **settings)
    with pytest.raises(error, match=match):
        eqmdm.evaluate(model, x, eqmdm.Objective(), **settings)


def test_the_probability_of_dropping_is_checked():
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="`drop_condition` must be a probability"):
            eqmdm.Objective(drop_condition=wrong)


def test_a_data_set_brings_its_conditions(key):
    x, classes = _conditional_points()
    dataset = eqmdm.data.Dataset.from_arrays(x, labels=classes, conditions="label")
    assert_array_equal(dataset.conditions.train, dataset.labels.train)
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    settings = {"key": key, "steps": 3, "batch_size": 16, "validate_every": 3}
    events = []
    given = eqmdm.fit(model, dataset, callbacks=[events.append], **settings)
    explicit = eqmdm.fit(
        model, dataset.train, condition=dataset.labels.train, **settings
    )
    assert_array_equal(given.network.means, explicit.network.means)
    assert [e.kind for e in events].count("validation") == 1
