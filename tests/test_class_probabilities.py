"""Tests of class probabilities from likelihoods, against Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional_models import conditional_mlp
from numpy.testing import assert_allclose

import eqmdm
from helpers import counted


MEANS = jnp.asarray([-1.0, 0.0, 2.0])
STD = 0.7
MODEL = eqmdm.DenoiserModel(
    lambda log_snr, z, condition: (
        (STD**2 * z + jnp.exp(-log_snr) * MEANS[condition])
        / (STD**2 + jnp.exp(-log_snr))
    ),
    eqmdm.CLD(interval=eqmdm.LogSNRInterval(-18.0, 13.0)),
)
X = jnp.asarray([0.3, 0.8], jnp.float64)
LOG_PRIOR = np.log([0.5, 0.3, 0.2])


def _exact(log_prior):
    log_p = jax.scipy.stats.norm.logpdf(
        X[None], MEANS[:, None], jnp.asarray(STD)[None, None]
    ).sum(axis=1)
    return jax.nn.log_softmax(log_p + log_prior)


@pytest.mark.parametrize("log_prior", [None, LOG_PRIOR], ids=["uniform", "given"])
def test_exact_likelihoods_give_the_posterior(log_prior, key):
    found = eqmdm.class_log_probabilities(MODEL, X, 3, key=key, log_prior=log_prior)
    # The tolerance of the solver, 1e-5 per coordinate and evaluation, and the ends of
    # the interval, at most 5e-4 nats.
    assert_allclose(found, _exact(0.0 if log_prior is None else log_prior), atol=2e-3)


def test_bounds_give_the_posterior(key):
    # Shared draws leave a noise that shrinks with their number.
    draw = lambda key: eqmdm.class_log_probabilities(MODEL, X, 3, key=key, n_draws=64)
    found = np.asarray(jax.vmap(draw)(jax.random.split(key, 16)))
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - _exact(0.0)) < 5 * error + 2e-3).all()


def test_shared_draws_cancel_where_classes_agree(key):
    same = eqmdm.DenoiserModel(
        lambda log_snr, z, condition: z / (1 + jnp.exp(-log_snr)),
        MODEL.diffusion,
    )
    found = eqmdm.class_log_probabilities(same, X, 4, key=key, n_draws=2)
    # Equal to rounding, although one bound of two draws has an error of nats.
    assert_allclose(found, np.full(4, -np.log(4)), atol=1e-9)


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"n_classes": 0}, "`n_classes` must be at least 1"),
        ({"n_draws": 0}, "`n_draws` must be at least 1"),
        (
            {"log_prior": np.zeros(2), "n_draws": 1},
            "one entry for each of the 3 classes",
        ),
    ],
    ids=["n_classes", "n_draws", "log_prior"],
)
def test_wrong_arguments_are_refused_by_name(settings, match, key, unchecked):
    settings = {"n_classes": 3} | settings
    with pytest.raises(ValueError, match=match):
        eqmdm.class_log_probabilities(MODEL, X, key=key, **settings)


def test_a_second_call_compiles_nothing(key):
    again, other = jax.random.fold_in(key, 1), X + 1
    eqmdm.class_log_probabilities(MODEL, X, 3, key=key, n_draws=2)
    with counted() as compiled:
        eqmdm.class_log_probabilities(MODEL, other, 3, key=again, n_draws=2)
    assert not any(compiled.values())


def test_more_classes_than_the_network_has_are_refused(key, unchecked):
    for n_classes in (4, 10):
        with pytest.raises(ValueError, match="a class from 0 to 2"):
            eqmdm.class_log_probabilities(
                conditional_mlp(key), X, n_classes, key=key, n_draws=1
            )
