"""The exact log-density of a linear observation."""

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._core.checks import raise_or_error_if
from .._core.types import PRNGKey, Scalar
from .._model.base import AbstractModel, conditioned
from .._model.divergence import AbstractDivergence
from .._observations import LinearObservation
from .._observations.exact import Precisions, precisions, target_of
from .._observations.noise import AbstractNoise, IndependentNoise
from .log_likelihood import log_likelihood
from .result import Likelihood
from .routes import CollapsedRoute


def log_evidence(
    model: AbstractModel,
    observation: LinearObservation,
    *,
    key: PRNGKey,
    condition: PyTree = None,
    divergence: AbstractDivergence | None = None,
    solver: dfx.AbstractSolver | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    max_steps: int = 4096,
) -> Likelihood:
    r"""The log-density $\log p(o)$ of an observation of the data, in nats.

    Numbers that are observed with noise are the sufficient statistic at their own
    signal-to-noise ratios, and those without noise that at $t_0$: the probability-flow
    ODE of [`eqmdm.CollapsedRoute`][] starts there for each coordinate, and gives the
    density of the observation as exactly as that of the data.

    !!! Example

        ```python
        mask = eqmdm.observe.mask(jnp.arange(8) < 4)
        observation = eqmdm.LinearObservation(mask, jnp.ones(4), noise_std=0.1)
        print(eqmdm.log_evidence(model, observation, key=key).log_likelihood)
        ```

    **Arguments:**

    - `model`: a model whose denoiser is told the log-SNR of every coordinate.
    - `observation`: an observation of single coordinates in the space of the model's
        data, each at most once: a mask in pixels, or block averages in the Haar basis.
    - `key`: for probes, and for the coordinates that are not observed.
    - the rest: as for [`eqmdm.log_likelihood`][].

    **Returns:** as [`eqmdm.log_likelihood`][].

    **Raises:**

    `TypeError` for a model whose denoiser takes one log-SNR, and for correlated noise;
    `ValueError` for an observation that is not of single coordinates, or of one
    coordinate twice (`equinox.EquinoxRuntimeError` for a traced operator or noise); for
    these [`eqmdm.TwistedSMC`][] estimates the evidence.
    """
    model = conditioned(model, condition)
    remedy = "`eqmdm.TwistedSMC` estimates the evidence of any linear observation."
    if not isinstance(observation, LinearObservation):
        raise TypeError(
            "`observation` must be an `eqmdm.LinearObservation`; got "
            f"{type(observation).__name__}."
        )
    model.check_takes_snr_vector()
    if not isinstance(observation.noise, IndependentNoise):
        raise TypeError(
            "`observation` must have independent noise, a `noise_std`; got a "
            f"covariance. {remedy}"
        )
    found = precisions(observation)
    target = raise_or_error_if(
        target_of(observation, found),
        ~found.is_diagonal,
        "`observation` must be of single coordinates in the space of the model's data; "
        f"its A^T R^-1 A has entries off the diagonal. {remedy}",
    )
    seen = jnp.sum(found.log_precision > -jnp.inf)
    target = raise_or_error_if(
        target,
        seen != observation.size,
        "`observation` must observe each coordinate at most once, and nothing that "
        f"does not depend on the data; it has {observation.size} numbers. {remedy}",
    )
    result = log_likelihood(
        model,
        target,
        key=key,
        route=CollapsedRoute(log_snr=found.log_precision),
        divergence=divergence,
        solver=solver,
        stepsize_controller=stepsize_controller,
        max_steps=max_steps,
    )
    change = _log_volume(found, observation.noise, observation.value)
    return eqx.tree_at(
        lambda result: result.log_likelihood,
        result,
        result.log_likelihood - change.astype(result.log_likelihood.dtype),
    )


def _log_volume(
    found: Precisions, noise: AbstractNoise, value: Float[Array, "..."]
) -> Scalar:
    r"""$\log |\det A_S|$, for the columns of the observed coordinates.

    With $R'$ the noise in units of the standard deviation that all numbers share, the
    diagonal of $A_S^\top R'^{-1} A_S$ is known, and so is $R'$.
    """
    _, noise = noise.factored()
    variances = noise.covariance(jnp.ones_like(value))
    log_of = lambda values: jnp.log(jnp.where(values > 0, values, 1))
    columns = jnp.sum(log_of(jnp.where(found.exact > 0, found.exact, found.noisy)))
    return 0.5 * (columns + jnp.sum(log_of(variances)))
