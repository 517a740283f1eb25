r"""The bound of a process that is simulated, because it has no kernels.

Let $q$ be the law of a path that starts from the data $x$, takes one normal step to
$t_0$, and follows $\mathrm{d}y = f \mathrm{d}t + G \mathrm{d}w$ from there to $t_1$.
The model draws $y_{t_1}$ from $\pi$, runs the reverse SDE with the score $s$ down to
$t_0$, and draws $x$ from the decoder. The bound of the SDE alone (Singhal et al. 2023,
theorem 1), which does not depend on how $y_{t_0}$ is drawn, is

$$\log p(y_{t_0}) \ge \mathrm{E} \Big[ \log \pi(y_{t_1}) + \int_{t_0}^{t_1} \big(
-\tfrac12 \| G^\top s \|^2 - \nabla \cdot (G G^\top s - f) \big) \mathrm{d}t \,\Big|\,
y_{t_0} \Big]$$

and with Jensen's inequality for $y_{t_0}$

$$\log p(x) \ge \mathrm{E} \log p(x \mid y_{t_0}) + \mathrm{H}(q(y_{t_0} \mid x)) +
\mathrm{E} \log \pi(y_{t_1}) + \int_{t_0}^{t_1} \mathrm{E} \big[ \dots \big]
\mathrm{d}t.$$

No term needs a kernel but the entropy, which is known since the first step is normal.
The first step is that of the process linearised about the data, with the auxiliaries
of the start integrated out. Any normal step would give a bound; this one differs from
the process by less than its own size squared, and is exact where the drift is linear.

With the exact score of the law of $y_t$, the mean of the bound over the data differs
from that of the log-density by the two ends alone: by $\mathrm{KL}(q(y_{t_1}) \| \pi)$,
and by the divergence of the decoder from $q(x \mid y_{t_0})$. The decoder is that of
the process linearised at $y_{t_0}$, which it knows: the data estimate is $\mathrm{E}[x
\mid y_{t_0}]$ by Tweedie's formula for that normal law.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from .._core.blocks import transpose
from .._core.checks import concrete
from .._core.gaussian import apply_to_vars
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar, State, VarsMatrix
from .._diffusion.local import data_state, kernel_of, local_step
from .._diffusion.nonlinear import AbstractNonlinearDiffusion, check_nonlinear
from .._diffusion.simulate import simulate, step_times
from .._model.base import AbstractModel, conditioned
from .._model.point import Point
from .._model.simulated_point import SimulatedPoint
from .decoders import AbstractDecoder
from .entropy import normal_entropy
from .forms import AbstractForm, AbstractSimulatedForm
from .result import Elbo
from .times import AbstractTimeSampler


class _Path(NamedTuple):
    """The states of one simulated path that a bound needs.

    - `change`: the state at t0 less the data.
    - `noise`, `root`: of the first step, which ends at t0.
    - `point`: the state at the time of the integrand.
    - `end`: the state at t1.
    """

    change: State
    noise: State
    root: VarsMatrix
    point: SimulatedPoint
    end: State


def compute_simulated_elbo(
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
) -> Elbo:
    """The mean bound over a batch, with the arguments of `compute_shared_elbo`.

    Each example has one path, on which all its terms are estimated.
    """
    process = check_nonlinear(model.diffusion)
    form = check_simulated(form, decoder, process)
    n_start, n_path = n_reconstruction, len(u)
    t0 = process.t0.astype(x.dtype)
    t, density = jax.vmap(lambda u: time_sampler(process.reference, u))(u)
    # Only the end of the other paths is used.
    times = jnp.concatenate([jnp.full(len(x) - n_path, t0), t])
    keys = jax.vmap(lambda key: jr.split(key, 2))(keys)
    paths = jax.vmap(lambda x, t, key: _path(process, form, x, t, key))(
        x, times, keys[:, 0]
    )
    starts = jax.vmap(lambda x: data_state(process, x))(x)
    starts, changes = starts[:n_start], paths.change[:n_start]
    points = jax.tree.map(lambda leaf: leaf[-n_path:], paths.point)
    of_start = jax.tree.map(lambda c: c[:n_start], conditions)
    of_path = jax.tree.map(lambda c: c[-n_path:], conditions)
    of_points = jax.tree.map(lambda *c: jnp.concatenate(c), of_start, of_path)

    @jax.vmap
    def score(condition: PyTree, t: Scalar, y: State) -> State:
        return conditioned(model, condition).score_at(process.network_kernel(t), y)

    # One batch, so that the network is traced and compiled once.
    scores = score(
        of_points,
        jnp.concatenate([jnp.full(n_start, t0), t]),
        jnp.concatenate([starts + changes, points.y]),
    )

    @jax.vmap
    def reconstruction(condition, start, change, noise, root, score):
        given = conditioned(model, condition)
        value = _log_decoder(process, decoder, given, start, change, noise, score)
        return value + normal_entropy(root, start)

    @jax.vmap
    def integrand(condition, point, score, key):
        given = conditioned(model, condition)
        return form.simulated_integrand(point, score, given, key=key)

    noises, roots = paths.noise[:n_start], paths.root[:n_start]
    path_terms = integrand(of_path, points, scores[n_start:], keys[-n_path:, 1])
    return Elbo(
        reconstruction=jnp.mean(
            reconstruction(of_start, starts, changes, noises, roots, scores[:n_start])
        ),
        prior=jnp.mean(jax.vmap(process.prior.log_density)(paths.end)),
        diffusion=jnp.mean(path_terms / density),
        auxiliary=jnp.zeros((), x.dtype),
    )


def check_simulated(
    form: AbstractForm, decoder: AbstractDecoder, process: AbstractNonlinearDiffusion
) -> AbstractSimulatedForm:
    """**Raises:** `TypeError` for a form that needs kernels; `ValueError` for one whose
    last step is no shorter than the interval, or a decoder of the whole start."""
    name = type(process).__name__
    if not isinstance(form, AbstractSimulatedForm):
        raise TypeError(
            "`form` must be `LocalScoreMatching` or `ImplicitScoreMatching` for a "
            f"process that is not linear, because {name} has no transition kernels; "
            f"got {type(form).__name__}."
        )
    if decoder.of_whole_start:
        raise ValueError(
            "`decoder` must decode the data alone, such as `DataDecoder`, for a "
            f"process that is not linear; got {type(decoder).__name__} for {name}."
        )
    t0, t1 = concrete(process.t0), concrete(process.t1)
    if t0 is not None and t1 is not None and form.last_step >= t1 - t0:
        raise ValueError(
            "`length` must be shorter than the interval of the process, which is "
            f"{t1 - t0:.6g} long; got {form.last_step}. The error of the last step "
            "grows with its square: 0.02 of the interval is a good start."
        )
    return form


def _path(
    process: AbstractNonlinearDiffusion,
    form: AbstractSimulatedForm,
    x: Data,
    t: Scalar,
    key: PRNGKey,
) -> _Path:
    key_start, key_path, key_last = jr.split(key, 3)
    about, t0 = data_state(process, x), process.t0.astype(x.dtype)
    start_root = process.start_root(x.dtype)
    first = local_step(process, jnp.zeros_like(t0), t0, about)
    root = first.root_after(start_root)
    noise = draw_normal(key_start, about.shape, x.dtype)
    change = first.change(noise, root)
    # Before t0 there is no simulated state, and the last step is one from the data.
    before = t - form.last_step
    from_data = before < t0
    before = jnp.where(from_data, t0, before)
    state, end = simulate(
        process,
        about + change,
        step_times(process, before),
        save=before,
        key=key_path,
    )
    if form.last_step == 0:
        point = SimulatedPoint(t, state, root, noise)
        return _Path(change, noise, root, point, end)
    about_last = jnp.where(from_data, about, state)
    last = local_step(process, jnp.where(from_data, 0, before), t, about_last)
    last_root = last.root_after(jnp.where(from_data, start_root, 0))
    last_noise = draw_normal(key_last, about.shape, x.dtype)
    y = about_last + last.change(last_noise, last_root)
    return _Path(change, noise, root, SimulatedPoint(t, y, last_root, last_noise), end)


def _log_decoder(
    process: AbstractNonlinearDiffusion,
    decoder: AbstractDecoder,
    model: AbstractModel,
    start: State,
    change: State,
    noise: State,
    score: State,
) -> Scalar:
    """The log-density of the decoder of the process linearised at the state at t0."""
    t0 = process.t0.astype(change.dtype)
    y = start + change
    step = local_step(process, jnp.zeros_like(t0), t0, y)
    kernel = kernel_of(process, step, t0)
    # From the change and not from the state, in which a small step is lost.
    residual = apply_to_vars(step.transition.mean_map, change) - step.shift
    error = kernel.whiten(residual) + apply_to_vars(transpose(kernel.root), score)
    # The noise is that of the first step, which is exactly normal, because it serves as
    # a control variate of known mean.
    point = Point(kernel, start, noise, y, False)
    return decoder.log_density(point, error, model)
