"""The bound of a model that takes finitely many steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._core.gaussian import PerturbationKernel
from .._core.random import draw_normal
from .._core.types import Data, LogSNR, PRNGKey, Scalar
from .._diffusion.banded import check_data_shape
from .._levels import as_dequantised
from .._model.base import AbstractModel, conditioned
from .._model.point import Point
from .._model.start import check_start_independent
from .decoders import AbstractDecoder, DataDecoder
from .result import Elbo


def discrete_elbo(
    model: AbstractModel,
    x: Data,
    *,
    times: Float[Array, " times"],
    key: PRNGKey,
    condition: PyTree = None,
    decoder: AbstractDecoder | None = None,
) -> Elbo:
    r"""An unbiased estimate of the bound of the discrete-time model that
    [`eqmdm.AncestralSampler`][] draws from, in nats, term by term.

    The model starts from the prior at `times[0]` and steps to each next time with
    $q(y_s \mid y_t, x = \hat x(t, y_t))$. A step from $t$ to $s$ costs

    $$\mathrm{KL} \big( q(y_s \mid y_t, x) \,\|\, q(y_s \mid y_t, \hat x) \big) =
    \tfrac12 (\mathrm{SNR}(s) - \mathrm{SNR}(t)) \, \| x - \hat x \|^2$$

    for any linear diffusion, because the information about the data in $y_s$ is the sum
    of that in $y_t$ and of that in $y_s$ given $y_t$. With an exact score this bound is
    below the continuous-time bound, [`eqmdm.elbo`][], and approaches it as the number
    of steps grows.

    **Arguments:**

    - `model`, `x`, `key`, `condition`: as for [`eqmdm.elbo`][].
    - `times`: decreasing times from `diffusion.t1` to `diffusion.t0`, such as those of
        [`eqmdm.LogSNRGrid`][]. The model is evaluated at each of them in turn.
    - `decoder`: the decoder of the data at the start time; by default
        [`eqmdm.DataDecoder`][].

    **Returns:**

    An [`eqmdm.Elbo`][], whose auxiliary term is 0.

    **Raises:**

    `TypeError` for an `x` of integers; `ValueError` for an `x` that is not finite,
    fewer than two times, times that do not decrease or are not positive and finite, or
    a decoder of the whole start; for a denoiser, as for [`eqmdm.elbo`][].

    **Source:** Ho, Jain & Abbeel (2020), equation 5, and Kingma et al. (2021), equation
    13, for one variable.
    """
    model = conditioned(model, condition)
    x = as_dequantised(x, "bound")
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(
            f"`times` must be a vector of two or more; got shape {times.shape}."
        )
    if not isinstance(times, Tracer):
        values = np.asarray(times)
        if not (np.all(np.diff(values) < 0) and values[-1] > 0 and values[0] < np.inf):
            raise ValueError(
                "`times` must be positive, finite and strictly decreasing; got "
                f"{values.tolist()}. Pass those of a grid, such as `LogSNRGrid()`."
            )
    check_start_independent(model, "discrete_elbo", "`eqmdm.elbo`")
    decoder = DataDecoder() if decoder is None else decoder
    if decoder.of_whole_start:
        raise ValueError(
            "`decoder` must decode the data alone, such as `DataDecoder`; got "
            f"{type(decoder).__name__}, which decodes the whole start."
        )
    x = model.check_final_time(x)
    return _discrete_elbo(model, x, times, decoder, key)


# Jitted here, because outside of `jax.jit` the loop would be compiled at every call.
@eqx.filter_jit
def _discrete_elbo(
    model: AbstractModel,
    x: Data,
    times: Float[Array, " times"],
    decoder: AbstractDecoder,
    key: PRNGKey,
) -> Elbo:
    diffusion = model.linear_diffusion
    check_data_shape(diffusion, x.shape)
    key_aux, key_start, key_steps = jr.split(key, 3)
    kernels = jax.vmap(diffusion.compute_kernel)(times.astype(x.dtype))
    at_end, at_start = (
        jax.tree.map(lambda leaf, i=i: leaf[i], kernels) for i in (0, -1)
    )

    def cost(inputs: tuple[PerturbationKernel, LogSNR, PRNGKey]) -> Scalar:
        kernel, gain, key = inputs
        noise = draw_normal(key, (diffusion.n_vars, *x.shape), x.dtype)
        y = kernel.perturb(x, noise)
        # The error of the data estimate in units of its noise. It is computed from the
        # noise, because x and its estimate agree to all digits at high log-SNR.
        error = kernel.along_data(model.whitened_error(kernel, x, noise, y))
        return 0.5 * jnp.sum(jnp.expm1(gain) * error**2)

    before = jax.tree.map(lambda leaf: leaf[:-1], kernels)
    keys = jr.split(key_steps, len(times) - 1)
    costs = jax.lax.map(cost, (before, jnp.diff(kernels.log_snr, axis=0), keys))
    state = diffusion.draw_start(x, key=key_aux)
    point = Point.draw(at_start, state, given_start=False, key=key_start)
    end_mean, prior_mean = at_end.mean(x), model.prior_mean(x.shape, x.dtype)
    end_mean = end_mean if prior_mean is None else end_mean - prior_mean
    return Elbo(
        reconstruction=decoder.log_density(point, point.error(model), model),
        prior=-diffusion.prior.kl_from(at_end.root, end_mean).astype(x.dtype),
        diffusion=-jnp.sum(costs),
        auxiliary=jnp.zeros((), x.dtype),
    )
