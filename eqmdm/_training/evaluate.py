"""Evaluation: the itemised bound on each of a set of examples."""

import math
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from .._bound.times import strata_of_draws, stratified_standard_error
from .._core.checks import as_examples, check_count
from .._core.conditions import as_conditions
from .._core.estimate import Estimate
from .._core.sharding import divide_batch, mesh_of, on_host
from .._core.types import PRNGKey
from .._model.base import AbstractModel, check_conditions, check_model
from .objective import Objective, model_dtype


@final
class Evaluation(eqx.Module):
    r"""An itemised bound over a set of examples.

    - `terms`: a float64 array over the examples for each of `reconstruction`, `prior`,
        `diffusion`, `auxiliary`, `dequantisation`, `data_transform` and their sum
        `total`, in nats, and for grey levels `bits_per_dim`, which is computed from
        `total`. `dequantisation` and `data_transform` are the two parts of the
        correction of [`eqmdm.GreyLevels.encode`][].
    - `standard_error`: the standard error of each example's `total` as an estimate of
        the bound on this example, from its own draws; NaN for one draw. Its square is
        unbiased. With $2 m$ draws it has $m$ degrees of freedom, so use the quantiles
        of Student's t for confidence intervals: with 8 draws, two standard errors
        either side hold the bound in about 88 % of cases.
    """

    terms: dict[str, np.ndarray]
    standard_error: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """The training loss of each example: bits per dimension for grey levels, or
        minus `total`, in nats, for points."""
        return self.terms.get("bits_per_dim", -self.terms["total"])

    def summary(self) -> dict[str, Estimate]:
        """The mean of each term over the examples, as an estimate of its expectation
        under the data distribution.

        The standard error assumes independent examples, and covers both their spread
        and their random draws. Because the times are spread evenly over the examples,
        it can only be too large. It is NaN for a single example.
        """
        return {name: Estimate.from_mean(v) for name, v in self.terms.items()}

    def __repr__(self) -> str:
        name = "bits_per_dim" if "bits_per_dim" in self.terms else "total"
        n = len(self.standard_error)
        return f"Evaluation({name}={self.summary()[name]} over {n} examples)"


def evaluate(
    model: AbstractModel,
    examples: Any,
    objective: Objective,
    *,
    key: PRNGKey,
    condition: PyTree = None,
    n_draws: int = 1,
    batch_size: int = 64,
    first: int = 0,
) -> Evaluation:
    """The itemised bound on each of a set of examples.

    Every draw is keyed by the number of its example, so results do not depend on the
    batch size or the order. The times of an example's draws are stratified, with two
    draws per stratum. They are shifted within the strata by a multiple of the golden
    ratio, which spreads the times of all examples evenly.

    **Arguments:**

    - `model`: an [`eqmdm.DenoiserModel`][], [`eqmdm.NoiseModel`][],
        [`eqmdm.FunctionModel`][] or one of your own.
    - `examples`: integer levels or points, stacked along the first axis: an array, or
        anything that `numpy.asarray` accepts.
    - `objective`: the encoding of examples, and the form of the bound on them.
    - `condition`: the conditions of a conditional model, one for each example.
    - `n_draws`: the number of draws of time and noise to average for each example.
    - `batch_size`: the number of (example, draw) pairs evaluated at once.
    - `first`: the number of the first example.

    **Raises:**

    `TypeError` unless `model` is a model, for examples that are not an array of real
    numbers, or for a dtype that the objective does not accept; `ValueError` for empty
    examples, counts below 1, grey levels that are out of range, points that are not
    finite, conditions that do not suit the network or the number of examples, or a
    diffusion that ends below the range that its denoiser was trained on.
    """
    check_model(model)
    examples = as_examples("examples", examples)
    check_count("n_draws", n_draws)
    check_count("batch_size", batch_size)
    objective.check(examples)
    n = len(examples)
    condition = as_conditions(condition, n)
    check_conditions(model, condition)
    model.check_final_time(jnp.zeros(()))
    mesh = mesh_of(model)
    parts = []
    # Arrays, so that a different number of draws does not recompile.
    strata = strata_of_draws(n_draws)
    for start in range(0, n * n_draws, batch_size):
        # Pad the last batch with its last pair, so that only one shape is compiled.
        pairs = np.minimum(np.arange(start, start + batch_size), n * n_draws - 1)
        rows, draws = pairs // n_draws, pairs % n_draws
        batch = (
            jnp.asarray(examples[rows]),
            jax.tree.map(lambda leaf: leaf[rows], condition),  # noqa: B023
            jnp.asarray(rows + first, jnp.int32),
            jnp.asarray(draws, jnp.int32),
            *(jnp.asarray(part[draws], jnp.float32) for part in strata),
        )
        batch = divide_batch(batch, mesh)
        parts.append(on_host(_evaluate_batch(model, objective, key, batch)))
    draws = {
        name: np.concatenate([part[name] for part in parts])[: n * n_draws]
        .astype(np.float64)
        .reshape(n, n_draws)
        for name in parts[0]
    }
    total = np.sum(list(draws.values()), axis=0)
    standard_error = np.asarray(stratified_standard_error(total))
    terms = {name: values.mean(axis=1) for name, values in draws.items()}
    terms["total"] = total.mean(axis=1)
    if objective.levels is not None:
        n_dims = math.prod(examples.shape[1:])
        terms["bits_per_dim"] = -terms["total"] / (n_dims * math.log(2))
    return Evaluation(terms, standard_error)


@eqx.filter_jit
def _evaluate_batch(model, objective, key, batch):
    """The terms of the bound on each of a batch of (example, draw) pairs."""
    dtype = model_dtype(model)
    key_time, key_bound = jr.split(key)

    def one(example, condition, number, draw, low, width):
        # Multiples of the golden ratio modulo 1 are evenly spread for any number.
        place = number.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
        shift = (place >> 8).astype(dtype) / 2**24
        within = (jr.uniform(jr.fold_in(key_time, draw), (), dtype) + shift) % 1
        # The sum may round up to 1.
        u = low.astype(dtype) + width.astype(dtype) * within
        u = jnp.minimum(u, 1 - float(jnp.finfo(dtype).epsneg))
        key_draw = jr.fold_in(jr.fold_in(key_bound, number), draw)
        bound, added = objective.bound(
            model, example, key_draw, u, condition=condition, check=False
        )
        return bound.terms() | added

    return jax.vmap(one)(*batch)
