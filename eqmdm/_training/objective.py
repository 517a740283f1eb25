"""The objective: the encoding of examples as data, and the bound on them."""

import math
from typing import TypeAlias, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from .._bound.decoders import AbstractDecoder, DiscreteDecoder
from .._bound.estimate import (
    Elbo,
    check_decoder,
    compute_elbo,
    compute_shared_elbo,
    default_decoder,
    default_time_sampler,
)
from .._bound.forms import AbstractForm, LowVariance
from .._bound.times import AbstractTimeSampler
from .._core.checks import check_finite, check_points, check_precision
from .._core.types import Data, PRNGKey, Scalar
from .._levels import GreyLevels
from .._model.base import AbstractModel, conditioned


Example: TypeAlias = Shaped[Array, "*data"]
Examples: TypeAlias = Shaped[Array, "examples ..."]
HostExamples: TypeAlias = Shaped[np.ndarray, "examples ..."]
# The terms of a bound by name, in nats.
Terms: TypeAlias = dict[str, Scalar]


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

    **Raises:**

    `ValueError` for both a `log_jacobian` and `levels`, whose transform has its own, or
    for a decoder that does not match the form or the levels: the density at a level's
    centre is not a bound, and a discrete decoder with dequantisation counts the levels
    twice.
    """

    form: AbstractForm
    decoder: AbstractDecoder
    time_sampler: AbstractTimeSampler | None
    levels: GreyLevels | None
    flip: bool
    drop_condition: float = eqx.field(static=True)
    # A static Python number, because it is constant over a run.
    log_jacobian: float = eqx.field(static=True)

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
    ):
        self.form = LowVariance() if form is None else form
        if decoder is None:
            decoder = default_decoder(self.form)
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
        check_decoder(self.form, self.decoder)
        _check_levels(self.decoder, levels)

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
        """The mean bound and encoding terms over a batch, with the terms of the bound
        estimated on parts of the batch."""
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
        times = self.time_sampler
        times = default_time_sampler(model) if times is None else times
        return self.form, self.decoder, times

    def _encode(
        self, example: Example, key: PRNGKey, dtype: jnp.dtype, check: bool
    ) -> tuple[Data, Terms]:
        """The data of one example, and the two parts of the correction."""
        if self.levels is None:
            check_points("example", example, "levels")
            x, zero = example.astype(dtype), jnp.zeros((), dtype)
            return x, {
                "dequantisation": zero,
                "data_transform": zero + self.log_jacobian,
            }
        x, correction = self.levels.encode(example, key=key, dtype=dtype, check=check)
        jacobian = self.levels.log_jacobian(x)
        return x, {
            "dequantisation": correction - jacobian,
            "data_transform": jacobian,
        }


def _check_levels(decoder: AbstractDecoder, levels: GreyLevels | None) -> None:
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
    - `conditions`: the conditions of a conditional model, one for each example.
    - `check`: as for [`eqmdm.GreyLevels.encode`][].

    **Returns:**

    The loss in the objective's unit, and a dictionary with the loss as `loss` and the
    mean of each term in nats.
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
    return loss, {"loss": loss} | bound.terms() | added


def model_dtype(model: PyTree) -> jnp.dtype:
    """The dtype for data, which is that of the model's parameters."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    if not leaves:
        return jnp.result_type(float)
    dtype = jnp.result_type(*[leaf.dtype for leaf in leaves])
    return check_precision("model", dtype)
