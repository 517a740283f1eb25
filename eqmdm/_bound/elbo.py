"""Evidence lower bounds, itemised."""

import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key

from .._core.checks import concrete
from .._core.gaussian import apply_to_vars, log_det, n_coordinates
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion, Laws
from .._levels import as_dequantised
from .._model.score import (
    AbstractScore,
    DenoiserScore,
    Point,
    ScoreFunction,
    as_score,
    check_trained_range,
)
from .decoders import AbstractDecoder, DataDecoder, StartDecoder
from .forms import AbstractForm, LowVariance
from .times import AbstractTimeSampler, ImportanceTime, LogSNRTime


@final
class Elbo(eqx.Module):
    r"""A lower bound of $\log p(x)$ in nats, term by term; `total` is their sum.

    An unbiased estimate of the bound for one example, from one time and one noise; or
    for each of a batch, under `jax.vmap`.
    """

    reconstruction: Float[Array, "*batch"]
    prior: Float[Array, "*batch"]
    diffusion: Float[Array, "*batch"]
    auxiliary: Float[Array, "*batch"]

    @property
    def total(self) -> Float[Array, "*batch"]:
        return self.reconstruction + self.prior + self.diffusion + self.auxiliary


def elbo(
    score: ScoreFunction,
    diffusion: AbstractLinearDiffusion,
    x: Data,
    *,
    key: PRNGKey,
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
    entropy H belongs to the decoder of the whole start: of the auxiliaries given the
    data and the state at the cut, or given the data where the form conditions on the
    start; with a decoder of the data alone it is absent. A direct form has $\mathrm{E}
    \log \pi(y_{t_1})$, sampled, for its prior term, and its reconstruction includes the
    entropy of the state at the cut.

    **Arguments:**

    - `score`: a callable `(t, y) -> score` on one example: a
        [`eqmdm.FreeScore`][], a [`eqmdm.DenoiserScore`][] or any function.
    - `diffusion`: the process; its ends are those of the bound.
    - `x`: one example, in the units that the model sees. Grey levels must be
        dequantised, or be level centres together with the discrete decoder.
    - `key`: for the noise.
    - `form`: [`eqmdm.LowVariance`][] by default.
    - `decoder`: [`eqmdm.DataDecoder`][] by default, or the decoder of the whole start
        for a form that conditions on it.
    - `time_sampler`: [`eqmdm.LogSNRTime`][] by default for a denoiser, whose integrand
        is nearly flat in log-SNR, and [`eqmdm.ImportanceTime`][] for other scores.
    - `u`: the quantile of the time in [0, 1), drawn from `key` unless given, so that a
        batch can draw its own together, as [`eqmdm.low_discrepancy`][] does.

    **Returns:**

    An [`eqmdm.Elbo`][]; each term adds to the total.

    **Raises:**

    `TypeError` for integers; `ValueError` for an `x` that is not finite, a `u` outside
    [0, 1), or a decoder that does not go with the form; where a denoiser states the
    range it was trained on, `ValueError`, or `equinox.EquinoxRuntimeError` under a JAX
    transform, if the diffusion ends below it.

    **Source:** Singhal et al. (2023), theorems 1 and 3.
    """
    x = as_dequantised(x, "bound")
    form = LowVariance() if form is None else form
    decoder = default_decoder(form) if decoder is None else decoder
    check_decoder(form, decoder)
    score = as_score(score, diffusion)
    if time_sampler is None:
        time_sampler = default_time_sampler(score)
    x = check_trained_range(score, diffusion, x)
    key_time, key = jr.split(key)
    u = jr.uniform(key_time, (), x.dtype) if u is None else _as_quantile(u, x.dtype)
    return compute_elbo(score, diffusion, x, u, form, decoder, time_sampler, key=key)


def default_decoder(form: AbstractForm) -> AbstractDecoder:
    """Of the data, or of the whole start for a form that conditions on it."""
    return StartDecoder() if form.conditions_on_start else DataDecoder()


def default_time_sampler(score: AbstractScore) -> AbstractTimeSampler:
    """In log-SNR for a denoiser, whose integrand is nearly flat in it."""
    return LogSNRTime() if isinstance(score, DenoiserScore) else ImportanceTime()


def _as_quantile(u: Scalar, dtype: jnp.dtype) -> Scalar:
    value = concrete(u)
    if value is not None and not 0 <= value < 1:
        raise ValueError(
            f"`u` must be a quantile, in [0, 1); got {value}. Draw it uniformly, or "
            "with `eqmdm.low_discrepancy`."
        )
    return jnp.asarray(u, dtype)


def check_decoder(form: AbstractForm, decoder: AbstractDecoder) -> None:
    """Refuses a decoder that does not go with the form."""
    if form.conditions_on_start and not decoder.of_whole_start:
        raise ValueError(
            f"`decoder` must be a `StartDecoder` for the form {type(form).__name__}, "
            f"which conditions on the whole start; got {type(decoder).__name__}, which "
            "decodes the data alone. Use a form that conditions on the data alone."
        )


def compute_elbo(
    score: AbstractScore,
    diffusion: AbstractLinearDiffusion,
    x: Data,
    u: Scalar,
    form: AbstractForm,
    decoder: AbstractDecoder,
    time_sampler: AbstractTimeSampler,
    *,
    key: PRNGKey,
) -> Elbo:
    """As `elbo`, without its checks and defaults."""
    key_start, key_cut, key_path, key_prior, key_probe = jr.split(key, 5)
    dtype = x.dtype
    t, density = _moving_with_ends(diffusion, *time_sampler(diffusion, u))
    times = jnp.stack([diffusion.t0.astype(dtype), diffusion.t1.astype(dtype), t])
    # One batched computation instead of three: a third of the compilation.
    laws = jax.vmap(diffusion.compute_laws)(times)
    at_cut, at_end, at_time = (_take(laws, i) for i in range(3))
    start = diffusion.draw_start(x, key=key_start)
    cut = Point.draw(
        times[0], at_cut, start, given_start=decoder.of_whole_start, key=key_cut
    )
    path = Point.draw(
        t, at_time, start, given_start=form.conditions_on_start, key=key_path
    )
    error = path.error(score.whitened_error(*path.arguments))
    integrand = form.integrand(path, error, score, diffusion, key=key_probe)
    error = cut.error(score.whitened_error(*cut.arguments))
    return Elbo(
        reconstruction=_reconstruction(form, decoder, cut, error),
        prior=_prior(form, diffusion, at_end, start, key=key_prior),
        diffusion=integrand / density,
        auxiliary=_auxiliary(form, decoder, diffusion, at_cut, start),
    )


def compute_shared_elbo(
    score: AbstractScore,
    diffusion: AbstractLinearDiffusion,
    x: Float[Array, "examples *data"],
    u: Float[Array, " shared"],
    n_reconstruction: int,
    form: AbstractForm,
    decoder: AbstractDecoder,
    time_sampler: AbstractTimeSampler,
    *,
    keys: Key[Array, " examples"],
) -> Elbo:
    """The bound averaged over a batch whose examples share its terms among them.

    The reconstruction is that of the first `n_reconstruction` examples, the diffusion
    term that of the last `len(u)`, and the others are those of all: each is what
    `compute_elbo` gives for these examples and keys, and unbiased for a batch in random
    order. The network is evaluated once, on the states of both together, which costs
    one evaluation an example if the two shares are disjoint.
    """
    n_cut, n_path = n_reconstruction, len(u)
    keys = jax.vmap(lambda key: jr.split(key, 5))(keys)
    key_start, key_cut, key_path, key_prior, key_probe = (keys[:, i] for i in range(5))
    time = lambda u: _moving_with_ends(diffusion, *time_sampler(diffusion, u))
    t, density = jax.vmap(time)(u)
    ends = jnp.stack([diffusion.t0, diffusion.t1]).astype(x.dtype)
    laws = jax.vmap(diffusion.compute_laws)(jnp.concatenate([ends, t]))
    at_cut, at_end, at_time = (_take(laws, i) for i in (0, 1, slice(2, None)))
    start = jax.vmap(lambda x, key: diffusion.draw_start(x, key=key))(x, key_start)

    @jax.vmap
    def draw_cut(start, key):
        whole = decoder.of_whole_start
        return Point.draw(ends[0], at_cut, start, given_start=whole, key=key)

    @jax.vmap
    def draw_path(t, laws, start, key):
        whole = form.conditions_on_start
        return Point.draw(t, laws, start, given_start=whole, key=key)

    cut = draw_cut(start[:n_cut], key_cut[:n_cut])
    path = draw_path(t, at_time, start[-n_path:], key_path[-n_path:])
    arguments = jax.tree.map(
        lambda *parts: jnp.concatenate(parts),
        *(jax.vmap(lambda point: point.arguments)(points) for points in (cut, path)),
    )
    errors = jax.vmap(score.whitened_error)(*arguments)

    @jax.vmap
    def reconstruction(point, error):
        return _reconstruction(form, decoder, point, point.error(error))

    @jax.vmap
    def integrand(point, error, key):
        return form.integrand(point, point.error(error), score, diffusion, key=key)

    @jax.vmap
    def rest(start, key):
        prior = _prior(form, diffusion, at_end, start, key=key)
        return prior, _auxiliary(form, decoder, diffusion, at_cut, start)

    prior, auxiliary = rest(start, key_prior)
    path_terms = integrand(path, errors[n_cut:], key_probe[-n_path:]) / density
    return Elbo(
        reconstruction=jnp.mean(reconstruction(cut, errors[:n_cut])),
        prior=jnp.mean(prior),
        diffusion=jnp.mean(path_terms),
        auxiliary=jnp.mean(auxiliary),
    )


def _take(laws: Laws, index: int | slice) -> Laws:
    return jax.tree.map(lambda leaf: leaf[index], laws)


def _moving_with_ends(
    diffusion: AbstractLinearDiffusion, t: Scalar, density: Scalar
) -> tuple[Scalar, Scalar]:
    """The same time and density, where the ends have derivatives.

    Ends given in log-SNR move with the parameters of a learned diffusion, and with them
    the limits of the integral: what stays is the share of the interval before `t`.
    """
    t0, t1 = diffusion.t0.astype(t.dtype), diffusion.t1.astype(t.dtype)
    fixed = jax.lax.stop_gradient
    share = fixed((t - t0) / (t1 - t0))
    change = (1 - share) * (t0 - fixed(t0)) + share * (t1 - fixed(t1))
    return t + change, density * (fixed(t1 - t0) / (t1 - t0))


def _reconstruction(
    form: AbstractForm, decoder: AbstractDecoder, cut: Point, error: State
) -> Scalar:
    value = decoder.log_density(cut, error)
    if form.is_direct:
        laws = cut.laws
        law = laws.step if form.conditions_on_start else laws.kernel
        value = value + _entropy(law.root, cut.start)
    return value


def _prior(
    form: AbstractForm,
    diffusion: AbstractLinearDiffusion,
    at_end: Laws,
    start: State,
    *,
    key: PRNGKey,
) -> Scalar:
    if form.conditions_on_start:
        mean, root = at_end.step.mean(start), at_end.step.root
    else:
        mean, root = at_end.kernel.mean(start[0]), at_end.kernel.root
    if form.is_direct:
        noise = draw_normal(key, start.shape, start.dtype)
        return diffusion.prior.log_density(mean + apply_to_vars(root, noise))
    return -diffusion.prior.kl_from(root, mean)


def _entropy(root: Float[Array, "rows rows"], like: State) -> Scalar:
    r"""The entropy of $\mathcal{N}(\cdot, L L^\top \otimes I)$, in nats."""
    per_dim = 0.5 * len(root) * (1 + math.log(2 * math.pi)) + log_det(root)
    return n_coordinates(like) * per_dim.astype(like.dtype)


def _auxiliary(
    form: AbstractForm,
    decoder: AbstractDecoder,
    diffusion: AbstractLinearDiffusion,
    at_cut: Laws,
    start: State,
) -> Scalar:
    start_root = diffusion.start_root(start.dtype)[1:]
    if not decoder.of_whole_start or start_root.size == 0:
        return jnp.zeros((), start.dtype)
    entropy = _entropy(start_root, start)
    if form.conditions_on_start:
        return entropy
    # H(v | x, y) = H(v | x) + H(y | v, x) - H(y | x).
    given = log_det(at_cut.step.root) - log_det(at_cut.kernel.root)
    return entropy + n_coordinates(start) * given.astype(start.dtype)
