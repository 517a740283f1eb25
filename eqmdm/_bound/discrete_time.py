"""The bound of a model that takes finitely many steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._core.types import Data, PRNGKey, Scalar
from .._diffusion import AbstractLinearDiffusion
from .._levels import as_dequantised
from .._model.score import (
    AbstractScore,
    Point,
    ScoreFunction,
    as_score,
    check_trained_range,
)
from .._sampling import Reading, part, read_state
from .decoders import AbstractDecoder, DataDecoder
from .elbo import Elbo


def discrete_elbo(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    x: Data,
    times: Float[Array, " times"],
    *,
    key: PRNGKey,
    decoder: AbstractDecoder | None = None,
) -> Elbo:
    r"""An unbiased estimate of the bound of the discrete-time model that
    [`eqmdm.AncestralSampler`][] draws from, in nats, term by term.

    The model starts from the prior at `times[0]` and steps to each next time by $q(y_s
    \mid y_t, x = \hat x(t, y_t))$, so that a step from $t$ to $s$ costs

    $$\mathrm{KL} \big( q(y_s \mid y_t, x) \,\|\, q(y_s \mid y_t, \hat x) \big) =
    \tfrac12 (\mathrm{SNR}(s) - \mathrm{SNR}(t)) \, \| x - \hat x \|^2$$

    for any linear diffusion, because the information about the data in $y_s$ is that in
    $y_t$ and what is left given $y_t$. With an exact score it is below the bound of
    continuous time, [`eqmdm.elbo`][], which it rises to with the number of steps.

    **Arguments:**

    - `score`, `diffusion`, `x`, `key`: as for [`eqmdm.elbo`][].
    - `times`: decreasing, from `diffusion.t1` to `diffusion.t0`, as a grid such as
        [`eqmdm.LogSNRGrid`][] gives them. All are evaluated, one after another.
    - `decoder`: of the data at the cut, [`eqmdm.DataDecoder`][] by default.

    **Returns:**

    An [`eqmdm.Elbo`][], whose auxiliary term is 0.

    **Raises:**

    `TypeError` for integers; `ValueError` for an `x` that is not finite, fewer than two
    times, times that do not decrease or are not positive and finite, or a decoder of
    the whole start; for a denoiser, as for [`eqmdm.elbo`][].

    **Source:** Ho, Jain & Abbeel (2020), equation 5, and Kingma et al. (2021), equation
    13, for one variable.
    """
    x = as_dequantised(x, "bound")
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"`times` must be a vector of two or more; got shape {times.shape}."
        )
    if not isinstance(times, Tracer):
        values = np.asarray(times)
        if not (np.all(np.diff(values) < 0) and values[-1] > 0 and values[0] < np.inf):
            raise ValueError(
                "`times` must be positive and finite and strictly decrease; got "
                f"{values.tolist()}. A grid such as `LogSNRGrid()` gives them."
            )
    decoder = DataDecoder() if decoder is None else decoder
    if decoder.of_whole_start:
        raise ValueError(
            "`decoder` must be one of the data, such as `DataDecoder`; got "
            f"{type(decoder).__name__}, which decodes the whole start."
        )
    score = as_score(score, diffusion)
    x = check_trained_range(score, diffusion, x)
    return _discrete_elbo(score, diffusion, x, times, decoder, key)


# Compiled by itself: outside of `jax.jit` its loop would be compiled at every call.
@eqx.filter_jit
def _discrete_elbo(
    score: AbstractScore,
    diffusion: AbstractLinearDiffusion,
    x: Data,
    times: Float[Array, " times"],
    decoder: AbstractDecoder,
    key: PRNGKey,
) -> Elbo:
    key_start, key_cut, key_steps = jr.split(key, 3)
    times = times.astype(x.dtype)
    cast = lambda leaf: leaf.astype(x.dtype)
    readings = jax.tree.map(cast, read_state(diffusion, times))

    def squared_error(inputs: tuple[Reading, PRNGKey]) -> Scalar:
        reading, key = inputs
        y = reading.kernel.sample(x, key=key)
        return jnp.sum((x - reading.data_estimate(score, y, None)) ** 2)

    before = part(readings, slice(-1))
    keys = jr.split(key_steps, len(times) - 1)
    squared_errors = jax.lax.map(squared_error, (before, keys))
    gains = jnp.exp(before.log_snr) * jnp.expm1(jnp.diff(readings.log_snr))
    end = part(readings, 0).kernel
    laws = jax.tree.map(cast, diffusion.compute_laws(times[-1]))
    start = diffusion.draw_start(x, key=key_start)
    cut = Point.draw(times[-1], laws, start, given_start=False, key=key_cut)
    error = cut.error(score.whitened_error(*cut.arguments))
    return Elbo(
        reconstruction=decoder.log_density(cut, error),
        prior=-diffusion.prior.kl_from(end.root, end.mean(x)).astype(x.dtype),
        diffusion=-0.5 * jnp.sum(gains * squared_errors),
        auxiliary=jnp.zeros((), x.dtype),
    )
