"""Evidence lower bounds, itemised."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from .._core.checks import check_count, concrete
from .._core.types import Data, PRNGKey, Scalar
from .._diffusion import AbstractNonlinearDiffusion, simulate_path
from .._levels import as_dequantised
from .._model.base import AbstractModel, conditioned
from .decoders import AbstractDecoder
from .estimate import (
    check_decoder,
    compute_elbo,
    default_decoder,
    default_form,
    default_time_sampler,
)
from .forms import AbstractForm
from .result import Elbo
from .times import (
    AbstractTimeSampler,
    stratified,
    stratified_standard_error,
)


def elbo(
    model: AbstractModel,
    x: Data,
    *,
    key: PRNGKey,
    condition: PyTree = None,
    n_draws: int = 1,
    form: AbstractForm | None = None,
    decoder: AbstractDecoder | None = None,
    time_sampler: AbstractTimeSampler | None = None,
    u: Scalar | None = None,
) -> Elbo:
    r"""An unbiased estimate of a lower bound of $\log p(x)$, in nats, term by term.

    Unless the form is direct,

    $$\log p(x) \ge \mathrm{E} \log p(\cdot \mid y_{t_0}) + \mathrm{H} - \mathrm{KL}(
    q(y_{t_1} \mid \cdot) \,\|\, \pi) - \tfrac12 \int_{t_0}^{t_1} \mathrm{E} \| G^\top
    (s_\theta - \nabla \log q) \|^2 \mathrm{d}t$$

    whose four terms are `reconstruction`, `auxiliary`, `prior` and `diffusion`. The
    entropy H is present only with a decoder of the whole start. It is the entropy of
    the auxiliaries given the data and the state at the start time, or given only the
    data if the form conditions on the start. The prior term of a direct form is a
    sampled $\mathrm{E} \log \pi(y_{t_1})$, and its reconstruction includes the entropy
    of the state at the start time.

    !!! Example

        ```python
        keys = jr.split(jr.key(0), len(examples))
        bound = jax.vmap(lambda x, key: eqmdm.elbo(model, x, key=key, n_draws=8))
        print(bound(examples, keys).total.mean())
        ```

    **Arguments:**

    - `model`: an [`eqmdm.DenoiserModel`][], [`eqmdm.NoiseModel`][],
        [`eqmdm.FunctionModel`][] or one of your own.
    - `x`: one example, in the units that the model sees. Grey levels must be
        dequantised, or be level centres together with the discrete decoder.
    - `key`: for times and noise.
    - `condition`: the condition of the example, for a conditional model; see
        `AbstractModel.with_condition`.
    - `n_draws`: the number of draws of time and noise to average. For more than one,
        the times are stratified and the result has a `standard_error`.
    - `form`: by default [`eqmdm.LowVariance`][], and [`eqmdm.LocalScoreMatching`][]
        for a process whose drift is not linear.
    - `decoder`: [`eqmdm.DataDecoder`][] by default, or [`eqmdm.StartDecoder`][] for a
        form that conditions on the start.
    - `time_sampler`: [`eqmdm.LogSNRTimeSampler`][] by default for a denoiser, whose
        integrand is nearly flat in log-SNR, and [`eqmdm.ImportanceTimeSampler`][] for
        other models. For an [`eqmdm.SpikeAndSlabDenoiser`][], whose bound without its
        network is known, times are ten times as dense where the network matters.
    - `u`: the quantile of the time in [0, 1), by default from `key`. Pass it, with one
        draw, to stratify times over a batch by [`eqmdm.low_discrepancy`][], say.

    **Returns:**

    An [`eqmdm.Elbo`][], whose total is the sum of its terms.

    **Raises:**

    `TypeError` unless `model` is a model, and for an `x` of integers; `ValueError` for
    an `x` that is not finite, a `u` outside [0, 1), or a decoder that does not match
    the form; `ValueError`, or `equinox.EquinoxRuntimeError` under a JAX transform, if
    the diffusion ends below the log-SNR range that the model was trained on. For a
    process whose drift is not linear: `TypeError` for a form that needs kernels,
    `ValueError` for a last step that is no shorter than the interval, and
    `FloatingPointError` if its simulation diverges.

    **Source:** Singhal et al. (2023), theorems 1 and 3.
    """
    model = conditioned(model, condition)
    x = as_dequantised(x, "bound")
    check_count("n_draws", n_draws)
    form = default_form(model) if form is None else form
    decoder = default_decoder(form) if decoder is None else decoder
    check_decoder(form, decoder)
    if time_sampler is None:
        time_sampler = default_time_sampler(model, form)
    x = model.check_final_time(x)
    if u is not None:
        if n_draws != 1:
            raise ValueError(
                "`u` must be left out if `n_draws` is above 1, because the times are "
                f"then drawn together; got n_draws={n_draws}."
            )
        u = _as_quantile(u, x.dtype)
    bound = _elbo(model, x, u, form, decoder, time_sampler, n_draws, key)
    if isinstance(model.diffusion, AbstractNonlinearDiffusion):
        total = concrete(bound.total)
        if total is not None and not math.isfinite(total):
            # Raises an error that says where, if the cause is a path that diverges.
            simulate_path(model.diffusion, x, key=key)
    return bound


# Jitted here, so that a call outside of `jax.jit` runs one program instead of one for
# each operation.
@eqx.filter_jit
def _elbo(
    model: AbstractModel,
    x: Data,
    u: Scalar | None,
    form: AbstractForm,
    decoder: AbstractDecoder,
    time_sampler: AbstractTimeSampler,
    n_draws: int,
    key: PRNGKey,
) -> Elbo:
    key_time, key = jr.split(key)
    if n_draws == 1:
        u = jr.uniform(key_time, (), x.dtype) if u is None else u
        return compute_elbo(model, x, u, form, decoder, time_sampler, key=key)

    @jax.vmap
    def draw(u: Scalar, key: PRNGKey) -> Elbo:
        return compute_elbo(model, x, u, form, decoder, time_sampler, key=key)

    draws = draw(
        stratified(n_draws, key=key_time).astype(x.dtype), jr.split(key, n_draws)
    )
    means = {name: jnp.mean(term) for name, term in draws.terms().items()}
    standard_error = jnp.asarray(stratified_standard_error(draws.total))
    return Elbo(**means, standard_error=standard_error)


def _as_quantile(u: Scalar, dtype: jnp.dtype) -> Scalar:
    value = concrete(u)
    if value is not None and not 0 <= value < 1:
        raise ValueError(
            f"`u` must be a quantile, in [0, 1); got {value}. Draw it uniformly, or "
            "with `eqmdm.low_discrepancy`."
        )
    return jnp.asarray(u, dtype)
