"""The objective: the encoding of examples as data, and the bound on them."""

import math
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from .._basis import AbstractBasis, PixelBasis
from .._bound.decoders import AbstractDecoder, DiscreteDecoder
from .._bound.estimate import (
    check_decoder,
    compute_elbo,
    compute_shared_elbo,
    default_decoder,
    default_form,
    default_time_sampler,
)
from .._bound.forms import AbstractForm, LowVariance
from .._bound.result import Elbo
from .._bound.times import AbstractTimeSampler
from .._core.checks import check_finite, check_points, check_precision
from .._core.random import draw_normal
from .._core.types import Data, PRNGKey, Scalar
from .._levels import GreyLevels
from .._model.base import AbstractModel, conditioned
from .._model.student_t import normal_model
from .snr_vectors import SNRVectors


Example: TypeAlias = Shaped[Array, "*data"]
Examples: TypeAlias = Shaped[Array, "examples ..."]
HostExamples: TypeAlias = Shaped[np.ndarray, "examples ..."]
# The terms of a bound by name, in nats.
Terms: TypeAlias = dict[str, Scalar]
# The tag of the keys of vectors of log-SNRs; an example's other draws use 0 to 2.
_VECTORS = 3


@final
class Objective(eqx.Module):
    r"""The objective of training and evaluation: the encoding of examples as data, and
    the bound on them.

    **Arguments:**

    - `form`, `decoder`, `time_sampler`: as for [`eqmdm.elbo`][], with its defaults,
        except that the decoder is discrete for grey levels at their centres.
    - `levels`: the encoding of integer levels; `None` if examples are already points.
    - `flip`: whether training reflects images left to right, with probability 1/2.
    - `drop_condition`: the probability with which training replaces the condition of an
        example by the missing one, so that the network also learns the unconditional
        data (classifier-free guidance, Ho & Salimans 2022).
    - `log_jacobian`: the number, in nats, that converts the log-density of points to
        their original units by addition: that of [`eqmdm.data.Standardisation`][].
    - `basis`: the orthonormal basis whose coefficients the model sees as its data;
        `None` for the data themselves.
    - `snr_vectors`: the vectors of log-SNRs that training adds, for a denoiser that is
        told one. The bound, which is reported, does not depend on them.

    **Raises:**

    `ValueError` for both a `log_jacobian` and `levels`, whose transform has its own, or
    for a decoder that does not match the form or the levels: the density at a level's
    centre is not a bound, a discrete decoder with dequantisation counts the levels
    twice, and coefficients in a basis have no levels.
    """

    form: AbstractForm | None
    decoder: AbstractDecoder
    time_sampler: AbstractTimeSampler | None
    levels: GreyLevels | None
    flip: bool
    drop_condition: float = eqx.field(static=True)
    # A static Python number, because it is constant over a run.
    log_jacobian: float = eqx.field(static=True)
    basis: AbstractBasis | None
    snr_vectors: SNRVectors | None

    def __init__(
        self,
        *,
        form: AbstractForm | None = None,
        decoder: AbstractDecoder | None = None,
        time_sampler: AbstractTimeSampler | None = None,
        levels: GreyLevels | None = None,
        flip: bool = False,
        drop_condition: float = 0.0,
        log_jacobian: float = 0.0,
        basis: AbstractBasis | None = None,
        snr_vectors: SNRVectors | None = None,
    ):
        self.form = form
        # All forms that are defaults, which depends on the model, have one decoder.
        known = LowVariance() if form is None else form
        if decoder is None:
            decoder = default_decoder(known)
            if levels is not None and not levels.gives_density:
                decoder = DiscreteDecoder(levels)
        self.decoder = decoder
        self.time_sampler = time_sampler
        self.levels = levels
        self.flip = flip
        self.drop_condition = float(drop_condition)
        if not 0 <= self.drop_condition < 1:
            raise ValueError(
                "`drop_condition` must be a probability below 1; got "
                f"{drop_condition}. 0.1 is usual."
            )
        self.log_jacobian = float(log_jacobian)
        if levels is not None and self.log_jacobian != 0:
            raise ValueError(
                "`log_jacobian` must be left out with `levels`, whose transform has "
                f"its own; got {log_jacobian}."
            )
        self.basis = basis
        self.snr_vectors = snr_vectors
        check_decoder(known, self.decoder)
        _check_levels(self.decoder, levels, basis)

    @property
    def unit(self) -> str:
        """The unit of `loss`: `"bits/dim"` for grey levels, `"nats"` for points."""
        return "nats" if self.levels is None else "bits/dim"

    def loss(self, total: Array, shape: tuple[int, ...]) -> Array:
        """The loss to minimise, from a bound in nats on examples of shape `shape`."""
        if self.levels is None:
            return -total
        return -total / (math.prod(shape) * math.log(2))

    def bound(
        self,
        model: AbstractModel,
        example: Example,
        key: PRNGKey,
        u: Scalar,
        *,
        condition: PyTree = None,
        check: bool = True,
    ) -> tuple[Elbo, Terms]:
        """The bound on one example, and the terms that its encoding adds.

        `check` is as for [`eqmdm.GreyLevels.encode`][], also in the methods below.
        """
        model = conditioned(model, condition)
        key_encode, key_bound = jr.split(key)
        x, added = self._encode(example, key_encode, u.dtype, check)
        return compute_elbo(model, x, u, *self._parts(model), key=key_bound), added

    def shared_bound(
        self,
        model: AbstractModel,
        examples: Examples,
        keys: Key[Array, " examples"],
        u: Float[Array, " shared"],
        n_reconstruction: int,
        *,
        conditions: PyTree = None,
        check: bool = True,
    ) -> tuple[Elbo, Terms]:
        """The mean bound and encoding terms over a batch of a training, with the terms
        of the bound estimated on parts of the batch.

        Hidden precisions are drawn as for a training: see
        `StudentTModel.draw_training_precision`.
        """
        key_encode, key_bound = jnp.moveaxis(jax.vmap(jr.split)(keys), 1, 0)
        encode = lambda example, key: self._encode(example, key, u.dtype, check)
        x, added = jax.vmap(encode)(examples, key_encode)
        parts = self._parts(model)
        bound = compute_shared_elbo(
            model,
            x,
            u,
            n_reconstruction,
            *parts,
            keys=key_bound,
            conditions=conditions,
            training=True,
        )
        return bound, jax.tree.map(jnp.mean, added)

    def check(self, examples: Examples | HostExamples) -> None:
        """**Raises:** `TypeError` for the wrong dtype for levels or points;
        `ValueError` for levels that are out of range or points that are not finite."""
        if self.levels is not None:
            self.levels.check(examples)
        else:
            check_points("examples", examples, "levels")
            check_finite("examples", examples)

    def _parts(
        self, model: AbstractModel
    ) -> tuple[AbstractForm, AbstractDecoder, AbstractTimeSampler]:
        form = default_form(model) if self.form is None else self.form
        times = self.time_sampler
        times = default_time_sampler(model, form) if times is None else times
        return form, self.decoder, times

    def vector_loss(
        self,
        model: AbstractModel,
        examples: Examples,
        keys: Key[Array, " examples"],
        *,
        conditions: PyTree = None,
        dtype: jnp.dtype | None = None,
        check: bool = True,
    ) -> Scalar:
        r"""The mean loss at random vectors of log-SNRs $\lambda$, in nats:

        $$\frac{\lambda_\text{high} - \lambda_\text{low}}{2} \sum_i \mathrm{SNR}_i
        (x_i - \hat x_i(\lambda, z))^2$$

        For vectors of equal, uniform log-SNRs it is minus the diffusion term of the
        bound. Coefficients of infinite log-SNR are left out: those that are known have
        no error, and those that are missing no weight.
        """
        # A denoiser that is told every log-SNR is told the precision with them.
        model = normal_model(model)
        vectors, log_snr_range = self.snr_vectors, model.log_snr_range
        if not model.takes_snr_vector or log_snr_range is None or vectors is None:
            raise TypeError(
                "`model` must be told the log-SNR of every coordinate, and know the "
                "range of its training, to be trained with `snr_vectors`; this "
                f"{type(model).__name__} is not. Give its `PreconditionedDenoiser` a "
                "`basis`, or leave `snr_vectors` out."
            )
        low, high = log_snr_range
        dtype = model_dtype(model) if dtype is None else dtype

        @jax.vmap
        def loss(example: Example, key: PRNGKey, condition: PyTree) -> Scalar:
            # As in the bound, so that XLA encodes the example once.
            x, _ = self._encode(example, jr.split(key)[0], dtype, check)
            key_vector, key_noise = jr.split(jr.fold_in(key, _VECTORS))
            basis = PixelBasis(x.shape) if self.basis is None else self.basis
            log_snr = vectors.draw(basis, (low, high), key=key_vector, dtype=dtype)
            finite = jnp.isfinite(log_snr)
            known = jnp.where(finite, log_snr, 0)
            noise = jnp.exp(-0.5 * known) * draw_normal(key_noise, x.shape, dtype)
            z = x + jnp.where(finite, noise, 0)
            error = x - conditioned(model, condition).denoise(log_snr, z)
            costs = jnp.where(finite, jnp.exp(known) * error**2, 0)
            return 0.5 * (high - low) * jnp.sum(costs)

        return jnp.mean(loss(examples, keys, conditions))

    def _encode(
        self, example: Example, key: PRNGKey, dtype: jnp.dtype, check: bool
    ) -> tuple[Data, Terms]:
        """The data of one example, and the two parts of the correction."""
        if self.levels is None:
            check_points("example", example, "levels")
            zero = jnp.zeros((), dtype)
            return self._in_basis(example.astype(dtype)), {
                "dequantisation": zero,
                "data_transform": zero + self.log_jacobian,
            }
        x, correction = self.levels.encode(example, key=key, dtype=dtype, check=check)
        jacobian = self.levels.log_jacobian(x)
        return self._in_basis(x), {
            "dequantisation": correction - jacobian,
            "data_transform": jacobian,
        }

    def _in_basis(self, x: Data) -> Data:
        return x if self.basis is None else self.basis.forward(x)


def _check_levels(
    decoder: AbstractDecoder, levels: GreyLevels | None, basis: AbstractBasis | None
) -> None:
    at_centres = levels is not None and not levels.gives_density
    discrete = isinstance(decoder, DiscreteDecoder)
    if discrete != at_centres:
        kind = "points" if levels is None else "dequantised"
        raise ValueError(
            "`decoder` must be a `DiscreteDecoder` for grey levels at their centres "
            "(`CentreDequantiser`), which have no density, and only for these; got "
            f"{type(decoder).__name__} for data that are "
            f"{'level centres' if at_centres else kind}."
        )
    if not isinstance(decoder, DiscreteDecoder) or levels is None:
        return
    if not isinstance(basis, PixelBasis | None):
        raise ValueError(
            "`basis` must be left out, or be a `PixelBasis`, with grey levels at their "
            "centres, since only pixels have levels that the decoder can give the mass "
            f"of; got {type(basis).__name__}. Use another dequantiser."
        )
    own = decoder.levels
    same = own.n_levels == levels.n_levels
    if not (same and eqx.tree_equal(own.transform, levels.transform) is True):
        raise ValueError(
            "`decoder` must have the levels and the transform of `levels`; got "
            f"{own.n_levels} by {own.transform} and {levels.n_levels} by "
            f"{levels.transform}. Leave `decoder` out to get a matching one."
        )


def batch_loss(
    model: AbstractModel,
    objective: Objective,
    examples: Examples,
    keys: Key[Array, " examples"],
    u: Float[Array, " shared"],
    *,
    n_reconstruction: int,
    n_vectors: int = 0,
    conditions: PyTree = None,
    check: bool = True,
) -> tuple[Scalar, Terms]:
    """The training loss on given examples with given draws, and its terms.

    **Arguments:**

    - `model`: the model to train.
    - `examples`, `keys`: a batch, and a key for each example.
    - `u`: quantiles of the time for the last `len(u)` examples, over which the
        diffusion term is averaged.
    - `n_reconstruction`: the number of examples, from the first, over which the
        reconstruction term is averaged.
    - `n_vectors`: the number of examples, before those of the diffusion term, with a
        vector of log-SNRs. Their loss has the weight that makes every example count as
        much as one of the diffusion term.
    - `conditions`: the conditions of a conditional model, one for each example.
    - `check`: as for [`eqmdm.GreyLevels.encode`][].

    **Returns:**

    The loss in the objective's unit, and a dictionary with the mean of each term in
    nats, and the loss as `loss`, without the part of the vectors.
    """
    bound, added = objective.shared_bound(
        model,
        examples,
        keys,
        u,
        n_reconstruction,
        conditions=conditions,
        check=check,
    )
    total = bound.total + added["dequantisation"] + added["data_transform"]
    loss = objective.loss(total, examples.shape[1:])
    metrics = {"loss": loss} | bound.terms() | added
    if not n_vectors:
        return loss, metrics
    taken = slice(len(examples) - len(u) - n_vectors, len(examples) - len(u))
    vectors = objective.vector_loss(
        model,
        examples[taken],
        keys[taken],
        conditions=jax.tree.map(lambda c: c[taken], conditions),
        dtype=u.dtype,
        check=check,
    )
    weighted = vectors * (n_vectors / len(u))
    loss = loss + objective.loss(-weighted, examples.shape[1:])
    return loss, metrics | {"vectors": vectors}


def model_dtype(model: PyTree) -> jnp.dtype:
    """The dtype for data, which is that of the model's parameters."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    if not leaves:
        return jnp.result_type(float)
    dtype = jnp.result_type(*[leaf.dtype for leaf in leaves])
    return check_precision("model", dtype)
