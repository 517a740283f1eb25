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

By Ito's formula for $\log \pi$ along the path, $\mathrm{E} \log \pi(y_{t_1})$ is
$\mathrm{E} \log \pi(y_{t_0})$ plus the integral of $\mathrm{E}[f \cdot \nabla \log
\pi + \tfrac12 \mathrm{tr}(G G^\top \nabla^2 \log \pi)]$. With $r = s - \nabla \log
\pi$ the integrand becomes

$$-\tfrac12 \| G^\top r \|^2 - \nabla \log \pi \cdot G G^\top r - \nabla \cdot (G G^\top
r)$$

plus a term that is 0 if $\pi$ is stationary, `prior_defect`. It vanishes with $r$,
while the direct integrand has a large variance at late times, where every path is one
of the stationary process. And no path is followed beyond the time of its integrand.

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
from .._core.checks import concrete, now_if_known
from .._core.gaussian import apply_to_vars
from .._core.random import draw_normal
from .._core.types import PRNGKey, Scalar, State, VarsMatrix
from .._diffusion.local import (
    data_state,
    kernel_of,
    local_step,
    noise_rate,
    prior_defect,
)
from .._diffusion.nonlinear import AbstractNonlinearDiffusion, check_nonlinear
from .._diffusion.simulate import simulate
from .._model.base import AbstractModel, conditioned
from .._model.point import Point
from .._model.simulated_point import SimulatedPoint
from .decoders import AbstractDecoder
from .entropy import normal_entropy
from .forms import AbstractForm, AbstractSimulatedForm
from .result import Elbo
from .times import AbstractTimeSampler


class _First(NamedTuple):
    """The first step of a path.

    - `change`: the state at t0 less the data.
    - `noise`, `root`: of the first step, which ends at t0.
    """

    change: State
    noise: State
    root: VarsMatrix


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

    Each example has one path, on which all its terms are estimated. Its prior term is
    that of the state at t0, as derived above.
    """
    process = check_nonlinear(model.diffusion)
    form = check_simulated(form, decoder, process)
    n_start, n_path = n_reconstruction, len(u)
    t0 = process.t0.astype(x.dtype)
    t, density = jax.vmap(lambda u: time_sampler(process.reference, u))(u)
    keys = jax.vmap(lambda key: jr.split(key, 3))(keys)
    starts = jax.vmap(lambda x: data_state(process, x))(x)
    firsts = jax.vmap(lambda start, key: _first(process, start, key))(
        starts, keys[:, 0]
    )
    ends = starts + firsts.change
    points = jax.vmap(lambda *of_path: _point(process, form, *of_path))(
        starts[-n_path:], ends[-n_path:], t, keys[-n_path:, 1]
    )
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
        jnp.concatenate([ends[:n_start], points.y]),
    )

    @jax.vmap
    def reconstruction(condition, start, first, score):
        given = conditioned(model, condition)
        value = _log_decoder(process, decoder, given, start, first, score)
        return value + normal_entropy(first.root, start)

    @jax.vmap
    def integrand(condition, point, score, key):
        given = conditioned(model, condition)
        value = form.simulated_integrand(point, score, given, key=key)
        return value + prior_defect(process, point.t, point.y)

    path_terms = integrand(of_path, points, scores[n_start:], keys[-n_path:, 2])
    firsts = jax.tree.map(lambda leaf: leaf[:n_start], firsts)
    of_first = reconstruction(of_start, starts[:n_start], firsts, scores[:n_start])
    return Elbo(
        reconstruction=jnp.mean(of_first),
        prior=jnp.mean(jax.vmap(process.prior.log_density)(ends)),
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
    length, interval = form.last_step, _length_of_interval(process)
    if interval is not None and length >= interval:
        raise ValueError(
            "`length` must be shorter than the interval of the process, which is "
            f"{interval:.6g} long at the rate of its noise at t1; got {length}. The "
            "error of the last step grows with its square: try 0.02."
        )
    return form


def _length_of_interval(process: AbstractNonlinearDiffusion) -> float | None:
    with now_if_known(process):
        return concrete((process.t1 - process.t0) * noise_rate(process, process.t1))


def _first(process: AbstractNonlinearDiffusion, start: State, key: PRNGKey) -> _First:
    t0 = process.t0.astype(start.dtype)
    step = local_step(process, jnp.zeros_like(t0), t0, start)
    root = step.root_after(process.start_root(start.dtype))
    noise = draw_normal(key, start.shape, start.dtype)
    return _First(step.change(noise, root), noise, root)


def _point(
    process: AbstractNonlinearDiffusion,
    form: AbstractSimulatedForm,
    start: State,
    state: State,
    t: Scalar,
    key: PRNGKey,
) -> SimulatedPoint:
    """The state at `t` of the path from `start` that is at `state` at t0."""
    key_path, key_last = jr.split(key)
    if form.last_step == 0:
        return SimulatedPoint(t, simulate(process, state, t, key=key_path))
    t0 = process.t0.astype(t.dtype)
    before = t - form.last_step / noise_rate(process, t)
    # Before t0 there is no simulated state, and the last step is one from the data.
    from_data = before < t0
    before = jnp.where(from_data, t0, before)
    about = simulate(process, state, before, key=key_path)
    about = jnp.where(from_data, start, about)
    step = local_step(process, jnp.where(from_data, 0, before), t, about)
    root = step.root_after(jnp.where(from_data, process.start_root(t.dtype), 0))
    noise = draw_normal(key_last, about.shape, t.dtype)
    return SimulatedPoint(t, about + step.change(noise, root), root, noise)


def _log_decoder(
    process: AbstractNonlinearDiffusion,
    decoder: AbstractDecoder,
    model: AbstractModel,
    start: State,
    first: _First,
    score: State,
) -> Scalar:
    """The log-density of the decoder of the process linearised at the state at t0."""
    t0 = process.t0.astype(start.dtype)
    y = start + first.change
    step = local_step(process, jnp.zeros_like(t0), t0, y)
    kernel = kernel_of(process, step, t0)
    # From the change and not from the state, in which a small step is lost.
    residual = apply_to_vars(step.transition.mean_map, first.change) - step.shift
    error = kernel.whiten(residual) + apply_to_vars(transpose(kernel.root), score)
    # The noise is that of the first step, which is exactly normal, because it serves as
    # a control variate of known mean.
    point = Point(kernel, start, first.noise, y, False)
    return decoder.log_density(point, error, model)
