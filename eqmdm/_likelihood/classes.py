"""Class probabilities from likelihoods: a generative classifier."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._bound.elbo import elbo
from .._core.checks import as_array, check_count
from .._core.types import Data, PRNGKey, Scalar
from .._levels import as_dequantised
from .._model.base import AbstractModel, check_model
from .log_likelihood import log_likelihood


def class_log_probabilities(
    model: AbstractModel,
    x: Data,
    n_classes: int,
    *,
    key: PRNGKey,
    log_prior: Float[Array | np.ndarray, " n_classes"] | None = None,
    n_draws: int | None = None,
) -> Float[Array, " n_classes"]:
    r"""The log-probability of each class given one example, in nats.

    $$\log p(c \mid x) = \log p(x \mid c) + \log p(c) - \log \sum_{c'} p(x \mid c')
    p(c')$$

    All classes share their random draws, so that the noise of the estimates nearly
    cancels in the differences. Batch with `jax.vmap`.

    **Arguments:**

    - `model`: a model that is conditioned on a class, as by
        [`eqmdm.nn.ClassCondition`][].
    - `x`: one example, in the units that the model sees.
    - `n_classes`: the number of classes.
    - `key`: for the draws of the bound, or of the likelihood.
    - `log_prior`: $\log p(c)$, up to a constant; uniform by default.
    - `n_draws`: the number of draws of [`eqmdm.elbo`][] with which $\log p(x \mid c)$
        is replaced by its bound; `None` for the exact likelihood of
        [`eqmdm.log_likelihood`][]. A bound is much cheaper, and its gap differs little
        between classes.

    **Returns:**

    The log-probabilities of the classes from 0. NaN if a solve fails.

    **Raises:** `ValueError` for a count below 1 or above that of the network, or a
    prior of another length; otherwise as for [`eqmdm.elbo`][] and
    [`eqmdm.log_likelihood`][].

    **Source:** Li et al. (2023), Your diffusion model is secretly a zero-shot
    classifier, for the shared draws.
    """
    check_count("n_classes", n_classes)
    if n_draws is not None:
        check_count("n_draws", n_draws)

    # In the compiled function below, classes and examples are no longer known.
    x = as_dequantised(x, "class probability")
    check_model(model).with_condition(n_classes - 1)
    log_joint = _log_densities(model, x, n_classes, n_draws, key)
    if log_prior is not None:
        log_prior = jnp.asarray(as_array("log_prior", log_prior))
        if log_prior.shape != (n_classes,):
            raise ValueError(
                f"`log_prior` must have one entry for each of the {n_classes} classes; "
                f"got shape {log_prior.shape}."
            )
        log_joint = log_joint + log_prior.astype(log_joint.dtype)
    return jax.nn.log_softmax(log_joint)


# Jitted here, because outside of `jax.jit` the loop would be compiled at every call.
@eqx.filter_jit
def _log_densities(
    model: AbstractModel, x: Data, n_classes: int, n_draws: int | None, key: PRNGKey
) -> Float[Array, " n_classes"]:
    def log_density(condition: Array) -> Scalar:
        if n_draws is None:
            solved = log_likelihood(model, x, condition=condition, key=key)
            return solved.log_likelihood
        return elbo(model, x, condition=condition, key=key, n_draws=n_draws).total

    # In turn, and not batched: adaptive solves would wait for the slowest class.
    return jax.lax.map(log_density, jnp.arange(n_classes))
