"""What is optimised and reported: the bound on examples as they are stored."""

import math
from typing import Any, NamedTuple, TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from .._bound.decoders import AbstractDecoder, DiscreteDecoder
from .._bound.elbo import (
    Elbo,
    check_decoder,
    compute_elbo,
    compute_shared_elbo,
    default_decoder,
    default_time_sampler,
)
from .._bound.forms import AbstractForm, LowVariance
from .._bound.times import AbstractTimeSampler
from .._core.checks import check_count, check_finite, check_precision
from .._core.sharding import divide_batch, mesh_of, on_host
from .._core.types import Data, PRNGKey, Scalar
from .._levels import GreyLevels
from .._model.score import (
    AbstractScore,
    DenoiserScore,
    FreeScore,
    PreconditionedDenoiser,
    check_trained_range,
)


Example: TypeAlias = Shaped[Array, "*data"]
Examples: TypeAlias = Shaped[Array, "examples ..."]
HostExamples: TypeAlias = Shaped[np.ndarray, "examples ..."]


def make_score(network: Any, diffusion: Any) -> Any:
    """The score of a trained pair: a view, built where it is used.

    **Arguments:**

    - `network`: a `PreconditionedDenoiser`, which gives a `DenoiserScore`; or a network
        that predicts the noise of the whole state, which gives a `FreeScore`.
    - `diffusion`: the diffusion it is trained with.
    """
    if isinstance(network, PreconditionedDenoiser):
        return DenoiserScore(network, diffusion)
    return FreeScore(network, diffusion)


@final
class Objective(eqx.Module):
    """What is trained and evaluated: how an example becomes data, and the bound on it.

    **Arguments:**

    - `form`, `decoder`, `time_sampler`: as for [`eqmdm.elbo`][], with its defaults;
        but for grey levels at their centres the decoder is discrete.
    - `grey_levels`: how integer levels become data; `None` for examples that are
        points already, whose loss is then in nats instead of bits per dimension.
    - `flip`: whether training reflects images left to right, half of the time.

    **Raises:**

    `ValueError` for a decoder that does not go with the form or with the grey levels:
    the density at a level's centre bounds nothing, and a discrete decoder beside
    dequantisation counts the levels twice.
    """

    form: AbstractForm
    decoder: AbstractDecoder
    time_sampler: AbstractTimeSampler | None
    grey_levels: GreyLevels | None
    flip: bool

    def __init__(
        self,
        form: AbstractForm | None = None,
        decoder: AbstractDecoder | None = None,
        time_sampler: AbstractTimeSampler | None = None,
        grey_levels: GreyLevels | None = None,
        flip: bool = False,
    ):
        self.form = LowVariance() if form is None else form
        if decoder is None:
            decoder = default_decoder(self.form)
            if grey_levels is not None and not grey_levels.gives_density:
                decoder = DiscreteDecoder(grey_levels)
        self.decoder = decoder
        self.time_sampler = time_sampler
        self.grey_levels = grey_levels
        self.flip = flip
        check_decoder(self.form, self.decoder)
        _check_levels(self.decoder, grey_levels)

    def _parts(
        self, score: AbstractScore
    ) -> tuple[AbstractForm, AbstractDecoder, AbstractTimeSampler]:
        times = self.time_sampler
        times = default_time_sampler(score) if times is None else times
        return self.form, self.decoder, times

    def bound(
        self,
        model: PyTree,
        example: Example,
        key: PRNGKey,
        u: Scalar,
        *,
        check: bool = True,
    ) -> tuple[Elbo, dict[str, Scalar]]:
        """The bound on one example, and the terms that encoding it adds.

        `check` is as for [`eqmdm.GreyLevels.encode`][], here and below.
        """
        network, diffusion = model
        key_encode, key_bound = jr.split(key)
        x, correction = self._encode(example, key_encode, u.dtype, check)
        score = make_score(network, diffusion)
        parts = self._parts(score)
        bound = compute_elbo(score, diffusion, x, u, *parts, key=key_bound)
        jacobian = jnp.zeros((), u.dtype)
        if self.grey_levels is not None:
            jacobian = self.grey_levels.log_jacobian(x)
        added = {"dequantisation": correction - jacobian, "data_transform": jacobian}
        return bound, added

    def shared_bound(
        self,
        model: PyTree,
        examples: Examples,
        keys: Shaped[Array, " examples"],
        u: Float[Array, " shared"],
        n_reconstruction: int,
        *,
        check: bool = True,
    ) -> tuple[Elbo, Scalar]:
        """Both averaged over a batch whose examples share the terms of the bound."""
        network, diffusion = model
        key_encode, key_bound = jnp.moveaxis(jax.vmap(jr.split)(keys), 1, 0)
        encode = lambda example, key: self._encode(example, key, u.dtype, check)
        x, corrections = jax.vmap(encode)(examples, key_encode)
        score = make_score(network, diffusion)
        parts = self._parts(score)
        bound = compute_shared_elbo(
            score, diffusion, x, u, n_reconstruction, *parts, keys=key_bound
        )
        return bound, jnp.mean(corrections)

    def loss(self, total: Array, shape: tuple[int, ...]) -> Array:
        """Bits per dimension from a log-likelihood in nats; for points, nats."""
        if self.grey_levels is None:
            return -total
        return -total / (math.prod(shape) * math.log(2))

    def check(self, examples: Examples | HostExamples) -> None:
        """Refuses grey levels that are out of range, as `GreyLevels.check` does, and
        points that are not finite."""
        if self.grey_levels is not None:
            self.grey_levels.check(examples)
        else:
            _refuse_integers(examples.dtype)
            check_finite("examples", examples)

    def _encode(
        self, example: Example, key: PRNGKey, dtype: jnp.dtype, check: bool
    ) -> tuple[Data, Scalar]:
        if self.grey_levels is None:
            _refuse_integers(example.dtype)
            return example.astype(dtype), jnp.zeros((), dtype)
        return self.grey_levels.encode(example, key=key, dtype=dtype, check=check)


def _check_levels(decoder: AbstractDecoder, grey_levels: GreyLevels | None) -> None:
    at_centres = grey_levels is not None and not grey_levels.gives_density
    discrete = isinstance(decoder, DiscreteDecoder)
    if discrete != at_centres:
        how = "dequantised" if grey_levels is not None else "points"
        raise ValueError(
            "`decoder` must be a `DiscreteDecoder` for grey levels at their centres "
            "(`CentreDequantiser`), which have no density, and for these alone; got "
            f"{type(decoder).__name__} for data that are "
            f"{'level centres' if at_centres else how}."
        )
    if not isinstance(decoder, DiscreteDecoder) or grey_levels is None:
        return
    own = decoder.levels
    same = own.n_levels == grey_levels.n_levels
    if not (same and eqx.tree_equal(own.transform, grey_levels.transform) is True):
        raise ValueError(
            "`decoder` must have the levels and the transform of `grey_levels`; got "
            f"{own.n_levels} by {own.transform} and {grey_levels.n_levels} by "
            f"{grey_levels.transform}. Leave it out, and it has."
        )


def _refuse_integers(dtype: np.dtype) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "`examples` must be floating-point data where there are no `grey_levels`; "
            f"got {dtype}. Integers have no density: give the objective "
            "`grey_levels=eqmdm.GreyLevels(n)`, with n levels, to dequantise them."
        )


def batch_loss(
    model: PyTree,
    objective: Objective,
    examples: Examples,
    keys: Shaped[Array, " examples"],
    u: Float[Array, " shared"],
    *,
    n_reconstruction: int,
    check: bool = True,
) -> tuple[Scalar, dict[str, Scalar]]:
    """The training loss on given examples with given draws, and its terms.

    **Arguments:**

    - `model`: the pair (network or denoiser, diffusion).
    - `examples`, `keys`: a batch, and a key for each example.
    - `u`: quantiles of the time for the last `len(u)` of the examples, over which the
        diffusion term is averaged.
    - `n_reconstruction`: how many of the examples, counted from the first, the
        reconstruction term is averaged over.
    - `check`: as for [`eqmdm.GreyLevels.encode`][].

    **Returns:**

    The loss in bits per dimension (nats for points), and a dictionary with it and the
    mean of each term in nats.
    """
    bound, correction = objective.shared_bound(
        model, examples, keys, u, n_reconstruction, check=check
    )
    terms = {
        "reconstruction": bound.reconstruction,
        "prior": bound.prior,
        "diffusion": bound.diffusion,
        "auxiliary": bound.auxiliary,
        "correction": correction,
    }
    loss = objective.loss(bound.total + correction, examples.shape[1:])
    return loss, {"loss": loss} | terms


class Evaluation(NamedTuple):
    """An itemised bound over a set of examples, in nats per example.

    - `terms`: an array over the examples for each of `reconstruction`, `prior`,
        `diffusion`, `auxiliary`, `dequantisation`, `data_transform`, their sum `total`,
        and `loss`, which is in bits per dimension (nats for points). The two before the
        sum are the parts of the correction of `GreyLevels.encode`.
    - `standard_error`: of each example's `total`, from its draws as if their times were
        independent: being spread evenly, they do better. NaN for one draw.
    """

    terms: dict[str, np.ndarray]
    standard_error: np.ndarray

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error over the examples of each term."""
        n = len(self.terms["total"])
        error = lambda v: float(v.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        return {name: (float(v.mean()), error(v)) for name, v in self.terms.items()}


def evaluate(
    model: PyTree,
    examples: Examples | HostExamples,
    objective: Objective,
    *,
    key: PRNGKey,
    n_draws: int = 1,
    batch_size: int = 64,
    first: int = 0,
) -> Evaluation:
    """The itemised bound on each of a set of examples.

    Every draw is keyed by the number of its example, so a result depends on neither the
    batch size nor the order. Times are spread evenly over an example's draws and, by
    the examples' numbers, over all of them: a mean is better than its standard error
    over the examples says.

    **Arguments:**

    - `model`: the pair (network or denoiser, diffusion).
    - `examples`: a stack of them, integer levels or points.
    - `n_draws`: draws of time and noise averaged for each example.
    - `batch_size`: (example, draw) pairs evaluated at once.
    - `first`: the number of the first example.

    **Raises:**

    `ValueError` for counts below 1, grey levels that are out of range or points that
    are not finite, or a diffusion that ends below the range that its denoiser was
    trained on.
    """
    n = len(examples)
    counts = {"examples": n, "n_draws": n_draws, "batch_size": batch_size}
    for name, count in counts.items():
        check_count(name, count)
    objective.check(examples)
    network, diffusion = model
    check_trained_range(make_score(network, diffusion), diffusion, jnp.zeros(()))
    mesh = mesh_of(model)
    parts = []
    for start in range(0, n * n_draws, batch_size):
        # The last batch is filled up with its last pair, to compile only once.
        pairs = np.minimum(np.arange(start, start + batch_size), n * n_draws - 1)
        rows, draws = pairs // n_draws, pairs % n_draws
        batch = (
            jnp.asarray(examples[rows]),
            jnp.asarray(rows + first, jnp.int32),
            jnp.asarray(draws, jnp.int32),
        )
        part = _evaluate_batch(
            model,
            objective,
            key,
            divide_batch(batch, mesh),
            jnp.asarray(n_draws, jnp.int32),
        )
        parts.append(on_host(part))
    draws = {
        name: np.concatenate([part[name] for part in parts])[: n * n_draws]
        .astype(np.float64)
        .reshape(n, n_draws)
        for name in parts[0]
    }
    standard_error = np.full(n, np.nan)
    if n_draws > 1:
        standard_error = draws["total"].std(axis=1, ddof=1) / math.sqrt(n_draws)
    terms = {name: values.mean(axis=1) for name, values in draws.items()}
    return Evaluation(terms, standard_error)


@eqx.filter_jit
def _evaluate_batch(model, objective, key, batch, n_draws):
    examples, numbers, draws = batch
    dtype = model_dtype(model)
    key_time, key_bound = jr.split(key)
    shift = jr.uniform(key_time, (), dtype)
    n_draws = n_draws.astype(dtype)

    def one(example, number, draw):
        # Multiples of the golden ratio, modulo 1, spread evenly however many there are.
        place = number.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
        u = (place >> 8).astype(dtype) / 2**24 + draw.astype(dtype) / n_draws
        u = (u + shift) % 1
        key_draw = jr.fold_in(jr.fold_in(key_bound, number), draw)
        bound, added = objective.bound(model, example, key_draw, u, check=False)
        total = bound.total + added["dequantisation"] + added["data_transform"]
        return {
            "loss": objective.loss(total, example.shape),
            "total": total,
            "reconstruction": bound.reconstruction,
            "prior": bound.prior,
            "diffusion": bound.diffusion,
            "auxiliary": bound.auxiliary,
            **added,
        }

    return jax.vmap(one)(examples, numbers, draws)


def model_dtype(model: PyTree) -> jnp.dtype:
    """The dtype that data take: that of the model's parameters."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    if not leaves:
        return jnp.result_type(float)
    dtype = jnp.result_type(*[leaf.dtype for leaf in leaves])
    return check_precision("model", dtype)
