"""Estimates of the evidence lower bound from given draws, term by term."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from .._core.gaussian import (
    PerturbationKernel,
    apply_to_vars,
    log_det,
    over_coordinates,
)
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar, State
from .._diffusion import AbstractLinearDiffusion
from .._diffusion.banded import check_data_shape
from .._diffusion.base import with_solved_interval
from .._model.base import AbstractModel
from .._model.denoiser import pixel_law
from .._model.pixel_law import SpikeAndSlab
from .._model.point import Point
from .._model.start import mean_start
from .._model.student_t import draw_precision, example_model
from .control import known_cost
from .decoders import AbstractDecoder, DataDecoder, StartDecoder
from .entropy import normal_entropy
from .forms import AbstractForm, LowVariance
from .local_form import LocalScoreMatching
from .result import Elbo
from .simulated import compute_simulated_elbo
from .times import (
    AbstractTimeSampler,
    Focus,
    ImportanceTimeSampler,
    LogSNRTimeSampler,
)


# The log-SNR, for data of unit variance, below which a denoiser sees hardly anything.
_ONLY_NOISE = -4.0


def default_form(model: AbstractModel) -> AbstractForm:
    """The form of the lowest variance that the diffusion of the model admits."""
    if isinstance(model.diffusion, AbstractLinearDiffusion):
        return LowVariance()
    return LocalScoreMatching()


def default_decoder(form: AbstractForm) -> AbstractDecoder:
    """The decoder of the whole start for a form that conditions on it, else of the
    data."""
    return StartDecoder() if form.conditions_on_start else DataDecoder()


def default_time_sampler(
    model: AbstractModel, form: AbstractForm
) -> AbstractTimeSampler:
    """The sampler in log-SNR for a denoiser, whose integrand is nearly flat in it, and
    the importance sampler for other models.

    If a part of the integral is known, times are rarer where there is little else:
    above the range of the network, and where hardly anything but noise is left.
    """
    if not model.has_denoiser:
        return ImportanceTimeSampler()
    if _known_law(model, form) is None or model.log_snr_range is None:
        return LogSNRTimeSampler()
    _, high = model.log_snr_range
    low = _ONLY_NOISE - 2 * math.log(model.data_std)
    return LogSNRTimeSampler(density=Focus(low, high))


def check_decoder(form: AbstractForm, decoder: AbstractDecoder) -> None:
    """**Raises:** `ValueError` for a decoder that does not match the form."""
    if form.conditions_on_start and not decoder.of_whole_start:
        raise ValueError(
            f"`decoder` must be a `StartDecoder` for the form {type(form).__name__}, "
            f"which conditions on the whole start; got {type(decoder).__name__}, which "
            "decodes the data alone. Use a form that conditions on the data alone."
        )


def compute_elbo(
    model: AbstractModel,
    x: Data,
    u: Scalar,
    form: AbstractForm,
    decoder: AbstractDecoder,
    time_sampler: AbstractTimeSampler,
    *,
    key: PRNGKey,
) -> Elbo:
    """The bound on one example from one draw, without the checks of `elbo`."""
    # Both states of the example go through the network in one batch, so that it is
    # traced and compiled once.
    return compute_shared_elbo(
        model, x[None], u[None], 1, form, decoder, time_sampler, keys=key[None]
    )


def compute_shared_elbo(
    model: AbstractModel,
    x: Float[Array, "examples *data"],
    u: Float[Array, " shared"],
    n_reconstruction: int,
    form: AbstractForm,
    decoder: AbstractDecoder,
    time_sampler: AbstractTimeSampler,
    *,
    keys: Key[Array, " examples"],
    conditions: PyTree = None,
    training: bool = False,
) -> Elbo:
    """The mean bound over a batch, with terms estimated on parts of the batch.

    The reconstruction uses the first `n_reconstruction` examples, the diffusion term
    the last `len(u)`, and the other terms all examples. Each term is unbiased for a
    batch in random order. The network is evaluated once, on the states of both parts
    together, which is one evaluation per example if the parts are disjoint.
    `conditions` are those of a conditional model, one for each example; `training` is
    whether the precisions of Student-t noise are those of a training loss.
    """
    if not isinstance(model.diffusion, AbstractLinearDiffusion):
        return compute_simulated_elbo(
            model,
            x,
            u,
            n_reconstruction,
            form,
            decoder,
            time_sampler,
            keys=keys,
            conditions=conditions,
        )
    diffusion = with_solved_interval(model.linear_diffusion)
    n_start, n_path = n_reconstruction, len(u)
    check_data_shape(diffusion, x.shape[1:])
    draw = lambda key: draw_precision(model, key=key, dtype=x.dtype, training=training)
    precisions = jax.vmap(draw)(keys)
    examples = conditions, precisions
    given = lambda example: example_model(model, *example)
    keys = jax.vmap(lambda key: jr.split(key, 5))(keys)
    key_aux, key_start, key_path, key_prior, key_probe = (keys[:, i] for i in range(5))
    t, density = jax.vmap(
        lambda u: _moving_with_interval(diffusion, *time_sampler(diffusion, u))
    )(u)
    ends = jnp.stack([diffusion.t0, diffusion.t1]).astype(x.dtype)
    # Batched, this takes a third of the compilation of three computations.
    kernels = jax.vmap(diffusion.compute_kernel)(jnp.concatenate([ends, t]))
    at_start, at_end, at_times = (_take(kernels, i) for i in (0, 1, slice(2, None)))
    n_vars, n_aux = diffusion.n_vars, diffusion.start_root(x.dtype).shape[1]
    noise_start, noise_path, noise_aux = _draw_noise(
        [(key_start[:n_start], n_vars), (key_path[-n_path:], n_vars), (key_aux, n_aux)],
        x.shape[1:],
        x.dtype,
    )
    state = jax.vmap(lambda e, x, noise: _start(given(e), x, noise))(
        examples, x, noise_aux
    )
    of_start, of_path = _ends(examples, n_start, n_path)
    first, last = _ends(state, n_start, n_path)
    whole = decoder.of_whole_start, form.conditions_on_start
    start = jax.vmap(lambda e, s, noise: _point(at_start, e, s, noise, whole[0]))(
        of_start, first, noise_start
    )
    path = jax.vmap(lambda k, e, s, noise: _point(k, e, s, noise, whole[1]))(
        at_times, of_path, last, noise_path
    )
    errors = _whitened_errors(given, (of_start, start), (of_path, path))

    @jax.vmap
    def reconstruction(example, point, error):
        error = point.own_error(error)
        return _reconstruction(form, decoder, point, error, given(example))

    @jax.vmap
    def integrand(example, point, error, key):
        return form.integrand(point, point.own_error(error), given(example), key=key)

    @jax.vmap
    def rest(example, x, state, key):
        one = given(example)
        first, last = (_scaled(kernel, example) for kernel in (at_start, at_end))
        prior = _prior(form, one, last, *state, key=key)
        auxiliary = _auxiliary(form, decoder, one.linear_diffusion, first, state[0])
        return prior, auxiliary, _known_part(form, one, first, last, x, key=key)

    prior, auxiliary, known_part = rest(examples, x, state, key_prior)
    path_terms = integrand(of_path, path, errors[n_start:], key_probe[-n_path:])
    return Elbo(
        reconstruction=jnp.mean(reconstruction(of_start, start, errors[:n_start])),
        prior=jnp.mean(prior),
        diffusion=jnp.mean(path_terms / density) + jnp.mean(known_part),
        auxiliary=jnp.mean(auxiliary),
    )


def _draw_noise(
    draws: Sequence[tuple[Key[Array, " _"], int]],
    data_shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> list[Float[Array, "_ _ *data"]]:
    """Noise for each of some keys, with a given number of rows for each group of keys.

    It is one draw, so that it is compiled once, with the most rows that any group has:
    draws from one key start with the same numbers, whatever the number of rows.
    """
    n_most = max(n_rows for _, n_rows in draws)
    keys = jnp.concatenate([keys for keys, n_rows in draws if n_rows > 0])
    noise = jax.vmap(lambda key: draw_normal(key, (n_most, *data_shape), dtype))(keys)
    parts, first = [], 0
    for keys, n_rows in draws:
        if n_rows == 0:
            parts.append(jnp.zeros((len(keys), 0, *data_shape), dtype))
            continue
        parts.append(noise[first : first + len(keys), :n_rows])
        first += len(keys)
    return parts


def _start(
    model: AbstractModel, x: Data, noise: Float[Array, "columns *data"]
) -> tuple[State, State | None]:
    """The start of an example, and its mean given the data if it is not that of the
    diffusion."""
    y0, mean = model.linear_diffusion.start_of(x, noise), mean_start(model, x)
    if mean is not None:
        y0 = jnp.concatenate([y0[:1], y0[1:] + mean[1:]])
    return y0, mean


def _whitened_errors(
    given: Callable[[PyTree], AbstractModel], *parts: tuple[PyTree, Point]
) -> Float[Array, "points vars *data"]:
    """The errors of the model at the points of examples, in one batch, so that the
    network is traced and compiled once."""
    joined = lambda *leaves: jnp.concatenate(leaves)
    examples = jax.tree.map(joined, *(examples for examples, _ in parts))
    arguments = (jax.vmap(lambda point: point.arguments)(points) for _, points in parts)
    return jax.vmap(lambda example, of_point: given(example).whitened_error(*of_point))(
        examples, jax.tree.map(joined, *arguments)
    )


def _ends(batch: PyTree, n_first: int, n_last: int) -> tuple[PyTree, PyTree]:
    """The first and the last examples of a batch."""
    first = jax.tree.map(lambda leaf: leaf[:n_first], batch)
    return first, jax.tree.map(lambda leaf: leaf[-n_last:], batch)


def _point(
    kernel: PerturbationKernel,
    example: PyTree,
    state: tuple[State, State | None],
    noise: State,
    given_start: bool,
) -> Point:
    """The point at the time of a kernel, of an example with a start and its mean."""
    y0, mean = state
    kernel = _scaled(kernel, example)
    return Point.at(kernel, y0, noise, given_start=given_start, mean_start=mean)


def _scaled(kernel: PerturbationKernel, example: PyTree) -> PerturbationKernel:
    """The kernel of one example, a pair of its condition and its precision."""
    _, precision = example
    return kernel if precision is None else kernel.scaled(precision)


def _take(kernels: PerturbationKernel, index: int | slice) -> PerturbationKernel:
    return jax.tree.map(lambda leaf: leaf[index], kernels)


def _moving_with_interval(
    diffusion: AbstractLinearDiffusion, t: Scalar, density: Scalar
) -> tuple[Scalar, Scalar]:
    """The same time and density, differentiable with respect to the interval.

    An interval given in log-SNR moves with the parameters of a learned diffusion, and
    so do the limits of the integral. The relative position of `t` in the interval stays
    fixed.
    """
    t0, t1 = diffusion.t0.astype(t.dtype), diffusion.t1.astype(t.dtype)
    fixed = jax.lax.stop_gradient
    share = fixed((t - t0) / (t1 - t0))
    change = (1 - share) * (t0 - fixed(t0)) + share * (t1 - fixed(t1))
    return t + change, density * (fixed(t1 - t0) / (t1 - t0))


def _reconstruction(
    form: AbstractForm,
    decoder: AbstractDecoder,
    point: Point,
    error: State,
    model: AbstractModel,
) -> Scalar:
    value = decoder.log_density(point, error, model)
    if form.is_direct:
        kernel = point.kernel
        root = kernel.step.root if form.conditions_on_start else kernel.root
        value = value + normal_entropy(root, point.start)
    return value


def _prior(
    form: AbstractForm,
    model: AbstractModel,
    at_end: PerturbationKernel,
    start: State,
    mean_start: State | None,
    *,
    key: PRNGKey,
) -> Scalar:
    if form.conditions_on_start:
        mean, root = at_end.step.mean(start), at_end.step.root
    elif mean_start is not None:
        mean, root = at_end.step.mean(mean_start), at_end.root
    else:
        mean, root = at_end.mean(start[0]), at_end.root
    prior = model.linear_diffusion.prior
    centre = model.prior_mean(mean.shape[1:], mean.dtype)
    mean = mean if centre is None else mean - centre
    if form.is_direct:
        noise = draw_normal(key, start.shape, start.dtype)
        return prior.log_density(mean + apply_to_vars(root, noise))
    return -prior.kl_from(root, mean)


def _auxiliary(
    form: AbstractForm,
    decoder: AbstractDecoder,
    diffusion: AbstractLinearDiffusion,
    at_start: PerturbationKernel,
    start: State,
) -> Scalar:
    start_root = diffusion.start_root(start.dtype)[1:]
    if not decoder.of_whole_start or start_root.size == 0:
        return jnp.zeros((), start.dtype)
    entropy = normal_entropy(start_root, start)
    if form.conditions_on_start:
        return entropy
    # H(v | x, y) = H(v | x) + H(y | v, x) - H(y | x).
    given = log_det(at_start.step.root) - log_det(at_start.root)
    return entropy + over_coordinates(given, start)


def _known_law(model: AbstractModel, form: AbstractForm) -> SpikeAndSlab | None:
    """The law of single pixels for which the integral of the form is known."""
    has_control = isinstance(form, LowVariance) and not form.given_start
    return pixel_law(model) if has_control else None


def _known_part(
    form: AbstractForm,
    model: AbstractModel,
    at_start: PerturbationKernel,
    at_end: PerturbationKernel,
    x: Data,
    *,
    key: PRNGKey,
) -> Scalar:
    """The part of the diffusion term that the control variate of the integrand takes
    from it."""
    law = _known_law(model, form)
    if law is None:
        return jnp.zeros((), x.dtype)
    # The prior term of this form draws nothing from the key.
    noise = draw_normal(key, x.shape, x.dtype)
    return -known_cost(law, at_start, at_end, x, noise)
