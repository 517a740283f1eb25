"""Tests of the conditions of networks, and of their checks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conditional_models import model_of
from numpy.testing import assert_allclose, assert_array_equal
from small_networks import perturbed

import eqmdm
from eqmdm import nn
from helpers import normal


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
    # With random parameters in the last layer too, which starts at 0.
    return {name: perturbed(make(key), key) for name, make in makers.items()}


def _normal(key, shape):
    return jnp.asarray(normal(key, shape))


def _mlp(condition, key):
    return nn.MLP((2,), 1, width=8, depth=1, condition=condition, key=key)


@every_condition
def test_networks_depend_on_their_condition(kind, key):
    condition, given, missing = CONDITIONS[kind]
    y, t = _normal(key, (1, 6, 6, 1)), jnp.float32(0.3)
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
            outs.append(np.asarray(out))
        for other in outs[1:]:
            assert np.abs(other - outs[0]).max() > 1e-4, name


@every_condition
def test_an_mlp_takes_conditions_under_vmap(kind, key):
    condition, given, missing = CONDITIONS[kind]
    network = _networks(condition, key)["mlp"]
    y, t = np.asarray(_normal(key, (2, 1, 6, 6, 1))), np.asarray([0.3, 0.6])
    conditions = np.stack([given, missing])
    run = lambda t, y, c: network(t, y, condition=c)
    batched = np.asarray(jax.jit(jax.vmap(run))(t, y, conditions))
    run = jax.jit(run)
    for i in range(2):
        alone = run(t[i], y[i], conditions[i])
        assert_allclose(batched[i], alone, rtol=1e-4, atol=1e-5)


def test_an_entry_may_be_missing_alone(key):
    network = _networks(nn.ArrayCondition((2,)), key)["mlp"]
    y, t = _normal(key, (1, 6, 6, 1)), jnp.float32(0.3)
    jitted = jax.jit(lambda c: network(t, y, condition=c))
    call = lambda *c: np.asarray(jitted(np.asarray(c)))
    outs = [call(0.0, 0.5), call(np.nan, 0.5), call(0.0, np.nan)]
    for i, out in enumerate(outs):
        assert np.isfinite(out).all()
        # A missing entry is not a zero.
        assert all(np.abs(out - other).max() > 1e-4 for other in outs[:i])


def test_a_traced_class_that_does_not_exist_is_not_another_class(key):
    network = perturbed(_mlp(nn.ClassCondition(3), key), key)
    call = jax.jit(lambda c: network(jnp.float32(0.1), jnp.ones((1, 2)), condition=c))
    assert np.isfinite(call(2)).all()
    assert np.isnan(call(3)).all()


def test_networks_without_a_condition_have_the_weights_that_they_had(key):
    plain = nn.MLP((2,), 1, width=8, depth=1, key=key)
    conditional = _mlp(nn.ClassCondition(3), key)
    assert_array_equal(plain.linear_in.weight, conditional.linear_in.weight)
    assert_array_equal(
        plain.layers[0].linear2.weight, conditional.layers[0].linear2.weight
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
    model = model_of(_mlp(nn.ArrayCondition((2,)), key))
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
    model = model_of(_mlp(nn.ClassCondition(3), key))
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
