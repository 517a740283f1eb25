"""Tests of training on conditions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conditional_models import DIFFUSIONS, conditional_mlp
from numpy.testing import assert_allclose, assert_array_equal

import eqmdm


# The same in all tests, so that a step compiles once with dropping and once without.
SETTINGS = {"batch_size": 64, "optimiser": optax.adam(0.02)}
DROPPING = eqmdm.Objective(drop_condition=0.25)


def _conditional_points(n=512):
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
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    model = eqmdm.fit(
        model,
        x,
        condition=classes,
        key=key,
        steps=300,
        ema_decay=0.9,
        objective=DROPPING,
        **SETTINGS,
    )
    means = [float(x[classes == k].mean()) for k in range(3)]
    # The last entry, at -1, is that of the dropped condition: the mean of all.
    assert_allclose(model.network.means, [*means, x.mean()], atol=0.15)


def test_without_dropping_the_missing_condition_is_not_trained(key):
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.full(4, 0.5)), DIFFUSIONS["vpsde"])
    model = eqmdm.fit(
        model, x, condition=classes, key=key, steps=5, ema_decay=0.5, **SETTINGS
    )
    means = np.asarray(model.network.means)
    assert means[3] == 0.5
    assert (means[:3] != 0.5).all()


def test_streamed_conditions_are_those_on_the_device(key):
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    settings = SETTINGS | {"objective": DROPPING, "steps": 4}

    def trained(data, **more):
        state = eqmdm.TrainState.create(model, SETTINGS["optimiser"], key=key)
        return eqmdm.train(state, data, **settings, **more).model.network.means

    on_device = trained(eqmdm.TrainingSet(x, DROPPING, classes))
    assert_array_equal(trained(x, condition=classes), on_device)


def test_a_resumed_conditional_run_is_the_uninterrupted_one(key, tmp_path):
    x, classes = _conditional_points()
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    settings = SETTINGS | {"key": key, "checkpoint_every": 2, "objective": DROPPING}
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
    x, _ = _conditional_points(64)
    model, settings = conditional_mlp(key), {"condition": condition, "key": key}
    with pytest.raises(error, match=match):
        eqmdm.fit(model, x, steps=1, batch_size=8, **settings)
    with pytest.raises(error, match=match):
        eqmdm.evaluate(model, x, eqmdm.Objective(), **settings)


def test_the_probability_of_dropping_is_checked():
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="`drop_condition` must be a probability"):
            eqmdm.Objective(drop_condition=wrong)


def test_a_data_set_brings_its_conditions(key):
    x, classes = _conditional_points(640)
    dataset = eqmdm.data.Dataset.from_arrays(x, labels=classes, conditions="label")
    assert_array_equal(dataset.conditions.train, dataset.labels.train)
    model = eqmdm.DenoiserModel(_Recorder(jnp.zeros(4)), DIFFUSIONS["vpsde"])
    settings = SETTINGS | {"key": key, "steps": 3, "validate_every": 3}
    events = []
    given = eqmdm.fit(model, dataset, callbacks=[events.append], **settings)
    explicit = eqmdm.fit(
        model, dataset.train, condition=dataset.labels.train, **settings
    )
    assert_array_equal(given.network.means, explicit.network.means)
    assert [e.kind for e in events].count("validation") == 1
